"""``walk.c``: loss and gradients of fused score matching, called on tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from arcsm.native.build import library

_TILE = 128  # points whose layers are at work together
_CACHE = 1 << 20  # bytes; where a tile's layers are more than a core's own cache holds, it is as small as can be
_FEWEST = 1024  # points that are worth a thread


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


class _Gradients(NamedTuple):
    loss: float
    by_parameters: list[Tensor]


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
        points: ``(6, n)``, the coefficients of the loss in the order of ``arcsm.fused._Points``.
        parameters: Weight ``(H, I)`` and bias ``(H,)`` of each hidden layer, then of the output.
        residual: Whether each hidden layer but the last is added to the one before it.
        tangent: Whether the loss has the derivative by x in it.

    Returns:
        The loss, its gradients by the contexts ``(n, C)``, and by each of the parameters.

    Raises:
        CompilationError: where there is no compiler for it.
        TypeError: for tensors that are not of single precision on the processor.
    """
    tensors = [context, others, slopes, points, *parameters]
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        raise TypeError("walk: expected float32 tensors on the processor")
    context, others, slopes = context.contiguous(), others.contiguous(), slopes.contiguous()
    parameters = [p.contiguous() for p in parameters]
    by_context = torch.empty_like(context)
    threads = min(torch.get_num_threads(), -(-len(context) // _FEWEST)) or 1
    size = -(-len(context) // threads)
    parts = [slice(start, start + size) for start in range(0, len(context), max(size, 1))]

    def of(part: slice) -> _Gradients:
        rows = context[part], others[part], slopes[part], points[:, part].contiguous()
        return _walk(*rows, parameters, residual, tangent, by_context[part])

    _code()  # compiled before any thread asks for it
    if len(parts) > 1:
        with ThreadPoolExecutor(len(parts)) as pool:  # C lets go of the interpreter
            found = list(pool.map(of, parts))
    else:
        found = [of(part) for part in parts]
    sums = [sum(each[1:], each[0]) for each in zip(*[part.by_parameters for part in found], strict=True)]
    return sum(part.loss for part in found), by_context, sums or [torch.zeros_like(p) for p in parameters]


def _walk(
    context: Tensor,
    others: Tensor,
    slopes: Tensor,
    points: Tensor,
    parameters: Sequence[Tensor],
    residual: bool,
    tangent: bool,
    by_context: Tensor,
) -> _Gradients:
    """A part on one thread; ``by_context`` is written."""
    weights, biases = parameters[0::2], parameters[1::2]
    units = [len(weight) for weight in weights[:-1]]
    sizes = context.shape[1] + others.shape[1], context.shape[1], slopes.shape[1]
    shape, space, alignment = _layout(*sizes, tuple(units), residual, tangent)
    memory = torch.empty(space + alignment, dtype=torch.uint8)
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    loss = _code().walk(
        ctypes.byref(shape),
        ctypes.c_long(len(context)),
        *map(_address, (context, others, slopes, points)),
        *map(_addresses, (weights, biases, gradients[0::2], gradients[1::2])),
        _address(by_context),
        ctypes.c_void_p(-(-memory.data_ptr() // alignment) * alignment),
    )
    return _Gradients(loss, gradients)


def _code() -> ctypes.CDLL:
    code = library("walk")
    code.walk.restype, code.walk_step.restype = ctypes.c_double, ctypes.c_long
    code.walk_space.restype = code.walk_alignment.restype = ctypes.c_size_t
    return code


@lru_cache
def _layout(
    inputs: int, context: int, features: int, units: tuple[int, ...], residual: bool, tangent: bool
) -> tuple[_Shape, int, int]:
    """The shape of a walk, the bytes that it needs, and their alignment."""
    code = _code()
    sizes = (ctypes.c_long * len(units))(*units)

    def shape(tile: int) -> _Shape:
        return _Shape(inputs, context, features, len(units), sizes, residual, tangent, tile)

    step = int(code.walk_step())
    chosen = shape(max(_TILE, step))
    if code.walk_space(ctypes.byref(chosen)) > _CACHE:
        chosen = shape(step)
    return chosen, int(code.walk_space(ctypes.byref(chosen))), int(code.walk_alignment())


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
