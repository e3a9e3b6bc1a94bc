"""The true density of noisy toy sets."""

from __future__ import annotations

import pytest
import torch

from arcsm.experiments.toys import toy_rows


@pytest.mark.parametrize("name", ["checkerboard", "eight_gaussians"])
def test_the_true_density_integrates_to_one_and_fits_its_rows(name: str) -> None:
    rows = toy_rows(name, 5_000, 4_000, sigma=0.1, seed=0)
    axis = torch.linspace(-4.0, 4.0, 100)
    density = rows.true_log_prob(torch.cartesian_prod(axis, axis))
    assert density is not None
    assert float(density.exp().sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1.0, abs=1e-3)
    # the mean over rows estimates the entropy
    entropy = -float((density.exp() * density).sum() * (axis[1] - axis[0]) ** 2)
    at_rows = rows.true_log_prob(rows.test[:1000])
    assert at_rows is not None
    assert float(-at_rows.mean()) == pytest.approx(entropy, abs=0.08)
