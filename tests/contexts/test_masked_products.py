"""Masked products by blocks, against products with the mask multiplied into the weight."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arcsm import MADE
from arcsm.contexts import made as made_module
from arcsm.contexts.masked_products import masked_linear, unit_blocks

REACHES = {
    "even": [0, 0, 1, 1, 2, 3, 3, 5, 6, 6, 7],
    "all seen": [7] * 11,
    "nothing seen": [0] * 11,
    "one step": [0] * 5 + [7] * 6,
}


def _mask(reach: list[int], inputs: int = 7) -> Tensor:
    return torch.arange(inputs) < torch.tensor(reach)[:, None]


def _numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("reach", "count"),
    [("even", 1), ("even", 3), ("even", 100), ("all seen", 3), ("nothing seen", 3), ("one step", 8)],
)
def test_value_and_gradients_equal_those_of_the_masked_weight(reach: str, count: int) -> None:
    mask = _mask(REACHES[reach])
    x, weight, bias = _numbers(5, 7), _numbers(11, 7), _numbers(11)
    ours = masked_linear(x, weight, mask, bias, unit_blocks(mask, count))
    plain = F.linear(x, weight * mask, bias)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-13)
    direction = torch.randn_like(plain)
    our_gradients = torch.autograd.grad(ours, (x, weight, bias), direction)
    plain_gradients = torch.autograd.grad(plain, (x, weight, bias), direction)
    torch.testing.assert_close(our_gradients, plain_gradients, rtol=0, atol=1e-13)


def test_gradients_of_higher_order_are_correct() -> None:
    mask = _mask([0, 1, 1, 3], inputs=3)
    blocks = unit_blocks(mask, 2)
    arguments = (_numbers(2, 3), _numbers(4, 3), _numbers(4))

    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return masked_linear(x, weight, mask, bias, blocks).tanh()

    assert torch.autograd.gradcheck(product, arguments)
    assert torch.autograd.gradgradcheck(product, arguments)


def test_masked_weights_are_never_read() -> None:
    mask = _mask(REACHES["even"])
    weight = _numbers(11, 7)
    with_nan = weight.detach().masked_fill(~mask, torch.nan).requires_grad_()
    x = _numbers(5, 7)
    masked_linear(x, with_nan, mask, _numbers(11), unit_blocks(mask)).sum().backward()
    assert with_nan.grad is not None
    assert torch.equal(with_nan.grad == 0, ~mask)
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("mask", [_mask([0, 2, 1]), torch.tensor([[True, False, True]])])
def test_a_mask_that_is_not_block_triangular_is_rejected(mask: Tensor) -> None:
    with pytest.raises(ValueError, match="mask: expected each unit to see the first inputs"):
        unit_blocks(mask)


def test_autocast_sets_the_precision_of_outputs_but_not_of_gradients() -> None:
    mask = _mask(REACHES["even"])
    x, weight, bias = (
        numbers.detach().float().requires_grad_() for numbers in (_numbers(5, 7), _numbers(11, 7), _numbers(11))
    )
    with torch.autocast("cpu", torch.bfloat16):
        ours = masked_linear(x, weight, mask, bias, unit_blocks(mask))
        plain = F.linear(x, weight * mask, bias)
    assert ours.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.05)
    our_gradients = torch.autograd.grad(ours.float().square().sum(), (x, weight, bias))
    plain_gradients = torch.autograd.grad(plain.float().square().sum(), (x, weight, bias))
    for one, other in zip(our_gradients, plain_gradients, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.2)


@pytest.mark.parametrize(("features", "classes"), [(1, 0), (9, 3)])
def test_made_uses_blocks_in_training_with_equal_results(
    monkeypatch: pytest.MonkeyPatch, features: int, classes: int
) -> None:
    monkeypatch.setattr(made_module, "_MIN_WEIGHTS_FOR_BLOCKS", 0)
    order = torch.randperm(features).tolist()
    made = MADE(features, 4, (12, 12), order=order, classes=classes, residual=True, sinusoids=2).double()
    x = torch.randn(6, features, dtype=torch.float64)
    labels = torch.randint(classes, (6,)) if classes else None
    calls: list[int] = []

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        return masked_linear(*arguments)

    monkeypatch.setattr(made_module, "masked_linear", counted)
    trained = made.train()(x, labels)
    assert len(calls) == 3
    torch.testing.assert_close(trained, made.eval()(x, labels), rtol=0, atol=1e-13)
    assert len(calls) == 3
    trained.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in made.parameters() if parameter.grad is not None]
    made.zero_grad()
    made(x, labels).square().sum().backward()
    plain = [parameter.grad for parameter in made.parameters() if parameter.grad is not None]
    torch.testing.assert_close(gradients, plain, rtol=0, atol=1e-12)
