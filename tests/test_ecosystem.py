"""Models as what other libraries expect: distributions of torch, exported programs, loggers of Lightning."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.logger import Logger
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal, kl_divergence

import arcsm
from arcsm import MADE, AutoregressiveModel, GaussianHead, LogisticMixtureHead, NoiseLadder, PixelCNNPP, ScoreHead
from arcsm.interop.export import export_scorer
from arcsm.interop.torch_distribution import AutoregressiveDistribution
from arcsm.training import density

FLOAT64 = torch.float64


def gaussian(**context: Any) -> AutoregressiveModel:
    return AutoregressiveModel(MADE(3, 4, (8,), **context), GaussianHead(4)).double()


# torch.distributions ------------------------------------------------------------------------------------------------


def test_log_densities_are_those_of_the_model_whatever_the_shape() -> None:
    model = gaussian()
    p = AutoregressiveDistribution(model)
    x = torch.randn(4, 5, 3, dtype=FLOAT64)
    assert (p.batch_shape, p.event_shape) == (torch.Size(), torch.Size([3]))
    torch.testing.assert_close(p.log_prob(x), model.log_prob(x))
    assert p.sample().shape == (3,)
    assert p.sample((4, 5)).shape == (4, 5, 3)
    assert p.sample((0,)).shape == (0, 3)
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.full((3,), torch.nan, dtype=FLOAT64))


@pytest.mark.parametrize("classes", [0, 6])
def test_a_condition_gives_the_batch_its_shape(classes: int) -> None:
    model = gaussian(classes=classes) if classes else gaussian(condition_features=2)
    condition = torch.arange(5) if classes else torch.randn(5, 2, dtype=FLOAT64)
    p = AutoregressiveDistribution(model, condition)
    assert p.batch_shape == (5,)
    one = torch.randn(3, dtype=FLOAT64)
    torch.testing.assert_close(p.log_prob(one), model.log_prob(one.expand(5, 3), condition=condition))
    wider = p.expand((7, 5))
    assert wider.batch_shape == (7, 5)
    torch.testing.assert_close(wider.log_prob(one), p.log_prob(one).expand(7, 5))
    assert wider.sample((2,)).shape == (2, 7, 5, 3)


def test_draws_belong_to_their_condition() -> None:
    torch.manual_seed(0)
    model = gaussian(condition_features=1)
    given = torch.tensor([[-9.0], [9.0]], dtype=FLOAT64)
    drawn = AutoregressiveDistribution(model, given).sample((400,))
    own, other = model.log_prob(drawn, condition=given), model.log_prob(drawn, condition=given.flip(0))
    assert bool(((own > other).double().mean(0) > 0.9).all())


def test_it_is_the_component_of_a_mixture_as_any_other() -> None:
    model = gaussian(classes=2)
    parts = AutoregressiveDistribution(model, torch.arange(2))
    mixture = MixtureSameFamily(Categorical(torch.tensor([0.25, 0.75], dtype=FLOAT64)), parts)
    x = torch.randn(6, 3, dtype=FLOAT64)
    each = torch.stack([model.log_prob(x, condition=torch.full((6,), c)) for c in range(2)], -1)
    weights = torch.tensor([0.25, 0.75], dtype=FLOAT64).log()
    torch.testing.assert_close(mixture.log_prob(x), torch.logsumexp(each + weights, -1))
    assert mixture.sample((4,)).shape == (4, 3)


def test_wrong_conditions_are_named() -> None:
    with pytest.raises(ValueError, match=r"condition: expected \(\*, 2\), got \(5, 3\)"):
        AutoregressiveDistribution(gaussian(condition_features=2), torch.randn(5, 3))
    with pytest.raises(NotImplementedError):
        kl_divergence(AutoregressiveDistribution(gaussian()), Normal(0.0, 1.0))


# torch.export -------------------------------------------------------------------------------------------------------

EXPORTED = {
    "plain": lambda: AutoregressiveModel(MADE(3, 4, (8,)), ScoreHead(4, (8,)), shift=2.0, scale=3.0),
    "ladder": lambda: AutoregressiveModel(MADE(3, 4, (8,)), ScoreHead(4, (8, 8), 3), NoiseLadder(1.0, 0.1, 4)),
    "dense condition": lambda: AutoregressiveModel(MADE(3, 4, (8,), condition_features=2), ScoreHead(4, (8,))),
    "classes": lambda: AutoregressiveModel(MADE(3, 4, (8,), classes=5), LogisticMixtureHead(4, 3)),
    "images": lambda: AutoregressiveModel(PixelCNNPP((1, 4, 4), 4, nr_filters=8, nr_resnet=1), ScoreHead(4, (8,))),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_scorer_gives_the_same_after_a_round_trip(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EXPORTED[name]().eval()
    torch.export.save(export_scorer(model), tmp_path / "scorer.pt2")
    scorer = torch.export.load(tmp_path / "scorer.pt2").module()
    for rows in (1, 7):
        given: tuple[Tensor, ...] = ()
        if name == "classes":
            given = (torch.randint(5, (rows,)),)
        elif name == "dense condition":
            given = (torch.randn(rows, 2),)
        x = 2.0 + 3.0 * torch.randn(rows, model.features)
        with torch.no_grad():
            torch.testing.assert_close(scorer(x, *given), model.score(x, -1, *given), rtol=1e-5, atol=1e-5)


# Loggers ------------------------------------------------------------------------------------------------------------


class Kept(Logger):
    """A logger that keeps what it is told."""

    name, version = "kept", 0

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        self.status = ""

    def log_hyperparams(self, params: Mapping[str, Any], *_: Any, **__: Any) -> None:
        self.settings = dict(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.metrics.append((step, dict(metrics)))

    def finalize(self, status: str) -> None:
        self.status = status


def test_loggers_of_numbers_alone_are_finished_after_an_interruption(tmp_path: Path) -> None:
    advance = density.DensityTask.advance

    def signalled(trainer: density.DensityTask) -> float:
        if trainer.step == 4:
            signal.raise_signal(signal.SIGINT)
        return advance(trainer)

    model = AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4))
    config = arcsm.TrainConfig(steps=9, batch_size=8, validate_every=2, device="cpu")
    kept, x = Kept(), torch.randn(64, 2)
    numbers = CSVLogger(tmp_path, name="log", version="one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density.DensityTask, "advance", signalled)
        with pytest.raises(KeyboardInterrupt):
            arcsm.fit(model, x, x, config, loggers=[numbers, kept])
    assert kept.status == "aborted"
    assert len((tmp_path / "log" / "one" / "metrics.csv").read_text().splitlines()) == 1 + 2


def test_loggers_get_what_the_log_gets(tmp_path: Path) -> None:
    kept, x = Kept(), torch.randn(64, 2)
    model = AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4))
    config = arcsm.TrainConfig(steps=6, batch_size=8, validate_every=3, device="cpu")
    result = arcsm.fit(model, x, x[:16], config, run=tmp_path, loggers=[kept])
    assert (kept.settings["steps"], kept.status) == (6, "success")
    assert [step for step, _ in kept.metrics] == [3, 6]
    for (_, metrics), row in zip(kept.metrics, result.history, strict=True):
        assert metrics == {name: value for name, value in row.items() if name != "step"}
