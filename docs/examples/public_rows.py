# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Public rows of a private table
#
# A table of 20,000 people must not leave the house, but others need rows like these. Rows that are drawn from noisy
# statistics say nearly the same with any one person as without. The privacy budget epsilon decides how nearly: 1 is
# strong protection, 10 is weak. The people are invented.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from arcsm.privacy import PrivateStatistics

random = np.random.default_rng(0)
count = 20_000
age = random.gamma(12.0, 4.0, count).clip(18.0, 95.0).round()
smokes = random.random(count) < np.where(age < 40.0, 0.35, 0.15)
pressure = (95.0 + 0.6 * age + 8.0 * smokes + random.normal(0.0, 8.0, count)).round()
cost = (np.exp(5.0 + 0.03 * age + 0.5 * smokes + 0.6 * random.normal(size=count))).round(-1)
people = pd.DataFrame({"age": age, "smokes": np.where(smokes, "yes", "no"), "pressure": pressure, "cost": cost})

# %% [markdown]
# Each release spends its budget. All rows that are drawn from it cost nothing more.

# %%
budgets = (0.1, 1.0, 10.0)
public = {}
for epsilon in budgets:
    statistics = PrivateStatistics.release(people, epsilon, delta=1e-6)
    public[epsilon] = statistics.draw(20_000, np.random.default_rng(0))

# %% [markdown]
# What would others find in them?

# %%


def findings(rows: pd.DataFrame) -> dict[str, float]:
    """Return some numbers that a reader of the rows may want."""
    smoking = rows["smokes"] == "yes"
    return {
        "mean age": rows["age"].mean(),
        "smokers, %": 100.0 * smoking.mean(),
        "pressure of smokers, more by": rows["pressure"][smoking].mean() - rows["pressure"][~smoking].mean(),
        "correlation of age and pressure": rows["age"].corr(rows["pressure"]),
        "median cost": rows["cost"].median(),
    }


pd.DataFrame({"private": findings(people), **{f"epsilon {e:g}": findings(rows) for e, rows in public.items()}}).round(2)

# %%
figure, panels = plt.subplots(1, 4, figsize=(12.0, 3.2), sharex=True, sharey=True)
shown = {"private": people, **{f"public, epsilon {e:g}": rows for e, rows in public.items()}}
for axes, (title, rows) in zip(panels, shown.items(), strict=True):
    some = rows.head(3_000)
    for name, colour in (("no", "#457b9d"), ("yes", "#e63946")):
        chosen = some[some["smokes"] == name]
        axes.plot(chosen["age"], chosen["pressure"], ".", markersize=2, color=colour, label=f"smokes: {name}")
    axes.set(title=title, xlabel="age")
panels[0].set(ylabel="blood pressure", xlim=(10, 100), ylim=(70, 190))
panels[0].legend(frameon=False, markerscale=4)
figure.tight_layout()
plt.show()
