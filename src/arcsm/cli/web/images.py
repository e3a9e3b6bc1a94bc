"""What the page computes for models of images, independent of Gradio."""

from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arcsm.data import image_grid, scale_images, unscale_images
from arcsm.data.metadata import grey_levels
from arcsm.denoise import GaussianNoise, MissingValues, particle_filter, posterior, tweedie
from arcsm.heads import DiscretisedLogisticMixtureHead
from arcsm.metrics import bits_per_dim
from arcsm.model import AutoregressiveModel
from arcsm.training.runs import class_labels

_PICTURE_PIXELS = 280  # approximate longer side of a picture on the page
_CANDIDATES = 8
_HEAT_QUANTILES = (0.02, 0.98)  # ends of the colour scale


class ImageLikelihood(NamedTuple):
    """Log density of an image in nats, bits per value, and a heat map of how unlikely each pixel is."""

    log_prob: float
    bits: float
    heat_map: Image.Image


class ImageExplorer:
    """Evaluate, denoise, complete and sample images for the page, by a model whose metadata has an ``image_shape``."""

    def __init__(self, model: AutoregressiveModel) -> None:
        self.model = model
        self.shape = tuple(int(size) for size in model.metadata["image_shape"])  # channels, height, width
        self.levels = grey_levels(model.metadata)
        self.classes = model.context.classes
        self.can_denoise = not isinstance(model.head, DiscretisedLogisticMixtureHead)
        self.zoom = max(1, _PICTURE_PIXELS // max(self.shape[1:]))

    def to_row(self, picture: Image.Image) -> Tensor:
        """Convert a picture of any size and mode to a row ``(D,)`` of the model, in the middle of its grey levels."""
        picture = _opaque(picture).convert("L" if self.shape[0] == 1 else "RGB")
        picture = picture.resize((self.shape[2], self.shape[1]), Image.Resampling.BOX)
        grey = torch.from_numpy(np.array(picture, dtype=np.float32)) * (self.levels - 1) / 255.0
        pixels = grey.round().to(torch.uint8).view(self.shape[1], self.shape[2], -1).permute(2, 0, 1)
        return (scale_images(pixels[None], self.levels).flatten() + 1.0 / self.levels).to(self.model.shift)

    def to_picture(self, rows: Tensor) -> Image.Image:
        """Convert a row ``(D,)``, or rows ``(N, D)`` in a grid, to a picture."""
        pixels = unscale_images(rows.cpu().reshape(-1, rows.shape[-1]), self.levels, stretch=True)
        pixels = pixels.view(-1, *self.shape)
        is_single = len(pixels) == 1
        zoom = self.zoom if is_single else max(1, self.zoom // 3)
        return image_grid(pixels, padding=0 if is_single else 2, zoom=zoom)

    @torch.no_grad()
    def evaluate(self, row: Tensor, label: int | None = None) -> ImageLikelihood:
        """Return how likely an image is, and which of its pixels are unlikely."""
        terms = self.model.log_prob(row[None], condition=self._condition(label), reduce=False)[0]
        total = terms.sum()
        bits = bits_per_dim(total, len(terms), self.levels)
        return ImageLikelihood(float(total), float(bits), self._heat_map(-terms.view(self.shape).sum(0)))

    def denoise(self, row: Tensor, sigma: float, label: int | None = None) -> Tensor:
        """Remove Gaussian noise of standard deviation ``sigma`` from an image ``(D,)``."""
        if self.model.noise is None or self.model.head.normalised:
            return posterior(self.model, row[None], GaussianNoise(sigma), condition=self._condition(label))[0]
        return tweedie(self.model, row[None], sigma, condition=self._condition(label))[0]

    def complete(self, row: Tensor, seed: int, label: int | None = None) -> Tensor:
        """Replace the lower half of an image ``(D,)`` by a sample given the upper half."""
        masked = row.view(self.shape).clone()
        masked[:, self.shape[1] // 2 :] = torch.nan
        rows, condition = masked.flatten()[None], self._condition(label)
        generator = torch.Generator(row.device).manual_seed(seed)
        completions = particle_filter(
            self.model, rows, MissingValues(), _CANDIDATES, generator, condition=condition, progress=True
        )
        weights = completions.weights[0].cpu()
        index = int(torch.multinomial(weights, 1, generator=torch.Generator().manual_seed(seed)))
        return completions.candidates[0, index]

    def sample(self, count: int, seed: int, label: int | None = None) -> Tensor:
        """Draw images ``(N, D)`` of one class, or of all classes in turn."""
        labels = class_labels(self.model, count, label)
        generator = torch.Generator(self.model.shift.device).manual_seed(seed)
        return self.model.sample(count, generator=generator, condition=labels, progress=True)

    def _condition(self, label: int | None) -> Tensor | None:
        return torch.tensor([label or 0], device=self.model.shift.device) if self.classes else None

    def _heat_map(self, negative_log_prob: Tensor) -> Image.Image:
        """Colour pixels by their negative log density in nats, ``(H, W)``; likely pixels are dark."""
        values = negative_log_prob.double().cpu()
        low, high = torch.quantile(values.flatten(), torch.tensor(_HEAT_QUANTILES, dtype=torch.float64))
        unit = ((values - low) / (high - low).clamp(min=1e-9)).clamp(0.0, 1.0)
        colours = mpl.colormaps["magma"](unit.numpy(), bytes=True)[..., :3]
        size = (self.shape[2] * self.zoom, self.shape[1] * self.zoom)
        return Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)


def _opaque(picture: Image.Image) -> Image.Image:
    """Return a picture in 8 bits, with transparency on a black background."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        return Image.fromarray((values * (255.0 / max(values.max(), 255.0))).astype(np.uint8))
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return picture
