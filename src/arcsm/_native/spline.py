"""Bindings of ``spline.c``: splines from contexts, and their values."""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from arcsm._native.build import library
from arcsm._native.interface import SplineNetwork
from arcsm._native.memory import address, addresses, allocate, check_shapes, on_threads, share_rows

_MIN_POINTS_PER_THREAD = 1_024


class SplineLimits(NamedTuple):
    """The constants of a spline; see ``spline_network`` of spline.c."""

    bins: int
    bound: float
    least_share: float
    least_slope: float
    slope_offset: float
    least_scale: float
    most_scale: float


def spline_project(limits: SplineLimits, layers: Sequence[tuple[Tensor, Tensor]], context: Tensor) -> Tensor:
    """Return projections ``(N, 3 K + 1)`` of contexts ``(N, C)``, by weight and bias of each layer of a network.

    Errors are those of :mod:`arcsm._native.latent_chain`.
    """
    weights = [(weight.detach().contiguous(), bias.detach().contiguous()) for weight, bias in layers]
    units = [context.shape[-1], *(len(bias) for _, bias in weights)]
    matching = context.ndim == 2 and bool(weights) and units[-1] == 3 * limits.bins + 3 and limits.bins > 1
    matching &= all(
        weight.shape == (above, below) and bias.shape == (above,)
        for (weight, bias), below, above in zip(weights, units, units[1:], strict=False)
    )
    context = context.detach().contiguous()
    check_shapes("spline_project", (context, *(t for layer in weights for t in layer)), matching)
    head = SplineNetwork(
        limits.bins, limits.bound, len(weights), (ctypes.c_long * len(units))(*units),
        addresses([weight for weight, _ in weights]), addresses([bias for _, bias in weights]), *limits[2:],
    )  # fmt: skip
    out = context.new_empty(len(context), 3 * limits.bins + 1)
    parts, code = share_rows(len(context), _MIN_POINTS_PER_THREAD), library()
    size = int(code.spline_workspace_bytes(ctypes.byref(head), ctypes.c_long(len(context))))
    workspaces = [allocate(size) for _ in parts]

    def run(number: int) -> None:
        rows = parts[number]
        code.spline_project(
            ctypes.byref(head), ctypes.c_long(rows.stop - rows.start), address(context[rows]),
            ctypes.c_long(units[0]), address(out[rows]), address(workspaces[number]),
        )  # fmt: skip

    if len(context):
        on_threads(run, len(parts))
    return out


def spline_values(
    bins: int, bound: float, projection: Tensor, z: Tensor, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the spline with projections ``(N, 3 K + 1)`` at points ``z (N,)``, and its log slope, each ``(N,)``.

    If ``inverse``, return the points where it has the values ``z``; the second tensor is then arbitrary.
    """
    matching = z.ndim == 1 and bins > 1 and projection.shape == (len(z), 3 * bins + 1)
    check_shapes("spline_values", (projection, z), matching)
    projection, z = projection.detach().contiguous(), z.detach().contiguous()
    value, log_slope = torch.empty_like(z), torch.empty_like(z)
    parts, code = share_rows(len(z), _MIN_POINTS_PER_THREAD), library()
    size = int(code.spline_values_workspace_bytes(ctypes.c_long(bins), ctypes.c_long(len(z))))
    workspaces = [allocate(size) for _ in parts]

    def run(number: int) -> None:
        rows = parts[number]
        code.spline_values(
            ctypes.c_long(bins), ctypes.c_float(bound), ctypes.c_long(rows.stop - rows.start),
            address(projection[rows]), address(z[rows]), ctypes.c_int(inverse), address(value[rows]),
            address(log_slope[rows]), address(workspaces[number]),
        )  # fmt: skip

    if len(z):
        on_threads(run, len(parts))
    return value, log_slope
