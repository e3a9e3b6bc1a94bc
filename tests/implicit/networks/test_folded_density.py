"""The density of folded maps of a normal variable."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from arcsm.errors import NonFiniteError
from arcsm.implicit.networks.folded_density import log_density
from small_vaes import FLOAT64


def test_integrals_of_density_match_noise_density_of_samples() -> None:
    weights = [[0.3, -1.0, 2.0], [2.0, 1.5, -3.0], [-2.0, -0.5, 1.0]]
    inner, noise_weight, output_weight = (torch.tensor([row], dtype=FLOAT64) for row in weights)
    noise = torch.linspace(-9.0, 9.0, 100_001, dtype=FLOAT64)
    noise_density = torch.exp(-0.5 * noise.square())
    values = noise + (torch.tanh(inner + noise.unsqueeze(-1) * noise_weight) * output_weight).sum(-1)
    steps = values.diff()
    assert bool((steps > 0.0).any() & (steps < 0.0).any())  # the map is not monotone
    edges = torch.linspace(float(values.min()), float(values.max()), 41, dtype=FLOAT64)
    expected = torch.stack(
        [noise_density[(values >= low) & (values < high)].sum() for low, high in itertools.pairwise(edges)]
    )
    fine = torch.linspace(float(edges[0]), float(edges[-1]), 40 * 1_000 + 1, dtype=FLOAT64)
    middles = 0.5 * (fine[1:] + fine[:-1])
    density = log_density(middles, *(t.expand(len(middles), -1) for t in (inner, noise_weight, output_weight))).exp()
    integrals = density.view(40, 1_000).sum(1) * (fine[1] - fine[0])
    assert float(integrals.sum()) == pytest.approx(
        1.0, abs=0.005
    )  # the density is infinite at folds, so sums are coarse
    torch.testing.assert_close(integrals, expected / noise_density.sum(), rtol=0.0, atol=0.005)


def test_non_finite_weights_are_rejected_and_non_finite_values_give_nan() -> None:
    def density_at(u: float, inner: float, noise_weight: float, output_weight: float) -> Tensor:
        return log_density(
            torch.tensor([u, 0.0]), *(torch.full((2, 3), v) for v in (inner, noise_weight, output_weight))
        )

    for steep in ((0.0, 1e3, 1e3), (0.0, math.nan, 1.0)):
        with pytest.raises(NonFiniteError, match="too steep"):
            density_at(0.0, *steep)
    for u in (math.nan, math.inf):
        assert density_at(u, 0.0, 1.0, 1.0).isnan().tolist() == [True, False]
    assert float(density_at(-60.0, 0.0, 1.0, 1.0)[0]) == pytest.approx(-0.5 * 57.0**2 - 0.918939, rel=1e-6)
    assert log_density(torch.zeros(0), *(torch.zeros(0, 3) for _ in range(3))).shape == (0,)
