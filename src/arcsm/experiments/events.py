"""Probabilities of random events in tables: ours, counts, histograms and a Gaussian mixture.

Every method learns from the same training rows. The share of many other rows that are in an event is its probability,
with an error that is due to their number.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field
from sklearn.mixture import GaussianMixture

from arcsm.estimators import ScoreDensity
from arcsm.experiments.base import Count, Preset, Result, Settings, Share, Study, check_names, study
from arcsm.experiments.comparisons import Array, draw_ranks, over_seeds
from arcsm.experiments.random_events import Event, random_events
from arcsm.experiments.tables import MIXED, Table, read_rows
from arcsm.reports.plots import open_panels

OURS = "arcsm"
_BINS = 10  # of the histogram, with equal numbers of rows
_COMPONENTS = (1, 2, 4, 8, 16, 32)  # of the mixture, chosen by BIC
_DRAWS = 200_000  # of the mixture
_KEYS = ("median", "mean", "noise", "seconds")

Probability = Callable[[Event], float]


class Events(Settings):
    """Every method has its default settings."""

    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds", "methods", "tables"})
    records_cells: ClassVar[bool] = True
    methods: tuple[str, ...] = Field((OURS, "counts", "histogram", "Gaussian mixture", "independent columns"),
                                     min_length=1)  # fmt: skip
    tables: tuple[str, ...] = ("concrete", "elevators", "protein", "sml", *MIXED)
    training_rows: int = Field(2_000, ge=20)
    test_rows: int = Field(20_000, ge=20)
    events: Count = 40  # in each table
    least: Share = 0.01  # probability of an event
    most: Share = 0.1
    draws: Count = 1_000  # of ours, for each event
    max_steps: Count | None = None  # of ours; default: its own


PRESETS: Mapping[Preset, Events] = {
    "smoke": Events(tables=("wine",), training_rows=60, test_rows=60, events=4, least=0.05, most=0.5, draws=20,
                    max_steps=3),
    "cpu": Events(seeds=3),
    "paper": Events(seeds=10, training_rows=10_000),
}  # fmt: skip


def body(run: Study[Events]) -> Result:
    """Estimate the probabilities of the events of every table by every method."""
    settings = run.settings
    check_names("methods", settings.methods, tuple(METHODS))
    cells = run.compute_seeds(
        {(t, method): partial(_estimate, run, t, method) for t in settings.tables for method in settings.methods}
    )
    tables = {t: {method: _over_seeds(cells[t, method]) for method in settings.methods} for t in settings.tables}
    summary = {
        method: {key: float(np.mean([table[method][key]["mean"] for table in tables.values()])) for key in _KEYS}
        for method in settings.methods
    }
    return {"tables": tables, "summary": summary, "figure": run.figure(_figure(summary))}


def _estimate(run: Study[Events], name: str, method: str, seed: int) -> Result:
    settings = run.settings
    table = read_rows(name, settings.training_rows + settings.test_rows, seed)
    count = min(settings.training_rows, len(table.values) // 2)  # of small tables
    train, test = Table(table.values[:count], table.names), table.values[count:]
    random = np.random.default_rng(seed)
    events = random_events(train, test, settings.events, settings.least, settings.most, random)
    truth = np.array([event.probability(test) for event in events])
    known = np.array([(~np.isnan(test[:, [*event.ranges, *event.sets]]).any(1)).sum() for event in events])
    begun = time.monotonic()
    probability = METHODS[method](run, train, seed)
    errors = np.abs(np.array([probability(event) for event in events]) - truth) / truth
    return {
        "median": float(np.median(errors)),
        "mean": float(errors.mean()),
        "noise": float((np.sqrt(2.0 / np.pi * (1.0 - truth) / (truth * known))).mean()),  # mean error of the truth
        "seconds": time.monotonic() - begun,
        "events": len(events),
        "rows": [count, len(test)],
    }


def _ours(run: Study[Events], train: Table, seed: int) -> Probability:
    steps: Any = "auto" if run.settings.max_steps is None else run.settings.max_steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the accuracy of few integrals
        density = ScoreDensity(max_steps=steps, random_state=seed, device=run.device.type, verbose=True)
        density.fit(train.frame())

    def probability(event: Event) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return density.probability(event.named(train), draws=run.settings.draws, random_state=seed).value

    return probability


def _counts(run: Study[Events], train: Table, seed: int) -> Probability:
    return lambda event: event.probability(train.values)


def _histogram(run: Study[Events], train: Table, seed: int) -> Probability:
    """Return probabilities by joint histograms of the columns of events: values are uniform within bins."""
    ends = {
        m: np.unique(np.nanquantile(train.values[:, m], np.linspace(0.0, 1.0, _BINS + 1)))
        for m, levels in enumerate(train.names)
        if not levels
    }

    def probability(event: Event) -> float:
        columns = [*event.ranges, *event.sets]
        rows = train.values[~np.isnan(train.values[:, columns]).any(1)]
        share = np.ones(len(rows))
        for m, levels in event.sets.items():
            share *= np.isin(rows[:, m], levels)
        for m, (low, high) in event.ranges.items():
            place = np.clip(np.searchsorted(ends[m], rows[:, m], "right") - 1, 0, max(len(ends[m]) - 2, 0))
            first, last = ends[m][place], ends[m][np.minimum(place + 1, len(ends[m]) - 1)]
            inside = np.minimum(high, last) - np.maximum(low, first)
            width = np.where(last > first, last - first, 1.0)
            of_point = (first >= low) & (first <= high)
            share *= np.where(last > first, np.clip(inside / width, 0.0, 1.0), of_point)
        return float(share.mean()) if len(rows) else 0.0

    return probability


def _independent(run: Study[Events], train: Table, seed: int) -> Probability:
    def probability(event: Event) -> float:
        parts = [Event({m: ends}, {}) for m, ends in event.ranges.items()]
        parts += [Event({}, {m: levels}) for m, levels in event.sets.items()]
        return float(np.prod([part.probability(train.values) for part in parts]))

    return probability


def _mixture(run: Study[Events], train: Table, seed: int) -> Probability:
    """Return shares of draws from a Gaussian mixture of numbers and indicators; the largest indicator counts."""
    blocks, inputs = list[tuple[int, int, int]](), list[Array]()
    for m, levels in enumerate(train.names):
        column, start = train.values[:, m], sum(one.shape[1] for one in inputs)
        if levels:
            inputs.append((column[:, None] == np.arange(len(levels))).astype(float))
        else:
            inputs.append(np.where(np.isnan(column), np.nanmean(column), column)[:, None])
        blocks.append((m, start, start + inputs[-1].shape[1]))
    rows = np.concatenate(inputs, 1)
    mean, scale = rows.mean(0), np.maximum(rows.std(0), 1e-9)
    rows = (rows - mean) / scale
    most = [count for count in _COMPONENTS if count * rows.shape[1] < len(rows)] or [1]
    models = [GaussianMixture(count, random_state=seed, reg_covar=1e-3).fit(rows) for count in most]
    drawn = min(models, key=lambda model: model.bic(rows)).sample(_DRAWS)[0] * scale + mean
    values = np.empty((_DRAWS, len(train.names)))
    for m, start, end in blocks:
        values[:, m] = drawn[:, start:end].argmax(1) if train.names[m] else drawn[:, start]
    return lambda event: event.probability(values)


METHODS: Mapping[str, Callable[[Study[Events], Table, int], Probability]] = {
    OURS: _ours,
    "counts": _counts,
    "histogram": _histogram,
    "Gaussian mixture": _mixture,
    "independent columns": _independent,
}


def _over_seeds(cells: list[Result]) -> Result:
    return {**over_seeds(cells, _KEYS), "events": cells[0]["events"], "rows": cells[0]["rows"]}


def _figure(summary: Mapping[str, Result]) -> Figure:
    figure, (axes,) = open_panels(5.0, 2.2, 1, 1)
    draw_ranks(axes, {name: cell["mean"] for name, cell in summary.items()}, None, OURS, 8)
    noise = float(np.mean([cell["noise"] for cell in summary.values()]))
    axes.axvline(noise, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("mean relative error (dotted: that of the test rows)", fontsize=8)
    return figure


EVENTS = study("events", "probabilities of random events in tables: ours, counts, histograms, mixtures", PRESETS, body)
