"""Runs with parts from outside the package, and with compiled models."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, fit, load, registry, save
from arcsm._runtime.conditions import Condition
from arcsm.training.run_config import load_config, parse_config
from arcsm.training.runs import load_run, train_run
from outside_parts import BentMADE, NarrowScoreHead, UnregisteredMADE, doubled_csm
from rejections import error_line
from small_runs import before_step, correlated_rows, have_same_weights, interrupt, short_config


@pytest.fixture(autouse=True)
def registered_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register all parts but one for the test alone; the registry has no public way to forget a part."""
    monkeypatch.setattr(registry, "_PARTS", {seam: dict(parts) for seam, parts in registry._PARTS.items()})
    for part in (BentMADE, NarrowScoreHead, doubled_csm):
        registry.register(part)


def build(context: type[MADE] = MADE, head: type[ScoreHead] = ScoreHead) -> AutoregressiveModel:
    torch.manual_seed(0)
    return AutoregressiveModel(context(2, 4, (16,)), head(4, (16,)), NoiseLadder(1.0, 0.1, 5))


def test_an_unregistered_part_is_rejected_before_training(tmp_path: Path) -> None:
    model, run = build(UnregisteredMADE), tmp_path / "run"
    before = [weights.clone() for weights in model.parameters()]
    with pytest.raises(ValueError, match="context: UnregisteredMADE is not registered"):
        fit(model, correlated_rows(), config=short_config(), run=run)
    assert not run.exists()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert fit(model, correlated_rows(), config=short_config()).steps == 30  # without files it trains


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.metadata.update(source=Path("a")), r"^metadata: source: expected numbers, text"),
        (
            lambda model: nn.utils.parametrizations.weight_norm(model.head.output),
            r"^model: tensor head\.output\.parametrizations\.weight\.original0: .*absent",
        ),
    ],
)
def test_what_a_file_cannot_hold_is_rejected_before_training(
    change: Callable[[AutoregressiveModel], object], message: str, tmp_path: Path
) -> None:
    model, run = build(), tmp_path / "run"
    change(model)
    for write in (lambda: fit(model, correlated_rows(), config=short_config(), run=run), lambda: save(model, run)):
        line = error_line(write)
        assert re.search(message, line), line
        assert not run.exists()


class Tied(MADE):
    """A MADE whose last two layers share their weights."""

    def __init__(
        self, features: int, context_features: int, hidden_features: Sequence[int], order: Sequence[int] | None = None
    ) -> None:
        super().__init__(features, context_features, hidden_features, order=order)
        self.first, self.second = (nn.Linear(context_features, context_features) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        return self.second(torch.tanh(self.first(super().forward(x, condition))))


def test_tied_weights_are_saved_and_stay_tied(tmp_path: Path) -> None:
    registry.register(Tied)
    model, x = build(Tied), correlated_rows()
    fit(model, x, config=short_config(), run=tmp_path)
    loaded = load(tmp_path)
    assert have_same_weights(model, loaded)
    assert loaded.context.first.weight is loaded.context.second.weight
    assert fit(build(Tied), x, config=short_config(), run=tmp_path, resume=True).steps == 30


_CONFIG = """
name: outside
data: {kind: toy, name: rings, rows: 200}
model:
  context: {kind: BentMADE, hidden_features: [8], context_features: 4}
  head: {kind: NarrowScoreHead, hidden_features: [8]}
  noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 3}
train: {objective: doubled_csm, steps: 3, batch_size: 32, device: cpu}
"""


def test_registered_parts_and_objectives_work_in_run_configurations(tmp_path: Path) -> None:
    config = parse_config(_CONFIG, "outside.yaml")
    train_run(config, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.config == load_config(str(tmp_path / "run" / "config.yaml"))
    assert run.config.train.objective == "doubled_csm"
    assert isinstance(run.model.context, BentMADE)
    assert isinstance(run.model.head, NarrowScoreHead)
    with pytest.raises(ValueError, match=r"model\.context\.kind: expected one of AnyOrder, MADE"):
        parse_config(_CONFIG, "outside.yaml", ["model.context.kind=UnregisteredMADE"])
    with pytest.raises(ValueError, match=r"model\.context\.hiden_features: unknown key"):
        parse_config(_CONFIG, "outside.yaml", ["model.context.hiden_features=[3]"])


@pytest.mark.usefixtures("validation_of_distributions")
@pytest.mark.slow
def test_compiled_models_are_trained_resumed_saved_and_loaded(tmp_path: Path) -> None:
    x, config = correlated_rows(), short_config(checkpoint_seconds=0)
    whole = torch.compile(build(), backend="eager")
    fit(whole, x, x[:50], config, run=tmp_path / "whole")
    with before_step(17, interrupt), pytest.raises(KeyboardInterrupt):
        fit(torch.compile(build(), backend="eager"), x, x[:50], config, run=tmp_path / "run")
    fit(build(), x, x[:50], config, run=tmp_path / "run", resume=True)  # resumed without compilation
    loaded = load(tmp_path / "whole")
    with torch.no_grad():
        torch.testing.assert_close(whole.score(x[:5]), loaded.score(x[:5]))
        torch.testing.assert_close(load(tmp_path / "run").score(x[:5]), loaded.score(x[:5]))
    save(whole, tmp_path / "saved.safetensors")
    assert have_same_weights(load(tmp_path / "saved.safetensors"), loaded)
