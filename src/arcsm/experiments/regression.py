"""Predictive distributions of a number: ours with default settings, and gradient-boosted trees.

The target is the last column of a table. A random tenth of the rows is held out, or as many as remain of a large table.
Losses are compared row by row, and their differences over the splits.

References:
    Inference for the Generalization Error (Nadeau and Bengio, 2003)
"""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field

from arcsm.estimators import ScoreRegressor
from arcsm.experiments.base import Count, Preset, Result, Settings, Share, Study, check_names, study
from arcsm.experiments.comparisons import Array, mean_and_sd
from arcsm.experiments.outside import runnable
from arcsm.experiments.regressors import PEERS, PROBABILITIES, Predicted
from arcsm.experiments.tables import read_rows
from arcsm.metrics import mean_and_standard_error
from arcsm.reports.plots import BLUE, GREY, open_panels

OURS = "arcsm"
METHODS = (OURS, *PEERS)
LOSSES = ("nll", "crps")  # of each held-out row
_MEASURES = ("rmse", "coverage", "seconds")  # of each split
_INTERVAL = np.searchsorted(PROBABILITIES, np.array([0.05, 0.95]) - 1e-9)  # the quantiles that bound 90 %
_LEAST_STEP = 1e-3  # of the density, in standard deviations of the target
_LEAST_MASS = 1e-8  # of a step
_DIGITS = 5  # of a recorded loss


class Regression(Settings):
    """Every method has its default settings."""

    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds", "methods", "tables"})
    records_cells: ClassVar[bool] = True
    methods: tuple[str, ...] = Field(METHODS, min_length=1)
    tables: tuple[str, ...] = ("concrete", "energy", "wine", "protein", "elevators")
    share: Share = 0.1  # of held-out rows
    most_rows: int = Field(2_000, ge=20)  # to fit
    most_held_out: Count = 500
    max_steps: Count | None = None  # of ours; default: its own


PRESETS: Mapping[Preset, Regression] = {
    "smoke": Regression(methods=(OURS, "quantile boosting"), tables=("wine",), most_rows=40, max_steps=3),
    "cpu": Regression(seeds=5),
    "paper": Regression(seeds=20, most_rows=50_000, most_held_out=5_000),
}


class Split(NamedTuple):
    """Rows to fit and held-out rows of a table, and the step of its target."""

    x: Array  # (N, D)
    y: Array  # (N,)
    held_out: Array  # (K, D)
    truth: Array  # (K,)
    step: float


def body(run: Study[Regression]) -> Result:
    """Fit every method to every split of every table."""
    settings = run.settings
    check_names("methods", settings.methods, METHODS)
    methods, not_run = runnable(settings.methods)
    pairs = [(table, method) for table in settings.tables for method in methods]
    cells = run.compute_seeds({pair: partial(_predict, run, *pair) for pair in pairs})
    tables = {table: _compared({method: cells[table, method] for method in methods}) for table in settings.tables}
    versions = {method: cell["versions"] for (_, method), found in cells.items() for cell in found if cell["versions"]}
    return {"tables": tables, "not_run": not_run, "versions": versions, "figure": run.figure(_figure(tables))}


def split(settings: Regression, table: str, seed: int) -> Split:
    """Return a random split of a table.

    The step is the median distance between the values of the target, and at least a thousandth of their standard
    deviation.
    """
    rows = read_rows(table, settings.most_rows + settings.most_held_out, seed).values
    held_out = max(1, min(round(settings.share * len(rows)), settings.most_held_out), len(rows) - settings.most_rows)
    values = rows[:, -1]
    step = max(float(np.median(np.diff(np.unique(values)))), _LEAST_STEP * float(values.std()))
    return Split(rows[held_out:, :-1], values[held_out:], rows[:held_out, :-1], values[:held_out], step)


def _predict(run: Study[Regression], table: str, method: str, seed: int) -> Result:
    data, begun = split(run.settings, table, seed), time.monotonic()
    predicted = _ours(run, data, seed) if method == OURS else PEERS[method](data.x, data.y, data.held_out, seed)
    seconds = time.monotonic() - begun
    measures = quality(predicted, data)
    return {**measures, "seconds": seconds, "versions": predicted.versions, "rows": len(data.x),
            "columns": data.x.shape[1]}  # fmt: skip


def _ours(run: Study[Regression], data: Split, seed: int) -> Predicted:
    steps: Any = "auto" if run.settings.max_steps is None else run.settings.max_steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the accuracy of few integrals
        regressor = ScoreRegressor(max_steps=steps, random_state=seed, device=run.device.type, verbose=True)
        found = regressor.fit(data.x, data.y).predict_distribution(data.held_out)
        return Predicted(found.mean(), found.quantile(PROBABILITIES[:, None]).T, found.cdf)


def quality(predicted: Predicted, data: Split) -> dict[str, Any]:
    """Return how near predictions are to the held-out targets, in standard deviations of the target.

    Returns:
        ``nll``, for each row, the negative log of the mean density within half a step of the target, so that methods
        that know its rounding compare with those that do not; ``None`` without a distribution function. ``crps``, for
        each row, the continuous ranked probability score from the quantiles: twice their mean pinball loss. ``rmse`` of
        the means, and ``coverage``, the share of targets in the central 90 % interval.
    """
    y, unit = data.truth, float(data.y.std())
    beyond = y[:, None] - predicted.quantiles
    pinball = np.maximum(PROBABILITIES * beyond, (PROBABILITIES - 1.0) * beyond)
    low, high = predicted.quantiles[:, _INTERVAL].T
    losses: dict[str, Array | None] = {"nll": None, "crps": 2.0 * pinball.mean(1) / unit}
    if predicted.cdf is not None:
        mass = predicted.cdf(y + 0.5 * data.step) - predicted.cdf(y - 0.5 * data.step)
        losses["nll"] = -np.log(np.maximum(mass, _LEAST_MASS) / (data.step / unit))
    rounded = {name: None if loss is None else np.round(loss, _DIGITS).tolist() for name, loss in losses.items()}
    return {
        **rounded,
        "rmse": float(np.sqrt(np.square(predicted.mean - y).mean())) / unit,
        "coverage": float(((low <= y) & (y <= high)).mean()),
    }


def _compared(methods: Mapping[str, Sequence[Result]]) -> Result:
    """Return mean losses over all splits, and those relative to the best method with their standard errors."""
    first = next(iter(methods.values()))[0]
    found: dict[str, Result] = {
        method: {key: mean_and_sd([cell[key] for cell in cells]) for key in _MEASURES}
        for method, cells in methods.items()
    }
    for loss in LOSSES:
        splits = {
            method: [torch.tensor(cell[loss], dtype=torch.float64) for cell in cells]
            for method, cells in methods.items()
            if cells[0][loss] is not None
        }
        means = {method: float(torch.cat(losses).mean()) for method, losses in splits.items()}
        best = min(means, key=lambda method: means[method])
        for method in methods:
            behind = None
            if method in splits:
                gaps = [own - its for own, its in zip(splits[method], splits[best], strict=True)]
                behind = _mean_and_error(gaps, len(gaps[0]) / first["rows"])
            found[method][loss] = {"mean": means.get(method), "behind_best": behind}
    return {"rows": first["rows"], "columns": first["columns"], "methods": found}


def _mean_and_error(splits: Sequence[torch.Tensor], test_share: float) -> list[float | None]:
    """Return the mean of differences and its standard error: over the splits, whose rows overlap, or else the rows.

    The error is that of Nadeau and Bengio: splits that share most of their rows are not independent. It needs the
    number of held-out rows, relative to that of fitted ones, ``test_share``.
    """
    if len(splits) == 1:
        mean, error = mean_and_standard_error(splits[0])
        return [mean, error]
    means = torch.stack([one.mean() for one in splits])
    return [float(means.mean()), float(means.std()) * math.sqrt(1.0 / len(means) + test_share)]


def _figure(tables: Mapping[str, Result]) -> Figure:
    figure, panels = open_panels(2.4 * len(tables), 3.2, len(LOSSES), len(tables))
    for k, (axes, (loss, table)) in enumerate(
        zip(panels, [(loss, table) for loss in LOSSES for table in tables], strict=True)
    ):
        found = {method: cell[loss] for method, cell in tables[table]["methods"].items() if cell[loss]["behind_best"]}
        gaps = [cell["behind_best"] for cell in found.values()]
        colors = [BLUE if method == OURS else GREY for method in found]
        axes.barh(list(found), [mean for mean, _ in gaps], xerr=[error or 0.0 for _, error in gaps], color=colors)
        axes.invert_yaxis()
        axes.set_xlabel(f"{loss.upper()} behind the best", fontsize=7)
        axes.tick_params(labelsize=7)
        if k < len(tables):
            axes.set_title(table, fontsize=9)
    return figure


REGRESSION = study("regression", "predictive distributions of a number: ours and boosted trees", PRESETS, body)
