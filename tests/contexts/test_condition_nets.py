"""Models of classes and vectors together, and networks of one's own that embed conditions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arcsm import (
    MADE,
    AutoregressiveModel,
    ConditionNet,
    Context,
    NoiseLadder,
    PixelCNNPP,
    ScoreHead,
    TrainConfig,
    fit,
    load,
    registry,
    save,
)
from arcsm.training import ModelConfig
from outside_parts import Perceptron


def quick(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 4, "batch_size": 16, "device": "cpu", "validate_every": 2, **changes})


@pytest.fixture
def _perceptron(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._PARTS, "condition_net", {"Perceptron": Perceptron})


def conditions(n: int) -> dict[str, Tensor]:
    return {"classes": torch.arange(n) % 3, "vector": torch.randn(n, 2)}


CONTEXTS: dict[str, Callable[..., Context]] = {
    "MADE": lambda **options: MADE(4, 4, (8,), classes=3, condition_features=2, **options),
    "PixelCNNPP": lambda **options: PixelCNNPP((1, 2, 2), 4, 4, 1, classes=3, condition_features=2, **options),
}


@pytest.mark.usefixtures("_perceptron")
@pytest.mark.parametrize(("name", "net"), [("MADE", None), ("PixelCNNPP", Perceptron)])
def test_a_model_of_classes_and_vectors_is_trained_saved_and_drawn_from(
    name: str, net: type[Perceptron] | None, tmp_path: Path
) -> None:
    options = {} if net is None else {"condition_net": net()}
    model = AutoregressiveModel(CONTEXTS[name](**options), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4))
    before = [weights.clone() for weights in model.parameters()]
    x, both = torch.randn(40, 4), conditions(40)
    fit(model, x, x, quick(), both, both, run=tmp_path / "run")
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True) if a.numel() > 8)
    loaded = load(tmp_path / "run")
    assert isinstance(loaded.context.condition_net, net or type(None))
    torch.testing.assert_close(loaded.log_prob(x[:4], condition=conditions_of(both, 4)), model.log_prob(
        x[:4], condition=conditions_of(both, 4)))  # fmt: skip
    one = {"classes": torch.tensor(2), "vector": torch.zeros(2)}
    draws = [loaded.sample(3, condition=c, generator=torch.Generator().manual_seed(0)) for c in (one, repeated(one, 3))]
    assert torch.equal(*draws)
    by_label = loaded.score(x, condition={**one, "classes": torch.tensor(1)})[0]
    assert not torch.allclose(by_label, loaded.score(x, condition=one)[0])


def conditions_of(condition: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return {name: part[:count] for name, part in condition.items()}


def repeated(condition: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return {name: part.expand(count, *part.shape) for name, part in condition.items()}


def test_a_network_that_no_file_can_name_is_trained_but_not_saved(tmp_path: Path) -> None:
    made = MADE(2, 4, condition_features=2, condition_net=torch.nn.Linear(2, 4))
    model, x, condition = AutoregressiveModel(made, ScoreHead(4, (8,))), torch.randn(40, 2), torch.randn(40, 2)
    assert fit(model, x, config=quick(mix=1.0), condition_train=condition).steps == 4
    with pytest.raises(ValueError, match="Linear is not"):
        save(model, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="Linear is not"):
        fit(model, x, config=quick(), condition_train=condition, run=tmp_path / "run")


def test_a_network_may_be_named_in_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    class Embedding(ConditionNet):
        def __init__(self, classes: int, width: int = 5) -> None:
            super().__init__()
            self.classes, self.width = classes, width
            self.table = torch.nn.Embedding(classes, width)

        def forward(self, condition: Tensor) -> Tensor:
            return self.table(condition)

    monkeypatch.setitem(registry._PARTS, "condition_net", {"Embedding": Embedding})
    context = {"kind": "MADE", "classes": 10, "condition_net": {"kind": "Embedding", "classes": 10, "width": 3}}
    config = ModelConfig(context=context, head={"kind": "ScoreHead"})
    assert config.build(4).context.condition_net.width == 3  # type: ignore[union-attr]


def test_a_layer_of_a_context_without_conditions_adds_nothing() -> None:
    context = MADE(2, 4, (8,))
    assert float(context.condition_layer(5)(context.embed_condition(None, (3,)))) == 0.0
