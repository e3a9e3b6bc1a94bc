"""Differentially private synthetic rows of mixed tables: ours and methods of noisy marginals, at several budgets.

Ours learns ranges and names from the table with noise, too; its peers get them. Two controls show the rows of a model
that was trained on ours, and, if requested, those of an ordinary density.
"""

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from arcsm.estimators import PrivateDensity, ScoreDensity
from arcsm.experiments.base import Count, Preset, Result, Settings, Study, check_names, study
from arcsm.experiments.outside import run_outside, runnable
from arcsm.experiments.synthesis import Drawn, judge, measures_over_seeds, summarise
from arcsm.experiments.tables import MIXED, Table
from arcsm.privacy import PrivateStatistics
from arcsm.reports.plots import open_panels

OURS, MODEL, OPEN = "arcsm", "a model of them", "without privacy"
PEERS = ("MST", "AIM")  # of dpmm
METHODS = (OURS, *PEERS, MODEL, OPEN)
_ENVIRONMENTS = dict.fromkeys(PEERS, "dpmm")
Budget = Annotated[float, Field(gt=0.0)]


class PrivateRows(Settings):
    """Every method has its default settings."""

    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds", "methods", "tables", "epsilons"})
    records_cells: ClassVar[bool] = True
    methods: tuple[str, ...] = Field((OURS, "MST", MODEL), min_length=1)
    tables: tuple[str, ...] = MIXED
    epsilons: tuple[Budget, ...] = Field((1.0, 3.0), min_length=1)
    delta: float = Field(1e-5, gt=0.0, lt=1.0)
    training_rows: int = Field(5_000, ge=20)
    held_out_rows: int = Field(2_000, ge=20)
    max_steps: Count | None = None  # of models; default: their own


PRESETS: Mapping[Preset, PrivateRows] = {
    "smoke": PrivateRows(
        methods=(OURS, MODEL), tables=("wine",), epsilons=(20.0,), training_rows=900, held_out_rows=60, max_steps=3
    ),
    "cpu": PrivateRows(),
    "paper": PrivateRows(methods=METHODS, epsilons=(0.3, 1.0, 3.0, 10.0), seeds=5, training_rows=20_000),
}


def body(run: Study[PrivateRows]) -> Result:
    """Draw rows of every table by every method with every budget."""
    settings = run.settings
    check_names("methods", settings.methods, METHODS)
    methods, not_run = runnable(settings.methods, _ENVIRONMENTS)
    cells = run.compute_seeds(
        {
            (_in_words(epsilon), table, method): partial(_draw, run, epsilon, table, method)
            for epsilon in settings.epsilons
            for table in settings.tables
            for method in methods
        }
    )
    found: dict[str, Any] = {}
    for epsilon in map(_in_words, settings.epsilons):
        tables = {t: {m: measures_over_seeds(cells[epsilon, t, m]) for m in methods} for t in settings.tables}
        found[epsilon] = {"tables": tables, "summary": {m: summarise([t[m] for t in tables.values()]) for m in methods}}
    versions = {method: cell["versions"] for (*_, method), each in cells.items() for cell in each if cell["versions"]}
    figure = run.figure(_figure({epsilon: part["summary"] for epsilon, part in found.items()}))
    return {"budgets": found, "not_run": not_run, "versions": versions, "figure": figure}


def _in_words(epsilon: float) -> str:
    return f"epsilon {epsilon:g}"


def _draw(run: Study[PrivateRows], epsilon: float, name: str, method: str, seed: int) -> Result:
    settings = run.settings
    return judge(
        name, settings.training_rows, settings.held_out_rows, seed,
        lambda train, held_out: _drawn(run, epsilon, train, len(held_out), method, seed),
    )  # fmt: skip


def _drawn(run: Study[PrivateRows], epsilon: float, train: Table, count: int, method: str, seed: int) -> Drawn:
    settings, noise = run.settings, np.random.default_rng(seed)
    if method in PEERS:
        arrays = {"values": train.values, "levels": np.array([len(levels) for levels in train.names])}
        of_peer = {"method": method, "epsilon": epsilon, "delta": settings.delta, "rows": count, "seed": seed}
        found = run_outside(_ENVIRONMENTS[method], arrays, of_peer)
        return Drawn(found["rows"], str(found["versions"]))
    frame, steps = train.frame(), "auto" if settings.max_steps is None else settings.max_steps
    if method == OURS:
        statistics = PrivateStatistics.release(frame, epsilon, settings.delta, noise)
        return Drawn(train.codes(statistics.draw(count, noise)))
    options = dict[str, Any](max_steps=steps, random_state=seed, device=run.device.type, verbose=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the accuracy of few integrals
        if method == OPEN:
            density = ScoreDensity(**options).fit(frame)
        else:
            density = PrivateDensity(epsilon, settings.delta, **options).fit(frame, noise=noise)
        return Drawn(train.codes(pd.DataFrame(density.sample(count, seed, gaps=True))))


def _figure(budgets: Mapping[str, Mapping[str, Result]]) -> Figure:
    figure, panels = open_panels(9.0, 2.6, 1, 3)
    shown: tuple[tuple[str, str], ...] = (
        ("pairs", "pairs of columns (0 is best)"), ("marginals", "columns (0 is best)"),
        ("utility", "utility (1 is best)"),
    )  # fmt: skip
    for axes, (key, label) in zip(panels, shown, strict=True):
        for method in next(iter(budgets.values())):
            values = [summary[method][key] for summary in budgets.values()]
            axes.plot(list(budgets), values, marker="o", label=method, linewidth=2.0 if method == OURS else 1.0)
        axes.set_ylabel(label, fontsize=8)
    panels[0].legend(fontsize=7)
    return figure


PRIVATE_ROWS = study("private-rows", "differentially private rows of mixed tables: ours and its peers", PRESETS, body)
