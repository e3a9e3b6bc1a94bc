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
# # The missing half of a digit
#
# One network learns the density of small images of digits, in every order of the pixels. So it can draw whole digits,
# and complete a digit if only some of its pixels are known. The images are scikit-learn's 1,797 digits
# of 8 by 8 pixels.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import arcsm
from arcsm import AnyOrder, AutoregressiveModel, NoiseLadder, ScoreHead, TrainConfig
from arcsm.queries import complete

images = torch.tensor(load_digits().data, dtype=torch.float32) / 8.0 - 1.0
images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
test, valid, train = images[:200], images[200:400], images[400:]

# %%
model = AutoregressiveModel(
    context=AnyOrder(features=64, context_features=16, hidden_features=(256, 256)),
    head=ScoreHead(context_features=16, hidden_features=(64, 64), sinusoids=6),
    noise=NoiseLadder(sigma_max=2.0, sigma_min=0.1, levels=10),
)
result = arcsm.fit(model, train, valid, TrainConfig(steps=1_500, batch_size=128, standardise="none"))

# %% [markdown]
# Hide the lower half of eight digits that the model has not seen, and draw it six times.

# %%
known = test[:8].clone()
known[:, 32:] = torch.nan
generator = torch.Generator().manual_seed(0)
drawn = complete(model, known, n=6, generator=generator).rows

# %%
columns = [test[:8], known, *drawn.unbind(1)]
titles = ["whole", "known", *(f"drawn {number}" for number in range(1, 7))]
figure, panels = plt.subplots(8, 8, figsize=(7.0, 7.4))
for column, (title, rows) in enumerate(zip(titles, columns, strict=True)):
    for axes, pixels in zip(panels[:, column], rows, strict=True):
        axes.imshow(pixels.view(8, 8), cmap="gray", vmin=-1.0, vmax=1.0)
        axes.set(xticks=[], yticks=[])
    panels[0, column].set_title(title, fontsize=9)
figure.tight_layout()
plt.show()
