"""The density of folded maps of a normal variable."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from arcsm.errors import NonFiniteError
from arcsm.implicit.networks.folded_density import log_density
from small_vaes import (
    FLOAT64,
    normal,
)


def value_and_log_term(noise: Tensor, inner: Tensor, of_noise: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """What maps draw, and the log density that the noise it was drawn from has a share in: the whole has no less."""
    bent = torch.tanh(inner + of_noise * noise.unsqueeze(-1))
    slope = 1.0 + (output * of_noise * (1.0 - bent.square())).sum(-1)
    return noise + (output * bent).sum(-1), torch.distributions.Normal(0.0, 1.0).log_prob(noise) - slope.abs().log()


def random_weights(count: int = 20_000, units: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    return normal(count, units), 3.0 * normal(count, units, seed=1), normal(count, units, seed=2)


def test_integrals_of_density_match_shares_of_samples() -> None:
    weights = [[0.3, -1.0, 2.0], [2.0, 1.5, -3.0], [-2.0, -0.5, 1.0]]
    inner, of_noise, output = (torch.tensor([row], dtype=FLOAT64) for row in weights)
    noise = torch.linspace(-9.0, 9.0, 2_000_001, dtype=FLOAT64)
    shares = torch.exp(-0.5 * noise.square())
    drawn = noise + (torch.tanh(inner + noise.unsqueeze(-1) * of_noise) * output).sum(-1)
    steps = drawn.diff()
    assert bool((steps > 0.0).any() & (steps < 0.0).any())  # it folds
    edges = torch.linspace(float(drawn.min()), float(drawn.max()), 41, dtype=FLOAT64)
    expected = torch.stack([shares[(drawn >= low) & (drawn < high)].sum() for low, high in itertools.pairwise(edges)])
    fine = torch.linspace(float(edges[0]), float(edges[-1]), 40 * 2_000 + 1, dtype=FLOAT64)
    middles = 0.5 * (fine[1:] + fine[:-1])
    density = log_density(middles, *(t.expand(len(middles), -1) for t in (inner, of_noise, output))).exp()
    found = density.view(40, 2_000).sum(1) * (fine[1] - fine[0])
    assert float(found.sum()) == pytest.approx(1.0, abs=0.005)  # it is infinite where the map turns: the sum is coarse
    torch.testing.assert_close(found, expected / shares.sum(), rtol=0.0, atol=0.005)


@pytest.mark.parametrize("excess", [1e-4, 3e-3, None])
def test_density_is_at_least_the_term_of_each_preimage(excess: float | None) -> None:
    """Also where a map turns twice within a cell, as e - (1 + excess) tanh(e) does."""
    one = torch.ones(20_000, 1, dtype=FLOAT64)
    maps = random_weights() if excess is None else (0.0 * one, one, -(1.0 + excess) * one)
    u, least = value_and_log_term(normal(20_000, seed=3), *maps)
    found = log_density(u, *maps)
    assert bool((found > least - 1e-6).all())
    assert bool(found.isfinite().all())
    assert float((found - least).max()) > 0.1  # others have their share


def test_non_finite_weights_are_rejected_and_non_finite_values_give_nan() -> None:
    def at(u: float, inner: float, of_noise: float, output: float) -> Tensor:
        return log_density(torch.tensor([u, 0.0]), *(torch.full((2, 3), v) for v in (inner, of_noise, output)))

    for wild in ((0.0, 1e3, 1e3), (0.0, math.nan, 1.0), (math.nan, 1.0, 1.0), (0.0, 1.0, math.inf)):
        with pytest.raises(NonFiniteError, match="too steep"):
            at(0.0, *wild)
    for u in (math.nan, math.inf):
        assert at(u, 0.0, 1.0, 1.0).isnan().tolist() == [True, False]
    assert float(at(-60.0, 0.0, 1.0, 1.0)[0]) == pytest.approx(-0.5 * 57.0**2 - 0.918939, rel=1e-6)
    assert log_density(torch.zeros(0), *(torch.zeros(0, 3) for _ in range(3))).shape == (0,)
