"""What a distilled model loses and gains: log densities of UCI tables, and outliers in tables of ADBench.

Both models of a table come from one fit. Outliers are those of tables on which our defaults were examined.
"""

import time
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from arcsm.data.datasets import data_folder
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from arcsm.estimators.density_estimator import DensityEstimator
from arcsm.estimators.table_distillation import distilled_table
from arcsm.experiments.adbench import DEVELOPMENT, split_outliers
from arcsm.experiments.base import Count, Preset, Result, Settings, Study, study
from arcsm.experiments.comparisons import Array, over_seeds
from arcsm.experiments.tables import UCI
from arcsm.experiments.uci import read_uci, split_rows
from arcsm.metrics import mean_and_standard_error
from arcsm.reports.plots import BLUE, GREY, open_panels
from arcsm.training.distillation import DistilConfig

_OF_DENSITIES = ("log_likelihood", "lost", "standard_error", "speed", "fit_seconds", "distil_seconds")
_OF_OUTLIERS = ("auroc", "lost", "rank_correlation", "speed", "fit_seconds", "distil_seconds")
_TIMED_ROWS = 1_000
_REPEATS = 3  # of the timing, the fastest of which counts


class Distillation(Settings):
    """Estimators have their default settings."""

    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds", "densities", "outliers"})
    records_cells: ClassVar[bool] = True
    densities: tuple[str, ...] = UCI
    outliers: tuple[str, ...] = DEVELOPMENT
    most_rows: int = Field(10_000, ge=20)  # of a table, fitted or scored
    max_steps: Count | None = None  # of estimators; default: their own
    conditionals: Count = DistilConfig().conditionals
    steps: Count = DistilConfig().steps  # of the distillation


PRESETS: Mapping[Preset, Distillation] = {
    "smoke": Distillation(densities=("wine",), outliers=(), most_rows=80, max_steps=3, conditionals=500, steps=3),
    "cpu": Distillation(seeds=3),
    "paper": Distillation(seeds=10, most_rows=1_000_000),
}  # fmt: skip


def body(run: Study[Distillation]) -> Result:
    """Fit, distil and compare every table with every seed."""
    settings = run.settings
    densities = run.compute_seeds({("density of", name): partial(_density, run, name) for name in settings.densities})
    outliers = run.compute_seeds({("outliers of", name): partial(_outliers, run, name) for name in settings.outliers})
    found: dict[str, Any] = {
        "densities": {name: over_seeds(cells, _OF_DENSITIES) for (_, name), cells in densities.items()},
        "outliers": {name: over_seeds(cells, _OF_OUTLIERS) for (_, name), cells in outliers.items()},
    }
    return {**found, "figure": run.figure(_figure(found))}


def _density(run: Study[Distillation], name: str, seed: int) -> Result:
    train, test = split_rows(read_uci(name), run.settings.most_rows, seed)
    plain, fast, seconds = _fitted(run, ScoreDensity, train, seed)
    scores = plain.score_samples(test), fast.score_samples(test)
    lost, error = mean_and_standard_error(torch.from_numpy(scores[0] - scores[1]))
    return {
        "log_likelihood": float(scores[0].mean()), "lost": lost, "standard_error": error,
        "speed": _speed(plain, fast, test), **seconds,
    }  # fmt: skip


def _outliers(run: Study[Distillation], name: str, seed: int) -> Result:
    most = run.settings.most_rows
    train, test, anomalous = split_outliers(data_folder() / "adbench" / f"{name}.npz", seed, most, most)
    plain, fast, seconds = _fitted(run, ScoreOutlierDetector, train, seed)
    scores = [-one.score_samples(test) for one in (plain, fast)]
    areas = [float(roc_auc_score(anomalous, one)) for one in scores]
    return {
        "auroc": areas[0], "lost": areas[0] - areas[1], "rank_correlation": float(spearmanr(*scores).statistic),
        "speed": _speed(plain, fast, test), **seconds,
    }  # fmt: skip


def _fitted(run: Study[Distillation], kind: type[Any], rows: Array, seed: int) -> tuple[Any, Any, dict[str, float]]:
    """Return an estimator, the same with a distilled model, and how long both took."""
    steps = "auto" if run.settings.max_steps is None else run.settings.max_steps
    begun = time.monotonic()
    plain = kind(max_steps=steps, random_state=seed, device=run.device.type, verbose=True).fit(rows)
    fitted = time.monotonic()
    settings = run.settings
    config = DistilConfig(conditionals=settings.conditionals, steps=settings.steps, seed=seed, device=run.device.type)
    fast = _with_closed_forms(plain, rows, config)
    return plain, fast, {"fit_seconds": fitted - begun, "distil_seconds": time.monotonic() - fitted}


def _with_closed_forms(estimator: DensityEstimator, rows: Array, config: DistilConfig) -> DensityEstimator:
    """Return a copy of an estimator whose model is distilled from the rows that it was trained on."""
    encoded, _ = estimator.encode_rows(np.delete(rows, estimator.held_out_rows_, 0))
    fast = type(estimator)(**estimator.get_params())
    fast.__dict__.update(estimator.__dict__)
    if estimator.model_ is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is lost, which is the result here
            fast.model_ = distilled_table(estimator.model_, encoded, config, progress=True)
    return fast


def _speed(plain: Any, fast: Any, rows: Array) -> float:
    """Return how many times faster the second estimator scores rows."""
    rows = np.resize(rows, (_TIMED_ROWS, rows.shape[1]))
    seconds = []
    for one in (plain, fast):
        times = []
        for _ in range(_REPEATS):
            begun = time.perf_counter()
            one.score_samples(rows)
            times.append(time.perf_counter() - begun)
        seconds.append(min(times))
    return seconds[0] / seconds[1]


def _figure(found: Mapping[str, Mapping[str, Result]]) -> Figure:
    figure, panels = open_panels(3.2, 2.4, 1, 2)
    for axes, part, label, color in zip(
        panels, ("densities", "outliers"), ("nats a row lost", "AUROC lost"), (BLUE, GREY), strict=True
    ):
        cells = found[part]
        axes.barh(list(cells), [cell["lost"]["mean"] for cell in cells.values()], color=color)
        axes.invert_yaxis()
        axes.set_xlabel(label, fontsize=8)
    return figure


DISTILLATION = study(
    "distillation", "what distilled models lose: densities of UCI tables, outliers of ADBench", PRESETS, body
)
