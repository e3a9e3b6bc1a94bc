"""Orders of the columns of tables: does a learned order beat a random one, and a mixture of several?

The paper leaves open whether orders can be learned (Section 8). One network has every order, so that only the order
differs. The best and the worst order are learned on rows that are held out of the training, and all are compared on
test rows, with the weighted mixture of the estimator. Tables are split, standardised and dequantised as in the
experiment ``uci``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field, model_validator
from sklearn.datasets import load_diabetes, load_iris

from arcsm.estimators import ScoreDensity
from arcsm.estimators.table_model import Order
from arcsm.experiments.base import Count, Preset, Result, Settings, Study, study
from arcsm.experiments.comparisons import Array, mean_and_sd
from arcsm.experiments.uci import read_uci, split_rows
from arcsm.metrics import mean_and_standard_error
from arcsm.reports.plots import BLUE, GREY, column_panels

BUNDLED: Mapping[str, Callable[..., Any]] = {"iris": load_iris, "diabetes": load_diabetes}  # with scikit-learn
TABLE, REVERSE, LEARNED, WORST = "table", "reverse", "learned", "worst"
WEIGHTED = "weighted mixture"  # of orders chosen among random ones, the default of the estimator
SINGLE = (TABLE, REVERSE, LEARNED, WORST)


class Orders(Settings):
    """The model is that of :class:`ScoreDensity` with its defaults."""

    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds", "tables"})
    tables: tuple[str, ...] = ("concrete", "elevators", "energy", "parkinsons", "protein", "sml", "wine")
    most_rows: int = Field(50_000, ge=20)
    max_steps: Count | None = None  # default: those of the estimator
    search_rows: Count = 400  # held-out rows that the best and the worst order are learned on
    evaluations: Count = 2_000  # conditional terms of each search
    test_rows: int = Field(1_000, ge=2)
    random_orders: int = Field(16, ge=2)
    mixtures: tuple[Count, ...] = (2, 4, 8)  # of random orders

    @model_validator(mode="after")
    def _check_mixtures(self) -> Self:
        if not self.mixtures or max(self.mixtures) > self.random_orders:
            raise ValueError(f"mixtures: expected sizes up to random_orders={self.random_orders}, got {self.mixtures}")
        return self


PRESETS: Mapping[Preset, Orders] = {
    "smoke": Orders(tables=("iris",), max_steps=3, search_rows=10, evaluations=40, test_rows=10, random_orders=4,
                    mixtures=(2, 4)),
    "cpu": Orders(seeds=3),
    "paper": Orders(seeds=5, most_rows=1_000_000, search_rows=2_000, evaluations=10_000, test_rows=5_000),
}  # fmt: skip


def body(run: Study[Orders]) -> Result:
    """Compare the orders of every table with every seed."""
    cells = run.compute_seeds({table: partial(_compare, run, table) for table in run.settings.tables})
    tables = {table: _summary(by_seed) for table, by_seed in cells.items()}
    return {"tables": tables, "figure": run.figure(_figure(tables))}


def _compare(run: Study[Orders], table: str, seed: int) -> Result:
    """Return the log density of test rows in all orders, relative to the mean over random ones."""
    settings = run.settings
    values = BUNDLED[table]().data if table in BUNDLED else read_uci(table)
    train, test = split_rows(values, settings.most_rows, seed)
    steps = "auto" if settings.max_steps is None else settings.max_steps
    density = ScoreDensity(max_steps=steps, random_state=seed, device=run.device.type, verbose=True).fit(train)
    valid = train[density.held_out_rows_[: settings.search_rows]]
    single = dict(zip(SINGLE, _single_orders(run, density, valid, seed), strict=True))
    generator = torch.Generator().manual_seed(seed)
    columns = range(len(single[TABLE]))
    random = [tuple(torch.randperm(len(columns), generator=generator).tolist()) for _ in range(settings.random_orders)]
    assert density.model_ is not None
    both = (test[: settings.test_rows], valid)
    weighted = [density.score_samples(rows) for rows in both]
    density.model_ = replace(density.model_, orders=[*single.values(), *random])
    on_test, on_valid = map(density.score_by_order, both)
    found, of_valid = (
        {**_by_name(single, settings.mixtures), WEIGHTED: mixture}
        for single, mixture in zip((on_test, on_valid), weighted, strict=True)
    )
    baseline = on_test[:, len(SINGLE) :].mean(1)
    return {
        "rows": len(train),
        "columns": len(columns),
        "orders": single,
        "random": float(baseline.mean()),
        "spread": float(on_test[:, len(SINGLE) :].mean(0).std(ddof=1)),
        "minus_random": {name: _mean_and_error(values - baseline) for name, values in found.items()},
        "learned_minus": {
            name: _mean_and_error(found[LEARNED] - values) for name, values in found.items() if name != LEARNED
        },
        "on_search_rows": {
            name: float((values - on_valid[:, len(SINGLE) :].mean(1)).mean()) for name, values in of_valid.items()
        },
    }


def _single_orders(run: Study[Orders], density: ScoreDensity, valid: Array, seed: int) -> list[Order]:
    """Return the order of the table, its reverse, and those that give the ``valid`` rows most and least density."""
    assert density.model_ is not None
    rows, _ = density.encode_rows(valid)
    search = partial(density.model_.learn_order, rows, run.settings.evaluations, progress=True)
    learned = [search(worst=worst, generator=run.generator(seed)) for worst in (False, True)]
    table = tuple(range(rows.shape[1]))
    return [table, table[::-1], *learned]


def _by_name(log_densities: Array, mixtures: Sequence[int]) -> dict[str, Array]:
    """Return log densities ``(N,)`` in the single orders, and in mixtures of random ones, from ``(N, K)``.

    Each is the mean over as many disjoint mixtures as the random orders make up.
    """
    found = {name: log_densities[:, place] for place, name in enumerate(SINGLE)}
    random = log_densities[:, len(SINGLE) :]
    for size in mixtures:
        groups = random[:, : random.shape[1] // size * size].reshape(len(random), -1, size)
        found[f"mixture of {size}"] = np.logaddexp.reduce(groups, 2).mean(1) - math.log(size)
    return found


def _mean_and_error(differences: Array) -> list[float]:
    mean, error = mean_and_standard_error(torch.from_numpy(differences))
    return [mean, error or 0.0]


def _summary(cells: Sequence[Result]) -> Result:
    """Average the cells of one table over the seeds."""
    means = {key: float(np.mean([cell[key] for cell in cells])) for key in ("random", "spread")}
    found: Result = {"rows": cells[0]["rows"], "columns": cells[0]["columns"], **means}
    for key in ("minus_random", "learned_minus"):
        found[key] = {name: _interval([cell[key][name] for cell in cells]) for name in cells[0][key]}
    by_name = {name: [cell["on_search_rows"][name] for cell in cells] for name in cells[0]["on_search_rows"]}
    found["on_search_rows"] = {name: float(np.mean(values)) for name, values in by_name.items()}
    found["orders_of_first_seed"] = cells[0]["orders"]
    return found


def _interval(pairs: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean over seeds of differences, and half its 95 % interval, from each seed's mean and error.

    The interval covers the rows of each seed, and the seeds if there are several.
    """
    moments = mean_and_sd([mean for mean, _ in pairs])
    of_rows = math.hypot(*(error for _, error in pairs)) / len(pairs)
    of_seeds = (moments["sd"] or 0.0) / math.sqrt(len(pairs))
    return [moments["mean"], 1.96 * math.hypot(of_rows, of_seeds)]


def _figure(tables: Mapping[str, Result]) -> Figure:
    titles = [f"{name} ({table['rows']:,} x {table['columns']})" for name, table in tables.items()]
    figure, panels = column_panels(titles, 2.8, 2.3)
    for axes, table in zip(panels, tables.values(), strict=True):
        differences = table["minus_random"]
        means, errors = zip(*differences.values(), strict=True)
        axes.axvspan(-2.0 * table["spread"], 2.0 * table["spread"], color=GREY, alpha=0.15)
        colours = [BLUE if name == LEARNED else GREY for name in differences]
        axes.barh(list(differences), means, xerr=errors, color=colours)
        axes.invert_yaxis()
        axes.set_xlabel("nats a row above random", fontsize=7)
    return figure


ORDERS = study("orders", "orders of the columns of UCI tables: random, learned, worst, and mixtures", PRESETS, body)
