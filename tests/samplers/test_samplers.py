"""Samplers against the distribution functions of their models."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead
from arcsm._runtime import random
from arcsm.conditionals.conditionals import Conditionals
from arcsm.errors import AccuracyWarning
from small_heads import TwoNormals
from small_models import MakeModel, assert_uniform, seeded

FLOAT64 = torch.float64
UNITS: dict[str, Any] = {"shift": [3.0, -20.0], "scale": [0.5, 10.0]}


@pytest.mark.parametrize(
    ("kind", "sampler", "method"),
    [
        ("score", "probability_flow", "flow"),
        ("score", "inverse_cdf", "quadrature"),
        ("mixture", "inverse_cdf", "closed_form"),
        ("mixture", "probability_flow", "flow"),
    ],
)
def test_samples_follow_the_density_of_their_method(
    make_model: MakeModel, ladder: NoiseLadder, kind: str, sampler: str, method: str
) -> None:
    model = make_model(kind, noise=ladder, order=(1, 0), **UNITS)
    x = model.sample(500, sampler, seeded(11))
    assert_uniform(model.cdf(x, method=method, tol=1e-4))


def test_fast_flow_converges_to_the_flow(make_model: MakeModel) -> None:
    """Both start from the same uniforms; the error decreases with the square of the number of steps."""
    model = make_model("mixture", noise=NoiseLadder(3.0, 0.2, 8), dtype=FLOAT64, order=(1, 0))
    exact = model.sample(100, "probability_flow", seeded(11), steps=100, sampler_options={"tol": 1e-6})
    errors = [
        float((model.sample(100, "fast_flow", seeded(11), steps=steps) - exact).abs().mean()) for steps in (16, 32, 64)
    ]
    assert errors[1] < errors[0] / 2.8
    assert errors[2] < errors[1] / 2.8


@pytest.mark.parametrize(("modes", "sigma"), [((-0.33, 3.0), 0.5), ((8.0, 8.2), 0.1), ((0.0, 0.1), 0.02)])
def test_fast_flow_integrates_where_the_coarse_grid_is_inaccurate(modes: tuple[float, float], sigma: float) -> None:
    """The modes are distinct, outside the grid, or too narrow for it."""
    model = AutoregressiveModel(MADE(1, 1, (4,)), TwoNormals(modes, 0.05), NoiseLadder(sigma, sigma / 5.0, 8)).double()
    fast = model.sample(2000, "fast_flow", seeded(2), level=0)
    exact = model.sample(2000, "probability_flow", seeded(2), level=0, sampler_options={"tol": 1e-4})
    left = [float((x < sum(modes) / 2.0).double().mean()) for x in (fast, exact)]
    assert left[0] == pytest.approx(left[1], abs=0.02)
    assert float((fast - exact).abs().median()) < 0.05 * sigma


@pytest.mark.parametrize("sampler", ["langevin", "probability_flow", "fast_flow"])
def test_samplers_work_under_autocast(make_model: MakeModel, ladder: NoiseLadder, sampler: str) -> None:
    model = make_model("score", noise=ladder, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(model.sample(4, sampler, seeded(1)).isfinite().all())


def test_langevin_samples_a_known_gaussian(make_model: MakeModel) -> None:
    ladder = NoiseLadder(1.0, 0.5, levels=3)
    model = make_model("gaussian", noise=ladder, shift=2.0, scale=3.0)
    x = model.sample(4000, "langevin", seeded(5), sampler_options={"steps": 60})
    context = model.context(model.standardise(x))
    mean, variance = model.head.moments(model.head.project(context), ladder.sigma_min)  # type: ignore[operator]
    z = (model.standardise(x) - mean) / variance.sqrt()
    # discretisation inflates the stationary variance by 1 / (1 - step / (4 variance))
    inflation = 1.0 / (1.0 - 0.4 * ladder.sigma_min**2 / (4.0 * variance))
    z = z / inflation.sqrt()
    assert_uniform(torch.special.ndtr(z).detach())


@pytest.mark.filterwarnings("error")
def test_samples_that_run_away_are_reported(make_model: MakeModel) -> None:
    model = make_model("gaussian")
    with pytest.warns(AccuracyWarning, match="samples of dimension 0 ran away.*smaller step_size"):
        model.sample(20, "langevin", seeded(6), sampler_options={"steps": 100, "step_size": 1e3})
    model.sample(20, "langevin", seeded(6), sampler_options={"steps": 100, "step_size": 1e-3})


@pytest.mark.parametrize("sampler", ["langevin", "probability_flow", "fast_flow", "inverse_cdf"])
def test_the_generator_determines_the_sample_and_the_global_state_is_unchanged(
    make_model: MakeModel, ladder: NoiseLadder, sampler: str
) -> None:
    model = make_model(noise=ladder)
    state = torch.get_rng_state()
    first = model.sample(6, sampler, seeded(1))
    assert torch.equal(first, model.sample(6, sampler, seeded(1)))
    assert not bool((first == model.sample(6, sampler, seeded(2))).any())
    assert torch.equal(state, torch.get_rng_state())
    assert not first.requires_grad


@pytest.mark.parametrize(
    ("sampler", "classes"), [("langevin", 0), ("probability_flow", 3), ("fast_flow", 0), ("inverse_cdf", 3)]
)
def test_samples_do_not_depend_on_the_batch_size(
    make_model: MakeModel, ladder: NoiseLadder, sampler: str, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "ROWS", 8)
    model = make_model(noise=ladder, classes=classes)
    given: dict[str, Any] = {"condition": torch.arange(20) % classes} if classes else {}
    if sampler == "langevin":
        given["sampler_options"] = {"steps": 2}
    generator = seeded(4)
    expected, later = model.sample(20, sampler, generator, **given), torch.rand(3, generator=generator)
    assert len(expected.unique(dim=0)) == 20
    torch.manual_seed(4)
    torch.testing.assert_close(model.sample(20, sampler, **given, batch_size=5), expected)  # the global generator
    for size in (3, 8, 100):
        generator = seeded(4)
        found = model.sample(20, sampler, generator, batch_size=size, **given)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)  # quantiles of fast_flow are that accurate
        assert torch.equal(torch.rand(3, generator=generator), later)


def test_samplers_that_draw_from_the_generator_never_repeat_numbers(make_model: MakeModel) -> None:
    def uniform(conditionals: Conditionals, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(len(conditionals), generator=generator, dtype=conditionals.dtype)

    model = make_model()
    x = model.sample(64, uniform, seeded(), batch_size=9)
    assert len(x.unique()) == x.numel()
    assert torch.equal(x, model.sample(64, uniform, seeded(), batch_size=9))


@pytest.mark.parametrize("level", [-1, 2])
def test_denoising_takes_one_step_of_tweedies_formula(make_model: MakeModel, ladder: NoiseLadder, level: int) -> None:
    model = make_model(noise=ladder, **UNITS)
    noisy = model.sample(20, generator=seeded(), level=level)
    clean = model.sample(20, generator=seeded(), level=level, denoise=True)
    s, _ = model.score(noisy, level)
    torch.testing.assert_close(clean, noisy + (ladder.sigma(level) * model.scale).square() * s)


def test_samples_follow_their_condition(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder, classes=2)
    labels = torch.arange(500) % 2
    x = model.sample(500, generator=seeded(3), condition=labels, batch_size=400)
    assert_uniform(model.cdf(x, condition=labels, tol=1e-4))
    shared = model.sample(5, generator=seeded(4), condition=torch.tensor(1))
    assert torch.equal(shared, model.sample(5, generator=seeded(4), condition=torch.ones(5, dtype=torch.long)))


def test_samples_stay_within_bounds() -> None:
    torch.manual_seed(0)
    plain = AutoregressiveModel(MADE(4, 2, (8,)), ScoreHead(2, (8,)), NoiseLadder(1.0, 0.1, 4), shift=1.0, scale=2.0)
    plain.eval()
    wide = plain.sample(500, generator=torch.Generator().manual_seed(1))
    bounded = plain.sample(500, generator=torch.Generator().manual_seed(1), bounds=(0.0, 2.0))
    assert float(wide.min()) < 0.0
    assert float(wide.max()) > 2.0
    torch.testing.assert_close((bounded.min(), bounded.max()), (torch.tensor(0.0), torch.tensor(2.0)))
    inside = (wide[:, 0] > 0.0) & (wide[:, 0] < 2.0)
    torch.testing.assert_close(bounded[inside, 0], wide[inside, 0])  # the first dimension does not depend on others

    images = AutoregressiveModel(plain.context, plain.head, plain.noise, metadata={"image_shape": [1, 2, 2]}, scale=2.0)
    drawn = images.sample(500, generator=torch.Generator().manual_seed(1))
    assert float(drawn.abs().max()) == pytest.approx(1.0 + 4.0 * 0.1 * 2.0)
    with pytest.raises(ValueError, match="bounds: expected \\(low, high\\)"):
        plain.sample(2, bounds=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"bounds: expected \(low, high\).*got 3"):
        plain.sample(2, bounds=3)  # type: ignore[arg-type]


def test_denoised_samples_stay_within_bounds() -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(2, 2, (8,)), ScoreHead(2, (8,)), NoiseLadder(2.0, 0.5, 4), scale=2.0)
    torch.nn.init.constant_(model.head.output.bias, 2.0)  # type: ignore[union-attr, arg-type]
    x = model.sample(200, generator=seeded(), bounds=(-1.0, 1.0), denoise=True)
    assert float(x.max()) == pytest.approx(1.0)


def test_samples_warn_about_integrals_that_missed_the_tolerance(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder)
    with pytest.warns(AccuracyWarning, match=r"^4 integrals \(of 4 conditionals"):
        model.sample(2, "inverse_cdf", seeded(), batch_size=1, sampler_options={"tol": 1e-18})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.sample(2, "inverse_cdf", seeded())


def test_steps_of_a_sampler_differ_from_steps_of_the_ladder(make_model: MakeModel, ladder: NoiseLadder) -> None:
    """An option of a sampler named ``steps`` reaches the sampler; the argument ``steps`` refines the ladder."""
    received: dict[str, Any] = {}

    def recording(conditionals: Conditionals, generator: torch.Generator | None = None, steps: int = 1) -> Tensor:
        received.update(steps=steps, levels=len(conditionals.path))
        return torch.zeros(len(conditionals), dtype=conditionals.dtype)

    make_model(noise=ladder).sample(3, recording, steps=4, sampler_options={"steps": 7})
    assert received == {"steps": 7, "levels": 5}
