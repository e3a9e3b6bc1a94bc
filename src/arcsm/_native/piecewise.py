"""Bindings of ``piecewise.c``: integrals of piecewise densities, and their estimated errors."""

import ctypes

import torch
from torch import Tensor

from arcsm._native.build import library
from arcsm._native.interface import Indicators, Rule
from arcsm._native.memory import address, may_evaluate, on_threads, share_rows, supports

_MIN_ROWS_PER_THREAD = 256


def readable(*tensors: Tensor) -> bool:
    """Return whether C can integrate densities on the tensors: plain ones in double precision, without gradients."""
    return may_evaluate() and supports(*tensors, dtype=torch.float64)


def piecewise_integrate(rule: Rule, x: Tensor, s: Tensor, ds: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return second derivatives and energies at nodes ``(N, K)``, and masses of cells and their errors ``(N, K - 1)``.

    Arguments:
        rule: The constants of :mod:`arcsm.conditionals.piecewise`.
        x, s, ds: Nodes, scores and their derivatives, ``(N, K)``.
    """
    if not x.ndim == 2 or not x.shape == s.shape == ds.shape or x.shape[1] < 2:
        raise ValueError(f"piecewise: shapes do not match: {tuple(x.shape)}, {tuple(s.shape)}, {tuple(ds.shape)}")
    inputs = [t.contiguous() for t in (x, s, ds)]
    at_nodes = [torch.empty_like(inputs[0]) for _ in range(2)]
    of_cells = [x.new_empty(len(x), x.shape[1] - 1) for _ in range(2)]
    parts = share_rows(len(x), _MIN_ROWS_PER_THREAD)

    def run(number: int) -> None:
        rows = parts[number]
        library().piecewise_integrate(
            ctypes.c_long(rows.stop - rows.start), ctypes.c_long(x.shape[1]), ctypes.byref(rule),
            *(address(t[rows]) for t in (*inputs, *at_nodes, *of_cells)),
        )  # fmt: skip

    if len(x):
        on_threads(run, len(parts))
    return at_nodes[0], at_nodes[1], of_cells[0], of_cells[1]


def piecewise_icdf(
    rule: Rule, accuracy: tuple[float, float, int], at_nodes: list[Tensor], cells: Tensor, tails: Tensor,
    log_mass: Tensor, u: Tensor,
) -> Tensor:  # fmt: skip
    """Return the quantiles of probabilities ``u (N,)`` as far as they lie between the outer nodes, ``(N,)``.

    Arguments:
        rule: As in :func:`piecewise_integrate`.
        accuracy: The tolerance in cell widths, the largest rise over a cell, and the largest number of Newton steps.
        at_nodes: Nodes, scores, their first and second derivatives, and energies, ``(N, K)`` each.
        cells: Masses of the cells, ``(N, K - 1)``.
        tails: Masses of both tails, ``(N, 2)``.
        log_mass: Logarithms of the whole masses, ``(N,)``.
        u: The probabilities.
    """
    rows, nodes = at_nodes[0].shape
    inputs = [*at_nodes, cells, tails, log_mass, u]
    sizes = [*((rows, nodes) for _ in range(5)), (rows, nodes - 1), (rows, 2), (rows,), (rows,)]
    if [tuple(t.shape) for t in inputs] != sizes:
        raise ValueError(f"piecewise: shapes do not match: {', '.join(str(tuple(t.shape)) for t in inputs)}")
    inputs = [t.contiguous() for t in inputs]
    quantiles = torch.empty_like(inputs[-1])
    parts = share_rows(rows, _MIN_ROWS_PER_THREAD)
    tolerance, max_rise, steps = accuracy

    def run(number: int) -> None:
        part = parts[number]
        library().piecewise_icdf(
            ctypes.c_long(part.stop - part.start), ctypes.c_long(nodes), ctypes.byref(rule),
            ctypes.c_double(tolerance), ctypes.c_double(max_rise), ctypes.c_long(steps),
            *(address(t[part]) for t in inputs), address(quantiles[part]),
        )  # fmt: skip

    if rows:
        on_threads(run, len(parts))
    return quantiles


def piecewise_cell_errors(
    widest: tuple[float, float], x: Tensor, cells: Tensor, log_mass: Tensor, rule_errors: Tensor
) -> Tensor:
    """Return the errors inside cells relative to the mass, ``(N, K - 1)``.

    Arguments:
        widest: Widths up to which cells cannot hide a mode: in standard deviations of the density, and at least.
        x: Nodes, ``(N, K)``.
        cells: Masses of the cells, ``(N, K - 1)``.
        log_mass: Logarithms of the whole masses, ``(N,)``.
        rule_errors: Errors of the masses of the cells, ``(N, K - 1)``.
    """
    rows, nodes = x.shape
    inputs = [x, cells, log_mass, rule_errors]
    if [tuple(t.shape) for t in inputs] != [(rows, nodes), (rows, nodes - 1), (rows,), (rows, nodes - 1)]:
        raise ValueError(f"piecewise: shapes do not match: {', '.join(str(tuple(t.shape)) for t in inputs)}")
    inputs = [t.contiguous() for t in inputs]
    errors = torch.empty_like(inputs[1])
    parts = share_rows(rows, _MIN_ROWS_PER_THREAD)

    def run(number: int) -> None:
        part = parts[number]
        library().piecewise_cell_errors(
            ctypes.c_long(part.stop - part.start), ctypes.c_long(nodes), *map(ctypes.c_double, widest),
            *(address(t[part]) for t in inputs), address(errors[part]),
        )  # fmt: skip

    if rows:
        on_threads(run, len(parts))
    return errors


def piecewise_errors(
    indicators: Indicators, at_nodes: list[Tensor], cells: Tensor, tails: Tensor, log_mass: Tensor, inside: Tensor,
    anchor: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return each cell's contribution to the error, ``(N, K - 1)``.

    Arguments:
        indicators: The constants of :mod:`arcsm.conditionals.quadrature`.
        at_nodes: Nodes, scores, their first and second derivatives, and energies, ``(N, K)`` each.
        cells: Masses of the cells, ``(N, K - 1)``.
        tails: Masses of both tails, ``(N, 2)``.
        log_mass: Logarithms of the whole masses, ``(N,)``.
        inside: Errors inside the cells, ``(N, K - 1)``.
        anchor: Points that errors are seen from, ``(N,)``, or the modes.
    """
    rows, nodes = at_nodes[0].shape
    sizes = [*((rows, nodes) for _ in range(5)), (rows, nodes - 1), (rows, 2), (rows,), (rows, nodes - 1)]
    inputs = [*at_nodes, cells, tails, log_mass, inside]
    if [tuple(t.shape) for t in inputs] != sizes or (anchor is not None and anchor.shape != (rows,)):
        raise ValueError(f"piecewise: shapes do not match: {', '.join(str(tuple(t.shape)) for t in inputs)}")
    inputs = [t.contiguous() for t in inputs]
    anchor = None if anchor is None else anchor.contiguous()
    errors = torch.empty_like(inputs[5])
    parts = share_rows(rows, _MIN_ROWS_PER_THREAD)
    workspaces = [cells.new_empty(4 * (nodes + 1)) for _ in parts]

    def run(number: int) -> None:
        part = parts[number]
        library().piecewise_errors(
            ctypes.c_long(part.stop - part.start), ctypes.c_long(nodes), ctypes.byref(indicators),
            *(address(t[part]) for t in inputs), None if anchor is None else address(anchor[part]),
            address(errors[part]), address(workspaces[number]),
        )  # fmt: skip

    if rows:
        on_threads(run, len(parts))
    return errors
