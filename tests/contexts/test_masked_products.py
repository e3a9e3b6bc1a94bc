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


@pytest.mark.parametrize("count", [1, 3, 8, 100])
@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES.keys())
def test_value_and_gradients_equal_those_of_the_masked_weight(reach: list[int], count: int) -> None:
    mask = _mask(reach)
    x, weight, bias = _numbers(5, 7), _numbers(11, 7), _numbers(11)
    ours = masked_linear(x, weight, mask, bias, unit_blocks(mask, count))
    plain = F.linear(x, weight * mask, bias)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-13)
    direction = torch.randn_like(plain)
    our_gradients = torch.autograd.grad(ours, (x, weight, bias), direction)
    plain_gradients = torch.autograd.grad(plain, (x, weight, bias), direction)
    torch.testing.assert_close(our_gradients, plain_gradients, rtol=0, atol=1e-13)


def test_gradients_of_higher_order_are_correct() -> None:
    mask = _mask(REACHES["even"])
    blocks = unit_blocks(mask, 4)
    arguments = (_numbers(3, 7), _numbers(11, 7), _numbers(11))

    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return masked_linear(x, weight, mask, bias, blocks).tanh()

    def gradient(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(product(x, weight, bias).square().sum(), (x, weight, bias), create_graph=True)

    assert torch.autograd.gradcheck(product, arguments)
    assert torch.autograd.gradgradcheck(product, arguments)
    assert torch.autograd.gradgradcheck(gradient, arguments)


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


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,)])
def test_a_batch_may_have_any_shape(shape: tuple[int, ...]) -> None:
    mask = _mask(REACHES["even"])
    x, weight, bias = _numbers(*shape, 7), _numbers(11, 7), _numbers(11)
    ours = masked_linear(x, weight, mask, bias, unit_blocks(mask))
    torch.testing.assert_close(ours, F.linear(x, weight * mask, bias), rtol=0, atol=1e-13)


@pytest.mark.parametrize("reach", [[1, 0], [0, 2, 1]])
def test_a_mask_that_is_not_block_triangular_is_rejected(reach: list[int]) -> None:
    with pytest.raises(ValueError, match="mask: expected each unit to see the first inputs"):
        unit_blocks(_mask(reach))


def test_a_mask_with_holes_is_rejected() -> None:
    with pytest.raises(ValueError, match="mask: expected"):
        unit_blocks(torch.tensor([[True, False, True]]))


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


@pytest.mark.parametrize("features", [1, 2, 9])
@pytest.mark.parametrize("classes", [0, 3])
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


def test_autocast_leaves_double_precision_alone() -> None:
    mask = _mask(REACHES["even"])
    x, weight, bias = _numbers(5, 7), _numbers(11, 7), _numbers(11)
    with torch.autocast("cpu", torch.bfloat16):
        assert masked_linear(x, weight, mask, bias, unit_blocks(mask)).dtype == torch.float64


def test_inputs_of_another_precision_are_rejected() -> None:
    mask = _mask(REACHES["even"])
    with pytest.raises(RuntimeError, match=r"x: expected torch.float32, as the weight is, got torch.float64"):
        masked_linear(_numbers(5, 7), _numbers(11, 7).float(), mask, _numbers(11).float(), unit_blocks(mask))
