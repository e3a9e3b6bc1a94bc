"""The toy sets: seeded samplers, and densities that are those of the samplers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from arcsm.data import TOYS, toy

NAMES = (
    "checkerboard", "rings", "eight_gaussians", "two_moons", "pinwheel", "two_spirals", "swiss_roll", "ring_and_blob",
    "s_curve",
)  # fmt: skip
STEP = 1 / 12  # grid step; cell centres, so that no point falls on an edge of the checkerboard
SIDE = 11 * 12  # the grid covers [-5.5, 5.5]^2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def grids() -> dict[str, Tensor]:
    """Log density on the grid, `(SIDE, SIDE)` float64, of every set."""
    axis = (torch.arange(SIDE, dtype=torch.float64) + 0.5) * STEP - SIDE * STEP / 2
    points = torch.cartesian_prod(axis, axis)
    return {name: TOYS[name].log_prob(points).reshape(SIDE, SIDE) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_seeded_float32_of_standard_size(name: str) -> None:
    state = torch.get_rng_state()
    x = toy(name).sample(4000, generator(3))
    assert x.shape == (4000, 2)
    assert x.dtype == torch.float32
    assert torch.equal(x, toy(name).sample(4000, generator(3)))
    assert not torch.equal(x, toy(name).sample(4000, generator(4)))
    assert 2.0 < x.abs().max() < 4.6
    assert torch.equal(state, torch.get_rng_state())  # torch's global generator is left alone


@pytest.mark.parametrize("name", NAMES)
def test_density_integrates_to_one(name: str, grids: dict[str, Tensor]) -> None:
    assert grids[name].exp().sum().item() * STEP**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_samples_fill_coarse_cells_as_the_density_says(name: str, grids: dict[str, Tensor]) -> None:
    """Chi-square on cells of side 1/2; for k degrees of freedom its value stays below k + 5 sqrt(2 k)."""
    n, coarse = 20000, 6
    mass = grids[name].exp().reshape(SIDE // coarse, coarse, SIDE // coarse, coarse).sum(dim=(1, 3)) * STEP**2
    edges = np.arange(SIDE // coarse + 1) * coarse * STEP - SIDE * STEP / 2
    x = toy(name).sample(n, generator(1)).numpy()
    counts = torch.from_numpy(np.histogram2d(x[:, 0], x[:, 1], bins=(edges, edges))[0])
    large = n * mass > 5
    expected = torch.cat([n * mass[large], n * mass[~large].sum()[None]])
    observed = torch.cat([counts[large], counts[~large].sum()[None]])
    keep = expected > 1e-9
    assert observed[~keep].sum() == 0
    statistic = ((observed - expected)[keep] ** 2 / expected[keep]).sum().item()
    degrees = int(keep.sum()) - 1
    assert statistic < degrees + 5 * math.sqrt(2 * degrees)


def test_checkerboard_is_uniform_on_its_squares() -> None:
    log_prob = TOYS["checkerboard"].log_prob
    x = torch.tensor([[0.5, 0.5], [2.5, 0.5], [-3.5, -3.5], [4.5, 0.5], [0.5, -4.1]])
    assert log_prob(x).tolist() == pytest.approx([-math.log(32), -math.inf, -math.log(32), -math.inf, -math.inf])
    assert torch.isfinite(log_prob(toy("checkerboard").sample(200000, generator(2)))).all()


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_keeps_shape_and_dtype(name: str) -> None:
    x = toy(name).sample(6, generator())
    batched = TOYS[name].log_prob(x.reshape(2, 3, 2))
    assert batched.shape == (2, 3)
    assert batched.dtype == torch.float32
    assert torch.allclose(batched.flatten(), TOYS[name].log_prob(x.double()).float(), atol=1e-4)
    assert TOYS[name].log_prob(x[0]).shape == ()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "checkerboard"])
def test_log_prob_is_differentiable(name: str) -> None:
    x = toy(name).sample(3, generator()).double().requires_grad_()
    assert torch.autograd.gradcheck(TOYS[name].log_prob, (x,))


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"checkerboard.*got 'ringz' \(did you mean 'rings'\?\)$") as caught:
        toy("ringz")
    assert "\n" not in str(caught.value)
