"""Models under torch.compile, torch.export and torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

from arcsm import MADE, AutoregressiveModel, GaussianHead, MixedHead, NoiseLadder, ScoreHead, objectives
from small_models import MakeModel, seeded

ROWS = 5
KINDS: dict[str, dict[str, Any]] = {
    "missing values": {"missing": True},
    "classes": {"classes": 3},
    "vectors": {"condition_features": 2},
}


def rows_of(model: AutoregressiveModel) -> tuple[Tensor, Tensor | None]:
    x = torch.randn(ROWS, model.features, dtype=torch.float64)
    if model.context.classes:
        return x, torch.arange(ROWS) % 3
    return x, torch.randn(ROWS, 2, dtype=torch.float64) if model.context.condition_features else None


def compiled(model: AutoregressiveModel, x: Tensor, condition: Tensor | None) -> Any:
    return torch.compile(model.score, fullgraph=True, backend="eager")(x, -1, condition)


def exported(model: AutoregressiveModel, x: Tensor, condition: Tensor | None) -> Any:
    return torch.export.export(model, (x, -1, condition)).module()(x, -1, condition)


def mapped(model: AutoregressiveModel, x: Tensor, condition: Tensor | None) -> Any:
    in_dims = (0, None if condition is None else 0)
    return vmap(lambda x, condition: model.score(x, -1, condition), in_dims)(x, condition)


@pytest.mark.usefixtures("validation_of_distributions")
@pytest.mark.parametrize(
    ("kind", "transform"),
    [("classes", compiled), ("vectors", exported), ("missing values", mapped), ("vectors", mapped)],
)
def test_scores_can_be_transformed(make_model: MakeModel, kind: str, transform: Callable[..., Any]) -> None:
    model = make_model(noise=NoiseLadder(1.0, 0.1, 4), **KINDS[kind])
    x, condition = rows_of(model)
    torch.testing.assert_close(transform(model, x, condition), model.score(x, -1, condition))


class Loss(nn.Module):
    def __init__(self, model: AutoregressiveModel, objective: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self.model, self.objective, self.options = model, objective, options

    def forward(self, x: Tensor) -> Tensor:
        return self.objective(self.model, x, **self.options)


@pytest.mark.parametrize(
    ("objective", "dtype"),
    [
        (objectives.csm, torch.float32),  # in C, if there is a compiler
        (objectives.dsm, torch.float64),
        (objectives.mle, torch.float64),
    ],
)
def test_gradients_of_torch_func_equal_those_of_backward(
    make_model: MakeModel, objective: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    loss = Loss(make_model(noise=NoiseLadder(1.0, 0.1, 4), dtype=dtype), objective)
    x, parameters = torch.randn(ROWS, 2, dtype=dtype), {name: p.detach() for name, p in loss.named_parameters()}

    def function(parameters: dict[str, Tensor]) -> Tensor:
        loss.options = {"generator": seeded()}
        return functional_call(loss, parameters, (x,))

    function({}).backward()
    value, pull_back = vjp(function, parameters)
    for gradients, factor in ((grad(function)(parameters), 1.0), (pull_back(torch.full_like(value, 3.0))[0], 3.0)):
        for name, p in loss.named_parameters():
            torch.testing.assert_close(gradients[name], factor * p.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_torch_func_does_not_return_zeros_for_an_integrated_density(make_model: MakeModel) -> None:
    model = make_model()
    parameters, (x, _) = dict(Loss(model, objectives.csm).named_parameters()), rows_of(model)
    loss = Loss(model, lambda model, x: model.log_prob(x).sum())
    for function, at in ((loss, x), (lambda p: functional_call(loss, p, (x,)), parameters)):
        with pytest.raises(NotImplementedError, match="no gradients"):
            grad(function)(at)


def test_an_integrated_likelihood_of_single_rows_is_rejected() -> None:
    head = MixedHead([ScoreHead(4, (8,)), GaussianHead(4)], (0, 1))
    loss = Loss(AutoregressiveModel(MADE(2, 4, (8,)), head).double(), objectives.mle)
    x, parameters = torch.randn(ROWS, 2, dtype=torch.float64), dict(loss.named_parameters())
    with pytest.raises(NotImplementedError, match=r"mle: torch\.func\.vmap cannot integrate a ScoreHead; different"):
        vmap(grad(lambda p, x: functional_call(loss, p, (x[None],))), (None, 0))(parameters, x)


@pytest.mark.usefixtures("validation_of_distributions")
def test_a_compiled_head_is_integrated_and_trained_like_the_head() -> None:
    head, noise, x = ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4), torch.randn(ROWS, 2)
    plain = AutoregressiveModel(MADE(2, 4, (8,)), head, noise)
    assigned = AutoregressiveModel(plain.context, plain.head, noise)
    given = AutoregressiveModel(plain.context, torch.compile(plain.head, backend="eager"), noise)  # type: ignore[arg-type]
    assigned.head = torch.compile(plain.head, backend="eager")  # type: ignore[assignment]
    for model in (given, assigned):
        assert torch.equal(model.log_prob(x), plain.log_prob(x))
        assert torch.equal(model.sample(3, generator=seeded()), plain.sample(3, generator=seeded()))
        assert torch.equal(objectives.mle(model, x, generator=seeded()), objectives.mle(plain, x, generator=seeded()))
