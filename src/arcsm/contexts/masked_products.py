"""Products with a block lower-triangular weight, without the multiplications by zero.

Half of a mask of MADE is zero. With units sorted by degree, the zeros lie above a staircase: unit ``i`` sees the first
``reach[i]`` inputs, and ``reach`` never decreases. Cut into blocks of neighbouring units, the weight consists of
rectangles that are dense or zero, except on the stairs themselves. So the masked weight and the unmasked gradient are
never materialised, and about half of the multiplications are saved.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_BLOCKS = 8  # more blocks leave less to mask and fewer multiplications by zero, but make the products smaller


@dataclass(frozen=True)
class UnitBlock:
    """Neighbouring units: all of them see the first ``dense`` inputs, and none sees more than the first ``seen``."""

    units: slice
    dense: int
    seen: int


UnitBlocks = tuple[UnitBlock, ...]


def unit_blocks(mask: Tensor, count: int = _BLOCKS) -> UnitBlocks:
    """Divide the units of a block lower-triangular mask ``(out, in)`` into at most ``count`` blocks of equal size."""
    reach = mask.sum(1).long()  # (out,)
    stairs = torch.arange(mask.shape[1], device=mask.device) < reach[:, None]
    if not torch.equal(stairs, mask.bool()) or bool((reach.diff() < 0).any()):
        raise ValueError("mask: expected each unit to see the first inputs, and no fewer than the unit before it")
    size = -(-len(reach) // count)
    ranges = [(start, min(start + size, len(reach))) for start in range(0, len(reach), size)]
    return tuple(UnitBlock(slice(a, b), int(reach[a]), int(reach[b - 1])) for a, b in ranges)


def masked_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, blocks: UnitBlocks) -> Tensor:
    """Compute ``x @ (weight * mask).T + bias``, ``(*, in)`` to ``(*, out)``, in the precision of autocast.

    The result is differentiable any number of times. Masked entries of the weight ``(out, in)`` are never read, and
    their gradient is zero. The ``blocks`` of the mask are from :func:`unit_blocks`. As in torch, ``x`` and the weight
    must have one precision, except with autocast.
    """
    kind = x.device.type
    casts = torch.is_autocast_enabled(kind) and x.dtype != torch.float64  # autocast leaves double precision alone
    if not casts and x.dtype != weight.dtype:
        raise RuntimeError(f"x: expected {weight.dtype}, as the weight is, got {x.dtype}")
    dtype = torch.get_autocast_dtype(kind) if casts else x.dtype
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    outputs: Tensor = _Outputs.apply(rows, weight, mask, blocks)  # (B, out)
    return (outputs + bias.to(dtype)).reshape(*x.shape[:-1], len(weight))


# The three products of inputs x, weight and outputs y. Each is linear in both of its factors, and its gradients are the
# other two products. So all three can be differentiated any number of times.


class _Outputs(torch.autograd.Function):
    """``x (weight * mask)^T``, ``(B, out)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mask: Tensor, blocks: UnitBlocks) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.blocks = blocks
        outputs = []
        for block in blocks:
            dense, stairs = _block_weights(weight, mask, block, x.dtype)
            outputs.append((x[:, : block.dense] @ dense.T).addmm_(x[:, block.dense : block.seen], stairs.T))
        return torch.cat(outputs, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, mask = ctx.saved_tensors
        x_grad = _Inputs.apply(grad, weight, mask, ctx.blocks) if ctx.needs_input_grad[0] else None
        weight_grad = _Weight.apply(grad, x, weight, mask, ctx.blocks) if ctx.needs_input_grad[1] else None
        return x_grad, weight_grad, None, None


class _Inputs(torch.autograd.Function):
    """``y (weight * mask)``, ``(B, in)``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, mask: Tensor, blocks: UnitBlocks) -> Tensor:
        ctx.save_for_backward(y, weight, mask)
        ctx.blocks = blocks
        inputs = y.new_zeros(len(y), weight.shape[1], dtype=weight.dtype)  # sums up in the precision of the weight
        for block in blocks:
            dense, stairs = _block_weights(weight, mask, block, y.dtype)
            inputs[:, : block.dense] += y[:, block.units] @ dense
            inputs[:, block.dense : block.seen] += y[:, block.units] @ stairs
        return inputs.to(y.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        y, weight, mask = ctx.saved_tensors
        y_grad = _Outputs.apply(grad, weight, mask, ctx.blocks) if ctx.needs_input_grad[0] else None
        weight_grad = _Weight.apply(y, grad, weight, mask, ctx.blocks) if ctx.needs_input_grad[1] else None
        return y_grad, weight_grad, None, None


class _Weight(torch.autograd.Function):
    """``mask * (y^T x)``, ``(out, in)``, in the precision of the weight, whose values are not used."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor, mask: Tensor, blocks: UnitBlocks) -> Tensor:
        ctx.save_for_backward(y, x, mask)
        ctx.blocks = blocks
        product = torch.zeros_like(weight)
        for block in blocks:
            y_block, rows = y[:, block.units].T, product[block.units]
            _multiply(y_block, x[:, : block.dense], rows[:, : block.dense])
            stairs = rows[:, block.dense : block.seen]
            _multiply(y_block, x[:, block.dense : block.seen], stairs)
            stairs.masked_fill_(mask[block.units, block.dense : block.seen].logical_not(), 0.0)
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        y, x, mask = ctx.saved_tensors
        y_grad = _Outputs.apply(x, grad, mask, ctx.blocks) if ctx.needs_input_grad[0] else None
        x_grad = _Inputs.apply(y, grad, mask, ctx.blocks) if ctx.needs_input_grad[1] else None
        return y_grad, x_grad, None, None, None


def _block_weights(weight: Tensor, mask: Tensor, block: UnitBlock, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the dense part of a block's weight and the masked stairs beside it."""
    rows, stairs = weight[block.units], slice(block.dense, block.seen)
    masked = torch.where(mask[block.units, stairs], rows[:, stairs], 0.0)
    return rows[:, : block.dense].to(dtype), masked.to(dtype)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Set ``out = a @ b``, which may have another precision than the factors."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)
