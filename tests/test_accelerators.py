"""Training, densities and samples on a pretend accelerator: how often the host waits for it, and what comes out."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.pretend_device import DEVICE, PretendDevice
from tests.small_models import make_model, points, seeded
from tests.small_tables import QUICK

import arcsm
from arcsm import (
    MADE,
    AnyOrder,
    AutoregressiveModel,
    CategoricalHead,
    LocatedHead,
    MixedHead,
    NoiseLadder,
    ScoreHead,
    TrainConfig,
)
from arcsm._runtime import devices
from arcsm.conditionals import Conditionals
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from arcsm.samplers.base import uniforms

LADDER = NoiseLadder(sigma_max=2.0, sigma_min=0.1, levels=5)
KINDS = ("made", "any order", "mixed", "located")


@pytest.fixture
def device() -> Iterator[PretendDevice]:
    with PretendDevice() as pretend:
        yield pretend


def build(kind: str, features: int = 4, classes: int = 0) -> AutoregressiveModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"features": features, "context_features": 6, "hidden_features": (12, 12)}
    if kind == "made":
        return AutoregressiveModel(MADE(**sizes, classes=classes), ScoreHead(6, hidden_features=(12, 12)), LADDER)
    sizes["embedding_features"] = 12
    if kind == "located":
        head = LocatedHead(ScoreHead(4, hidden_features=(12, 12)))
        return AutoregressiveModel(AnyOrder(**sizes, located=True, linear_features=True, small_sets=1), head, LADDER)
    score = ScoreHead(6, hidden_features=(12, 12))
    if kind == "any order":
        return AutoregressiveModel(AnyOrder(**sizes), score, LADDER)
    nominal = [3 * (d == 1) for d in range(features)]
    head = MixedHead([score, CategoricalHead(6, levels=3)], [int(count > 0) for count in nominal])
    return AutoregressiveModel(AnyOrder(**sizes, levels=nominal), head, LADDER)


def rows_of(kind: str, count: int, features: int = 4) -> torch.Tensor:
    x = torch.randn(count, features, generator=seeded(1))
    if kind == "mixed":
        x[:, 1] = torch.randint(0, 3, (count,), generator=seeded(2)).float()
    if kind == "located":
        x[:, 2] = x[:, 0] + x[:, 1]
    return x


def train(kind: str, steps: int, place: Any, **changes: Any) -> AutoregressiveModel:
    model = build(kind)
    config = TrainConfig(steps=steps, batch_size=32, device=str(place), **changes)
    x = rows_of(kind, 128)
    if kind != "made":
        x[::5, 2] = torch.nan
    arcsm.fit(model, x, config=config)
    return model


def waits(device: PretendDevice) -> int:
    """Return how often the host waited; it also does when it sends values."""
    assert not device.mixed
    return device.waits.total() + device.uploads.total()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", ["csm", "dsm"])
def test_the_host_waits_once_a_training_step(device: PretendDevice, kind: str, objective: Any) -> None:
    counts = []
    train(kind, 1, DEVICE, objective=objective)  # sends constants
    for steps in (2, 5):
        device.clear()
        train(kind, steps, DEVICE, objective=objective, validate_every=100)
        counts.append(waits(device))
    assert counts[1] - counts[0] == 3


@pytest.mark.parametrize("kind", KINDS)
def test_training_gives_the_weights_that_the_processor_gives(kind: str) -> None:
    fast = {"learning_rate": 1e-2, "ema": 0.0, "warmup_steps": 0}
    expected = train(kind, 4, "cpu", **fast).state_dict()
    with PretendDevice():
        trained = {name: tensor.cpu() for name, tensor in train(kind, 4, DEVICE, **fast).state_dict().items()}
    weight = (
        "head.inner.output.weight" if kind == "located" else next(n for n in expected if n.endswith("output.weight"))
    )
    assert (expected[weight] - build(kind).state_dict()[weight]).abs().max() > 0.01
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, rtol=0.0, atol=2e-5)


def test_training_needs_no_double_precision(device: PretendDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_WITHOUT_DOUBLE_PRECISION", {DEVICE.type})
    for kind in ("made", "any order", "mixed"):
        train(kind, 2, DEVICE)
    assert not device.doubles
    with pytest.raises(ValueError, match=r'located: .* needs double precision.*device="cpu"'):
        train("located", 1, DEVICE)


def test_rows_may_be_there_and_labels_here(device: PretendDevice) -> None:
    model, x, labels = build("made", classes=3), rows_of("made", 64), torch.arange(64) % 3
    arcsm.fit(model, x.to(DEVICE), condition_train=labels, config=TrainConfig(steps=2, batch_size=32, device="meta"))
    model.to(DEVICE)
    for rows in (x, x.to(DEVICE)):
        for condition in (labels, labels.to(DEVICE)):
            assert model.log_prob(rows, condition=condition).device == DEVICE
            assert model.cdf(rows, condition=condition).device == DEVICE
    assert model.sample(64, condition=labels).device == DEVICE
    assert model.icdf(torch.rand(64, 4), condition=labels).device == DEVICE
    assert not device.mixed


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_waits_at_most_three_times_for_log_densities(device: PretendDevice, kind: str) -> None:
    model, x = build(kind).to(DEVICE), rows_of(kind, 50).to(DEVICE)
    model.log_prob(x)  # sends constants
    device.clear()
    model.log_prob(x)
    assert waits(device) <= 3


@pytest.mark.parametrize("tol", [1e-3, 1e-5])
@pytest.mark.parametrize("strength", [1.0, 4.0])
def test_log_densities_are_those_of_the_processor(tol: float, strength: float) -> None:
    model = make_model(features=3, noise=LADDER, strength=strength)
    x = points(model, 60)
    expected = model.log_prob(x, tol=1e-7)
    error = (model.log_prob(x, tol=tol) - expected).abs().max()
    with PretendDevice():
        result = model.to(DEVICE).log_prob(x.to(DEVICE), tol=tol).cpu()
    assert (result - expected).abs().max() < 2.0 * error


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [("made", "probability_flow"), ("made", "langevin"), ("mixed", "probability_flow"), ("located", "fast_flow")],
)
def test_the_host_waits_for_no_sampled_value(device: PretendDevice, kind: str, sampler: str) -> None:
    options = {"sampler_options": {"steps": 2}} if sampler == "langevin" else {}
    counts = []
    for features in (3, 5):
        model = build(kind, features).to(DEVICE)
        model.sample(8, sampler, **options)
        device.clear()
        model.sample(8, sampler, **options)
        counts.append(waits(device))
    assert counts[0] == counts[1] <= 6


@pytest.mark.parametrize(
    ("sampler", "sigma_max", "error"),
    [
        ("probability_flow", 2.0, 5e-3),
        ("fast_flow", 2.0, 0.05),
        ("probability_flow", 0.3, 5e-3),
        ("fast_flow", 0.3, 0.05),
    ],
)
def test_samples_are_those_of_the_processor(sampler: str, sigma_max: float, error: float) -> None:
    model = make_model(features=2, noise=NoiseLadder(sigma_max=sigma_max, sigma_min=0.1, levels=5), strength=2.0)
    expected = model.sample(200, sampler, generator=seeded())
    with PretendDevice():
        result = model.to(DEVICE).sample(200, sampler, generator=seeded()).cpu()
    assert (result - expected).abs().quantile(0.99) < error


def test_a_sampler_of_your_own_gets_accurate_densities() -> None:
    def own(conditionals: Conditionals, generator: torch.Generator | None = None) -> torch.Tensor:
        return conditionals.apply(lambda exact: exact.icdf(uniforms(conditionals, generator)), method="quadrature")

    model = make_model(features=2, noise=LADDER, strength=2.0)
    expected = model.sample(50, own, generator=seeded())
    with PretendDevice():
        result = model.to(DEVICE).sample(50, own, generator=seeded()).cpu()
    torch.testing.assert_close(result, expected, rtol=0.0, atol=1e-6)


def test_units_stay_exact_where_a_model_goes() -> None:
    model = build("located")
    with pytest.raises(ValueError, match="needs single precision"):
        model.half()
    exact = [tensor for name, tensor in model.named_buffers() if "condition" in name or "base" in name]
    assert {tensor.dtype for tensor in exact if tensor.is_floating_point()} == {torch.float64}
    assert all(tensor.is_shared() for tensor in model.share_memory().buffers() if tensor.numel())
    with torch.device("meta"):
        empty = build("made")
    assert empty.to_empty(device="cpu").condition_shift.dtype == torch.float64


def test_quantiles_invert_the_distribution_function(device: PretendDevice) -> None:
    model = make_model(features=2, noise=LADDER).to(DEVICE)
    u = torch.rand(30, 2, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(model.cdf(model.icdf(u)).cpu(), u, rtol=0.0, atol=1e-6)
    assert not device.mixed


@pytest.mark.parametrize("estimator", [ScoreDensity, ScoreOutlierDetector])
def test_tables_work_on_a_device(device: PretendDevice, estimator: Any) -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 120))
    table = pd.DataFrame({"a": a, "b": b, "sum": a + b, "c": random.choice(["x", "y"], 120)})
    fitted = estimator(**QUICK, device=str(DEVICE)).fit(table)
    fitted.score_samples(table)
    device.clear()
    scores = fitted.score_samples(table)
    assert np.isfinite(scores).all()
    assert waits(device) <= 12  # a table has several orders, and its rows come from the host
    if estimator is ScoreDensity:
        assert len(fitted.sample(10)) == 10
    assert not device.mixed
