"""The noise ladder: geometric levels, and training draws that cover it evenly."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arcsm import NoiseLadder


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counts_per_bin(sigma: Tensor, ladder: NoiseLadder, bins: int) -> Tensor:
    """Count the draws in equal bins of log sigma."""
    position = torch.log(ladder.sigma_max / sigma.double()) / math.log(ladder.sigma_max / ladder.sigma_min)
    return torch.bincount((position * bins).long().clamp(0, bins - 1).flatten(), minlength=bins)


@given(st.floats(0.01, 100.0), st.floats(1.01, 1000.0), st.integers(2, 50))
def test_levels_are_geometric_with_the_exact_ends(sigma_min: float, ratio: float, levels: int) -> None:
    ladder = NoiseLadder(sigma_min * ratio, sigma_min, levels)
    sigmas = torch.tensor(ladder.sigmas, dtype=torch.float64)
    assert len(sigmas) == levels
    assert (ladder.sigmas[0], ladder.sigmas[-1]) == (sigma_min * ratio, sigma_min)
    quotients = sigmas[:-1] / sigmas[1:]
    torch.testing.assert_close(quotients, torch.full_like(quotients, ratio ** (1.0 / (levels - 1))))


def test_one_level_has_one_sigma() -> None:
    ladder = NoiseLadder(0.3, 0.3, levels=1)
    assert ladder.sigmas == (0.3,)
    assert ladder.sigma(0) == ladder.sigma(-1) == 0.3
    assert torch.equal(ladder.draw(torch.zeros(5, dtype=torch.float64)), torch.full((5,), 0.3, dtype=torch.float64))


def test_a_path_has_the_given_steps_and_the_ends_of_the_ladder() -> None:
    ladder = NoiseLadder(2.0, 0.02, levels=5)
    assert ladder.path(4) == ladder.sigmas
    assert ladder.path(2) == pytest.approx((2.0, 0.2, 0.02))


def test_levels_are_indexed_from_the_largest() -> None:
    ladder = NoiseLadder(1.0, 0.25, levels=3)
    assert [ladder.sigma(level) for level in (0, 1, 2, -1)] == pytest.approx([1.0, 0.5, 0.25, 0.25])
    for level in (3, -4):
        with pytest.raises(ValueError, match=f"level: expected -3 to 2, got {level}"):
            ladder.sigma(level)


@given(st.integers(0, 2**31), st.integers(50, 5000))
def test_continuous_draws_are_stratified(seed: int, n: int) -> None:
    ladder = NoiseLadder(1.0, 0.01)
    counts = counts_per_bin(ladder.draw(torch.zeros(n), generator(seed)), ladder, 10)
    # independent draws would be off by about sqrt(n) / 3; a Weyl sequence stays within a few points
    assert float((counts - n / 10).abs().max()) <= 4.0


@given(st.integers(0, 2**31), st.integers(2, 12))
def test_discrete_draws_fall_on_the_levels_only_and_equally_often(seed: int, levels: int) -> None:
    ladder = NoiseLadder(1.0, 0.04, levels, continuous=False)
    sigma = ladder.draw(torch.zeros(600, dtype=torch.float64), generator(seed))
    sigmas = torch.tensor(ladder.sigmas, dtype=torch.float64)
    relative = (sigma[:, None] / sigmas - 1.0).abs()
    assert float(relative.amin(1).max()) < 1e-12
    counts = torch.bincount(relative.argmin(1), minlength=levels)
    assert float((counts - 600 / levels).abs().max()) <= 4.0


@pytest.mark.parametrize(
    "arguments",
    [
        {"sigma_max": 0.1},
        {"sigma_min": 0.0},
        {"sigma_max": math.inf},
        {"sigma_min": math.nan},
        {"levels": 0},
        {"levels": 1},
        {"sigma_min": 1.0, "levels": 3},
    ],
)
def test_impossible_ladders_are_rejected(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^noise: .*got") as error:
        NoiseLadder(**{"sigma_max": 1.0, "sigma_min": 0.2, **arguments})
    assert "\n" not in str(error.value)


def test_numbers_of_other_types_are_rejected() -> None:
    with pytest.raises(TypeError, match=r"^noise: expected numbers sigma_max >= sigma_min > 0, got"):
        NoiseLadder("1", 0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^level: expected a whole number from -3 to 2, got"):
        NoiseLadder(1.0, 0.1, 3).sigma(1.5)  # type: ignore[arg-type]
