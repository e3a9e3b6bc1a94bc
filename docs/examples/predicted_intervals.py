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
# # An interval for every prediction
#
# How will the disease of a patient progress? A single number hides that some patients are harder to predict than
# others. `ScoreRegressor` predicts a whole distribution: an interval, the probability of a threshold, and the density
# of every outcome.
#
# The table holds ten measurements of 442 patients, and the progression of their diabetes after one year (Efron, Hastie,
# Johnstone and Tibshirani, 2004).

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from arcsm.estimators import ScoreRegressor

x, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=100, random_state=0)

# %%
regressor = ScoreRegressor(random_state=0).fit(x_train, y_train)
predicted = regressor.predict_distribution(x_test)

# %% [markdown]
# An interval of 90 % should hold nine of ten outcomes of patients that the model has not seen.

# %%
low, high = predicted.interval(0.9)
inside = (low <= y_test) & (y_test <= high)
print(f"{inside.mean():.0%} of 100 outcomes inside, widths from {(high - low).min():.0f} to {(high - low).max():.0f}")
print(f"mean log density {regressor.log_score(x_test, y_test):.2f} nats, R2 {regressor.score(x_test, y_test):.2f}")

# %% [markdown]
# The probability that progression exceeds 200, and how often it does among patients with such a probability:

# %%
above = 1.0 - predicted.cdf(200.0)
for least, most in ((0.0, 0.2), (0.2, 0.5), (0.5, 1.0)):
    chosen = (least <= above) & (above < most)
    share = (y_test[chosen] > 200.0).mean()
    print(f"predicted {least:.0%} to {most:.0%}: {chosen.sum():3} patients, {share:.0%} exceed it")

# %%
order = np.argsort(predicted.quantile(0.5))
grid = np.linspace(0.0, 400.0, 161)
density = predicted.pdf(grid[:, None])[:, order]
figure, axes = plt.subplots(figsize=(8.0, 4.5))
axes.imshow(density, origin="lower", aspect="auto", extent=(-0.5, 99.5, 0.0, 400.0), cmap="Blues", vmax=0.01)
axes.plot(low[order], color="#023047", linewidth=1.0, label="interval of 90 %")
axes.plot(high[order], color="#023047", linewidth=1.0)
axes.plot(y_test.to_numpy()[order], "o", color="#c1121f", markersize=3, label="outcome")
axes.set(xlabel="100 new patients, by their predicted median", ylabel="progression", ylim=(0.0, 400.0))
axes.legend(frameon=False, loc="upper left")
figure.tight_layout()
plt.show()
