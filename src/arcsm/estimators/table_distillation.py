"""The model of a table with closed forms, for fast densities."""

from dataclasses import replace

import torch
from torch import Tensor

from arcsm.estimators.table_model import TableModel
from arcsm.training.distillation import DistilConfig, distil

_REACH_ROWS = 250  # that show how far a density leaks beyond the ends of columns


def distilled_table(table: TableModel, rows: Tensor, config: DistilConfig, progress: bool = False) -> TableModel:
    """Return a table whose conditionals have a closed form, and nearly the density of the given one.

    It learns from rows ``(N, M)`` that the table was fitted to; see :func:`arcsm.distil`. A table of names alone has
    closed forms already.
    """
    if all(table.model.discrete):
        return table
    student = distil(table.model, table.inputs(rows), level=table.level, config=config, progress=progress)
    fast = replace(table, model=student, level=0, _single=None)
    fast.measure_reach(rows[torch.linspace(0, len(rows) - 1, min(_REACH_ROWS, len(rows))).long()])
    return fast
