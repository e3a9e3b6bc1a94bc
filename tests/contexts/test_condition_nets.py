"""Models of classes and vectors together, and networks of one's own that embed conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    GaussianHead,
    NoiseLadder,
    PixelCNNPP,
    ScoreHead,
    TrainConfig,
    check,
    fit,
    load,
    registry,
    save,
)
from arcsm._runtime.conditions import Condition
from arcsm.interop import AutoregressiveDistribution
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
@pytest.mark.parametrize("net", [None, Perceptron])
@pytest.mark.parametrize("name", CONTEXTS)
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


def test_a_model_learns_from_the_class_and_the_vector() -> None:
    torch.manual_seed(0)
    both = {"classes": torch.randint(2, (2000,)), "vector": torch.randn(2000, 1)}
    x = 6.0 * both["classes"][:, None] + both["vector"] + 0.3 * torch.randn(2000, 1)
    model = AutoregressiveModel(MADE(1, 8, (16,), classes=2, condition_features=1), GaussianHead(8))
    fit(model, x, config=quick(steps=300, batch_size=200, learning_rate=3e-2, objective="mle"), condition_train=both)
    for label, vector in ((0, -1.0), (1, 1.0)):
        one = {"classes": torch.tensor(label), "vector": torch.tensor([vector])}
        draws = model.sample(2000, condition=one, generator=torch.Generator().manual_seed(0))
        assert float(draws.mean()) == pytest.approx(6.0 * label + vector, abs=0.2)
        assert float(draws.std()) == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("net", [torch.nn.Linear(2, 4), Perceptron()])
def test_a_network_that_no_file_can_name_is_trained_but_not_saved(net: torch.nn.Module, tmp_path: Path) -> None:
    options = {"classes": 3} if isinstance(net, Perceptron) else {}
    model = AutoregressiveModel(MADE(2, 4, condition_features=2, condition_net=net, **options), ScoreHead(4, (8,)))
    both = conditions(40)
    condition = both if options else both["vector"]
    assert fit(model, torch.randn(40, 2), config=quick(mix=1.0), condition_train=condition).steps == 4
    with pytest.raises(ValueError, match=r"(Perceptron|Linear) is not"):
        save(model, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"(Perceptron|Linear) is not"):
        fit(model, torch.randn(40, 2), config=quick(), condition_train=condition, run=tmp_path / "run")


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


def test_a_distribution_broadcasts_both() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,), classes=3, condition_features=2), ScoreHead(4, (8,)))
    density = AutoregressiveDistribution(model, {"classes": torch.arange(5) % 3, "vector": torch.zeros(2)})
    assert density.batch_shape == (5,)
    assert density.sample((4,)).shape == (4, 5, 2)
    assert density.expand((3, 5)).log_prob(torch.zeros(2)).shape == (3, 5)
    with pytest.raises(ValueError, match="condition: expected numbers of shape"):
        AutoregressiveDistribution(model, {"classes": torch.tensor(1), "vector": torch.zeros(3)})


class Recurrent(Context):
    """A context of one's own, with the layers that the how-to page names."""

    def __init__(
        self, features: int = 3, context_features: int = 4, classes: int = 0, condition_features: int = 0
    ) -> None:
        super().__init__()
        self.features, self.context_features, self.order = features, context_features, tuple(range(features))
        self.set_condition(classes, condition_features)
        self.cell, self.first = torch.nn.GRUCell(1, context_features), self.condition_layer(context_features)

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        self.check_input(x)
        contexts = [self._start(x.shape[:-1], condition)]
        for d in range(self.features - 1):
            contexts.append(self._next(contexts[-1], x[..., d]))
        return torch.stack(contexts, -2)

    @torch.no_grad()
    def begin(self, batch_shape: Sequence[int], condition: Condition | None = None) -> dict[str, Any]:
        return {"position": 0, "context": self._start(batch_shape, condition)}

    @torch.no_grad()
    def step(self, state: dict[str, Any], x_previous: Tensor | None) -> Tensor:
        self.check_step(state["position"], x_previous)
        state["position"] += 1
        if x_previous is not None:
            state["context"] = self._next(state["context"], x_previous)
        return state["context"]

    def _start(self, batch_shape: Sequence[int], condition: Condition | None) -> Tensor:
        start = self.cell.weight_hh.new_zeros(*batch_shape, self.context_features)
        return start + self.first(self.embed_condition(condition, batch_shape))

    def _next(self, context: Tensor, x: Tensor) -> Tensor:
        return self.cell(x.reshape(-1, 1), context.reshape(-1, self.context_features)).view_as(context)


@pytest.mark.parametrize(("classes", "condition_features"), [(0, 0), (3, 0), (0, 2), (3, 2)])
def test_a_context_of_ones_own_needs_no_case_for_models_without_conditions(
    classes: int, condition_features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._PARTS, "context", {"Recurrent": Recurrent})
    check(Recurrent(classes=classes, condition_features=condition_features))
