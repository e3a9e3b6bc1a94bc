"""Gaps in tables: ours with default settings, and five peers.

A part of the values is hidden, completely at random or not. Each method fills them, by its best single value and by
draws. All of them see the same rows, whose gaps are in any column. A control learns from yes/no columns that say where
the gaps are, too: if gaps depend on what is missing, these tell something about it.
"""

import time
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field

from arcsm.estimators import ScoreDensity
from arcsm.experiments.base import Count, Preset, Result, Settings, Share, Study, check_names, study
from arcsm.experiments.comparisons import draw_ranks, mean_ranks, over_seeds
from arcsm.experiments.gaps import MECHANISMS, Mechanism, hide, quality
from arcsm.experiments.imputers import PEERS, Filled
from arcsm.experiments.outside import runnable
from arcsm.experiments.tables import MIXED, UCI, Table, read_rows
from arcsm.reports.plots import open_panels

OURS, GAPS_SHOWN = "arcsm", "arcsm, gaps as columns"
METHODS = (OURS, GAPS_SHOWN, *PEERS)
_MEASURES = ("rmse", "error", "crps", "coverage", "seconds")


class Imputation(Settings):
    """Every method has its default settings."""

    cell_selection: ClassVar[frozenset[str]] = frozenset(
        {"seeds", "seeds_of_others", "methods", "tables", "mechanisms"}
    )
    records_cells: ClassVar[bool] = True
    methods: tuple[str, ...] = Field(METHODS, min_length=1)
    tables: tuple[str, ...] = (*UCI, *MIXED)
    mechanisms: tuple[Mechanism, ...] = MECHANISMS
    seeds_of_others: Count = 1  # at most, of mechanisms other than MCAR
    share: Share = 0.3  # of hidden values
    most_rows: int = Field(2_000, ge=20)
    draws: int = Field(20, ge=2)
    max_steps: Count | None = None  # of ours; default: its own


PRESETS: Mapping[Preset, Imputation] = {
    "smoke": Imputation(methods=(OURS, GAPS_SHOWN, "mean", "KNN", "IterativeImputer"), tables=("wine",),
                        mechanisms=("mcar", "mnar"), most_rows=60, draws=3, max_steps=3),
    "cpu": Imputation(seeds=3),
    "paper": Imputation(seeds=10, seeds_of_others=10, most_rows=10_000),
}  # fmt: skip


def body(run: Study[Imputation]) -> Result:
    """Fill the gaps of every table by every method."""
    settings = run.settings
    check_names("methods", settings.methods, METHODS)
    every, not_run = runnable(settings.methods)
    methods = {m: [name for name in every if m != "mcar" or name != GAPS_SHOWN] for m in settings.mechanisms}
    cells = run.compute_seeds(
        {
            (mechanism, table, method): partial(_fill, run, mechanism, table, method)
            for mechanism in settings.mechanisms
            for table in settings.tables
            for method in methods[mechanism]
        },
        most_seeds=lambda key: settings.seeds if key[0] == "mcar" else settings.seeds_of_others,
    )
    tables = {
        mechanism: {
            table: {method: _over_seeds(cells[mechanism, table, method]) for method in methods[mechanism]}
            for table in settings.tables
        }
        for mechanism in settings.mechanisms
    }
    summary = {mechanism: _summary(methods[mechanism], found) for mechanism, found in tables.items()}
    versions = {
        method: cell["versions"] for (_, _, method), by_seed in cells.items() for cell in by_seed if cell["versions"]
    }
    figure = _figure(summary)
    return {
        "tables": tables, "summary": summary, "not_run": not_run, "versions": versions, "figure": run.figure(figure)
    }  # fmt: skip


def _fill(run: Study[Imputation], mechanism: Mechanism, name: str, method: str, seed: int) -> Result:
    settings = run.settings
    table = read_rows(name, settings.most_rows, seed)
    hidden = hide(table, mechanism, settings.share, seed)
    gapped, begun = table.without(hidden), time.monotonic()
    ours = {OURS: _of_density, GAPS_SHOWN: _of_density_that_sees_gaps}
    filled = ours[method](run, gapped, seed) if method in ours else PEERS[method](gapped, settings.draws, seed)
    seconds = time.monotonic() - begun
    measures = quality(table, hidden, filled.estimates, filled.draws)
    rows, columns = table.values.shape
    return {**measures, "seconds": seconds, "versions": filled.versions, "rows": rows, "columns": columns}


def _of_density_that_sees_gaps(run: Study[Imputation], table: Table, seed: int) -> Filled:
    gaps = np.isnan(table.values)
    mixed = gaps.any(0) & ~gaps.all(0)
    shown = Table(np.column_stack([table.values, gaps[:, mixed]]), (*table.names, *[("no", "yes")] * int(mixed.sum())))
    filled, columns = _of_density(run, shown, seed), table.values.shape[1]
    return Filled(filled.estimates[:, :columns], filled.draws[..., :columns])


def _of_density(run: Study[Imputation], table: Table, seed: int) -> Filled:
    frame = table.frame()
    steps: Any = "auto" if run.settings.max_steps is None else run.settings.max_steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the accuracy of few integrals
        density = ScoreDensity(max_steps=steps, random_state=seed, device=run.device.type, verbose=True).fit(frame)
        estimates = table.codes(density.impute(frame, random_state=seed))
        draws = [table.codes(one) for one in density.impute(frame, n=run.settings.draws, random_state=seed)]
    return Filled(estimates, np.stack(draws))


def _over_seeds(cells: list[Result]) -> Result:
    return {**over_seeds(cells, _MEASURES), "rows": cells[0]["rows"], "columns": cells[0]["columns"]}


def _summary(methods: list[str], tables: Mapping[str, Result]) -> Result:
    """Return means over the tables of their means over the seeds, and mean ranks."""
    found: Result = {method: {} for method in methods}
    for key in _MEASURES:
        having = [table for table in tables.values() if table[methods[0]][key]]
        for method in methods:
            values = [table[method][key]["mean"] for table in having if table[method][key]]
            found[method][key] = float(np.mean(values)) if values else None
        if key in ("rmse", "crps") and having:
            means = np.array([[table[method][key]["mean"] for method in methods] for table in having])
            for method, rank in zip(methods, mean_ranks(-means), strict=True):
                found[method][f"rank by {key}"] = float(rank)
    return found


def _figure(summary: Mapping[Mechanism, Result]) -> Figure:
    figure, panels = open_panels(4.0 * len(summary), 2.4, 1, len(summary))
    for axes, (mechanism, methods) in zip(panels, summary.items(), strict=True):
        draw_ranks(axes, {name: cell["crps"] for name, cell in methods.items()}, None, OURS, 8)
        axes.set_xlabel("mean CRPS of hidden values", fontsize=8)
        axes.set_title(mechanism.upper(), fontsize=9)
    return figure


IMPUTATION = study("imputation", "gaps in tables filled by ours and by five peers", PRESETS, body)
