"""Kernel estimators against their definitions and known scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from arcsm.implicit import EntropyGradient, JointScore, ScoreNetwork, Spectral, Stein
from small_vaes import FLOAT64, normal


def kernel(a: Tensor, b: Tensor, width: float) -> Tensor:
    return torch.exp(-0.5 * (a[:, None] - b[None, :]).square().sum(-1) / width**2)


def median_distance(z: Tensor) -> float:
    return float(torch.pdist(z).median())


def test_stein_matches_definition() -> None:
    z = normal(2, 9, 3)
    scores = Stein(eta=0.01).score(z)
    for row, score in zip(z, scores, strict=True):
        width = median_distance(row)
        points = row.clone().requires_grad_()
        gradients = torch.stack(
            [torch.autograd.grad(kernel(row[i : i + 1], points, width).sum(), points)[0].sum(0) for i in range(9)]
        )
        matrix = kernel(row, row, width) + 0.01 * torch.eye(9, dtype=FLOAT64)
        torch.testing.assert_close(score, -torch.linalg.inv(matrix) @ gradients)


@pytest.mark.parametrize("keeps_crossing", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.8])
def test_spectral_matches_definition(share: float, keeps_crossing: bool) -> None:
    z = normal(1, 12, 2, seed=1)[0]
    width, m = median_distance(z), len(z)
    values, vectors = torch.linalg.eigh(kernel(z, z, width))
    values, vectors = values.flip(0), vectors.flip(1)
    used = max(1, int((values.cumsum(0) / values.sum() < share).sum()) + keeps_crossing)

    def eigenfunction(j: int, at: Tensor) -> Tensor:
        return math.sqrt(m) / values[j] * kernel(at, z, width) @ vectors[:, j]

    expected = torch.zeros_like(z)
    for j in range(used):
        at = z.clone().requires_grad_()
        beta = -torch.autograd.grad(eigenfunction(j, at).sum(), at)[0].mean(0)
        expected += eigenfunction(j, z)[:, None] * beta
    torch.testing.assert_close(Spectral(share, keeps_crossing).score(z[None])[0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("estimator", [Stein(), Spectral()])
def test_kernels_estimate_entropy_gradient(estimator: EntropyGradient) -> None:
    """z = 5 + w (e + b tanh 3e), bimodal for b > 0, has H = log w + E log(1 + 3 b sech^2 3e) + const."""
    bend = 0.8
    log_width = torch.tensor(-3.0, requires_grad=True)
    b = torch.tensor(bend, requires_grad=True)
    e = normal(60, 100, 1).float()
    estimator.surrogate(5.0 + log_width.exp() * (e + b * torch.tanh(3.0 * e))).backward()
    steep = 3.0 / torch.cosh(3.0 * e.double()).square()
    assert float(log_width.grad) == pytest.approx(1.0, abs=0.1)  # type: ignore[arg-type]
    assert float(b.grad) == pytest.approx(float((steep / (1.0 + bend * steep)).mean()), rel=0.3)  # type: ignore[arg-type]


def test_invalid_arguments_are_rejected() -> None:
    with pytest.raises(ValueError, match="eta"):
        Stein(0.0)
    with pytest.raises(ValueError, match="share"):
        Spectral(1.5)
    with pytest.raises(ValueError, match=r"z: expected samples \(B, K, D\) with K at least 2, got \(3, 2\)"):
        Stein().surrogate(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"kernels need single or double precision, got torch\.bfloat16"):
        Stein().surrogate(torch.zeros(4, 5, 2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="state: expected that of Stein"):
        Stein().load_state_dict(JointScore(ScoreNetwork(2)).state_dict())
    assert Stein().state_dict() == {}
