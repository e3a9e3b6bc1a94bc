"""Products with a weight whose mask is a staircase, at the cost of the part below the stairs.

Half of a mask of MADE is zero. With units sorted by degree the zeros lie together, above a staircase: unit ``i`` sees
the first ``reach[i]`` inputs, and ``reach`` never falls. Cut into blocks of neighbouring units, the weight is nearly
all rectangles that are wholly seen or not at all; only on the stairs themselves is anything masked. So neither the
masked weight nor the unmasked gradient ever exists in whole, and half of the multiplications are never made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCKS = 8  # more of them leave less to mask and less to multiply in vain, in smaller products


@dataclass(frozen=True)
class Block:
    """Neighbouring units: all of them see the first ``full`` inputs, and none sees more than the first ``seen``."""

    units: slice
    full: int
    seen: int


Blocks = tuple[Block, ...]


def blocks_of_mask(mask: Tensor, count: int = BLOCKS) -> Blocks:
    """The units of a mask ``(out, in)`` in at most ``count`` runs of equal length.

    Raises:
        ValueError: for a mask that is no staircase.
    """
    reach = mask.sum(1).long()  # inputs that a unit sees
    stairs = torch.arange(mask.shape[1], device=mask.device) < reach[:, None]
    if not torch.equal(stairs, mask.bool()) or bool((reach.diff() < 0).any()):
        raise ValueError("mask: expected each unit to see the first inputs, and no fewer than the unit before it")
    length = -(-len(reach) // count)
    starts = range(0, len(reach), length)
    ends = [min(start + length, len(reach)) for start in starts]
    return tuple(Block(slice(a, b), int(reach[a]), int(reach[b - 1])) for a, b in zip(starts, ends, strict=True))


def masked_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, blocks: Blocks) -> Tensor:
    """``x @ (weight * mask).T + bias``, differentiable backwards any number of times, in the precision of autocast.

    Args:
        x: ``(*, in)``.
        weight: ``(out, in)``; what the mask hides is never read, and its gradient is zero.
        mask: ``(out, in)``, a staircase.
        bias: ``(out,)``.
        blocks: Of the mask, from :func:`blocks_of_mask`.

    Returns:
        ``(*, out)``.

    Raises:
        RuntimeError: for inputs and a weight of two precisions, without autocast.
    """
    kind = x.device.type
    casts = torch.is_autocast_enabled(kind) and x.dtype != torch.float64  # which autocast leaves alone
    if not casts and x.dtype != weight.dtype:
        raise RuntimeError(f"x: expected {weight.dtype}, as the weight is, got {x.dtype}")
    dtype = torch.get_autocast_dtype(kind) if casts else x.dtype
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    outputs: Tensor = _Outputs.apply(rows, weight, mask, blocks)  # (B, out)
    return (outputs + bias.to(dtype)).reshape(*x.shape[:-1], len(weight))


# The three products of inputs, weight and outputs. Each is linear in both of its factors, and its gradients are the
# other two, so that these three are differentiable as often as anybody likes.


class _Outputs(torch.autograd.Function):
    """``x (weight * mask)^T``, ``(B, out)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mask: Tensor, blocks: Blocks) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.blocks = blocks
        parts = []
        for flight in blocks:
            below, stairs = _parts(weight, mask, flight, x.dtype)
            part = x[:, : flight.full] @ below.T
            parts.append(part.addmm_(x[:, flight.full : flight.seen], stairs.T))
        return torch.cat(parts, 1)

    @staticmethod
    def backward(ctx: Any, of_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, mask = ctx.saved_tensors
        of_x = _Inputs.apply(of_outputs, weight, mask, ctx.blocks) if ctx.needs_input_grad[0] else None
        of_weight = _Weight.apply(of_outputs, x, weight, mask, ctx.blocks) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None, None


class _Inputs(torch.autograd.Function):
    """``y (weight * mask)``, ``(B, in)``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, mask: Tensor, blocks: Blocks) -> Tensor:
        ctx.save_for_backward(y, weight, mask)
        ctx.blocks = blocks
        inputs = y.new_zeros(len(y), weight.shape[1], dtype=weight.dtype)  # sums: in the precision of the weight
        for flight in blocks:
            below, stairs = _parts(weight, mask, flight, y.dtype)
            part = y[:, flight.units]
            inputs[:, : flight.full] += part @ below
            inputs[:, flight.full : flight.seen] += part @ stairs
        return inputs.to(y.dtype)

    @staticmethod
    def backward(ctx: Any, of_inputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        y, weight, mask = ctx.saved_tensors
        of_y = _Outputs.apply(of_inputs, weight, mask, ctx.blocks) if ctx.needs_input_grad[0] else None
        of_weight = _Weight.apply(y, of_inputs, weight, mask, ctx.blocks) if ctx.needs_input_grad[1] else None
        return of_y, of_weight, None, None


class _Weight(torch.autograd.Function):
    """``mask * (y^T x)``, ``(out, in)``, in the precision of the weight (of which nothing else is used)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor, mask: Tensor, blocks: Blocks) -> Tensor:
        ctx.save_for_backward(y, x, mask)
        ctx.blocks = blocks
        product = torch.zeros_like(weight)
        for flight in blocks:
            part, rows = y[:, flight.units].T, product[flight.units]
            _multiply(part, x[:, : flight.full], rows[:, : flight.full])
            stairs = rows[:, flight.full : flight.seen]
            _multiply(part, x[:, flight.full : flight.seen], stairs)
            stairs.masked_fill_(mask[flight.units, flight.full : flight.seen].logical_not(), 0.0)
        return product

    @staticmethod
    def backward(ctx: Any, of_weight: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        y, x, mask = ctx.saved_tensors
        of_y = _Outputs.apply(x, of_weight, mask, ctx.blocks) if ctx.needs_input_grad[0] else None
        of_x = _Inputs.apply(y, of_weight, mask, ctx.blocks) if ctx.needs_input_grad[1] else None
        return of_y, of_x, None, None, None


def _parts(weight: Tensor, mask: Tensor, flight: Block, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of the weight of a flight: what all units see, and the stairs, masked."""
    rows = weight[flight.units]
    stairs = torch.where(mask[flight.units, flight.full : flight.seen], rows[:, flight.full : flight.seen], 0.0)
    return rows[:, : flight.full].to(dtype), stairs.to(dtype)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a @ b`` in place, from whichever precision."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)
