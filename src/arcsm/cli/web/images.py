"""What the page does with images, apart from the page."""

from __future__ import annotations

from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arcsm.data.images import image_grid
from arcsm.data.pixels import scale_images, unscale_images
from arcsm.denoise import GaussianNoise, MissingValues, particle_filter, posterior, tweedie
from arcsm.heads import DiscretisedLogisticMixtureHead
from arcsm.metrics import bits_per_dim
from arcsm.model import AutoregressiveModel
from arcsm.training.runs import class_labels

_SHOWN = 280  # pixels of the longer side of a picture on the page, about
_CANDIDATES = 8


class Judgement(NamedTuple):
    """What a model says of an image: its log density in nats, the bits a value, and a picture of the surprise."""

    log_prob: float
    bits: float
    surprise: Image.Image


class ImagePlay:
    """A model of images, asked with pictures.

    Arguments:
        model: A model whose metadata has an ``image_shape``.
    """

    def __init__(self, model: AutoregressiveModel) -> None:
        self.model = model
        self.shape = tuple(int(size) for size in model.metadata["image_shape"])  # channels, height, width
        self.levels = int(model.metadata.get("levels", 256))
        self.classes = model.context.classes
        self.cleans = not isinstance(model.head, DiscretisedLogisticMixtureHead)  # which knows no noise
        self.zoom = max(1, _SHOWN // max(self.shape[1:]))

    def row_of(self, picture: Image.Image) -> Tensor:
        """A picture of any size and kind as the model takes it, ``(D,)``: in its channels, resized, in mid-level."""
        picture = _flat(picture).convert("L" if self.shape[0] == 1 else "RGB")
        picture = picture.resize((self.shape[2], self.shape[1]), Image.Resampling.BOX)
        grey = torch.from_numpy(np.array(picture, dtype=np.float32)) * (self.levels - 1) / 255.0
        pixels = grey.round().to(torch.uint8).view(self.shape[1], self.shape[2], -1).permute(2, 0, 1)
        row = scale_images(pixels[None], self.levels).flatten() + 1.0 / self.levels
        return row.to(self.model.shift)

    def picture_of(self, row: Tensor) -> Image.Image:
        """A row ``(D,)`` as a picture to be looked at."""
        return self.grid_of(row[None])

    def grid_of(self, rows: Tensor) -> Image.Image:
        """Rows ``(N, D)`` as one picture."""
        pixels = unscale_images(rows.cpu(), self.levels, stretch=True).view(-1, *self.shape)
        zoom = self.zoom if len(rows) == 1 else max(1, self.zoom // 3)
        return image_grid(pixels, padding=0 if len(rows) == 1 else 2, zoom=zoom)

    @torch.no_grad()
    def judge(self, row: Tensor, label: int | None = None) -> Judgement:
        """How likely an image is, and which of its pixels are not."""
        terms = self.model.log_prob(row[None], condition=self._label(label), reduce=False)[0]
        total = terms.sum()
        bits = bits_per_dim(total, len(terms), self.levels)
        return Judgement(float(total), float(bits), self._heat(-terms.view(self.shape).sum(0)))

    def clean(self, row: Tensor, sigma: float, label: int | None = None) -> Tensor:
        """An image without the Gaussian noise of a standard deviation, ``(D,)``."""
        if self.model.noise is None or self.model.head.normalised:
            return posterior(self.model, row[None], GaussianNoise(sigma), condition=self._label(label))[0]
        return tweedie(self.model, row[None], sigma, condition=self._label(label))[0]

    def complete(self, row: Tensor, seed: int, label: int | None = None) -> Tensor:
        """An image whose lower half is drawn anew, given the upper one, ``(D,)``."""
        known = row.view(self.shape).clone()
        known[:, self.shape[1] // 2 :] = torch.nan
        generator = torch.Generator(row.device).manual_seed(seed)
        found = particle_filter(
            self.model,
            known.flatten()[None],
            MissingValues(),
            _CANDIDATES,
            generator,
            condition=self._label(label),
            progress=True,
        )
        chosen = int(torch.multinomial(found.weights[0].cpu(), 1, generator=torch.Generator().manual_seed(seed)))
        return found.candidates[0, chosen]

    def sample(self, count: int, seed: int, label: int | None = None) -> Tensor:
        """Images that the model draws, ``(N, D)``; of all classes in turn, unless one is chosen."""
        labels = class_labels(self.model, count, label)
        generator = torch.Generator(self.model.shift.device).manual_seed(seed)
        return self.model.sample(count, generator=generator, condition=labels, progress=True)

    def _label(self, label: int | None) -> Tensor | None:
        if not self.classes:
            return None
        return torch.tensor([label or 0], device=self.model.shift.device)

    def _heat(self, surprise: Tensor) -> Image.Image:
        """Nats of surprise ``(H, W)`` as a picture, dark for what was to be expected."""
        low, high = torch.quantile(surprise.flatten().double().cpu(), torch.tensor([0.02, 0.98], dtype=torch.float64))
        unit = ((surprise.double().cpu() - low) / (high - low).clamp(min=1e-9)).clamp(0.0, 1.0)
        colours = mpl.colormaps["magma"](unit.numpy(), bytes=True)[..., :3]
        size = (self.shape[2] * self.zoom, self.shape[1] * self.zoom)
        return Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)


def _flat(picture: Image.Image) -> Image.Image:
    """A picture on black, without its transparency; 16 bits become 8."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        return Image.fromarray((values * (255.0 / max(values.max(), 255.0))).astype(np.uint8))
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return picture
