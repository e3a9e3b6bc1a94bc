"""Denoising score matching, with a ladder and at one noise level."""

import math

import pytest
import torch

from arcsm import MADE, AutoregressiveModel, GaussianHead, NoiseLadder, ScoreHead, objectives
from small_objectives import build, gradients, seeded

pytestmark = pytest.mark.usefixtures("double_precision")


def test_dsm_is_csm_with_mix_zero_up_to_a_constant() -> None:
    model = build(ScoreHead(4, (8, 8)), noise=NoiseLadder(1.0, 0.2, 4))
    x = torch.randn(9, 3)
    dsm = objectives.dsm(model, x, generator=seeded(3))
    csm = objectives.csm(model, x, mix=0.0, generator=seeded(3))
    assert dsm > csm
    for gradient, reference in zip(gradients(dsm, model), gradients(csm, model), strict=True):
        assert torch.allclose(gradient, reference, atol=1e-11)


def test_dsm_at_one_sigma_is_minimised_by_the_noisy_gaussian() -> None:
    """For x ~ N(0, 1) and noise sigma the best linear score -a x has a = 1 / (1 + sigma^2)."""
    sigma = 0.7
    model = AutoregressiveModel(MADE(1, 1, ()), GaussianHead(1))
    x = torch.randn(20_000, 1, generator=seeded(1))
    log_std = torch.linspace(-0.4, 0.8, 61)
    losses = []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for value in log_std:
            model.head.parameters_of.bias[1] = value
            losses.append(float(objectives.dsm(model, x, sigma, generator=seeded(2))))
    best = float(log_std[int(torch.tensor(losses).argmin())])
    assert math.exp(2 * best) == pytest.approx(1.0 + sigma**2, rel=0.05)


def test_dsm_rejects_arguments_without_effect() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,), missing=True), GaussianHead(4), NoiseLadder(1.0, 0.1, 4))
    x = torch.randn(8, 2)
    with pytest.raises(ValueError, match=r"joint: .* give dsm a sigma"):
        objectives.dsm(model, x, joint=True)
    x[3, 1] = torch.nan
    assert bool(objectives.dsm(model, x).isfinite())
    with pytest.raises(ValueError, match="missing values"):
        objectives.dsm(model, x, sigma=0.3)
