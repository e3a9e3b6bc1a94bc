"""Bindings of ``score_matching.c``: loss and gradients of fused score matching."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from arcsm._native.build import library
from arcsm._native.interface import Shape
from arcsm._native.memory import address, addresses, allocate, check_shapes, on_threads, share_rows

_TILE_POINTS = 128
_CACHE_BYTES = 1 << 20  # of a core; if the layers of a tile need more, tiles are as small as possible
_MIN_POINTS_PER_THREAD = 1024
_COEFFICIENTS = 6


def score_matching_forward_backward(
    context: Tensor,
    features: Tensor,
    slopes: Tensor,
    coefficients: Tensor,
    parameters: Sequence[Tensor],
    residual: bool,
    tangent: bool,
) -> tuple[float, Tensor, list[Tensor]]:
    """Return the loss of ``n`` points, its gradient with respect to the contexts, ``(n, C)``, and to the parameters.

    The computation is in single precision on all of torch's threads. Errors are those of
    :mod:`arcsm._native.latent_chain`.

    Arguments:
        context: The first inputs of the network, ``(n, C)``.
        features: Its other inputs, ``(n, I - C)``.
        slopes: Derivatives of the last V features by x, ``(n, V)``; the other features do not depend on x.
        coefficients: Coefficients of the loss in the order of :mod:`arcsm.objectives.fused`, ``(6, n)``.
        parameters: Weight ``(H, I)`` and bias ``(H,)`` of each hidden layer, then of the output.
        residual: Whether each hidden layer but the last is added to the previous one.
        tangent: Whether the loss contains the derivative of the score.
    """
    inputs = context, features, slopes, coefficients
    check_shapes("score_matching", (*inputs, *parameters), _shapes_match(inputs, parameters, residual))
    context, features, slopes, coefficients = (t.contiguous() for t in inputs)
    parameters = [p.contiguous() for p in parameters]
    grad_context = torch.empty_like(context)
    units = tuple(len(weight) for weight in parameters[0:-2:2])
    sizes = context.shape[1] + features.shape[1], context.shape[1], slopes.shape[1]
    shape, workspace_bytes = _layout(*sizes, units, residual, tangent)
    parts = share_rows(len(context), _MIN_POINTS_PER_THREAD)
    # allocate what the threads write here: in a thread, torch would start threads of its own
    workspaces = [allocate(workspace_bytes) for _ in parts]
    gradients = [[torch.zeros_like(parameter) for parameter in parameters] for _ in parts]

    def run(number: int) -> float:
        rows, part_gradients = parts[number], gradients[number]
        inputs = context[rows], features[rows], slopes[rows], coefficients[:, rows]
        loss = library().score_matching_forward_backward(
            ctypes.byref(shape),
            ctypes.c_long(rows.stop - rows.start),
            *map(address, inputs),
            ctypes.c_long(coefficients.stride(0)),
            *map(addresses, (parameters[0::2], parameters[1::2], part_gradients[0::2], part_gradients[1::2])),
            address(grad_context[rows]),
            address(workspaces[number]),
        )
        return float(loss)

    losses = on_threads(run, len(parts))
    return sum(losses), grad_context, [sum(each[1:], each[0]) for each in zip(*gradients, strict=True)]


def _shapes_match(inputs: Sequence[Tensor], parameters: Sequence[Tensor], residual: bool) -> bool:
    context, features, slopes, coefficients = inputs
    rows, weights, biases = len(context), list(parameters[0::2]), list(parameters[1::2])
    return (
        all(t.ndim == 2 for t in (context, features, slopes))
        and len(features) == len(slopes) == rows
        and slopes.shape[1] <= features.shape[1]
        and tuple(coefficients.shape) == (_COEFFICIENTS, rows)
        and len(weights) == len(biases) >= 2
        and all(w.ndim == 2 and b.shape == w.shape[:1] for w, b in zip(weights, biases, strict=True))
        and weights[0].shape[1] == context.shape[1] + features.shape[1]
        and all(above.shape[1] == len(below) for below, above in pairwise(weights))
        and len(weights[-1]) == 1
        and not (residual and len({len(weight) for weight in weights[:-1]}) > 1)
    )


@lru_cache
def _layout(
    inputs: int, context: int, features: int, units: tuple[int, ...], residual: bool, tangent: bool
) -> tuple[Shape, int]:
    """Return the shape of a network with tiles that fit into a core's own cache, and the bytes of a workspace."""
    code = library()
    sizes = (ctypes.c_long * len(units))(*units)

    def layout(tile: int) -> tuple[Shape, int]:
        shape = Shape(inputs, context, features, len(units), sizes, residual, tangent, tile)
        return shape, int(code.score_matching_workspace_bytes(ctypes.byref(shape)))

    step = int(code.vector_step())
    usual = layout(max(_TILE_POINTS, step))
    return usual if usual[1] <= _CACHE_BYTES else layout(step)
