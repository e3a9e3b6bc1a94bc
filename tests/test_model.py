"""The model: scores, densities, distribution functions and samplers that agree with each other and with calculus."""

import copy
import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, LogisticMixtureHead, NoiseLadder, ScoreHead
from arcsm._runtime.batching import map_slices
from arcsm._runtime.memory import Workspace
from arcsm.conditionals.conditionals import Accuracy, Conditionals
from arcsm.errors import AccuracyWarning
from arcsm.heads.base import Sigma
from arcsm.metrics.evaluations import count_evaluations
from arcsm.samplers import base as sampler_base

MakeModel = Callable[..., AutoregressiveModel]

FLOAT64 = torch.float64
METHODS = (("score", "flow"), ("score", "quadrature"), ("gaussian", "closed_form"), ("mixture", "closed_form"))
UNITS: dict[str, Any] = {"shift": [3.0, -20.0], "scale": [0.5, 10.0]}
SHAPES = ((), (4,), (2, 3), (1, 1, 2))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def in_units(model: AutoregressiveModel, z: Tensor) -> Tensor:
    """Standardised to data units."""
    return z * model.scale + model.shift


def points(model: AutoregressiveModel, *shape: int, seed: int = 1) -> Tensor:
    z = torch.randn(*shape, model.features, generator=generator(seed), dtype=FLOAT64)
    return in_units(model, z.to(model.shift.dtype))


def square_grid(model: AutoregressiveModel, side: int = 81, half_width: float = 7.0) -> tuple[Tensor, float]:
    """A grid over two dimensions and the area of its cells, in data units."""
    axis = torch.linspace(-half_width, half_width, side, dtype=FLOAT64)
    area = (2.0 * half_width / (side - 1)) ** 2 * float(model.scale.prod())
    return in_units(model, torch.cartesian_prod(axis, axis)), area


def assert_uniform(u: Tensor) -> None:
    u = u.detach()
    for d in range(u.shape[-1]):
        assert kstest(u[:, d].numpy(), "uniform").pvalue > 0.001, f"dimension {d}"
    if u.shape[-1] > 1:  # and independent of each other
        sums = (u[:, 0] + u[:, 1]) % 1.0
        assert kstest(sums.numpy(), "uniform").pvalue > 0.001


# Scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("kind", ["score", "gaussian", "mixture"])
def test_everything_has_the_shape_of_the_batch(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, noisy: bool, shape: tuple[int, ...]
) -> None:
    model = make_model(kind, noise=ladder if noisy else None)
    x = points(model, *shape)
    s, ds = model.score(x)
    full = (*shape, 2)
    assert s.shape == ds.shape == full
    assert model.log_prob(x).shape == shape
    assert model.log_prob(x, reduce=False).shape == model.cdf(x).shape == full
    assert model.icdf(torch.full(full, 0.4, dtype=FLOAT64)).shape == full
    assert model(x)[0].equal(s)


@pytest.mark.parametrize("level", [0, 3, -1])
@pytest.mark.parametrize("kind", ["score", "gaussian", "mixture"])
def test_derivative_is_that_of_the_score_in_data_units(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, level: int
) -> None:
    model = make_model(kind, noise=ladder, **UNITS)
    x = points(model, 10).requires_grad_()
    s, ds = model.score(x, level)
    for d in range(2):
        (slope,) = torch.autograd.grad(s[:, d].sum(), x, retain_graph=True)
        torch.testing.assert_close(ds[:, d], slope[:, d], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_scores_depend_on_what_comes_before_in_the_order_and_on_nothing_after(
    make_model: MakeModel, ladder: NoiseLadder, order: tuple[int, ...]
) -> None:
    model = make_model(features=3, noise=ladder, order=order)
    x = points(model)
    jacobian = torch.autograd.functional.jacobian(lambda value: model.score(value)[0], x)
    assert isinstance(jacobian, Tensor)
    for position, d in enumerate(order):
        for e in order[:position]:
            assert float(jacobian[d, e].abs()) > 1e-6
        for e in order[position + 1 :]:
            assert float(jacobian[d, e]) == 0.0


@pytest.mark.parametrize(("kind", "method"), METHODS[1:])
@pytest.mark.parametrize("level", [0, -1])
def test_score_is_the_slope_of_each_conditional_log_density(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, method: str, level: int
) -> None:
    model = make_model(kind, noise=ladder, **UNITS)
    x, h = points(model, 20), 1e-4
    options: dict[str, Any] = {"method": method, "level": level, "reduce": False, "tol": 1e-9, "max_evaluations": 2048}
    s, _ = model.score(x, level)
    for d in range(2):
        step = torch.zeros(2, dtype=FLOAT64)
        step[d] = h * model.scale[d]
        rise = model.log_prob(x + step, **options)[:, d] - model.log_prob(x - step, **options)[:, d]
        torch.testing.assert_close(rise / (2.0 * step[d]), s[:, d], rtol=2e-4, atol=2e-4)


def test_score_of_the_last_dimension_is_the_slope_of_the_joint_density(make_model: MakeModel) -> None:
    model = make_model("gaussian", order=(1, 0))
    x = points(model, 10).requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(x).sum(), x)
    s, _ = model.score(x)
    torch.testing.assert_close(gradient[:, 0], s[:, 0])
    assert not torch.allclose(gradient[:, 1], s[:, 1])  # the context of the last dimension speaks too


def test_flow_slopes_differ_from_the_score_by_little_where_the_network_is_weak(
    make_model: MakeModel, ladder: NoiseLadder
) -> None:
    model = make_model(noise=ladder, strength=1e-6)
    x = points(model, 50)
    exact = torch.distributions.Normal(0.0, math.sqrt(1.0 + ladder.sigma_min**2)).log_prob(x).sum(-1)
    torch.testing.assert_close(model.log_prob(x, steps=100), exact, rtol=0.0, atol=5e-3)
    torch.testing.assert_close(model.log_prob(x, method="quadrature"), exact, rtol=0.0, atol=1e-4)


# Densities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "method"), METHODS)
def test_terms_of_the_chain_rule_sum_to_the_joint_density(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, method: str
) -> None:
    model = make_model(kind, features=3, noise=ladder)
    x = points(model, 30)
    terms = model.log_prob(x, reduce=False, method=method)
    torch.testing.assert_close(terms.sum(-1), model.log_prob(x, method=method), rtol=1e-12, atol=1e-12)
    alone = x.clone()
    alone[:, 2] += 0.3
    moved = model.log_prob(alone, reduce=False, method=method)
    torch.testing.assert_close(moved[:, :2], terms[:, :2], rtol=1e-12, atol=1e-12)
    assert bool((moved[:, 2] != terms[:, 2]).all())


@pytest.mark.parametrize(("kind", "method"), [*METHODS, ("mixture", "flow"), ("mixture", "quadrature")])
def test_density_integrates_to_one_in_data_units(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, method: str
) -> None:
    model = make_model(kind, noise=ladder, strength=0.7, **UNITS)
    grid, area = square_grid(model, half_width=11.0 if kind == "mixture" else 7.0)  # its tails are exponential
    with torch.no_grad():
        mass = float(model.log_prob(grid, method=method, tol=1e-3).exp().sum()) * area
    assert mass == pytest.approx(1.0, abs=2e-3)


def test_density_without_a_ladder_integrates_to_one(make_model: MakeModel) -> None:
    model = make_model(strength=0.7, order=(1, 0))
    grid, area = square_grid(model)
    assert float(model.log_prob(grid, tol=1e-3).exp().sum()) * area == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_quadrature_and_closed_form_are_the_same_density(make_model: MakeModel, ladder: NoiseLadder, kind: str) -> None:
    model = make_model(kind, noise=ladder, **UNITS)
    x = points(model, 50)
    for level in (0, -1):
        closed = model.log_prob(x, level, reduce=False, method="closed_form")
        torch.testing.assert_close(
            model.log_prob(x, level, reduce=False, method="quadrature"), closed, rtol=0.0, atol=1e-4
        )
        torch.testing.assert_close(
            model.cdf(x, level, method="quadrature"), model.cdf(x, level, method="closed_form"), rtol=0.0, atol=1e-5
        )


def test_flow_of_a_gaussian_approaches_its_closed_form(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model("gaussian", noise=ladder)
    x = points(model, 50)
    exact = model.log_prob(x, method="closed_form")
    errors = [(model.log_prob(x, method="flow", steps=n) - exact).abs().max().item() for n in (20, 40, 80)]
    assert errors[0] > 3.0 * errors[1] > 9.0 * errors[2]


@pytest.mark.parametrize("kind", ["score", "gaussian", "mixture"])
def test_units_change_the_density_by_the_scale_alone(make_model: MakeModel, ladder: NoiseLadder, kind: str) -> None:
    plain, scaled = make_model(kind, noise=ladder), make_model(kind, noise=ladder, **UNITS)
    z = points(plain, 20)
    x = in_units(scaled, z)
    volume = math.log(0.5 * 10.0)
    torch.testing.assert_close(scaled.log_prob(x), plain.log_prob(z) - volume, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scaled.cdf(x), plain.cdf(z), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scaled.score(x)[0] * scaled.scale, plain.score(z)[0], rtol=1e-9, atol=1e-9)
    sample = scaled.sample(5, generator=generator())
    torch.testing.assert_close(sample, in_units(scaled, plain.sample(5, generator=generator())))


def test_default_methods(make_model: MakeModel, ladder: NoiseLadder) -> None:
    x = torch.tensor([[0.3, -0.8]], dtype=FLOAT64)
    for kind, noise, method in (
        ("score", ladder, "flow"),
        ("score", None, "quadrature"),
        ("score", NoiseLadder(0.3, 0.3, 1), "quadrature"),
        ("gaussian", ladder, "closed_form"),
        ("mixture", None, "closed_form"),
    ):
        model = make_model(kind, noise=noise)
        assert torch.equal(model.log_prob(x), model.log_prob(x, method=method))
        assert torch.equal(model.cdf(x), model.cdf(x, method=method))


def test_flow_and_quadrature_are_one_at_the_largest_noise(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder)
    x = points(model, 20)
    by_flow, by_quadrature = (model.log_prob(x, 0, method=method, tol=1e-8) for method in ("flow", "quadrature"))
    torch.testing.assert_close(by_flow, by_quadrature)
    assert not torch.allclose(model.log_prob(x, method="flow"), model.log_prob(x, method="quadrature"), atol=1e-3)


def test_levels_count_from_the_largest_noise(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model("gaussian", noise=ladder)
    x = points(model, 10)
    for level in range(ladder.levels):
        assert torch.equal(model.log_prob(x, level), model.log_prob(x, level - ladder.levels))
        assert torch.equal(model.score(x, level)[0], model.score(x, level - ladder.levels)[0])
        curvature = -1.0 / model.score(x, level)[1] - (-1.0 / model.score(x, -1)[1])
        expected = torch.full_like(curvature, ladder.sigma(level) ** 2 - ladder.sigma_min**2)
        torch.testing.assert_close(curvature, expected)  # variances differ by those of the noise
    assert torch.equal(model.log_prob(x), model.log_prob(x, level=-1))


def test_steps_refine_the_path_between_its_ends(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder)
    assert model.path() == ladder.sigmas
    assert model.path(2) == ladder.sigmas[:3]
    assert len(model.path(steps=30)) == 31
    assert (model.path(steps=30)[0], model.path(steps=30)[-1]) == (ladder.sigma_max, ladder.sigma_min)
    assert model.path(2, steps=1) == (ladder.sigma_max, ladder.sigma(2))
    assert model.path(0, steps=5) == (ladder.sigma_max,)
    assert make_model().path() == ()


def test_gradients_reach_points_and_weights_in_closed_form(make_model: MakeModel) -> None:
    model = make_model("mixture", features=3)
    x = points(model, 8).requires_grad_()
    model.log_prob(x).sum().backward()
    assert x.grad is not None
    assert all(bool((p.grad != 0.0).any()) for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.parameters())
    assert torch.autograd.gradcheck(lambda value: model.log_prob(value), points(model, 2).requires_grad_())


def conditionals_at(model: AutoregressiveModel, x: Tensor, sigma: float) -> tuple[Conditionals, Tensor]:
    """All conditionals of some rows, integrated well, and the values to ask them about, ``(N,)``."""
    projection = model.head.project(model.context(x)).flatten(0, 1)
    return Conditionals(model.head, projection, (sigma,), "quadrature", Accuracy(1e-8, 1024)), x.flatten()


def test_differentiable_quadrature_has_the_value_and_the_gradients_of_the_closed_form(make_model: MakeModel) -> None:
    model = make_model("gaussian")
    x = points(model, 12)
    results = []
    for ask in (
        Conditionals.differentiable_log_prob,
        lambda given, z: model.head.projected_log_prob(given.projection, z, 0.3),
    ):  # type: ignore[operator]
        value = ask(*conditionals_at(model, x, 0.3))
        results.append([value, *torch.autograd.grad(value.square().sum(), list(model.parameters()))])
    for integrated, closed in zip(*results, strict=True):
        torch.testing.assert_close(integrated, closed, rtol=1e-6, atol=1e-6)


def test_differentiable_quadrature_has_the_gradients_of_the_integrated_density(make_model: MakeModel) -> None:
    model = make_model()
    x = points(model, 6)
    given, values = conditionals_at(model, x, 0.3)
    log_prob = given.differentiable_log_prob(values)
    torch.testing.assert_close(log_prob, given.log_prob(values), rtol=0.0, atol=1e-6)
    log_prob.sum().backward()
    for parameter in model.parameters():
        direction = torch.randn_like(parameter)
        sums = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                parameter.add_(1e-4 * sign * direction)
                moved, values = conditionals_at(model, x, 0.3)
                sums.append(moved.log_prob(values).sum())
                parameter.sub_(1e-4 * sign * direction)
        assert parameter.grad is not None
        expected = (sums[0] - sums[1]) / 2e-4
        torch.testing.assert_close((parameter.grad * direction).sum(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["flow", "quadrature"])
@pytest.mark.parametrize(
    "kind",
    [
        "score",
        "gaussian",
    ],
)
def test_integrated_densities_carry_no_gradient_rather_than_a_wrong_one(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, method: str
) -> None:
    model = make_model(kind, noise=ladder)
    assert not model.log_prob(points(model, 4).requires_grad_(), method=method).requires_grad


@pytest.mark.parametrize(("kind", "method"), METHODS)
def test_rows_do_not_depend_on_their_batch(make_model: MakeModel, ladder: NoiseLadder, kind: str, method: str) -> None:
    model = make_model(kind, noise=ladder)
    x = points(model, 600)  # more rows than are computed at a time
    for ask in (model.log_prob, model.cdf):
        whole = ask(x, method=method)
        for part in (slice(0, 1), slice(37, 50), slice(505, 530)):
            torch.testing.assert_close(ask(x[part], method=method), whole[part], rtol=1e-8, atol=1e-8)
    u = torch.rand(600, 2, generator=generator(), dtype=FLOAT64).clamp(0.01, 0.99)
    whole = model.icdf(u, method=method)
    torch.testing.assert_close(model.icdf(u[505:530], method=method), whole[505:530], rtol=1e-7, atol=1e-7)


def test_batches_of_any_shape_are_the_same_rows(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder)
    x = points(model, 6)
    torch.testing.assert_close(model.log_prob(x.view(2, 3, 2)), model.log_prob(x).view(2, 3))
    torch.testing.assert_close(model.cdf(x.view(2, 3, 2)), model.cdf(x).view(2, 3, 2))
    torch.testing.assert_close(model.log_prob(x[0]), model.log_prob(x)[0])


@pytest.mark.parametrize("kind", ["score", "gaussian"])
def test_no_rows_give_no_answers(make_model: MakeModel, ladder: NoiseLadder, kind: str) -> None:
    model = make_model(kind, noise=ladder)
    x = torch.zeros(0, 2, dtype=FLOAT64)
    assert model.log_prob(x).shape == (0,)
    assert model.cdf(x).shape == (0, 2)
    assert model.score(x)[0].shape == (0, 2)


def test_no_uniforms_give_no_points(make_model: MakeModel, ladder: NoiseLadder) -> None:
    assert make_model(noise=ladder).icdf(torch.zeros(0, 2, dtype=FLOAT64)).shape == (0, 2)


def test_far_away_points_have_small_but_finite_densities(make_model: MakeModel, ladder: NoiseLadder) -> None:
    for kind, dtype in (("score", FLOAT64), ("score", torch.float32), ("mixture", torch.float32)):
        model = make_model(kind, noise=ladder, dtype=dtype)
        x = torch.tensor([[0.0, 0.0], [40.0, 0.0], [200.0, 0.0], [-1e3, 0.0]], dtype=dtype)
        log_prob = model.log_prob(x, reduce=False)
        assert bool(log_prob.isfinite().all())
        assert bool((log_prob[1:, 0] < log_prob[:-1, 0]).all())
        assert bool(model.cdf(x).isfinite().all())


def test_too_few_evaluations_are_reported_once_with_their_number(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder, strength=3.0)
    x = points(model, 20)
    with pytest.warns(AccuracyWarning, match=r"integrals \(of 40 conditionals\) missed the tolerance") as caught:
        model.log_prob(x, method="quadrature", max_evaluations=28, tol=1e-9)
    assert len(caught) == 1
    with pytest.warns(AccuracyWarning, match="of 40 conditionals"):
        model.icdf(torch.full((20, 2), 0.3, dtype=FLOAT64), method="quadrature", max_evaluations=28, tol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.log_prob(x, method="quadrature", max_evaluations=2048)


def test_the_warning_names_the_line_that_asked(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder, strength=3.0)
    with pytest.warns(AccuracyWarning) as caught:
        model.log_prob(points(model, 20), method="quadrature", max_evaluations=28, tol=1e-9)
    assert caught[0].filename == __file__


# Distribution functions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [None, (2, 0, 1)])
@pytest.mark.parametrize(("kind", "method"), METHODS)
def test_cdf_and_icdf_undo_each_other(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, method: str, order: tuple[int, ...] | None
) -> None:
    model = make_model(kind, features=3, noise=ladder, order=order, shift=1.0, scale=2.0)
    u = torch.rand(200, 3, generator=generator(3), dtype=FLOAT64).clamp(1e-4, 1.0 - 1e-4)
    x = model.icdf(u, method=method)
    torch.testing.assert_close(model.cdf(x, method=method), u, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(model.icdf(model.cdf(x, method=method), method=method), x, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize(("kind", "method"), METHODS)
def test_density_is_the_slope_of_the_distribution(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, method: str
) -> None:
    model = make_model(kind, features=1, noise=ladder, shift=3.0, scale=0.5)
    x = in_units(model, torch.linspace(-3.0, 3.0, 1201, dtype=FLOAT64)[:, None])
    options: dict[str, Any] = {"method": method, "tol": 1e-7, "max_evaluations": 1024}
    cdf, density = model.cdf(x, **options)[:, 0], model.log_prob(x, **options).exp()
    area = torch.cumulative_trapezoid(density, x[:, 0])
    torch.testing.assert_close(cdf[1:] - cdf[0], area, rtol=0.0, atol=2e-4)
    assert bool((cdf.diff() >= -1e-6).all())


@pytest.mark.parametrize("kind", ["score", "mixture"])
def test_quantiles_next_to_zero_and_one_are_finite(make_model: MakeModel, ladder: NoiseLadder, kind: str) -> None:
    model = make_model(kind, noise=ladder)
    u = torch.tensor([[1e-9, 0.5], [1.0 - 1e-9, 0.5], [0.5, 1e-9]], dtype=FLOAT64)
    x = model.icdf(u)
    assert bool(x.isfinite().all())
    assert bool((x[0, 0] < x[2, 0]) & (x[2, 0] < x[1, 0]))


@pytest.mark.parametrize("kind", ["score", "gaussian"])
def test_quantiles_that_round_to_one_in_single_precision_are_finite(
    make_model: MakeModel, ladder: NoiseLadder, kind: str
) -> None:
    model = make_model(kind, noise=ladder, dtype=torch.float32)
    assert bool(model.icdf(torch.tensor([[1.0 - 1e-12, 0.5]], dtype=FLOAT64)).isfinite().all())


# Samplers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sampler", "method"),
    [
        ("score", "probability_flow", "flow"),
        ("score", "inverse_cdf", "quadrature"),
        ("gaussian", "inverse_cdf", "closed_form"),
        ("mixture", "inverse_cdf", "closed_form"),
        ("mixture", "probability_flow", "flow"),
    ],
)
def test_samples_have_the_density_of_their_method(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, sampler: str, method: str
) -> None:
    model = make_model(kind, noise=ladder, order=(1, 0), **UNITS)
    x = model.sample(1500, sampler, generator(11))
    assert_uniform(model.cdf(x, method=method, tol=1e-4))


def test_the_test_of_samplers_tells_two_densities_apart(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder)
    u = model.cdf(model.sample(1500, "inverse_cdf", generator(11)), method="flow")
    assert kstest(u[:, 0].numpy(), "uniform").pvalue < 1e-6


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_the_fast_flow_is_the_flow(make_model: MakeModel, kind: str) -> None:
    """Path by path: both begin from the same uniforms, and the error of many steps goes down as their square."""
    model = make_model(kind, noise=NoiseLadder(3.0, 0.2, 8), dtype=FLOAT64, order=(1, 0))
    exact = model.sample(200, "probability_flow", generator(11), steps=400, tol=1e-8)
    errors = [
        float((model.sample(200, "fast_flow", generator(11), steps=steps) - exact).abs().mean())
        for steps in (16, 32, 64)
    ]
    assert errors[1] < errors[0] / 2.8
    assert errors[2] < errors[1] / 2.8


def test_the_fast_flow_is_near_the_flow_from_few_nodes(make_model: MakeModel) -> None:
    model = make_model("score", noise=NoiseLadder(3.0, 0.2, 8), dtype=FLOAT64, order=(1, 0))
    exact = model.sample(200, "probability_flow", generator(11), steps=100)
    few = model.sample(200, "fast_flow", generator(11), steps=4)
    assert float((few - exact).abs().mean()) < 0.05 * float(exact.std())


def test_the_fast_flow_takes_five_slopes_and_a_score_a_step(make_model: MakeModel) -> None:
    model = make_model("score", features=1, noise=NoiseLadder(2.0, 0.2, 8))
    with count_evaluations(model.head) as count:
        model.sample(50, "fast_flow", generator(1), steps=4)
    assert (count.with_derivative, count.scores) == (5 * 50, 4 * 50)


class TwoNormals(ScoreHead):
    """The score of two normal distributions with weights 0.7 and 0.3, whatever the context."""

    def __init__(self, modes: tuple[float, float], deviation: float) -> None:
        super().__init__(1, (2,))
        self.modes, self.deviation = torch.tensor(modes, dtype=FLOAT64), deviation

    def projected_score_and_derivative(
        self, projection: Tensor, x: Tensor, sigma: Sigma = None
    ) -> tuple[Tensor, Tensor]:
        variance = self.deviation**2 + float(sigma or 0.0) ** 2
        pulls = (self.modes - x.double().unsqueeze(-1)) / variance  # (*, 2), towards the one and the other
        share = torch.softmax(torch.tensor([0.7, 0.3]).log() - 0.5 * variance * pulls.square(), -1)
        s = (share * pulls).sum(-1)
        return s, (share * pulls.square()).sum(-1) - s.square() - 1.0 / variance

    def prepare_score(self, sigma: Sigma) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda projection, x: self.projected_score_and_derivative(projection, x, sigma)[0]

    def prepare_score_and_derivative(
        self, sigma: Sigma, workspace: Workspace | None = None
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return lambda projection, x: self.projected_score_and_derivative(projection, x, sigma)


@pytest.mark.parametrize(
    ("modes", "sigma"),
    [((-1.0, 1.0), 0.5), ((-0.33, 3.0), 0.5), ((-0.4, 0.6), 0.4), ((8.0, 8.2), 0.1), ((0.0, 0.1), 0.02)],
)
def test_the_fast_flow_integrates_where_few_nodes_leave_a_doubt(modes: tuple[float, float], sigma: float) -> None:
    """Modes that the noise does not blur, beyond the nodes, or narrower than is worth so many nodes."""
    model = AutoregressiveModel(MADE(1, 1, (4,)), TwoNormals(modes, 0.05), NoiseLadder(sigma, sigma / 5.0, 8)).double()
    fast = model.sample(2000, "fast_flow", generator(2), level=0)
    exact = model.sample(2000, "probability_flow", generator(2), level=0, tol=1e-4)
    left = [float((x < sum(modes) / 2.0).double().mean()) for x in (fast, exact)]
    assert left[0] == pytest.approx(left[1], abs=0.02)
    assert float((fast - exact).abs().median()) < 0.05 * sigma


@pytest.mark.parametrize("sampler", ["langevin", "probability_flow", "fast_flow", "inverse_cdf"])
def test_samplers_work_under_autocast(make_model: MakeModel, ladder: NoiseLadder, sampler: str) -> None:
    model = make_model("score", noise=ladder, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(model.sample(4, sampler, generator(1)).isfinite().all())


def test_a_normal_guess_takes_four_evaluations_and_the_width_of_the_whole(
    make_model: MakeModel, ladder: NoiseLadder
) -> None:
    model = make_model("mixture", noise=ladder, dtype=FLOAT64)
    conditionals = Conditionals(model.head, model.head.project(torch.randn(40, 3, dtype=FLOAT64)), (8.0,), "quadrature")
    with count_evaluations(model.head) as count:
        mean, deviation = sampler_base.normal_approximation(conditionals, 8.0)
    assert count.scores == 4 * 40
    exact = Conditionals(model.head, conditionals.projection, (8.0,), "closed_form")
    for u, normal in ((0.2, -0.8416), (0.5, 0.0), (0.8, 0.8416)):  # a wide noise makes nearly normal conditionals
        quantile = exact.icdf(torch.full_like(mean, u))
        torch.testing.assert_close(mean + normal * deviation, quantile, rtol=0.0, atol=0.15 * 8.0)


@pytest.mark.parametrize("kind", ["score", "mixture"])
def test_an_exact_start_begins_where_the_mass_is_and_still_integrates_all(
    make_model: MakeModel, ladder: NoiseLadder, kind: str
) -> None:
    model = make_model(kind, noise=ladder, dtype=FLOAT64)
    projection = model.head.project(torch.randn(60, 3, dtype=FLOAT64))
    part = Conditionals(model.head, projection, (ladder.sigma_max,), "quadrature", Accuracy(1e-6))
    guesses = [sampler_base.normal_approximation(part, ladder.sigma_max)]
    guesses += [(torch.full((60,), mean, dtype=FLOAT64), torch.full((60,), sd, dtype=FLOAT64))
                for mean, sd in ((1e3, 5.0), (-1e3, 1e-3), (0.0, 1e3))]  # fmt: skip
    u = torch.rand(60, generator=generator(3), dtype=FLOAT64)
    for mean, deviation in guesses:
        nodes = sampler_base.nodes_around(part, mean, deviation)
        torch.testing.assert_close(part.icdf(u, nodes), part.icdf(u), rtol=0.0, atol=2e-5)


def test_an_exact_start_integrates_nearly_normal_conditionals_at_once(make_model: MakeModel) -> None:
    model = make_model("score", noise=NoiseLadder(8.0, 0.2, 8), dtype=FLOAT64)
    part = Conditionals(
        model.head, model.head.project(torch.randn(60, 3, dtype=FLOAT64)), (8.0,), "quadrature", Accuracy(1e-3)
    )
    nodes = sampler_base.nodes_around(part, *sampler_base.normal_approximation(part, 8.0))
    evaluations = part.density(slice(0, 60), 8.0, nodes=nodes).evaluations
    assert torch.equal(evaluations, torch.full((60,), nodes.shape[1] - 2))  # at the outer two the score is known


def test_probability_flow_at_other_levels_and_steps(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder)
    for options in ({"level": 0}, {"level": 4}, {"steps": 12}):
        x = model.sample(800, generator=generator(12), **options)
        assert_uniform(model.cdf(x, method="flow", tol=1e-4, **options))


def test_langevin_finds_a_known_gaussian(make_model: MakeModel) -> None:
    ladder = NoiseLadder(1.0, 0.5, levels=3)
    model = make_model("gaussian", noise=ladder, shift=2.0, scale=3.0)
    x = model.sample(4000, "langevin", generator(5), langevin_steps=60)
    context = model.context(model.standardise(x))
    mean, variance = model.head.moments(model.head.project(context), ladder.sigma_min)  # type: ignore[operator]
    z = (model.standardise(x) - mean) / variance.sqrt()
    # the chain's own stationary variance is 1 / (1 - step / (4 variance)) of the true one
    inflation = 1.0 / (1.0 - 0.4 * ladder.sigma_min**2 / (4.0 * variance))
    z = z / inflation.sqrt()
    assert_uniform(torch.special.ndtr(z).detach())


def test_langevin_without_a_ladder(make_model: MakeModel) -> None:
    model = make_model("gaussian", features=1)
    with torch.no_grad():
        mean, variance = model.head.moments(model.head.project(model.context(torch.zeros(1, 1).double())))  # type: ignore[operator]
    step = 0.1 * float(variance)
    x = model.sample(2000, "langevin", generator(6), langevin_steps=150, step_size=step)
    assert float(x.mean()) == pytest.approx(float(mean), abs=0.1 * float(variance.sqrt()))
    assert float(x.var()) == pytest.approx(float(variance) / (1.0 - 0.1 / 4.0), rel=0.12)


@pytest.mark.parametrize("sampler", ["langevin", "probability_flow", "fast_flow", "inverse_cdf"])
def test_seed_decides_the_sample_and_the_global_generator_is_left_alone(
    make_model: MakeModel, ladder: NoiseLadder, sampler: str
) -> None:
    model = make_model(noise=ladder)
    state = torch.get_rng_state()
    first = model.sample(6, sampler, generator(1))
    assert torch.equal(first, model.sample(6, sampler, generator(1)))
    assert not bool((first == model.sample(6, sampler, generator(2))).any())
    assert torch.equal(state, torch.get_rng_state())
    assert not first.requires_grad


@pytest.mark.parametrize("ask", ["score", "log_prob", "cdf", "icdf"])
def test_questions_consume_no_randomness(make_model: MakeModel, ladder: NoiseLadder, ask: str) -> None:
    model = make_model(noise=ladder)
    x = torch.full((3, 2), 0.4, dtype=FLOAT64)
    state, before = torch.get_rng_state(), x.clone()
    getattr(model, ask)(x)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(x, before)


def test_default_samplers(make_model: MakeModel, ladder: NoiseLadder) -> None:
    for kind, noise, sampler in (
        ("score", ladder, "probability_flow"),
        ("score", None, "inverse_cdf"),
        ("mixture", ladder, "inverse_cdf"),
    ):
        model = make_model(kind, noise=noise)
        assert torch.equal(model.sample(4, generator=generator()), model.sample(4, sampler, generator()))


def test_sample_has_the_rows_asked_for_in_any_batches(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder)
    x = model.sample(701, generator=generator(4), batch_size=100)
    assert x.shape == (701, 2)
    assert x.dtype == FLOAT64
    assert len(x.unique(dim=0)) == 701
    assert_uniform(model.cdf(x, tol=1e-4))


@pytest.mark.parametrize("level", [-1, 2])
def test_denoising_takes_one_step_of_tweedies_formula(make_model: MakeModel, ladder: NoiseLadder, level: int) -> None:
    model = make_model(noise=ladder, **UNITS)
    noisy = model.sample(20, generator=generator(), level=level)
    clean = model.sample(20, generator=generator(), level=level, denoise=True)
    s, _ = model.score(noisy, level)
    torch.testing.assert_close(clean, noisy + (ladder.sigma(level) * model.scale).square() * s)


def test_progress_bars_stay_out_of_pipes(
    make_model: MakeModel, ladder: NoiseLadder, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(noise=ladder).sample(3, generator=generator(), progress=True)
    assert capsys.readouterr() == ("", "")


# Conditions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["score", "mixture"])
@pytest.mark.parametrize("sizes", [{"condition_features": 2}, {"classes": 3}])
def test_conditions_speak_in_every_answer_and_are_kept_to_their_rows(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, sizes: dict[str, int]
) -> None:
    model = make_model(kind, noise=ladder, **sizes)
    x = points(model).expand(6, 2)
    condition = torch.arange(6) % 3
    if "condition_features" in sizes:
        condition = torch.nn.functional.one_hot(condition, 3)[:, :2].double()
    u = torch.full((6, 2), 0.3, dtype=FLOAT64)
    answers = [model.log_prob(x, condition=condition), model.cdf(x, condition=condition)]
    answers += [model.icdf(u, condition=condition), *model.score(x, condition=condition)]
    for answer in answers:
        torch.testing.assert_close(answer[:3], answer[3:])  # the same condition, the same answer
        assert bool((answer[0] != answer[1]).all())
    shared = model.log_prob(x, condition=condition[1])
    torch.testing.assert_close(shared, answers[0][1].expand(6))


def test_samples_follow_their_condition(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder, classes=2)
    labels = torch.arange(1500) % 2
    x = model.sample(1500, generator=generator(3), condition=labels, batch_size=400)
    assert_uniform(model.cdf(x, condition=labels, tol=1e-4))
    shared = model.sample(5, generator=generator(4), condition=torch.tensor(1))
    assert torch.equal(shared, model.sample(5, generator=generator(4), condition=torch.ones(5, dtype=torch.long)))


def test_conditions_have_the_leading_shape_of_the_batch(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder, condition_features=2)
    x, condition = points(model, 2, 3), torch.randn(2, 3, 2, dtype=FLOAT64)
    flat = model.log_prob(x.view(6, 2), condition=condition.view(6, 2))
    torch.testing.assert_close(model.log_prob(x, condition=condition), flat.view(2, 3))


# Variants -------------------------------------------------------------------------------------------------------


def test_one_dimension_is_a_plain_density(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(features=1, noise=ladder)
    x = torch.linspace(-15.0, 15.0, 3001, dtype=FLOAT64)[:, None]
    assert float(torch.trapezoid(model.log_prob(x).exp(), x[:, 0])) == pytest.approx(1.0, abs=1e-3)
    assert_uniform(model.cdf(model.sample(800, generator=generator())))


def test_single_precision_follows_double(make_model: MakeModel, ladder: NoiseLadder) -> None:
    for kind in ("score", "gaussian", "mixture"):
        double, single = (make_model(kind, noise=ladder, dtype=dtype) for dtype in (FLOAT64, torch.float32))
        x = points(double, 50)
        log_prob = single.log_prob(x.float())
        assert log_prob.dtype == torch.float32
        torch.testing.assert_close(log_prob.double(), double.log_prob(x), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(single.cdf(x.float()).double(), double.cdf(x), rtol=0.0, atol=1e-3)
        assert single.sample(3).dtype == torch.float32


def test_points_of_other_types_are_taken_in_the_models_precision(make_model: MakeModel) -> None:
    model = make_model("gaussian", dtype=torch.float32)
    x = torch.tensor([[1.0, -2.0]])
    for other in (x.double(), x.long(), x.half(), x.int()):
        assert torch.equal(model.log_prob(other), model.log_prob(x))


def test_copies_and_states_give_the_same_densities(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder, **UNITS)
    x = points(model, 5)
    duplicate = copy.deepcopy(model)
    other = make_model(noise=ladder, seed=5)
    assert not torch.allclose(other.log_prob(x), model.log_prob(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.log_prob(x), model.log_prob(x))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(duplicate.log_prob(x), other.log_prob(x))


def test_config_is_plain_and_rebuilds_the_model(make_model: MakeModel, ladder: NoiseLadder) -> None:
    for kind in ("score", "gaussian", "mixture"):
        model = make_model(kind, noise=ladder, order=(1, 0), classes=3, metadata={"columns": ["a", "b"]})
        config = json.loads(json.dumps(model.config()))
        rebuilt = AutoregressiveModel.from_config(config)
        assert rebuilt.config() == model.config() == config
        rebuilt.double().load_state_dict(model.state_dict())
        x, labels = points(model, 4), torch.tensor([0, 1, 2, 0])
        assert torch.allclose(rebuilt.log_prob(x, condition=labels), model.log_prob(x, condition=labels), atol=1e-5)


# Mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["score", "log_prob", "cdf"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([[math.nan, 0.0]]), "NaN or infinity"),
        (torch.tensor([[0.0, math.inf]]), "NaN or infinity"),
        (torch.zeros(3, 3), r"x: expected shape \(\*, 2\), got \(3, 3\)"),
        (torch.zeros(()), "x: expected shape"),
        (torch.zeros(2, 2, dtype=torch.bool), "real numbers"),
        (torch.zeros(2, 2, dtype=torch.complex64), "real numbers"),
        ([[0.0, 0.0]], "x: expected a torch.Tensor, got list"),
        (None, "got NoneType"),
    ],
)
def test_unfit_points_are_refused_in_one_line(make_model: MakeModel, ask: str, x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        getattr(make_model("gaussian"), ask)(x)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.log_prob(torch.zeros(2), method="exact"),
        lambda model: model.log_prob(torch.zeros(2), method="closed_form"),
        lambda model: model.log_prob(torch.zeros(2), level=8),
        lambda model: model.log_prob(torch.zeros(2), level=-9),
        lambda model: model.log_prob(torch.zeros(2), steps=0),
        lambda model: model.log_prob(torch.zeros(2), max_evaluations=5),
        lambda model: model.log_prob(torch.zeros(2), condition=torch.zeros(1)),
        lambda model: model.icdf(torch.zeros(2)),
        lambda model: model.icdf(torch.ones(2)),
        lambda model: model.icdf(torch.full((3,), 0.5)),
        lambda model: model.icdf(torch.full((2,), math.nan)),
        lambda model: model.sample(0),
        lambda model: model.sample(-3),
        lambda model: model.sample(2, sampler="gibbs"),
        lambda model: model.sample(2, level=8),
    ],
)
def test_unfit_arguments_are_refused_in_one_line(
    make_model: MakeModel, ladder: NoiseLadder, call: Callable[[AutoregressiveModel], Any]
) -> None:
    with pytest.raises(ValueError, match=": ") as error:
        call(make_model(noise=ladder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.log_prob(torch.zeros(2), method="flow"),
        lambda model: model.log_prob(torch.zeros(2), level=1),
        lambda model: model.log_prob(torch.zeros(2), steps=5),
        lambda model: model.sample(2, sampler="probability_flow"),
        lambda model: model.sample(2, sampler="fast_flow"),
    ],
)
def test_what_needs_a_ladder_says_so(make_model: MakeModel, call: Callable[[AutoregressiveModel], Any]) -> None:
    with pytest.raises(ValueError, match="ladder"):
        call(make_model())


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.icdf([[0.5, 0.5]]),
        lambda model: model.log_prob(torch.zeros(3, 2), condition=torch.zeros(4, 1)),
        lambda model: model.log_prob(torch.zeros(3, 2), condition=torch.zeros(3, 1, dtype=torch.long)),
        lambda model: model.sample(3, condition=torch.zeros(4, 1)),
        lambda model: model.sample(2, batch_size=0, condition=torch.zeros(1)),
        lambda model: model.sample(2, temperature=0.5, condition=torch.zeros(1)),
        lambda model: model.set_standardisation(torch.zeros(3), 1.0),
    ],
)
def test_more_unfit_arguments_are_refused_by_name(
    make_model: MakeModel, ladder: NoiseLadder, call: Callable[[AutoregressiveModel], Any]
) -> None:
    with pytest.raises(ValueError, match=": "):
        call(make_model("gaussian", noise=ladder, condition_features=1, dtype=torch.float32))


def test_points_that_overflow_the_models_precision_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="x: "):
        make_model("gaussian", dtype=torch.float32).log_prob(torch.tensor([[1e300, 0.0]], dtype=FLOAT64))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, [1.0, 0.0]])
def test_scales_that_are_not_positive_are_refused(make_model: MakeModel, scale: Any) -> None:
    with pytest.raises(ValueError, match="scale: expected positive"):
        make_model("gaussian", scale=scale)


def test_what_is_wrong_with_a_call_is_named(make_model: MakeModel, ladder: NoiseLadder) -> None:
    plain, noisy = make_model("gaussian"), make_model(noise=ladder)
    for wrong, message in (
        (lambda: plain.set_standardisation(math.nan, 1.0), "shift: expected finite"),
        (lambda: plain.path(steps=5), "steps: this model has no noise ladder"),
        (lambda: plain.path(1), "level: this model has no noise ladder"),
        (
            lambda: plain.sample(1, "langevin", foo=5),
            "foo: not an option of langevin; it takes langevin_steps, step_size",
        ),
        (lambda: plain.sample(1, "inverse_cdf", langevin_steps=5), "langevin_steps: not an option of inverse_cdf"),
        (lambda: noisy.sample(1, "langevin", langevin_steps=0), "steps, step_size: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_a_refused_scale_leaves_the_model_as_it_was(make_model: MakeModel) -> None:
    model = make_model("gaussian", **UNITS)
    with pytest.raises(ValueError, match="scale"):
        model.set_standardisation(0.0, 0.0)
    assert model.scale.tolist() == UNITS["scale"]


@pytest.mark.parametrize("head", [ScoreHead(5), GaussianHead(5), LogisticMixtureHead(5)])
def test_head_and_context_must_have_one_size(head: Any) -> None:
    with pytest.raises(ValueError, match="context_features: the context returns 4, the head expects 5"):
        AutoregressiveModel(MADE(2, 4), head)


def test_the_mean_density_over_a_cell_is_its_probability_by_its_width() -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4), scale=2.0).double()
    x = torch.randn(50, 2, dtype=torch.float64)
    found = model.log_prob(x, reduce=False, cells=(0.5, 0.0))
    contexts = model.context(model.standardise(x))[:, 0]
    upper, lower = (model.head.cdf(contexts, (x[:, 0] + side) / 2.0) for side in (0.25, -0.25))
    torch.testing.assert_close(found[:, 0], torch.log((upper - lower) / 0.5))
    torch.testing.assert_close(found[:, 1], model.log_prob(x, reduce=False)[:, 1])
    far = torch.full((1, 2), 60.0, dtype=torch.float64)  # beyond what a distribution function can tell
    torch.testing.assert_close(model.log_prob(far, cells=(0.1, 0.1)), model.log_prob(far))
    with pytest.raises(ValueError, match="cells: expected 2 steps"):
        model.log_prob(x, cells=(0.5,))


def test_samples_stay_within_bounds_which_images_have_by_default() -> None:
    torch.manual_seed(0)
    plain = AutoregressiveModel(MADE(4, 2, (8,)), ScoreHead(2, (8,)), NoiseLadder(1.0, 0.1, 4), shift=1.0, scale=2.0)
    plain.eval()
    wide = plain.sample(500, generator=torch.Generator().manual_seed(1))
    bounded = plain.sample(500, generator=torch.Generator().manual_seed(1), bounds=(0.0, 2.0))
    assert float(wide.min()) < 0.0
    assert float(wide.max()) > 2.0
    torch.testing.assert_close((bounded.min(), bounded.max()), (torch.tensor(0.0), torch.tensor(2.0)))
    inside = (wide[:, 0] > 0.0) & (wide[:, 0] < 2.0)
    torch.testing.assert_close(bounded[inside, 0], wide[inside, 0])  # the first dimension depends on no other

    images = AutoregressiveModel(plain.context, plain.head, plain.noise, metadata={"image_shape": [1, 2, 2]}, scale=2.0)
    drawn = images.sample(500, generator=torch.Generator().manual_seed(1))
    assert float(drawn.abs().max()) == pytest.approx(1.0 + 4.0 * 0.1 * 2.0)
    with pytest.raises(ValueError, match="bounds: expected a lower and a higher one"):
        plain.sample(2, bounds=(1.0, 1.0))


def test_contexts_of_what_was_never_seen_do_not_overflow_a_mixture() -> None:
    head = LogisticMixtureHead(context_features=2, components=3)
    projection = torch.linspace(-500.0, 500.0, 9).repeat(4, 1)
    u = torch.tensor([1e-6, 0.3, 0.7, 1.0 - 1e-6])
    x = Conditionals(head, projection, (0.1,), "closed_form").icdf(u)
    assert bool(x.isfinite().all())
    assert bool(head.projected_log_prob(projection, x, 0.1).isfinite().all())


@pytest.mark.parametrize("kind", ["score", "gaussian", "mixture"])
def test_every_evaluation_counts_once(kind: str, make_model: MakeModel) -> None:
    model = make_model(kind, noise=NoiseLadder(1.0, 0.1, 4))
    with count_evaluations(model.head) as count, torch.no_grad():
        projection = model.head.project(model.context(model.standardise(points(model, 40)))[:, 0])
        conditionals = Conditionals(model.head, projection, model.path(), "quadrature")
        x = torch.zeros(40).to(projection)
        conditionals.score(x, 0.1)
        assert (count.scores, count.with_derivative) == (40, 0)
        conditionals.score_and_derivative(x, slice(None), 0.1)
        assert (count.scores, count.with_derivative) == (40, 40)


def test_parts_on_cores_are_as_one_after_the_other(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder)
    x = points(model, 1200)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = model.log_prob(x), model.cdf(x)
        torch.set_num_threads(3)
        for together, expected in zip((model.log_prob(x), model.cdf(x)), alone, strict=True):
            torch.testing.assert_close(together, expected, rtol=1e-9, atol=1e-9)
            assert not together.requires_grad
        assert torch.get_num_threads() == 3
        with pytest.warns(AccuracyWarning, match=r"^\d+ integrals \(of 2400 conditionals"):
            model.log_prob(x, method="quadrature", tol=1e-14, max_evaluations=40)

        def broken(part: slice) -> None:
            raise KeyError(part.start)

        with pytest.raises(KeyError, match="0"):
            map_slices(broken, [slice(0, 1), slice(1, 2)], x.device)
        assert torch.get_num_threads() == 3
        assert map_slices(lambda part: torch.get_num_threads(), [slice(0, 1)] * 9, x.device) == [1] * 9
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("rows", [3, 700])
def test_densities_under_autocast_are_those_without_it_about(
    rows: int, make_model: MakeModel, ladder: NoiseLadder
) -> None:
    model = make_model(noise=ladder, dtype=torch.float32)
    x = points(model, rows)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.log_prob(x, tol=1e-2)
    torch.testing.assert_close(found.float(), model.log_prob(x), rtol=0.0, atol=0.5)


@pytest.mark.parametrize("sampler", ["probability_flow", "inverse_cdf"])
def test_draws_say_when_their_integrals_missed_the_tolerance(
    make_model: MakeModel, ladder: NoiseLadder, sampler: str
) -> None:
    model = make_model(noise=ladder)
    with pytest.warns(AccuracyWarning, match=r"40 integrals \(of 40 conditionals"):
        model.sample(20, sampler, batch_size=8, tol=1e-18)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.sample(20, sampler)
