"""Any-order contexts in C against torch: sums of values, networks of sets with gradients, walks through an order."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from arcsm import AnyOrder
from arcsm._native import context_walk, set_network_forward, value_sums_forward
from arcsm._runtime.modes import deterministic_operations
from arcsm.contexts import any_order, set_networks, value_embedding
from small_contexts import ANY_ORDER, any_order_context, condition_of, rows_of


@contextmanager
def without_c(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for module in (any_order, set_networks, value_embedding):
            patch.setattr(module, "available", lambda: False)
        yield


@contextmanager
def c_is_used(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> Iterator[None]:
    """Fail unless a function of C is called within the block."""
    calls = []
    function = getattr(module, name)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *arguments: calls.append(1) or function(*arguments))
        yield
    assert calls


def trained_contexts(context: AnyOrder, rows: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the contexts of a training step, and the gradients of all weights of a random function of them."""
    context.zero_grad()
    x = rows_of(context, rows)
    torch.manual_seed(5)  # of dropout
    terms = context.training_terms(x, condition_of(context, rows), torch.Generator().manual_seed(3))
    weight = torch.randn(terms.context.shape, generator=torch.Generator().manual_seed(4)).to(x)
    (weight * terms.context).sum().backward()
    found = {name: p.grad for name, p in context.named_parameters() if p.grad is not None}
    return terms.context.detach(), found


@pytest.mark.parametrize("rows", [1, 131])
@pytest.mark.parametrize("kind", ANY_ORDER)
def test_training_terms_and_gradients_are_those_of_torch(kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    context = any_order_context(kind)
    with c_is_used(monkeypatch, value_embedding, "value_sums_backward"):
        ours, gradients = trained_contexts(context, rows)
    with without_c(monkeypatch):
        in_torch, expected = trained_contexts(context, rows)
    torch.testing.assert_close(ours, in_torch, rtol=1e-4, atol=2e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=2e-5 * float(gradient.abs().max() + 1))


def test_gradients_of_gradients_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    context = any_order_context("condition")
    x, condition = rows_of(context, 20), condition_of(context, 20)
    weights = list(context.parameters())

    def second() -> list[Tensor]:
        terms = context.training_terms(x, condition, torch.Generator().manual_seed(3))
        first = torch.autograd.grad(terms.context.square().sum(), weights, create_graph=True, allow_unused=True)
        total = sum(gradient.square().sum() for gradient in first if gradient is not None)
        return list(torch.autograd.grad(total, weights, materialize_grads=True, allow_unused=True))

    ours = second()
    with without_c(monkeypatch):
        expected = second()
    for gradient, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4 * float(other.abs().max() + 1e-6))


@pytest.mark.parametrize("rows", [0, 1, 131])
@pytest.mark.parametrize("kind", ANY_ORDER)
@torch.no_grad()
def test_contexts_of_an_order_are_those_of_torch(kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    context = any_order_context(kind).eval()
    exact = any_order_context(kind, torch.float64).eval()
    exact.load_state_dict(context.state_dict())
    x, condition = rows_of(context, rows).double(), condition_of(context, rows)
    order = context.arranged((4, 2, 0, 6, 5, 1, 3))
    if condition is not None:
        condition = {**condition, "vector": condition["vector"].double()}
    with c_is_used(monkeypatch, any_order, "context_walk"):
        ours = exact.in_single_precision(x, condition, order)
    expected = exact(x, condition, order)
    assert ours.shape == expected.shape == (rows, 7, context.context_features)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-5)


def test_deterministic_operations_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    context = any_order_context("levels")
    monkeypatch.setattr(any_order, "context_walk", None)
    monkeypatch.setattr(value_embedding, "value_sums_forward", None)
    monkeypatch.setattr(set_networks, "set_network_forward", None)
    with deterministic_operations(True):
        trained_contexts(context, 5)
        with torch.no_grad():
            context.in_single_precision(rows_of(context, 3))


@torch.no_grad()
def test_levels_outside_of_a_column_are_clipped_as_in_torch() -> None:
    context = any_order_context("levels").eval()
    x = rows_of(context, 40)
    x[::2, 1], x[1::2, 4], x[::3, 6] = -7.0, 1e9, 1.5
    torch.testing.assert_close(context.in_single_precision(x), context(x), rtol=1e-4, atol=2e-5)


def test_shapes_that_do_not_match_are_errors() -> None:
    context = any_order_context("levels")
    vectors, weights = context.values.vectors(), context.networks.large.weights()
    x, known = rows_of(context, 4, missing=False), torch.ones(4, 7)
    with pytest.raises(ValueError, match="value_sums: shapes do not match"):
        value_sums_forward(vectors, x[:, 1:], known[:, 1:])
    with pytest.raises(ValueError, match="set_network: shapes do not match"):
        set_network_forward(weights, torch.zeros(4, 12), torch.zeros(4))
    walked = context.networks.walked(None, ())
    with pytest.raises(ValueError, match="context_walk: shapes do not match"):
        context_walk(vectors, walked, 0, (0, 1, 2, 3, 4, 5, 5), x, known)
    with pytest.raises(TypeError, match="float32"):
        value_sums_forward(vectors, x.double(), known)
