"""``walk.c``: loss and gradients of fused score matching, called on tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from arcsm._native.build import library
from arcsm._native.memory import address, addresses, each_share, memory, shares

_TILE = 128  # points whose layers are at work together
_CACHE = 1 << 20  # bytes; where a tile's layers are more than a core's own cache holds, it is as small as can be
_FEWEST = 1024  # points that are worth a thread
_COEFFICIENTS = 6


class _Shape(ctypes.Structure):
    _fields_ = (
        ("inputs", ctypes.c_long),
        ("context", ctypes.c_long),
        ("features", ctypes.c_long),
        ("layers", ctypes.c_long),
        ("units", ctypes.POINTER(ctypes.c_long)),
        ("residual", ctypes.c_int),
        ("tangent", ctypes.c_int),
        ("tile", ctypes.c_long),
    )


def walk(
    context: Tensor,
    others: Tensor,
    slopes: Tensor,
    points: Tensor,
    parameters: Sequence[Tensor],
    residual: bool,
    tangent: bool,
) -> tuple[float, Tensor, list[Tensor]]:
    """Loss and gradients of some points, in single precision on the processor, by all of torch's threads.

    Arguments:
        context: ``(n, C)``, the first inputs of the network, which gradients are for.
        others: ``(n, I - C)``, its other inputs.
        slopes: ``(n, V)``, the derivatives by x of the last V of them; of the others it is zero.
        points: ``(6, n)``, the coefficients of the loss in the order of ``arcsm.objectives.fused._Points``.
        parameters: Weight ``(H, I)`` and bias ``(H,)`` of each hidden layer, then of the output.
        residual: Whether each hidden layer but the last is added to the one before it.
        tangent: Whether the loss has the derivative by x in it.

    Returns:
        The loss, its gradients by the contexts ``(n, C)``, and by each of the parameters.

    Raises:
        CompilationError: where there is no compiler for it.
        TypeError: for tensors that are not of single precision on the processor.
        ValueError: for tensors whose shapes do not belong together.
    """
    _check(context, others, slopes, points, parameters, residual)
    context, others, slopes, points = (t.contiguous() for t in (context, others, slopes, points))
    parameters = [p.contiguous() for p in parameters]
    by_context = torch.empty_like(context)
    units = tuple(len(weight) for weight in parameters[0:-2:2])
    sizes = context.shape[1] + others.shape[1], context.shape[1], slopes.shape[1]
    layout = _layout(*sizes, units, residual, tangent)
    parts = shares(len(context), _FEWEST)
    # what the threads write is made here: in a thread, torch would start others
    spaces = [memory(layout.space, layout.alignment) for _ in parts]
    gradients = [[torch.zeros_like(parameter) for parameter in parameters] for _ in parts]

    def part(number: int) -> float:
        rows = parts[number]
        given = context[rows], others[rows], slopes[rows], points[:, rows]
        return _walk(layout, *given, parameters, gradients[number], by_context[rows], spaces[number])

    losses = each_share(part, len(parts))
    return sum(losses), by_context, [sum(each[1:], each[0]) for each in zip(*gradients, strict=True)]


def _check(
    context: Tensor, others: Tensor, slopes: Tensor, points: Tensor, parameters: Sequence[Tensor], residual: bool
) -> None:
    """C would read and write wherever wrong sizes lead it."""
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (context, others, slopes, points, *parameters)):
        raise TypeError("walk: expected float32 tensors on the processor")
    rows, weights, biases = len(context), list(parameters[0::2]), list(parameters[1::2])
    shapes = [tuple(t.shape) for t in (context, others, slopes, points, *parameters)]
    fits = (
        all(t.ndim == 2 for t in (context, others, slopes))
        and len(others) == len(slopes) == rows
        and slopes.shape[1] <= others.shape[1]
        and tuple(points.shape) == (_COEFFICIENTS, rows)
        and len(weights) == len(biases) >= 2
        and all(
            weight.ndim == 2 and bias.shape == weight.shape[:1] for weight, bias in zip(weights, biases, strict=True)
        )
        and weights[0].shape[1] == context.shape[1] + others.shape[1]
        and all(above.shape[1] == len(below) for below, above in pairwise(weights))
        and len(weights[-1]) == 1
        and not (residual and len({len(weight) for weight in weights[:-1]}) > 1)
    )
    if not fits:
        raise ValueError(f"walk: these shapes do not belong together: {', '.join(map(str, shapes))}")


def _walk(
    layout: _Layout,
    context: Tensor,
    others: Tensor,
    slopes: Tensor,
    points: Tensor,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    by_context: Tensor,
    space: Tensor,
) -> float:
    """A part on one thread; to ``gradients`` is added, ``by_context`` is written."""
    return float(
        library().walk(
            ctypes.byref(layout.shape),
            ctypes.c_long(len(context)),
            *map(address, (context, others, slopes, points)),
            ctypes.c_long(points.stride(0)),
            *map(addresses, (parameters[0::2], parameters[1::2], gradients[0::2], gradients[1::2])),
            address(by_context),
            address(space),
        )
    )


class _Layout(NamedTuple):
    shape: _Shape
    space: int  # bytes that a walk needs
    alignment: int  # and where they may begin


@lru_cache
def _layout(inputs: int, context: int, features: int, units: tuple[int, ...], residual: bool, tangent: bool) -> _Layout:
    """The shape of a walk, with tiles that a core's own cache can hold."""
    code = library()
    sizes = (ctypes.c_long * len(units))(*units)

    def layout(tile: int) -> _Layout:
        shape = _Shape(inputs, context, features, len(units), sizes, residual, tangent, tile)
        return _Layout(shape, int(code.walk_space(ctypes.byref(shape))), int(code.vector_alignment()))

    step = int(code.vector_step())
    usual = layout(max(_TILE, step))
    return usual if usual.space <= _CACHE else layout(step)
