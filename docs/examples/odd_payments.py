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
# # Odd payments
#
# A detector learns how payments usually look. It then finds those that look like fraud, says why, and bounds the share
# of false alarms. The payments are invented: fraud has no value that is rare, only rare combinations.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from arcsm.estimators import ScoreOutlierDetector

random = np.random.default_rng(0)


def payments(count: int) -> pd.DataFrame:
    """Invent ordinary payments: amounts and hours depend on what is bought, and where."""
    kind = random.choice(["groceries", "fuel", "travel", "electronics"], count, p=[0.5, 0.2, 0.2, 0.1])
    typical = pd.Series({"groceries": 30.0, "fuel": 60.0, "travel": 300.0, "electronics": 400.0})
    spread = pd.Series({"groceries": 0.5, "fuel": 0.2, "travel": 0.6, "electronics": 0.5})
    abroad = random.random(count) < np.where(kind == "travel", 0.6, 0.02)
    online = random.random(count) < np.where(np.isin(kind, ["travel", "electronics"]), 0.7, 0.05)
    hour = np.where(online, random.normal(20.0, 2.5, count), random.normal(14.0, 3.0, count)) % 24.0
    return pd.DataFrame(
        {
            "kind": kind,
            "country": np.where(abroad, "abroad", "home"),
            "channel": np.where(online, "online", "shop"),
            "hour": hour.round(1),
            "amount": np.exp(
                np.log(typical[kind].to_numpy()) + spread[kind].to_numpy() * random.normal(size=count)
            ).round(2),
        }
    )


def fraud(count: int) -> pd.DataFrame:
    """Invent fraud: large amounts for groceries or fuel, abroad, in the afternoon."""
    rows = payments(count)
    return rows.assign(
        kind=random.choice(["groceries", "fuel"], count),
        country="abroad",
        amount=(random.uniform(200.0, 600.0, count)).round(2),
        hour=random.normal(14.0, 3.0, count).round(1),
    )


# %% [markdown]
# The detector sees 2,000 past payments. Five thousand others, which it has not seen, calibrate its p-values: a p-value
# is the share of ordinary payments that are at least as surprising.

# %%
past, held_out = payments(2_000), payments(5_000)
detector = ScoreOutlierDetector(random_state=0).fit(past).calibrate(held_out)

new = pd.concat([payments(980), fraud(20)], ignore_index=True)
is_fraud = np.arange(1_000) >= 980
p_values = detector.p_values(new)

# %% [markdown]
# Which payments should somebody look at? The rule of Benjamini and Hochberg selects those below the line, so that at
# most a tenth of them are false alarms, in the mean.

# %%
selected = detector.select(new, fdr=0.1)
print(f"{selected.sum()} payments selected, {(selected & is_fraud).sum()} of the 20 frauds among them")

# %% [markdown]
# Why? For the most surprising payments, the amount that would be usual given the other values, and the change of one
# value that would make the payment ordinary, if one is enough.

# %%
first = new.iloc[np.argsort(p_values)[:5]]
changes = detector.counterfactuals(first)
low, high = detector.expected(first)
usual = low["amount"].map("{:.0f}".format) + " to " + high["amount"].map("{:.0f}".format)
first.assign(usual=usual, change=changes["column"], to=changes["value"], still_odd=changes["outlier"])

# %%
order = np.argsort(p_values)[:60]
ranks = np.arange(1, 61)
figure, axes = plt.subplots(figsize=(7.0, 4.0))
for label, colour, chosen in (("ordinary", "#9aa5b1", ~is_fraud[order]), ("fraud", "#c1121f", is_fraud[order])):
    axes.plot(ranks[chosen], p_values[order][chosen], "o", color=colour, label=label)
axes.plot(ranks, 0.1 * ranks / len(new), color="black", linewidth=1.0, label="at most a tenth false alarms")
axes.set(
    xlabel="payments, the most surprising first", ylabel="p-value", yscale="log", title="Below the line: look at these"
)
axes.legend(frameon=False)
figure.tight_layout()
plt.show()
