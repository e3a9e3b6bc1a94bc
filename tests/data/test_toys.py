"""The toy sets: seeded samplers, and densities that are those of the samplers."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import Tensor

from arcsm.data import TOYS, toy
from arcsm.data.toys import NoisyCurve, Rings

NAMES = (
    "checkerboard",
    "rings",
    "eight_gaussians",
    "two_moons",
    "pinwheel",
    "two_spirals",
    "swiss_roll",
    "ring_and_blob",
    "s_curve",
)
CURVES = {name: curve for name in NAMES if isinstance(curve := TOYS[name].distribution, NoisyCurve)}
STEP = 1 / 16  # grid step; cell centres, so that no point falls on an edge of the checkerboard
SIDE = 11 * 16  # the grid covers [-5.5, 5.5]^2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def grids() -> dict[str, Tensor]:
    """Log density on the grid, `(SIDE, SIDE)` float64, of every set."""
    axis = (torch.arange(SIDE, dtype=torch.float64) + 0.5) * STEP - SIDE * STEP / 2
    points = torch.cartesian_prod(axis, axis)
    return {name: TOYS[name].log_prob(points).reshape(SIDE, SIDE) for name in NAMES}


def test_all_sets_are_there() -> None:
    assert set(NAMES) <= set(TOYS)
    assert all(name == entry.name and entry.description for name, entry in TOYS.items())


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
def test_samples_have_the_entropy_of_the_density(name: str, grids: dict[str, Tensor]) -> None:
    density = grids[name].exp()
    entropy = -torch.special.xlogy(density, density).sum().item() * STEP**2
    log_prob = TOYS[name].log_prob(toy(name).sample(20000, generator()).double())
    assert torch.isfinite(log_prob).all()
    error = log_prob.std().item() / math.sqrt(len(log_prob))
    assert -log_prob.mean().item() == pytest.approx(entropy, abs=4.5 * error + 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_samples_fill_coarse_cells_as_the_density_says(name: str, grids: dict[str, Tensor]) -> None:
    """Chi-square on cells of side 1/2; for k degrees of freedom its value stays below k + 5 sqrt(2 k)."""
    n, coarse = 20000, 8
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


@pytest.mark.parametrize("name", CURVES)
def test_quadrature_has_converged(name: str) -> None:
    """Against eight times as many panels, on samples and in a wide box, to the errors that the class states."""
    curve = CURVES[name]
    fine = NoisyCurve(curve.arms, curve.noise, curve.low, curve.high, curve.quantile, curve.density, 8 * curve.panels)
    box = 10 * torch.rand(200, 2, generator=generator(), dtype=torch.float64) - 5
    x = torch.cat([toy(name).sample(200, generator()).double(), box])
    truth = fine.log_prob(x)
    error = (curve.log_prob(x) - truth).abs()
    assert error[truth > -50].max() < 1e-9
    assert error.max() < 1e-3


@pytest.mark.parametrize("name", CURVES)
def test_curve_density_agrees_with_adaptive_quadrature(name: str) -> None:
    curve = CURVES[name]

    def integrand(t: float, x: Tensor) -> float:
        parameter = torch.tensor([t], dtype=torch.float64)
        q = 1 / (curve.high - curve.low) if curve.density is None else curve.density(parameter).item()
        square = (curve.arms(parameter)[0] - x).square().sum(dim=-1)  # (K,)
        return q * (-square / (2 * curve.noise**2)).exp().mean().item() / (2 * math.pi * curve.noise**2)

    x = toy(name).sample(2, generator(5)).double()
    for point, value in zip(x, curve.log_prob(x).tolist(), strict=True):
        true, _ = integrate.quad(integrand, curve.low, curve.high, args=(point,), limit=400, epsabs=1e-8)
        assert value == pytest.approx(math.log(true), abs=1e-5)


@pytest.mark.parametrize("name", [name for name, curve in CURVES.items() if curve.density is not None])
def test_curve_quantile_inverts_the_density(name: str) -> None:
    curve = CURVES[name]
    assert curve.quantile is not None
    assert curve.density is not None
    u = torch.linspace(0.01, 0.99, 21, dtype=torch.float64, requires_grad=True)
    t = curve.quantile(u)
    (slope,) = torch.autograd.grad(t.sum(), u)
    assert torch.allclose(slope * curve.density(t), torch.ones_like(u))


def test_eight_gaussians_match_torch_distributions() -> None:
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    centres = 2 * math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], dim=-1)
    components = torch.distributions.Independent(torch.distributions.Normal(centres, 0.5 / math.sqrt(2)), 1)
    weights = torch.distributions.Categorical(logits=torch.zeros(8, dtype=torch.float64))
    truth = torch.distributions.MixtureSameFamily(weights, components)
    x = torch.randn(3, 4, 2, generator=generator(), dtype=torch.float64)
    assert torch.allclose(TOYS["eight_gaussians"].log_prob(x), truth.log_prob(x))


def test_ring_of_radius_zero_is_a_gaussian() -> None:
    blob = Rings(radii=(0.0,), noises=(0.5,), weights=(1.0,))
    x = torch.randn(10, 2, generator=generator(), dtype=torch.float64)
    truth = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 0.5).log_prob(x).sum(dim=-1)
    assert torch.allclose(blob.log_prob(x), truth)


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


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_rejects_other_shapes(name: str) -> None:
    with pytest.raises(ValueError, match=r"^x: expected .* got \(4, 3\)"):
        TOYS[name].log_prob(torch.zeros(4, 3))


@pytest.mark.parametrize("n", [0, -1, 2.5])
def test_sample_rejects_a_bad_count(n: int) -> None:
    with pytest.raises(ValueError, match=r"^n: expected a positive integer"):
        toy("rings").sample(n, generator())


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"checkerboard.*got 'ringz' \(did you mean 'rings'\?\)$") as caught:
        toy("ringz")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"got 'qqq'$"):
        toy("qqq")
