"""Properties of random models and inputs: densities are finite and normalised, CDFs increase, nothing is NaN."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from arcsm import (
    MADE,
    AutoregressiveModel,
    GaussianHead,
    LogisticMixtureHead,
    NoiseLadder,
    ScoreHead,
    registry,
)
from arcsm.errors import AccuracyWarning

few = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def models(draw: st.DrawFn) -> AutoregressiveModel:
    """Draw models of any shape with small to large weights."""
    features, size = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    hidden = tuple(draw(st.lists(st.sampled_from([4, 8]), max_size=2)))
    order = draw(st.permutations(range(features)))
    seed, gain = draw(st.integers(0, 10_000)), draw(st.sampled_from([1.0, 3.0]))
    kind = draw(st.sampled_from(["score", "gaussian", "mixture"]))
    torch.manual_seed(seed)
    made = MADE(features, size, hidden, order=order, sinusoids=draw(st.integers(0, 2)))
    head = {
        "score": lambda: ScoreHead(size, (8, 8), draw(st.integers(0, 3)), residual=draw(st.booleans())),
        "gaussian": lambda: GaussianHead(size),
        "mixture": lambda: LogisticMixtureHead(size, draw(st.integers(1, 3))),
    }[kind]()
    ladder = draw(st.sampled_from([None, NoiseLadder(1.0, 0.1, 5), NoiseLadder(2.0, 0.02, 12)]))
    shift, scale = draw(st.sampled_from([(0.0, 1.0), (100.0, 0.01), (-1e6, 1e4)]))
    model = AutoregressiveModel(made, head, ladder, shift, scale)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(gain)
    return model.to(draw(st.sampled_from([torch.float32, torch.float64]))).eval()


numbers = st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, 1e-30, -1e-30, 30.0, -30.0, 1e6])


@st.composite
def model_rows(draw: st.DrawFn, model: AutoregressiveModel) -> Tensor:
    """Draw rows in data units, among the data and far outside."""
    z = [[draw(numbers) for _ in range(model.features)] for _ in range(4)]
    return torch.tensor(z).to(model.shift) * model.scale + model.shift


@few
@given(st.data())
def test_densities_are_finite_for_every_finite_input(data: st.DataObject) -> None:
    model = data.draw(models())
    x = data.draw(model_rows(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        log_prob, u = model.log_prob(x, tol=1e-3), model.cdf(x, tol=1e-3)
        s, ds = model.score(x)
    for name, found in (("log_prob", log_prob), ("cdf", u), ("score", s), ("derivative", ds)):
        assert bool(found.isfinite().all()), (name, found)
    assert bool(((u >= 0.0) & (u <= 1.0)).all())


@few
@given(st.data())
def test_distribution_functions_rise(data: st.DataObject) -> None:
    model = data.draw(models())
    d = model.context.order[0]  # its conditional has no inputs
    z = torch.linspace(-8.0, 8.0, 41)
    x = model.shift.repeat(41, 1)
    x[:, d] = z.to(model.scale) * model.scale[d] + model.shift[d]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        u = model.cdf(x, tol=1e-4)[:, d].double()
    assert u.diff().min().item() > -2e-3


@few
@given(st.data())
def test_every_conditional_integrates_to_one(data: st.DataObject) -> None:
    model = data.draw(models()).double()
    d = model.context.order[0]
    z = torch.linspace(-60.0, 60.0, 3001, dtype=torch.float64)
    with torch.no_grad():  # this conditional alone: the others would cost as much
        projection = model.head.project(model.context(torch.zeros(1, model.features, dtype=torch.float64))[:, d])
        conditionals = model.conditionals_builder(tol=1e-4)(projection.expand(len(z), -1))
        log_density, cdf = conditionals.log_prob_and_cdf(z)
    tails = (cdf[0] + 1.0 - cdf[-1]).item()
    assert torch.trapezoid(log_density.exp(), z).item() + tails == pytest.approx(1.0, abs=0.02)


@few
@given(st.data())
def test_gradients_of_every_objective_are_finite(data: st.DataObject) -> None:
    model = data.draw(models()).train()
    x = data.draw(model_rows(model)).clamp(model.shift - 50.0 * model.scale, model.shift + 50.0 * model.scale)
    names = ["csm", "dsm", "mle"] if model.noise else ["csm", "ssm", "sm", "mle"]
    objective = registry.parts("objective")[data.draw(st.sampled_from(names))]
    loss = objective(model, x, generator=torch.Generator().manual_seed(0))
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    for name, weights in model.named_parameters():
        assert weights.grad is None or bool(weights.grad.isfinite().all()), name
