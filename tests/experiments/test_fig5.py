"""Measures and filters of Figure 5, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from arcsm.denoise.corruptions import GaussianNoise, SaltAndPepper
from arcsm.experiments.fig5 import filters_for, import_skimage, psnr, ssim

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


def test_the_median_filter_works_on_each_channel() -> None:
    y = rows(2)
    found = filters_for(GaussianNoise(0.1), SHAPE)["median filter"]["3 x 3"](y).view(2, *SHAPE)
    image = y.view(2, *SHAPE)[1, 2].numpy()
    assert float(found[1, 2, 4, 5]) == pytest.approx(float(np.median(image[3:6, 4:7])))
    assert float(found[1, 2, 0, 5]) == pytest.approx(float(np.median(image[0:2, 4:7])))  # six values at an edge


def test_the_median_of_the_others_restores_a_flat_image_exactly() -> None:
    noise = SaltAndPepper.of_images(0.2, 256)
    clean = torch.full((4, 192), 0.25)
    noisy = noise.corrupt(clean, torch.Generator().manual_seed(2))
    assert bool((noisy != clean).any())
    for setting in filters_for(noise, SHAPE)["median of the others"].values():
        assert torch.equal(setting(noisy), clean)


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


@pytest.mark.parametrize("method", ["non-local means", "total variation", "median filter"])
def test_filters_denoise_a_smooth_image(method: str) -> None:
    noise = GaussianNoise(0.3)
    ramp = torch.linspace(-0.8, 0.8, 64).view(1, 1, 8, 8).expand(2, 3, 8, 8).reshape(2, 192)
    noisy = noise.corrupt(ramp, torch.Generator().manual_seed(3))
    best = max(float(psnr(ramp, restore(noisy)).mean()) for restore in filters_for(noise, SHAPE)[method].values())
    assert best > float(psnr(ramp, noisy).mean()) + 1.0


def test_a_missing_library_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skimage.metrics", None)
    with pytest.raises(ValueError, match=r"fig5: needs scikit-image; pip install"):
        import_skimage()
