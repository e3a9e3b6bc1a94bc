"""Measures and filters of Figure 5, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from arcsm.denoise.corruptions import GaussianNoise, SaltAndPepper
from arcsm.experiments.fig5 import filters_for, psnr, ssim

SHAPE = (3, 8, 8)


def rows(count: int) -> torch.Tensor:
    return 1.8 * torch.rand(count, 192, generator=torch.Generator().manual_seed(0)) - 0.9


def test_psnr_is_for_a_range_of_two() -> None:
    clean = torch.zeros(2, 192)
    found = psnr(clean, torch.stack([torch.full((192,), 0.2), torch.full((192,), -5.0)]))
    assert found.tolist() == pytest.approx([20.0, 10.0 * math.log10(4.0)])  # the second is clipped to -1


def test_ssim_is_one_for_equal_images_and_falls_with_noise() -> None:
    clean = rows(3)
    assert ssim(clean, clean, SHAPE).tolist() == pytest.approx([1.0] * 3)
    little, much = (GaussianNoise(sigma).corrupt(clean, torch.Generator().manual_seed(1)) for sigma in (0.05, 0.5))
    assert bool((ssim(clean, much, SHAPE) < ssim(clean, little, SHAPE)).all())


def test_the_median_of_the_others_ignores_extremes() -> None:
    noise = SaltAndPepper.of_images(0.3, 256)
    noisy = noise.corrupt(rows(5), torch.Generator().manual_seed(4))
    found = filters_for(noise, SHAPE)["median of the others"]["3 x 3"](noisy).view(5, *SHAPE)
    suspect, images = (t.view(5, *SHAPE).numpy() for t in (noise.is_extreme(noisy), noisy))
    for index in zip(*suspect[:, :, 1:-1, 1:-1].nonzero(), strict=True):
        at = (index[0], index[1], slice(index[2], index[2] + 3), slice(index[3], index[3] + 3))
        others = images[at][~suspect[at]]
        restored = found[index[0], index[1], index[2] + 1, index[3] + 1]
        assert float(restored) == pytest.approx(float(np.median(others)), abs=1e-6)
