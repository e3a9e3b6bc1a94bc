"""The model of a table with closed forms, for fast densities."""

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from arcsm.errors import TrainingWarning, warn
from arcsm.estimators.table_model import TableModel
from arcsm.training.distillation import MUCH_LOST, DistilConfig, distil

_REACH_ROWS = 250  # that show how far a density leaks beyond the ends of columns


def distilled_table(table: TableModel, rows: Tensor, config: DistilConfig, progress: bool = False) -> TableModel:
    """Return a table whose conditionals have a closed form, and nearly the density of the given one.

    It learns from rows ``(N, M)`` that the table was fitted to; see :func:`arcsm.distil`. A table of names alone has
    closed forms already.
    """
    if all(table.model.discrete):
        return table
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)  # which is about settings of distil
        student = distil(table.model, table.inputs(rows), level=table.level, config=config, progress=progress)
    if (lost := student.metadata["distillation"]["kl"]["mean"]) > MUCH_LOST:
        warn(f"fast: the closed forms lost {lost:.2g} nats a row; use fast=False if ranks of rows matter")
    fast = replace(table, model=student, level=0, reach=dict(table.reach), _single=None)
    fast.measure_reach(rows[torch.linspace(0, len(rows) - 1, min(_REACH_ROWS, len(rows))).long()])
    return fast
