"""The model: scores, densities and distribution functions are consistent with each other and with calculus."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, NoiseLadder, PlainScoreHead
from arcsm.errors import AccuracyWarning
from small_models import MakeModel, in_units, points, seeded

FLOAT64 = torch.float64


METHODS = (("score", "flow"), ("score", "quadrature"), ("gaussian", "closed_form"), ("mixture", "closed_form"))


UNITS: dict[str, Any] = {"shift": [3.0, -20.0], "scale": [0.5, 10.0]}


SHAPES = ((), (2, 3), (0,))


def square_grid(model: AutoregressiveModel, side: int = 57, half_width: float = 7.0) -> tuple[Tensor, float]:
    """Return a grid over two dimensions and the area of its cells, in data units."""
    axis = torch.linspace(-half_width, half_width, side, dtype=FLOAT64)
    area = (2.0 * half_width / (side - 1)) ** 2 * float(model.scale.prod())
    return in_units(model, torch.cartesian_prod(axis, axis)), area


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "noisy"), [("score", True), ("score", False), ("mixture", True)])
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


@pytest.mark.parametrize("level", [0, -1])
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


@pytest.mark.parametrize(("kind", "method"), METHODS)
def test_density_integrates_to_one_in_data_units(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, method: str
) -> None:
    model = make_model(kind, noise=ladder, strength=0.7, **UNITS)
    grid, area = square_grid(model, half_width=11.0 if kind == "mixture" else 7.0)  # logistic tails are exponential
    with torch.no_grad():
        mass = float(model.log_prob(grid, method=method, tol=1e-3).exp().sum()) * area
    assert mass == pytest.approx(1.0, abs=2e-3)


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


@pytest.mark.parametrize("kind", ["score", "mixture"])
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


def test_gradients_reach_points_and_weights_in_closed_form(make_model: MakeModel) -> None:
    model = make_model("mixture", features=3)
    x = points(model, 8).requires_grad_()
    model.log_prob(x).sum().backward()
    assert x.grad is not None
    assert all(bool((p.grad != 0.0).any()) for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.parameters())
    assert torch.autograd.gradcheck(lambda value: model.log_prob(value), points(model, 2).requires_grad_())


@pytest.mark.parametrize("method", ["flow", "quadrature"])
def test_integrated_densities_reject_a_backward_pass(make_model: MakeModel, ladder: NoiseLadder, method: str) -> None:
    model = make_model(noise=ladder, condition_features=2)
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
    assert caught[0].filename == __file__  # the caller's line
    with pytest.warns(AccuracyWarning, match="of 40 conditionals"):
        model.icdf(torch.full((20, 2), 0.3, dtype=FLOAT64), method="quadrature", max_evaluations=28, tol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.log_prob(x, method="quadrature", max_evaluations=2048)


@pytest.mark.parametrize(("kind", "method"), METHODS)
def test_cdf_and_icdf_invert_each_other(make_model: MakeModel, ladder: NoiseLadder, kind: str, method: str) -> None:
    model = make_model(kind, features=3, noise=ladder, order=(2, 0, 1), shift=1.0, scale=2.0)
    u = torch.rand(40, 3, generator=seeded(3), dtype=FLOAT64).clamp(1e-4, 1.0 - 1e-4)
    x = model.icdf(u, method=method)
    torch.testing.assert_close(model.cdf(x, method=method), u, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(model.icdf(model.cdf(x, method=method), method=method), x, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize(("kind", "method"), METHODS)
def test_density_is_the_slope_of_the_distribution(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, method: str
) -> None:
    model = make_model(kind, features=1, noise=ladder, shift=3.0, scale=0.5)
    x = in_units(model, torch.linspace(-3.0, 3.0, 301, dtype=FLOAT64)[:, None])
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
    single = make_model(kind, noise=ladder, dtype=torch.float32)  # in which the next one rounds to one
    assert bool(single.icdf(torch.tensor([[1.0 - 1e-12, 0.5]], dtype=FLOAT64)).isfinite().all())


@pytest.mark.parametrize(("kind", "sizes"), [("score", {"classes": 3}), ("mixture", {"condition_features": 2})])
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


def test_single_precision_follows_double(make_model: MakeModel, ladder: NoiseLadder) -> None:
    for kind in ("score", "gaussian", "mixture"):
        double, single = (make_model(kind, noise=ladder, dtype=dtype) for dtype in (FLOAT64, torch.float32))
        x = points(double, 50)
        log_prob = single.log_prob(x.float())
        assert log_prob.dtype == torch.float32
        torch.testing.assert_close(log_prob.double(), double.log_prob(x), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(single.cdf(x.float()).double(), double.cdf(x), rtol=0.0, atol=1e-3)
        assert single.sample(3).dtype == torch.float32
        assert torch.equal(single.log_prob(x), log_prob)  # points are converted to the model's precision


_MISTAKES: dict[str, Callable[[AutoregressiveModel], Any]] = {
    "x: contains NaN or infinity": lambda model: model.log_prob(torch.tensor([[math.nan, 0.0]])),
    r"x: expected shape \(\*, 2\), got \(3, 3\)": lambda model: model.log_prob(torch.zeros(3, 3)),
    r"x: expected a torch\.Tensor, got ndarray; use torch\.as_tensor": lambda model: model.log_prob(np.zeros((3, 2))),
    "x: .*float32": lambda model: model.float().log_prob(torch.tensor([[1e300, 0.0]], dtype=FLOAT64)),
    "method: expected": lambda model: model.log_prob(torch.zeros(2), method="exact"),
    "method: a ScoreHead has no closed form": lambda model: model.log_prob(torch.zeros(2), method="closed_form"),
    "level: ": lambda model: model.log_prob(torch.zeros(2), level=8),
    "steps: ": lambda model: model.log_prob(torch.zeros(2), steps=0),
    "max_evaluations: ": lambda model: model.log_prob(torch.zeros(2), max_evaluations=5),
    "^tol: expected a positive number, got nan": lambda model: model.log_prob(torch.zeros(2), tol=math.nan),
    "condition: ": lambda model: model.log_prob(torch.zeros(2), condition=torch.zeros(1)),
    "u: ": lambda model: model.icdf(torch.ones(2)),
    "n, batch_size: expected integers of at least 1": lambda model: model.sample((4, 2)),
    "sampler: ": lambda model: model.sample(2, sampler="gibbs"),
    "steps: expected a whole number of at least 1, got 1.5": lambda model: model.sample(1, steps=1.5),
    "sampler_options: foo: not an option of langevin; it takes step_size, steps": lambda model: model.sample(
        1, "langevin", sampler_options={"foo": 5}
    ),
    "steps, step_size: expected at least 1": lambda model: model.sample(1, "langevin", sampler_options={"steps": 0}),
    "shift: expected finite": lambda model: model.set_standardisation(math.nan, 1.0),
    "scale: expected positive": lambda model: model.set_standardisation(0.0, [1.0, 0.0]),
    "context_features: the context returns 4, the head expects 5": lambda _: AutoregressiveModel(
        MADE(2, 4), GaussianHead(5)
    ),
}


@pytest.mark.parametrize("message", _MISTAKES)
def test_mistakes_are_errors_of_one_line_that_leave_the_model_unchanged(
    make_model: MakeModel, ladder: NoiseLadder, message: str
) -> None:
    model = make_model(noise=ladder, **UNITS)
    with pytest.raises(ValueError, match=message) as error:
        _MISTAKES[message](model)
    assert "\n" not in str(error.value)
    assert (model.shift.tolist(), model.scale.tolist()) == (UNITS["shift"], UNITS["scale"])


@pytest.mark.parametrize("options", [{"method": "flow"}, {"level": 1}, {"steps": 5}])
def test_errors_name_a_missing_ladder(make_model: MakeModel, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ladder"):
        make_model().log_prob(torch.zeros(2), **options)
    with pytest.raises(ValueError, match="ladder"):
        make_model().sample(2, sampler="probability_flow")


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
    x = points(model, 1100)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = model.log_prob(x), model.cdf(x)
        torch.set_num_threads(3)
        for together, expected in zip((model.log_prob(x), model.cdf(x)), alone, strict=True):
            torch.testing.assert_close(together, expected, rtol=1e-9, atol=1e-9)
            assert not together.requires_grad
        assert torch.get_num_threads() == 3
        with pytest.warns(AccuracyWarning, match=r"^\d+ integrals \(of 2200 conditionals"):
            model.log_prob(x, method="quadrature", tol=1e-14, max_evaluations=40)
    finally:
        torch.set_num_threads(threads)


def test_unknown_keywords_and_options_are_named(make_model: MakeModel) -> None:
    def first(conditionals: Any, generator: Any = None, tries: int = 1) -> Tensor:
        raise AssertionError

    model = make_model(noise=NoiseLadder(1.0, 0.1, 4))
    for call in (model.log_prob, model.cdf, model.icdf):
        with pytest.raises(TypeError, match=r"^tolerance: unknown keyword; expected max_evaluations, steps, tol$"):
            call(torch.full((2, 2), 0.5), tolerance=1e-3)
    with pytest.raises(ValueError, match=r"^sampler_options: size: not an option of first; it takes tries$"):
        model.sample(2, sampler=first, sampler_options={"size": 2})


@pytest.mark.parametrize("noise", [None, NoiseLadder(1.0, 0.1, 4)])
def test_a_head_without_a_density_draws_by_langevin_dynamics(noise: NoiseLadder | None) -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), PlainScoreHead(4, (8,)), noise)
    drawn = model.sample(2, generator=torch.Generator().manual_seed(0))
    by_name = model.sample(2, sampler="langevin", generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, by_name, rtol=0.0, atol=0.0)
    for integrate in (model.log_prob, model.cdf, lambda x: model.sample(len(x), sampler="inverse_cdf")):
        with pytest.raises(TypeError, match=r'^PlainScoreHead: has scores and no density.*sampler="langevin"$'):
            integrate(torch.zeros(2, 2))
