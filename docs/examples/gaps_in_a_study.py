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
# # Gaps in a clinical table
#
# A quarter of the values of 442 patients is lost. One model fills the gaps with values that fit the rest of each row,
# and says how sure it is. An effect that is estimated from the filled tables stays honest.
#
# The table holds age, sex, body mass index, blood pressure and six blood serum measurements of 442 patients, and the
# progression of their diabetes after one year (Efron, Hastie, Johnstone and Tibshirani, 2004).

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler

from arcsm.estimators import ScoreDensity

whole = load_diabetes(as_frame=True, scaled=False).frame.rename(columns={"target": "progression"})
random = np.random.default_rng(0)
hidden = random.random(whole.shape) < 0.25
table = whole.mask(hidden)

# %% [markdown]
# Fit once, then draw each gap 40 times, together with the other gaps of its row.

# %%
density = ScoreDensity(random_state=0).fit(table)
best = density.impute(table, random_state=0)
draws = density.impute(table, n=40, random_state=0)

# %% [markdown]
# How far are the filled values from the hidden ones, in standard deviations?

# %%
scale = StandardScaler().fit(whole)


def error(filled: pd.DataFrame) -> float:
    """Return the root mean squared error of the hidden values, in standard deviations of their columns."""
    distances = scale.transform(filled) - scale.transform(whole)
    return float(np.sqrt(np.mean(distances[hidden] ** 2)))


units = StandardScaler().set_output(transform="pandas").fit(table)
neighbours = KNNImputer().set_output(transform="pandas").fit_transform(units.transform(table))
others = {
    "mean": SimpleImputer().set_output(transform="pandas").fit_transform(table),
    "neighbours": pd.DataFrame(units.inverse_transform(neighbours), columns=table.columns),
}
errors = {"arcsm": error(best), **{name: error(filled) for name, filled in others.items()}}
for name, value in errors.items():
    print(f"{name:10}  {value:.2f}")

# %% [markdown]
# An effect: by how much does progression rise with the body mass index, at equal blood pressure? Every filled table
# gives an estimate. Their spread is what the gaps leave open (Rubin, 1987). Tables that are filled once show no spread.

# %%


def slope(rows: pd.DataFrame) -> float:
    """Return the coefficient of the body mass index in a linear regression."""
    design = np.column_stack([np.ones(len(rows)), rows["bmi"], rows["bp"]])
    return float(np.linalg.lstsq(design, rows["progression"], rcond=None)[0][1])


slopes = {name: slope(filled) for name, filled in others.items()}
of_draws = [slope(one) for one in draws]
print(f"without gaps {slope(whole):.2f}, filled {np.mean(of_draws):.2f} +- {np.std(of_draws):.2f}", slopes)

# %%
rows = np.flatnonzero(hidden[:, whole.columns.get_loc("bmi")])
filled = np.stack([one["bmi"].to_numpy()[rows] for one in draws])
low, middle, high = np.quantile(filled, [0.05, 0.5, 0.95], axis=0)
truth = whole["bmi"].to_numpy()[rows]
by_middle = np.argsort(middle)
figure, (left, right) = plt.subplots(1, 2, figsize=(10.0, 4.0), width_ratios=(3, 2))
left.fill_between(np.arange(len(rows)), low[by_middle], high[by_middle], color="#8ecae6", label="90 % of the draws")
left.plot(middle[by_middle], color="#023047", label="median")
left.plot(truth[by_middle], "o", color="#c1121f", markersize=3, label="hidden value")
left.set(xlabel="patients whose body mass index is hidden", ylabel="body mass index", xticks=[])
left.legend(frameon=False)
right.hist(of_draws, 12, color="#8ecae6", label="40 filled tables")
right.axvline(slope(whole), color="#c1121f", label="without gaps")
for (name, value), style in zip(slopes.items(), ("--", ":"), strict=True):
    right.axvline(value, color="#555555", linestyle=style, label=f"filled by {name}")
right.set(xlabel="progression for each unit of body mass index", yticks=[])
right.legend(frameon=False, fontsize=8)
figure.tight_layout()
plt.show()
