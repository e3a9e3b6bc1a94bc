"""Grey values: scaling and stretching are undone, and values out of range are rejected."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from arcsm.data import ImageSet, scale_images, stretch_images, unscale_images
from rejections import error_line


def test_image_set_checks_its_fields() -> None:
    pixels = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    assert error_line(lambda: ImageSet(pixels.float())).startswith("pixels: expected uint8")
    assert error_line(lambda: ImageSet(pixels, labels=torch.zeros(3, dtype=torch.long))).startswith("labels: expected")
    assert error_line(lambda: ImageSet(pixels, names=("a",))) == "names: expected 2 names, got 1"
    assert error_line(lambda: ImageSet(pixels + 200, levels=17)).startswith("pixels: expected values below levels=17")


@given(st.integers(2, 256))
def test_unscale_inverts_scale(levels: int) -> None:
    pixels = torch.arange(levels).to(torch.uint8)
    x = scale_images(pixels, levels)
    assert x.dtype == torch.float32
    assert x.min() == -1
    assert x.max() < 1
    assert torch.allclose(x.double().diff(), torch.tensor(2 / levels).double(), atol=1e-6)
    assert torch.equal(unscale_images(x, levels), pixels)
    assert torch.equal(unscale_images(x + 0.999 * 2 / levels, levels), pixels)


def test_unscale_clamps_and_stretches() -> None:
    x = torch.tensor([-math.inf, -1.5, -1.0, 0.0, 0.999, 1.0, 7.0])
    assert unscale_images(x, 256).tolist() == [0, 0, 0, 128, 255, 255, 255]
    assert unscale_images(x, 17).tolist() == [0, 0, 0, 8, 16, 16, 16]
    assert unscale_images(x, 17, stretch=True).tolist() == [0, 0, 0, 128, 255, 255, 255]
    full = torch.arange(256).to(torch.uint8)
    assert torch.equal(stretch_images(full, 256), full)


def test_bad_pixel_values_are_rejected() -> None:
    nan = torch.tensor([0.0, math.nan])
    assert error_line(lambda: unscale_images(nan, 256)) == "x: expected numbers, got 1 NaN"
    assert error_line(lambda: scale_images(nan, 256)).startswith("pixels: expected uint8, got torch.float32")
    high = torch.tensor([17], dtype=torch.uint8)
    assert error_line(lambda: scale_images(high, 17)) == "pixels: expected values below levels=17, got 17"
    assert error_line(lambda: scale_images(high, 257)).startswith("levels: expected an integer from 2 to 256, got 257")
