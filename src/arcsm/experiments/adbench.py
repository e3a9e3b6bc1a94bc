"""Outliers in tables of the ADBench collection: ours with default settings, beside the detectors that people use.

One-class protocol: fit on half of the normal rows, judge the other half and all anomalies. Labels choose nothing; our
defaults were looked at on the tables of :data:`DEVELOPMENT` alone, and the others are reported apart.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from arcsm.data.datasets import data_folder
from arcsm.data.numpy_files import read_array
from arcsm.estimators import ScoreOutlierDetector
from arcsm.experiments.base import Preset, Settings, Study, study
from arcsm.experiments.ranks import critical_difference, mean_ranks
from arcsm.reports.plots import BLUE, GREY, open_frame

OURS = "arcsm"
#: Tables that defaults were looked at on, a third of all; nothing was chosen on the others.
DEVELOPMENT = ("29_Pima", "14_glass", "37_Stamps", "45_wine", "42_WBC", "15_Hepatitis", "39_vertebral", "2_annthyroid",
               "7_Cardiotocography")  # fmt: skip
PEERS = ("KNN", "LOF", "IForest", "OCSVM", "GMM", "KDE", "ECOD", "COPOD", "HBOS", "PCA", "AutoEncoder", "DeepSVDD")
_FEWEST_ANOMALIES = 50  # that are judged, if there are as many
Array = NDArray[np.float64]
Result = dict[str, Any]


class ADBench(Settings):
    """Every detector has its package's default settings, ours too."""

    lists_cells: ClassVar[frozenset[str]] = frozenset({"seeds", "methods", "tables"})

    methods: tuple[str, ...] = Field((OURS, *PEERS), min_length=1)
    tables: tuple[str, ...] = ()  # by default all that are there
    most_fitted: int = Field(5_000, ge=10)  # normal rows
    most_judged: int = Field(10_000, ge=10)  # rows, with their share of anomalies (at least 50, if there are)


PRESETS: Mapping[Preset, ADBench] = {
    "smoke": ADBench(methods=(OURS,), most_fitted=60, most_judged=40),
    "cpu": ADBench(seeds=3),
    "paper": ADBench(seeds=3, most_judged=1_000_000),
}


def body(run: Study[ADBench]) -> Result:
    """Every method on every table with every seed; each is a cell."""
    settings = run.settings
    unknown = set(settings.methods) - {OURS, *PEERS}
    if unknown:
        raise ValueError(f"methods: unknown {', '.join(sorted(unknown))}; known: {', '.join((OURS, *PEERS))}")
    tables = settings.tables or _tables()
    found = run.each(
        {
            f"{table} {method} seed {seed}": partial(_judge, run, table, method, seed)
            for table in tables
            for method in settings.methods
            for seed in settings.all_seeds()
        }
    )
    rows = {table: _over_seeds(run, table, found) for table in tables}
    apart = [table for table in tables if table not in DEVELOPMENT]
    groups = {"all tables": list(tables), "tables that nothing was chosen on": apart}
    return {
        "tables": rows,
        "summary": {name: _summary(settings.methods, rows, own) for name, own in groups.items() if own},
        "figure": run.figure(_figure(settings.methods, rows, list(tables))),
    }


def _tables() -> tuple[str, ...]:
    folder = data_folder() / "adbench"
    names = sorted((path.stem for path in folder.glob("*.npz")), key=lambda name: int(name.split("_")[0]))
    if not names:
        raise ValueError(f"{folder}: no tables; put files of ADBench there (arrays X and y), or set ARCSM_DATA")
    return tuple(names)


# One cell -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """ConditionalUnits rows to fit and to judge, and which of the latter are anomalies."""

    fitted: Array
    judged: Array
    anomalous: NDArray[np.int_]

    @classmethod
    def of(cls, path: Path, seed: int, most_fitted: int, most_judged: int) -> Split:
        """Half of the normal rows, and the other half with all anomalies."""
        X, y = (np.asarray(read_array(path, key), dtype=np.float64) for key in ("X", "y"))
        random = np.random.default_rng(seed)
        normal, others = random.permutation(np.flatnonzero(y == 0)), np.flatnonzero(y == 1)
        half = min(len(normal) // 2, most_fitted)
        rest = normal[len(normal) // 2 :]
        share = min(1.0, most_judged / (len(rest) + len(others)))
        kept = max(min(len(others), _FEWEST_ANOMALIES), round(share * len(others)))
        judged = np.concatenate([rest[: max(1, most_judged - kept)], random.permutation(others)[:kept]])
        scaler = StandardScaler().fit(X[normal[:half]])
        return cls(scaler.transform(X[normal[:half]]), scaler.transform(X[judged]), (y[judged] == 1).astype(int))


def _judge(run: Study[ADBench], table: str, method: str, seed: int) -> Result:
    settings = run.settings
    split = Split.of(data_folder() / "adbench" / f"{table}.npz", seed, settings.most_fitted, settings.most_judged)
    begun = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peers, about their own settings
        score = _fitted(run, method, seed, split.fitted)
        fit_seconds, begun = time.monotonic() - begun, time.monotonic()
        outlying = np.asarray(score(split.judged), dtype=np.float64)
        unscored = int(np.isnan(outlying).sum())  # rows that a peer gives no score to count as its most normal ones
        outlying = np.nan_to_num(outlying, nan=-1e300, posinf=1e300, neginf=-1e300)
    return {
        "auroc": float(roc_auc_score(split.anomalous, outlying)),
        "average_precision": float(average_precision_score(split.anomalous, outlying)),
        "fit_seconds": fit_seconds,
        "score_seconds": time.monotonic() - begun,
        "fitted_rows": len(split.fitted),
        "judged_rows": len(split.judged),
        "columns": split.fitted.shape[1],
        "anomalies": int(split.anomalous.sum()),
        "unscored": unscored,
    }


def _fitted(run: Study[ADBench], method: str, seed: int, rows: Array) -> Callable[[Array], Array]:
    """A fitted detector's score: the larger, the more outlying."""
    if method == OURS:
        ours = ScoreOutlierDetector(random_state=seed, device=run.device.type, verbose=True).fit(rows)
        return lambda judged: -ours.score_samples(judged)
    peer = _peer(method, rows.shape[1], seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peer.fit(rows)
    return peer.decision_function  # type: ignore[no-any-return]


def _peer(method: str, columns: int, seed: int) -> Any:
    """A detector of PyOD with its default settings (and our seed, where it takes one)."""
    try:
        from importlib import import_module

        modules = {"AutoEncoder": "auto_encoder", "DeepSVDD": "deep_svdd", "IForest": "iforest"}
        kind = getattr(import_module(f"pyod.models.{modules.get(method, method.lower())}"), method)
    except ImportError as error:
        raise ValueError(f'{method}: needs PyOD; pip install "arcsm[bench]" ({error})') from error
    options: dict[str, dict[str, Any]] = {
        "IForest": {"random_state": seed},
        "GMM": {"random_state": seed},
        "AutoEncoder": {"random_state": seed, "verbose": 0},
        "DeepSVDD": {"n_features": columns, "random_state": seed, "verbose": 0},
    }
    return kind(**options.get(method, {}))


# Over the cells -----------------------------------------------------------------------------------------------------


def _over_seeds(run: Study[ADBench], table: str, found: Mapping[str, Result]) -> Result:
    """Means over the seeds, for every method."""
    methods = {}
    for method in run.settings.methods:
        cells = [found[f"{table} {method} seed {seed}"] for seed in run.settings.all_seeds()]
        methods[method] = {key: float(np.mean([cell[key] for cell in cells])) for key in
                           ("auroc", "average_precision", "fit_seconds", "score_seconds")}  # fmt: skip
    sizes = {key: cells[0][key] for key in ("fitted_rows", "judged_rows", "columns", "anomalies")}
    return {**sizes, "development": table in DEVELOPMENT, "methods": methods}


def _summary(methods: tuple[str, ...], rows: Mapping[str, Result], tables: list[str]) -> Result:
    """Means and mean ranks, the latter with the critical difference of Nemenyi's test."""
    values = {key: np.array([[rows[table]["methods"][method][key] for method in methods] for table in tables])
              for key in ("auroc", "average_precision", "fit_seconds", "score_seconds")}  # fmt: skip
    ranks = mean_ranks(values["auroc"])
    return {
        "tables": len(tables),
        "critical_difference_of_ranks": critical_difference(len(methods), len(tables)),
        "methods": {
            method: {
                "auroc": float(values["auroc"][:, place].mean()),
                "average_precision": float(values["average_precision"][:, place].mean()),
                "rank": float(ranks[place]),
                "fit_seconds": float(np.median(values["fit_seconds"][:, place])),
                "score_seconds": float(np.median(values["score_seconds"][:, place])),
            }
            for place, method in enumerate(methods)
        },
    }


def _figure(methods: tuple[str, ...], rows: Mapping[str, Result], tables: list[str]) -> Figure:
    """Mean ranks with the critical difference, and the AUROC of every table less the best peer's."""
    figure = Figure(figsize=(10.0, 0.3 * max(len(methods), 8) + 1.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    summary = _summary(methods, rows, tables)
    order = sorted(methods, key=lambda method: summary["methods"][method]["rank"])
    ranks = [summary["methods"][method]["rank"] for method in order]
    left.barh(order, ranks, color=[BLUE if method == OURS else GREY for method in order])
    left.invert_yaxis()
    if summary["critical_difference_of_ranks"] is not None:
        left.axvspan(ranks[0], ranks[0] + summary["critical_difference_of_ranks"], color=BLUE, alpha=0.12)
    left.set_xlabel("mean rank by AUROC (shaded: not told apart from the best)", fontsize=8)
    values = [[rows[table]["methods"][method]["auroc"] for table in tables] for method in order]
    right.boxplot(values, orientation="horizontal", tick_labels=order)
    right.invert_yaxis()
    right.set_xlabel("AUROC over the tables", fontsize=8)
    for axes in (left, right):
        axes.tick_params(labelsize=8)
        open_frame(axes)
    return figure


ADBENCH = study("adbench", "outliers in tables of ADBench: ours and twelve detectors of PyOD", PRESETS, body)
