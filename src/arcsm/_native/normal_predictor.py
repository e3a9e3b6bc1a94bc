"""Bindings of ``normal_predictor.c``: what the normal distribution says of units given sets of them."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from arcsm._native.build import library
from arcsm._native.memory import address, allocate, check_shapes, on_threads, share_rows

_MIN_ROWS_PER_THREAD = 256


def normal_given_set(correlation: Tensor, values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and error of all units, ``(B, K)`` each, given the ``known (B, K)`` ones of each row, 1 or 0.

    The values ``(B, K)``, 0 where they are unknown, are in units of their deviations from the mean. Errors are those of
    :mod:`arcsm._native.latent_chain`.
    """
    return _predict("normal_given_set", (), correlation, values, known)


def normal_in_order(
    correlation: Tensor, values: Tensor, known: Tensor, order: Sequence[int], dimension: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return mean and error of all units, ``(B, K)`` each, given the known ones before each.

    The units of one dimension are not given each other. The other arguments are those of :func:`normal_given_set`.

    Arguments:
        order: A permutation of the units; those of a dimension are next to each other.
        dimension: That of each unit.
    """
    units = len(correlation)
    if len(dimension) != units or sorted(order) != list(range(units)):
        raise ValueError(
            f"normal_predictor: expected a permutation and the dimensions of {units} units, got {list(order)!r:.40} "
            f"and {list(dimension)!r:.40}"
        )
    longs = ctypes.c_long * units
    return _predict("normal_in_order", (longs(*order), longs(*dimension)), correlation, values, known)


def _predict(
    name: str, arguments: Sequence[object], correlation: Tensor, values: Tensor, known: Tensor
) -> tuple[Tensor, Tensor]:
    correlation, values, known = (t.detach().contiguous() for t in (correlation, values, known))
    units = len(correlation)
    matching = correlation.shape == (units, units) and values.shape == known.shape == (len(values), units)
    check_shapes("normal_predictor", (correlation, values, known), matching)
    location, error = torch.empty_like(values), torch.empty_like(values)
    code, parts = library(), share_rows(len(values), _MIN_ROWS_PER_THREAD)
    size = int(code.normal_predictor_workspace_bytes(ctypes.c_long(units)))
    workspaces = [allocate(size) for _ in parts]

    def run(number: int) -> None:
        rows = parts[number]
        given = values[rows], known[rows], location[rows], error[rows]
        getattr(code, name)(
            ctypes.c_long(units), ctypes.c_long(rows.stop - rows.start), *arguments, address(correlation),
            *map(address, given), address(workspaces[number]),
        )  # fmt: skip

    if values.numel():
        on_threads(run, len(parts))
    return location, error
