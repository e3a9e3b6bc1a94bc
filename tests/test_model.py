"""The model: scores, densities and distribution functions are consistent with each other and with calculus."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, Head, LogisticMixtureHead, NoiseLadder, ScoreHead
from arcsm._runtime.batching import map_slices
from arcsm.errors import AccuracyWarning
from small_models import MakeModel, assert_uniform, in_units, points, seeded

FLOAT64 = torch.float64


METHODS = (("score", "flow"), ("score", "quadrature"), ("gaussian", "closed_form"), ("mixture", "closed_form"))


UNITS: dict[str, Any] = {"shift": [3.0, -20.0], "scale": [0.5, 10.0]}


SHAPES = ((), (4,), (2, 3), (1, 1, 2))


def square_grid(model: AutoregressiveModel, side: int = 81, half_width: float = 7.0) -> tuple[Tensor, float]:
    """Return a grid over two dimensions and the area of its cells, in data units."""
    axis = torch.linspace(-half_width, half_width, side, dtype=FLOAT64)
    area = (2.0 * half_width / (side - 1)) ** 2 * float(model.scale.prod())
    return in_units(model, torch.cartesian_prod(axis, axis)), area


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
def test_scores_depend_only_on_earlier_values_in_the_order(
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
    assert not torch.allclose(gradient[:, 1], s[:, 1])  # it also acts through the context of dimension 0


def test_densities_of_a_weak_network_are_nearly_gaussian(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder, strength=1e-6)
    x = points(model, 50)
    exact = torch.distributions.Normal(0.0, math.sqrt(1.0 + ladder.sigma_min**2)).log_prob(x).sum(-1)
    torch.testing.assert_close(model.log_prob(x, steps=100), exact, rtol=0.0, atol=5e-3)
    torch.testing.assert_close(model.log_prob(x, method="quadrature"), exact, rtol=0.0, atol=1e-4)


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
    grid, area = square_grid(model, half_width=11.0 if kind == "mixture" else 7.0)  # logistic tails are exponential
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


def test_flow_of_a_gaussian_is_its_closed_form(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model("gaussian", noise=ladder)
    x = points(model, 50)
    exact = model.log_prob(x, method="closed_form")
    for tol in (1e-3, 1e-5, 1e-7):
        error = model.log_prob(x, method="flow", tol=tol, max_evaluations=4096) - exact
        assert error.abs().max().item() < tol


@pytest.mark.parametrize("kind", ["score", "gaussian", "mixture"])
def test_units_change_the_density_by_the_scale_alone(make_model: MakeModel, ladder: NoiseLadder, kind: str) -> None:
    plain, scaled = make_model(kind, noise=ladder), make_model(kind, noise=ladder, **UNITS)
    z = points(plain, 20)
    x = in_units(scaled, z)
    volume = math.log(0.5 * 10.0)
    torch.testing.assert_close(scaled.log_prob(x), plain.log_prob(z) - volume, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scaled.cdf(x), plain.cdf(z), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scaled.score(x)[0] * scaled.scale, plain.score(z)[0], rtol=1e-9, atol=1e-9)
    sample = scaled.sample(5, generator=seeded())
    torch.testing.assert_close(sample, in_units(scaled, plain.sample(5, generator=seeded())))


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


def test_flow_and_quadrature_agree_at_the_largest_noise(make_model: MakeModel, ladder: NoiseLadder) -> None:
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
        torch.testing.assert_close(curvature, expected)  # the variances differ by the noise
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


@pytest.mark.parametrize("method", ["flow", "quadrature"])
@pytest.mark.parametrize("kind", ["score", "gaussian"])
def test_integrated_densities_reject_a_backward_pass(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, method: str
) -> None:
    model = make_model(kind, noise=ladder, condition_features=2)
    x, given = points(model, 4), torch.randn(4, 2, dtype=FLOAT64)
    log_prob = model.log_prob(x, condition=given, method=method)
    assert not log_prob.requires_grad  # although the weights require gradients, as they do in every evaluation
    for rows, condition in ((x.clone().requires_grad_(), given), (x, given.clone().requires_grad_())):
        for function in (model.log_prob, model.cdf):
            found = function(rows, condition=condition, method=method)
            with pytest.raises(NotImplementedError, match=r"no gradients: train with arcsm\.objectives\.csm or mle"):
                found.sum().backward()
            with torch.no_grad():
                assert not function(rows, condition=condition, method=method).requires_grad
    assert torch.equal(found.detach(), model.cdf(x, condition=given, method=method))


@pytest.mark.parametrize(("kind", "method"), METHODS)
def test_rows_do_not_depend_on_their_batch(make_model: MakeModel, ladder: NoiseLadder, kind: str, method: str) -> None:
    model = make_model(kind, noise=ladder)
    x = points(model, 600)  # more rows than one batch
    for function in (model.log_prob, model.cdf):
        whole = function(x, method=method)
        for part in (slice(0, 1), slice(37, 50), slice(505, 530)):
            torch.testing.assert_close(function(x[part], method=method), whole[part], rtol=1e-8, atol=1e-8)
    u = torch.rand(600, 2, generator=seeded(), dtype=FLOAT64).clamp(0.01, 0.99)
    whole = model.icdf(u, method=method)
    torch.testing.assert_close(model.icdf(u[505:530], method=method), whole[505:530], rtol=1e-7, atol=1e-7)


def test_batches_of_any_shape_are_the_same_rows(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder)
    x = points(model, 6)
    torch.testing.assert_close(model.log_prob(x.view(2, 3, 2)), model.log_prob(x).view(2, 3))
    torch.testing.assert_close(model.cdf(x.view(2, 3, 2)), model.cdf(x).view(2, 3, 2))
    torch.testing.assert_close(model.log_prob(x[0]), model.log_prob(x)[0])


@pytest.mark.parametrize("kind", ["score", "gaussian"])
def test_empty_batches_give_empty_results(make_model: MakeModel, ladder: NoiseLadder, kind: str) -> None:
    model = make_model(kind, noise=ladder)
    x = torch.zeros(0, 2, dtype=FLOAT64)
    assert model.log_prob(x).shape == (0,)
    assert model.cdf(x).shape == (0, 2)
    assert model.score(x)[0].shape == (0, 2)


def test_icdf_of_an_empty_batch_is_empty(make_model: MakeModel, ladder: NoiseLadder) -> None:
    assert make_model(noise=ladder).icdf(torch.zeros(0, 2, dtype=FLOAT64)).shape == (0, 2)


def test_densities_of_outliers_are_small_and_finite(make_model: MakeModel, ladder: NoiseLadder) -> None:
    for kind, dtype in (("score", FLOAT64), ("score", torch.float32), ("mixture", torch.float32)):
        model = make_model(kind, noise=ladder, dtype=dtype)
        x = torch.tensor([[0.0, 0.0], [40.0, 0.0], [200.0, 0.0], [-1e3, 0.0]], dtype=dtype)
        log_prob = model.log_prob(x, reduce=False)
        assert bool(log_prob.isfinite().all())
        assert bool((log_prob[1:, 0] < log_prob[:-1, 0]).all())
        assert bool(model.cdf(x).isfinite().all())


def test_too_few_evaluations_warn_once(make_model: MakeModel, ladder: NoiseLadder) -> None:
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


def test_the_warning_points_to_the_callers_line(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder, strength=3.0)
    with pytest.warns(AccuracyWarning) as caught:
        model.log_prob(points(model, 20), method="quadrature", max_evaluations=28, tol=1e-9)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("order", [None, (2, 0, 1)])
@pytest.mark.parametrize(("kind", "method"), METHODS)
def test_cdf_and_icdf_invert_each_other(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, method: str, order: tuple[int, ...] | None
) -> None:
    model = make_model(kind, features=3, noise=ladder, order=order, shift=1.0, scale=2.0)
    u = torch.rand(200, 3, generator=seeded(3), dtype=FLOAT64).clamp(1e-4, 1.0 - 1e-4)
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


@pytest.mark.parametrize("name", ["score", "log_prob", "cdf", "icdf"])
def test_densities_consume_no_randomness_and_do_not_mutate_their_input(
    make_model: MakeModel, ladder: NoiseLadder, name: str
) -> None:
    model = make_model(noise=ladder)
    x = torch.full((3, 2), 0.4, dtype=FLOAT64)
    state, before = torch.get_rng_state(), x.clone()
    getattr(model, name)(x)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", ["score", "mixture"])
@pytest.mark.parametrize("sizes", [{"condition_features": 2}, {"classes": 3}])
def test_every_result_depends_on_the_condition_of_its_row(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, sizes: dict[str, int]
) -> None:
    model = make_model(kind, noise=ladder, **sizes)
    x = points(model).expand(6, 2)
    condition = torch.arange(6) % 3
    if "condition_features" in sizes:
        condition = torch.nn.functional.one_hot(condition, 3)[:, :2].double()
    u = torch.full((6, 2), 0.3, dtype=FLOAT64)
    results = [model.log_prob(x, condition=condition), model.cdf(x, condition=condition)]
    results += [model.icdf(u, condition=condition), *model.score(x, condition=condition)]
    for result in results:
        torch.testing.assert_close(result[:3], result[3:])  # equal conditions give equal results
        assert bool((result[0] != result[1]).all())
    shared = model.log_prob(x, condition=condition[1])
    torch.testing.assert_close(shared, results[0][1].expand(6))


def test_conditions_have_the_leading_shape_of_the_batch(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder, condition_features=2)
    x, condition = points(model, 2, 3), torch.randn(2, 3, 2, dtype=FLOAT64)
    flat = model.log_prob(x.view(6, 2), condition=condition.view(6, 2))
    torch.testing.assert_close(model.log_prob(x, condition=condition), flat.view(2, 3))


def test_one_dimension_is_a_plain_density(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(features=1, noise=ladder)
    x = torch.linspace(-15.0, 15.0, 3001, dtype=FLOAT64)[:, None]
    assert float(torch.trapezoid(model.log_prob(x).exp(), x[:, 0])) == pytest.approx(1.0, abs=1e-3)
    assert_uniform(model.cdf(model.sample(800, generator=seeded())))


def test_single_precision_follows_double(make_model: MakeModel, ladder: NoiseLadder) -> None:
    for kind in ("score", "gaussian", "mixture"):
        double, single = (make_model(kind, noise=ladder, dtype=dtype) for dtype in (FLOAT64, torch.float32))
        x = points(double, 50)
        log_prob = single.log_prob(x.float())
        assert log_prob.dtype == torch.float32
        torch.testing.assert_close(log_prob.double(), double.log_prob(x), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(single.cdf(x.float()).double(), double.cdf(x), rtol=0.0, atol=1e-3)
        assert single.sample(3).dtype == torch.float32


def test_points_are_converted_to_the_models_precision(make_model: MakeModel) -> None:
    model = make_model("gaussian", dtype=torch.float32)
    x = torch.tensor([[1.0, -2.0]])
    for other in (x.double(), x.long(), x.half(), x.int()):
        assert torch.equal(model.log_prob(other), model.log_prob(x))


def test_a_copy_and_a_loaded_state_dict_give_the_same_densities(make_model: MakeModel, ladder: NoiseLadder) -> None:
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


def test_config_is_json_and_rebuilds_the_model(make_model: MakeModel, ladder: NoiseLadder) -> None:
    for kind in ("score", "gaussian", "mixture"):
        model = make_model(kind, noise=ladder, order=(1, 0), classes=3, metadata={"columns": ["a", "b"]})
        config = json.loads(json.dumps(model.config()))
        rebuilt = AutoregressiveModel.from_config(config)
        assert rebuilt.config() == model.config() == config
        rebuilt.double().load_state_dict(model.state_dict())
        x, labels = points(model, 4), torch.tensor([0, 1, 2, 0])
        assert torch.allclose(rebuilt.log_prob(x, condition=labels), model.log_prob(x, condition=labels), atol=1e-5)


@pytest.mark.parametrize("name", ["score", "log_prob", "cdf"])
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
def test_invalid_points_raise_in_one_line(make_model: MakeModel, name: str, x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        getattr(make_model("gaussian"), name)(x)
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
        lambda model: model.sample((4, 2)),
        lambda model: model.sample(2.0),
        lambda model: model.sample(2, sampler="gibbs"),
        lambda model: model.sample(2, level=8),
    ],
)
def test_invalid_arguments_raise_in_one_line(
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
def test_errors_name_a_missing_ladder(make_model: MakeModel, call: Callable[[AutoregressiveModel], Any]) -> None:
    with pytest.raises(ValueError, match="ladder"):
        call(make_model())


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.icdf([[0.5, 0.5]]),
        lambda model: model.log_prob(torch.zeros(3, 2), condition=torch.zeros(4, 1)),
        lambda model: model.log_prob(torch.zeros(3, 2), condition=torch.zeros(3, 1, dtype=torch.cfloat)),
        lambda model: model.sample(3, condition=torch.zeros(4, 1)),
        lambda model: model.sample(2, batch_size=0, condition=torch.zeros(1)),
        lambda model: model.sample(2, sampler_options={"temperature": 0.5}, condition=torch.zeros(1)),
        lambda model: model.set_standardisation(torch.zeros(3), 1.0),
    ],
)
def test_invalid_arguments_of_a_conditional_model_raise(
    make_model: MakeModel, ladder: NoiseLadder, call: Callable[[AutoregressiveModel], Any]
) -> None:
    with pytest.raises(ValueError, match=": "):
        call(make_model("gaussian", noise=ladder, condition_features=1, dtype=torch.float32))


def test_points_that_overflow_the_models_precision_raise(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="x: "):
        make_model("gaussian", dtype=torch.float32).log_prob(torch.tensor([[1e300, 0.0]], dtype=FLOAT64))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, [1.0, 0.0]])
def test_scales_that_are_not_positive_raise(make_model: MakeModel, scale: Any) -> None:
    with pytest.raises(ValueError, match="scale: expected positive"):
        make_model("gaussian", scale=scale)


def test_errors_name_the_argument(make_model: MakeModel, ladder: NoiseLadder) -> None:
    plain, noisy = make_model("gaussian"), make_model(noise=ladder)
    for wrong, message in (
        (lambda: plain.set_standardisation(math.nan, 1.0), "shift: expected finite"),
        (lambda: plain.path(steps=5), "steps: this model has no noise ladder"),
        (lambda: plain.path(1), "level: this model has no noise ladder"),
        (lambda: plain.sample((4, 2)), r"n, batch_size: expected integers of at least 1, got \(4, 2\)"),
        (lambda: plain.sample(4, batch_size=2.5), r"n, batch_size: expected integers of at least 1, got 4 and 2.5"),
        (
            lambda: plain.sample(1, "langevin", sampler_options={"foo": 5}),
            "sampler_options: foo: not an option of langevin; it takes step_size, steps",
        ),
        (
            lambda: plain.sample(1, "inverse_cdf", sampler_options={"steps": 5}),
            "sampler_options: steps: not an option of inverse_cdf; it takes tol",
        ),
        (lambda: noisy.sample(1, "langevin", sampler_options={"steps": 0}), "steps, step_size: expected at least 1"),
        (
            lambda: noisy.sample(1, "langevin", sampler_options={"steps": 2.5}),
            "steps: expected a whole number, got 2.5",
        ),
        (lambda: noisy.sample(1, steps=1.5), "steps: expected a whole number of at least 1, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_a_rejected_scale_leaves_the_model_unchanged(make_model: MakeModel) -> None:
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
    with pytest.raises(ValueError, match="cells: expected 2 finite steps"):
        model.log_prob(x, cells=(0.5,))


def test_results_do_not_depend_on_the_number_of_threads(make_model: MakeModel, ladder: NoiseLadder) -> None:
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
def test_densities_under_autocast_are_close(rows: int, make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder, dtype=torch.float32)
    x = points(model, rows)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.log_prob(x, tol=1e-2)
    torch.testing.assert_close(found.float(), model.log_prob(x), rtol=0.0, atol=0.5)


@pytest.mark.parametrize("tol", [0.0, -1.0, math.nan])
def test_a_tolerance_is_positive(make_model: MakeModel, tol: float) -> None:
    model = make_model(noise=NoiseLadder(1.0, 0.1, 4))
    for call in (
        lambda: model.log_prob(torch.zeros(2, 2), tol=tol),
        lambda: model.sample(2, sampler="inverse_cdf", sampler_options={"tol": tol}),
    ):
        with pytest.raises(ValueError, match=rf"^tol: expected a positive number, got {tol}"):
            call()


def test_unknown_keywords_and_options_are_named(make_model: MakeModel) -> None:
    def first(conditionals: Any, generator: Any = None, tries: int = 1) -> Tensor:
        raise AssertionError

    model = make_model(noise=NoiseLadder(1.0, 0.1, 4))
    for call in (model.log_prob, model.cdf, model.icdf):
        with pytest.raises(TypeError, match=r"^tolerance: unknown keyword; expected max_evaluations, steps, tol$"):
            call(torch.full((2, 2), 0.5), tolerance=1e-3)
    with pytest.raises(ValueError, match=r"^sampler_options: size: not an option of first; it takes tries$"):
        model.sample(2, sampler=first, sampler_options={"size": 2})


class OneScore(Head):
    """A head of its own that is neither a ScoreHead nor normalised."""

    context_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(()))

    def project(self, context: Tensor) -> Tensor:
        return context

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Any = None) -> tuple[Tensor, Tensor]:
        return projection[..., 0] + self.shift - x, -torch.ones_like(x)


@pytest.mark.parametrize("noise", [None, NoiseLadder(1.0, 0.1, 4)])
def test_a_head_without_a_density_draws_by_langevin_dynamics(noise: NoiseLadder | None) -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), OneScore(), noise)
    drawn = model.sample(2, generator=torch.Generator().manual_seed(0))
    by_name = model.sample(2, sampler="langevin", generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, by_name, rtol=0.0, atol=0.0)
    for integrate in (model.log_prob, model.cdf, lambda x: model.sample(len(x), sampler="inverse_cdf")):
        with pytest.raises(TypeError, match=r'^OneScore: has scores and no density.*sampler="langevin"$'):
            integrate(torch.zeros(2, 2))


def test_arrays_of_numpy_are_rejected_by_every_head() -> None:
    for head in (ScoreHead(4, (8,)), GaussianHead(4)):
        noise = NoiseLadder(1.0, 0.1, 3) if isinstance(head, ScoreHead) else None
        model = AutoregressiveModel(MADE(2, 4, (8,)), head, noise)
        with pytest.raises(ValueError, match=r"expected a torch\.Tensor, got ndarray; use torch\.as_tensor"):
            model.log_prob(np.zeros((3, 2)))  # type: ignore[arg-type]
