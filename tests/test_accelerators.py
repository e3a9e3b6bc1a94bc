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
from arcsm.estimators import ScoreDensity

LADDER = NoiseLadder(sigma_max=2.0, sigma_min=0.1, levels=5)
KINDS = ("made", "mixed", "located")


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


@pytest.mark.parametrize(("kind", "objective"), [*((kind, "csm") for kind in KINDS), ("mixed", "dsm")])
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
    for kind in ("made", "mixed"):
        train(kind, 2, DEVICE)
    assert not device.doubles
    with pytest.raises(ValueError, match=r'located: .* needs double precision.*device="cpu"'):
        train("located", 1, DEVICE)


def test_rows_may_be_there_and_labels_here(device: PretendDevice) -> None:
    model, x, labels = build("made", 2, classes=3), rows_of("made", 8, 2), torch.arange(8) % 3
    arcsm.fit(model, x.to(DEVICE), condition_train=labels, config=TrainConfig(steps=2, batch_size=8, device="meta"))
    model.to(DEVICE)
    for rows, condition in ((x, labels.to(DEVICE)), (x.to(DEVICE), labels)):
        assert model.log_prob(rows, condition=condition).device == DEVICE
    assert model.cdf(x[:2], condition=labels[:2].to(DEVICE)).device == DEVICE
    assert model.sample(8, condition=labels).device == DEVICE
    assert model.icdf(torch.rand(2, 2), condition=labels[:2]).device == DEVICE
    assert not device.mixed


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_waits_at_most_three_times_for_log_densities(device: PretendDevice, kind: str) -> None:
    model, x = build(kind).to(DEVICE), rows_of(kind, 20).to(DEVICE)
    model.log_prob(x)  # sends constants
    device.clear()
    model.log_prob(x)
    assert waits(device) <= 3


@pytest.mark.parametrize("tol", [1e-3, 1e-5])
def test_log_densities_are_those_of_the_processor(tol: float) -> None:
    model = make_model(features=2, noise=LADDER)
    x = points(model, 15)
    expected = model.log_prob(x, tol=1e-7)
    error = (model.log_prob(x, tol=tol) - expected).abs().max()
    with PretendDevice():
        result = model.to(DEVICE).log_prob(x.to(DEVICE), tol=tol).cpu()
    assert (result - expected).abs().max() < 2.0 * error


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [("made", "langevin"), ("mixed", "probability_flow"), ("located", "fast_flow")],
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


@pytest.mark.parametrize(("sampler", "sigma_max", "error"), [("probability_flow", 0.3, 5e-3), ("fast_flow", 2.0, 0.05)])
def test_samples_are_those_of_the_processor(sampler: str, sigma_max: float, error: float) -> None:
    model = make_model(features=2, noise=NoiseLadder(sigma_max=sigma_max, sigma_min=0.1, levels=5), strength=2.0)
    expected = model.sample(200, sampler, generator=seeded())
    with PretendDevice():
        result = model.to(DEVICE).sample(200, sampler, generator=seeded()).cpu()
    assert (result - expected).abs().quantile(0.99) < error


def test_tables_work_on_a_device(device: PretendDevice) -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 40))
    table = pd.DataFrame({"a": a, "sum": a + 0.1 * b, "c": random.choice(["x", "y"], 40)})
    fitted = ScoreDensity(**{**QUICK, "max_steps": 2}, device=str(DEVICE)).fit(table)
    fitted.score_samples(table)
    device.clear()
    scores = fitted.score_samples(table)
    assert np.isfinite(scores).all()
    assert waits(device) <= 12  # a table has several orders, and its rows come from the host
    assert len(fitted.sample(2)) == 2
    assert not device.mixed
