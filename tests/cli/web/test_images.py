"""What the page computes for images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from arcsm.cli.web.images import ImageExplorer
from arcsm.denoise import tweedie
from small_web_models import image_model

PICTURES = {
    "grey": Image.fromarray(np.full((40, 60), 255, dtype=np.uint8)),
    "colour": Image.new("RGB", (12, 8), (255, 255, 255)),
    "transparent": Image.new("RGBA", (6, 4), (255, 255, 255, 255)),
    "16 bits": Image.fromarray(np.full((8, 12), 65535, dtype=np.uint16)),
    "palette": Image.new("RGB", (6, 4), (255, 255, 255)).convert("P"),
}


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 4, 6)])
def test_any_picture_converts_to_a_row(shape: tuple[int, int, int]) -> None:
    explorer = ImageExplorer(image_model(shape))
    for picture in PICTURES.values():
        row = explorer.to_row(picture)
        torch.testing.assert_close(row, torch.full_like(row, 1.0 - 1.0 / 17))  # the middle of the highest of 17 levels
        assert explorer.to_picture(row).size == (6 * explorer.zoom, 4 * explorer.zoom)


def test_evaluation_is_the_log_density_of_the_model() -> None:
    model = image_model()
    explorer, row = ImageExplorer(model), torch.linspace(-1.0, 1.0, 24)
    result = explorer.evaluate(row)
    terms = model.log_prob(row[None], reduce=False)[0]
    assert result.log_prob == pytest.approx(float(terms.sum()), abs=1e-4)
    assert result.bits == pytest.approx(-result.log_prob / 24 / np.log(2) + np.log2(17 / 2), abs=1e-6)
    heat = np.asarray(result.heat_map).astype(int).sum(-1)[:: explorer.zoom, :: explorer.zoom].flatten()
    assert int(heat.argmax()) == int(terms.argmin())  # the least likely pixel is the brightest


def test_completion_keeps_the_upper_half() -> None:
    explorer, row = ImageExplorer(image_model()), torch.linspace(-1.0, 1.0, 24)
    first, again, other = (explorer.complete(row, seed) for seed in (0, 0, 1))
    torch.testing.assert_close(first[:12], row[:12])
    assert torch.equal(first, again)
    assert not torch.allclose(first[12:], other[12:])
    assert bool(first.isfinite().all())


def test_samples_depend_on_seed_and_class() -> None:
    explorer = ImageExplorer(image_model(classes=3))
    assert explorer.sample(4, 0).shape == (4, 24)
    assert torch.equal(explorer.sample(4, 7, 1), explorer.sample(4, 7, 1))
    assert not torch.equal(explorer.sample(4, 7, 1), explorer.sample(4, 7, 2))
    row = explorer.to_row(PICTURES["grey"])
    assert explorer.evaluate(row, 1).log_prob != explorer.evaluate(row, 2).log_prob


def test_denoising_is_tweedie() -> None:
    explorer = ImageExplorer(image_model())
    row = torch.linspace(-1.0, 1.0, 24)
    torch.testing.assert_close(explorer.denoise(row, 0.3), tweedie(explorer.model, row[None], 0.3)[0])
    assert not torch.allclose(explorer.denoise(row, 0.3), row)
