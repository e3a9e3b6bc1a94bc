"""Synthetic rows of tables: ours with default settings, and its peers.

Every method learns from the same training rows and draws as many rows as are held out. Two controls show what the
measures say of columns drawn independently, and of the training rows themselves.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field

from arcsm.estimators import ScoreDensity
from arcsm.experiments.base import Count, Preset, Result, Settings, Study, check_names, study
from arcsm.experiments.comparisons import Array, draw_ranks, over_seeds
from arcsm.experiments.outside import run_outside, runnable
from arcsm.experiments.synthetic_rows import MEASURES, measure
from arcsm.experiments.tables import MIXED, Table, read_rows
from arcsm.reports.plots import open_panels

OURS, INDEPENDENT, TRAINING = "arcsm", "independent columns", "training rows"
CONTROLS = (INDEPENDENT, TRAINING)
_KEYS = (*MEASURES, "seconds")


class Drawn(NamedTuple):
    """Synthetic rows."""

    rows: Array  # (N, M)
    versions: str | None = None  # of libraries outside our requirements


class Synthesis(Settings):
    """Every method has its default settings."""

    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds", "methods", "tables"})
    records_cells: ClassVar[bool] = True
    methods: tuple[str, ...] = Field((OURS, "ARF", *CONTROLS), min_length=1)
    tables: tuple[str, ...] = MIXED
    training_rows: int = Field(2_000, ge=20)
    held_out_rows: int = Field(2_000, ge=20)
    max_steps: Count | None = None  # of ours; default: its own


PRESETS: Mapping[Preset, Synthesis] = {
    "smoke": Synthesis(methods=(OURS, *CONTROLS), tables=("wine",), training_rows=60, held_out_rows=30, max_steps=3),
    "cpu": Synthesis(seeds=3),
    "paper": Synthesis(seeds=5, training_rows=5_000, held_out_rows=5_000),
}


def body(run: Study[Synthesis]) -> Result:
    """Draw rows of every table by every method."""
    settings = run.settings
    check_names("methods", settings.methods, tuple(METHODS))
    methods, not_run = runnable(settings.methods)
    cells = run.compute_seeds(
        {(table, method): partial(_draw, run, table, method) for table in settings.tables for method in methods}
    )
    tables = {
        table: {method: measures_over_seeds(cells[table, method]) for method in methods} for table in settings.tables
    }
    versions = {method: cell["versions"] for (_, method), each in cells.items() for cell in each if cell["versions"]}
    summary = {method: summarise([table[method] for table in tables.values()]) for method in methods}
    figure = _figure(summary)
    return {
        "tables": tables, "summary": summary, "not_run": not_run, "versions": versions, "figure": run.figure(figure)
    }  # fmt: skip


def _draw(run: Study[Synthesis], name: str, method: str, seed: int) -> Result:
    settings = run.settings
    return judge(
        name, settings.training_rows, settings.held_out_rows, seed,
        lambda train, held_out: METHODS[method](run, train, held_out, seed),
    )  # fmt: skip


def judge(
    name: str, most_training: int, most_held_out: int, seed: int, draw: Callable[[Table, Array], Drawn]
) -> Result:
    """Return the measures of what a method draws, given the training rows and the held-out rows of a table."""
    table = read_rows(name, most_training + most_held_out, seed)
    count = min(most_training, len(table.values) * 2 // 3)  # of small tables
    train, held_out = table.values[:count], table.values[count:]
    begun = time.monotonic()
    drawn = draw(Table(train, table.names), held_out)
    seconds = time.monotonic() - begun
    measures = measure(table, train, held_out, drawn.rows, seed)
    sizes = {"training_rows": count, "held_out_rows": len(held_out), "columns": len(table.names)}
    return {**measures, "seconds": seconds, "versions": drawn.versions, **sizes}


def _ours(run: Study[Synthesis], train: Table, held_out: Array, seed: int) -> Drawn:
    steps: Any = "auto" if run.settings.max_steps is None else run.settings.max_steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the accuracy of few integrals
        density = ScoreDensity(max_steps=steps, random_state=seed, device=run.device.type, verbose=True)
        return Drawn(train.codes(density.fit(train.frame()).sample(len(held_out), seed, gaps=True)))


def _adversarial_forests(run: Study[Synthesis], train: Table, held_out: Array, seed: int) -> Drawn:
    arrays = {"values": train.values, "nominal": np.flatnonzero(train.nominal)}
    found = run_outside("ARF", arrays, {"rows": len(held_out), "seed": seed})
    return Drawn(found["rows"], str(found["versions"]))


def _independent(run: Study[Synthesis], train: Table, held_out: Array, seed: int) -> Drawn:
    random = np.random.default_rng(seed)
    return Drawn(np.stack([random.choice(column, len(held_out)) for column in train.values.T], 1))


def _training_rows(run: Study[Synthesis], train: Table, held_out: Array, seed: int) -> Drawn:
    return Drawn(train.values[: len(held_out)])


METHODS: Mapping[str, Callable[[Study[Synthesis], Table, Array, int], Drawn]] = {
    OURS: _ours,
    "ARF": _adversarial_forests,
    INDEPENDENT: _independent,
    TRAINING: _training_rows,
}


def measures_over_seeds(cells: list[Result]) -> Result:
    """Return means and standard deviations over seeds, and the sizes of the table."""
    sizes = {key: cells[0][key] for key in ("training_rows", "held_out_rows", "columns")}
    return {**over_seeds(cells, _KEYS), **sizes}


def summarise(tables: list[Result]) -> Result:
    """Return means over the tables."""
    means = {key: [table[key]["mean"] for table in tables if table[key]] for key in _KEYS}
    return {key: float(np.mean(values)) if values else None for key, values in means.items()}


def _figure(summary: Mapping[str, Result]) -> Figure:
    figure, panels = open_panels(9.0, 2.4, 1, 2)
    for axes, key, label in zip(
        panels, ("c2st", "utility"), ("AUROC of trees (0.5: indistinguishable)", "utility (1: like real rows)"),
        strict=True,
    ):  # fmt: skip
        shown = {name: cell[key] for name, cell in summary.items() if cell[key] is not None}
        draw_ranks(axes, shown, None, OURS, 8)
        axes.set_xlabel(f"{label}, mean over the tables", fontsize=8)
    return figure


SYNTHESIS = study("synthesis", "synthetic rows of mixed tables: ours and its peers", PRESETS, body)
