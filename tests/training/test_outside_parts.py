"""Runs with parts from outside the package, and with compiled models."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, fit, load, registry, save
from arcsm._runtime.conditions import Condition
from arcsm.training.run_config import load_config, parse_config
from arcsm.training.runs import load_run, train_run
from outside_parts import BentMADE, NarrowScoreHead, ScaledHead, UnregisteredMADE, doubled_csm
from rejections import error_line
from small_runs import before_step, correlated_rows, have_same_weights, interrupt, short_config


@pytest.fixture(autouse=True)
def registered_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register all parts but one for the test alone; the registry has no public way to forget a part."""
    monkeypatch.setattr(registry, "_PARTS", {seam: dict(parts) for seam, parts in registry._PARTS.items()})
    for part in (BentMADE, NarrowScoreHead, ScaledHead, doubled_csm):
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


class Forgetful(MADE):
    """A MADE that does not store an argument."""

    def __init__(self, features: int, context_features: int, hidden_features: Sequence[int], depth: int = 1) -> None:
        super().__init__(features, context_features, hidden_features)


class Activated(MADE):
    """A MADE with an argument that JSON does not have."""

    def __init__(
        self,
        features: int,
        context_features: int,
        hidden_features: Sequence[int],
        activation: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        super().__init__(features, context_features, hidden_features)
        self.activation = activation


class Precise(MADE):
    """A MADE with a buffer of a type that safetensors does not have."""

    def __init__(self, features: int, context_features: int, hidden_features: Sequence[int]) -> None:
        super().__init__(features, context_features, hidden_features)
        self.register_buffer("frequencies", torch.zeros(3, dtype=torch.complex128))


class Dated(MADE):
    """A MADE whose contexts depend on a number far from zero."""

    def __init__(self, features: int, context_features: int, hidden_features: Sequence[int]) -> None:
        super().__init__(features, context_features, hidden_features)
        self.register_buffer("origin", torch.tensor(1.7e9 + 123.456, dtype=torch.float64))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x, condition) + torch.sin(self.origin).to(x)


def test_numbers_in_double_precision_stay_so_in_a_file(tmp_path: Path) -> None:
    registry.register(Dated)
    model, x = build(Dated), correlated_rows()[:20]
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert loaded.context.origin.dtype == torch.float64
    assert loaded.shift.dtype == model.shift.dtype
    for mine, other in zip(model.score(x), loaded.score(x), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("context", "metadata", "message"),
    [
        (Forgetful, {}, r"^Forgetful: does not store its argument depth"),
        (Activated, {}, r"^context: activation: expected numbers, text, lists or mappings"),
        (Precise, {}, r"^tensor context\.frequencies cannot be saved"),
        (MADE, {"source": Path("a")}, r"^metadata: source: expected numbers, text"),
    ],
)
def test_what_cannot_be_saved_is_rejected_before_training(
    context: type[MADE], metadata: dict[str, Any], message: str, tmp_path: Path
) -> None:
    registry.register(context)
    model, run = build(context), tmp_path / "run"
    model.metadata = metadata
    for write in (lambda: fit(model, correlated_rows(), config=short_config(), run=run), lambda: save(model, run)):
        line = error_line(write)
        assert re.search(message, line), line
        assert not run.exists()


def normalise_weights(model: AutoregressiveModel) -> None:
    for module in [*model.head.modules()]:
        if isinstance(module, nn.Linear):
            nn.utils.parametrizations.weight_norm(module)


CHANGES: dict[str, tuple[Callable[[AutoregressiveModel], object], str]] = {
    "parametrization": (
        normalise_weights,
        r"head\.hidden\.0\.parametrizations\.weight\.original0: numbers of shape .*absent",
    ),
    "added layer": (
        lambda model: setattr(model.head, "extra", nn.Linear(2, 3)),
        r"head\.extra\.bias: .*\(3,\), but absent",
    ),
    "removed layer": (lambda model: delattr(model.head, "output"), r"head\.output\.bias: absent, but numbers of shape"),
    "attribute": (
        lambda model: setattr(model.head, "hidden_features", (9,)),
        r"head\.hidden\.0\.bias: .*\(16,\), .*\(9,\)",
    ),
    "type": (lambda model: model.register_buffer("shift", torch.zeros(2).int()), "shift: integers .*, but numbers"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_whose_tensors_its_configuration_does_not_rebuild_is_rejected_before_training(
    name: str, tmp_path: Path
) -> None:
    model, run, (change, message) = build(), tmp_path / "run", CHANGES[name]
    change(model)
    for write in (lambda: fit(model, correlated_rows(), config=short_config(), run=run), lambda: save(model, run)):
        line = error_line(write)
        assert re.search(f"^model: tensor {message}", line), line
        assert not run.exists()


def test_the_check_before_training_draws_no_random_numbers() -> None:
    model, state = build(), torch.get_rng_state()
    model.check_saveable()
    assert torch.equal(torch.get_rng_state(), state)


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


def test_a_run_with_registered_parts_is_resumed_and_loaded(tmp_path: Path) -> None:
    whole, resumed = build(BentMADE, NarrowScoreHead), build(BentMADE, NarrowScoreHead)
    x, config = correlated_rows(), short_config(checkpoint_seconds=0)
    fit(whole, x, x[:50], config, run=tmp_path / "whole")
    with before_step(17, interrupt), pytest.raises(KeyboardInterrupt):
        fit(build(BentMADE, NarrowScoreHead), x, x[:50], config, run=tmp_path / "run")
    fit(resumed, x, x[:50], config, run=tmp_path / "run", resume=True)
    loaded = load(tmp_path / "run")
    assert isinstance(loaded.context, BentMADE)
    assert isinstance(loaded.head, NarrowScoreHead)
    assert have_same_weights(whole, resumed)
    assert have_same_weights(whole, loaded)


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


def compile_whole(model: AutoregressiveModel) -> Any:
    return torch.compile(model, backend="eager")


def compile_head(model: AutoregressiveModel) -> AutoregressiveModel:
    model.head = torch.compile(model.head, backend="eager")  # type: ignore[assignment]
    return model


@pytest.mark.usefixtures("validation_of_distributions")
@pytest.mark.parametrize("compile_model", [compile_whole, compile_head])
def test_compiled_models_are_trained_resumed_saved_and_loaded(
    compile_model: Callable[[AutoregressiveModel], Any], tmp_path: Path
) -> None:
    x, config = correlated_rows(), short_config(checkpoint_seconds=0)
    whole = compile_model(build())
    fit(whole, x, x[:50], config, run=tmp_path / "whole")
    with before_step(17, interrupt), pytest.raises(KeyboardInterrupt):
        fit(compile_model(build()), x, x[:50], config, run=tmp_path / "run")
    fit(build(), x, x[:50], config, run=tmp_path / "run", resume=True)  # resumed without compilation
    loaded = load(tmp_path / "whole")
    with torch.no_grad():
        torch.testing.assert_close(whole.score(x[:5]), loaded.score(x[:5]))
        torch.testing.assert_close(load(tmp_path / "run").score(x[:5]), loaded.score(x[:5]))
    save(whole, tmp_path / "saved.safetensors")
    assert have_same_weights(load(tmp_path / "saved.safetensors"), loaded)


def test_a_head_that_reads_values_in_its_constructor_is_saved_and_loaded(tmp_path: Path) -> None:
    save(AutoregressiveModel(MADE(2, 4), ScaledHead()), tmp_path)
    head = load(tmp_path).head
    assert isinstance(head, ScaledHead)
    assert head.scale == 2.0
