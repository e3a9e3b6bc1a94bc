"""Outliers in tables of the ADBench collection: ours with default settings, and twelve detectors of PyOD.

One-class protocol: fit on half of the normal rows, test on the other half and all anomalies. Labels choose nothing.
Our defaults were examined on the tables of :data:`DEVELOPMENT` only; the others are also reported separately.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from arcsm.data.datasets import data_folder
from arcsm.data.numpy_files import read_array
from arcsm.estimators import ScoreOutlierDetector
from arcsm.experiments.base import Preset, Result, Settings, Study, check_names, seeded, study
from arcsm.experiments.comparisons import Array, critical_difference, draw_ranks, mean_ranks
from arcsm.reports.plots import open_panels

OURS = "arcsm"
#: Tables on which our defaults were examined, a third of all.
DEVELOPMENT = ("29_Pima", "14_glass", "37_Stamps", "45_wine", "42_WBC", "15_Hepatitis", "39_vertebral", "2_annthyroid",
               "7_Cardiotocography")  # fmt: skip
PEERS = ("KNN", "LOF", "IForest", "OCSVM", "GMM", "KDE", "ECOD", "COPOD", "HBOS", "PCA", "AutoEncoder", "DeepSVDD")
_MIN_ANOMALIES = 50  # in the test rows, if there are as many
_MEASURES = ("auroc", "average_precision", "fit_seconds", "score_seconds")


class ADBench(Settings):
    """Every detector has its default settings."""

    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds", "methods", "tables"})
    records_cells: ClassVar[bool] = True
    methods: tuple[str, ...] = Field((OURS, *PEERS), min_length=1)
    tables: tuple[str, ...] = ()  # default: all in the data folder
    most_fitted: int = Field(5_000, ge=10)  # normal rows
    most_judged: int = Field(10_000, ge=10)  # test rows, with the table's share of anomalies


PRESETS: Mapping[Preset, ADBench] = {
    "smoke": ADBench(methods=(OURS,), most_fitted=60, most_judged=40),
    "cpu": ADBench(seeds=3),
    "paper": ADBench(seeds=3, most_judged=1_000_000),
}


def body(run: Study[ADBench]) -> Result:
    """Test every method on every table with every seed."""
    settings = run.settings
    check_names("methods", settings.methods, (OURS, *PEERS))
    tables = settings.tables or table_names()
    tests = {(table, method): partial(_test, run, table, method) for table in tables for method in settings.methods}
    cells = run.compute_seeds(tests)
    rows = {table: over_seeds(table, {m: cells[table, m] for m in settings.methods}) for table in tables}
    others = [table for table in tables if table not in DEVELOPMENT]
    groups = {"all tables": list(tables), "tables that nothing was chosen on": others}
    summaries = {name: summarise(settings.methods, rows, group) for name, group in groups.items() if group}
    figure = draw(summaries["all tables"], rows)
    return {"tables": rows, "summary": summaries, "figure": run.figure(figure)}


def table_path(name: str) -> Path:
    """Return the file of a table."""
    return data_folder() / "adbench" / f"{name}.npz"


def table_names() -> tuple[str, ...]:
    """Return the names of all tables in the data folder, in the order of their numbers."""
    folder = data_folder() / "adbench"
    names = sorted((path.stem for path in folder.glob("*.npz")), key=lambda name: int(name.split("_")[0]))
    if not names:
        raise ValueError(f"{folder}: no tables; put files of ADBench there (arrays X and y), or set ARCSM_DATA")
    return tuple(names)


def split_outliers(
    path: Path, seed: int, most_fitted: int, most_judged: int, contamination: float = 0.0
) -> tuple[Array, Array, NDArray[np.int_]]:
    """Return half of the normal rows, the other half with all anomalies, and which of the latter are anomalies.

    A share of anomalies may contaminate the former, at most half of those that there are.
    """
    X, y = (np.asarray(read_array(path, key), dtype=np.float64) for key in ("X", "y"))
    random = np.random.default_rng(seed)
    normal, others = random.permutation(np.flatnonzero(y == 0)), np.flatnonzero(y == 1)
    half = min(len(normal) // 2, most_fitted)
    rest, others = normal[len(normal) // 2 :], random.permutation(others)
    count = min(round(contamination / (1.0 - contamination) * half), len(others) // 2)
    fitted, others = np.concatenate([normal[:half], others[:count]]), others[count:]
    share = min(1.0, most_judged / (len(rest) + len(others)))
    kept = max(min(len(others), _MIN_ANOMALIES), round(share * len(others)))
    test = np.concatenate([rest[: max(1, most_judged - kept)], others[:kept]])
    scaler = StandardScaler().fit(X[fitted])
    return scaler.transform(X[fitted]), scaler.transform(X[test]), (y[test] == 1).astype(int)


def _test(run: Study[ADBench], table: str, method: str, seed: int) -> Result:
    settings = run.settings
    split = split_outliers(table_path(table), seed, settings.most_fitted, settings.most_judged)
    return judge(run.device.type, method, seed, *split)


def judge(
    device: str, method: str, seed: int, train: Array, test: Array, anomalous: NDArray[np.int_],
    contamination: float | str = "auto",
) -> Result:  # fmt: skip
    """Fit a detector and return how it ranks the rows of a test; only ours knows the ``contamination``."""
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from peers, about their default settings
        score = _fitted(device, method, seed, train, contamination)
        fit_seconds, start = time.monotonic() - start, time.monotonic()
        outlying = np.asarray(score(test), dtype=np.float64)
        unscored = int(np.isnan(outlying).sum())  # rows without a score count as the most normal ones
        outlying = np.nan_to_num(outlying, nan=-1e300, posinf=1e300, neginf=-1e300)
    return {
        "auroc": float(roc_auc_score(anomalous, outlying)),
        "average_precision": float(average_precision_score(anomalous, outlying)),
        "fit_seconds": fit_seconds,
        "score_seconds": time.monotonic() - start,
        "fitted_rows": len(train),
        "judged_rows": len(test),
        "columns": train.shape[1],
        "anomalies": int(anomalous.sum()),
        "unscored": unscored,
    }


def _fitted(device: str, method: str, seed: int, rows: Array, contamination: float | str) -> Callable[[Array], Array]:
    """Fit a detector and return its score, which is larger for outliers."""
    if method == OURS:
        ours = ScoreOutlierDetector(contamination, random_state=seed, device=device, verbose=True).fit(rows)
        return lambda test: -ours.score_samples(test)
    peer = _peer(method, rows.shape[1], seed)
    with seeded(seed):
        peer.fit(rows)
    return peer.decision_function  # type: ignore[no-any-return]


def _peer(method: str, columns: int, seed: int) -> Any:
    try:
        modules = {"AutoEncoder": "auto_encoder", "DeepSVDD": "deep_svdd", "IForest": "iforest"}
        kind = getattr(import_module(f"pyod.models.{modules.get(method, method.lower())}"), method)
    except ImportError as error:
        raise ValueError(f'{method}: needs PyOD; pip install "arcsm[bench]" ({error})') from error
    options: dict[str, dict[str, Any]] = {
        "IForest": {"random_state": seed},
        "MCD": {"random_state": seed},
        "GMM": {"random_state": seed},
        "AutoEncoder": {"random_state": seed, "verbose": 0},
        "DeepSVDD": {"n_features": columns, "random_state": seed, "verbose": 0},
    }
    return kind(**options.get(method, {}))


def over_seeds(table: str, cells: Mapping[str, list[Result]]) -> Result:
    """Return what the methods' cells of a table are in the mean over the seeds, and its sizes."""
    methods = {m: {key: float(np.mean([c[key] for c in each])) for key in _MEASURES} for m, each in cells.items()}
    last = list(cells.values())[-1][0]
    sizes = {key: last[key] for key in ("fitted_rows", "judged_rows", "columns", "anomalies")}
    return {**sizes, "development": table in DEVELOPMENT, "methods": methods}


def summarise(methods: tuple[str, ...], rows: Mapping[str, Result], tables: list[str]) -> Result:
    """Return means and mean ranks of methods over some tables."""
    values = {
        key: np.array([[rows[table]["methods"][method][key] for method in methods] for table in tables])
        for key in _MEASURES
    }
    means = {key: values[key].mean(0) for key in ("auroc", "average_precision")}
    medians = {key: np.median(values[key], 0) for key in ("fit_seconds", "score_seconds")}
    columns = {**means, "rank": mean_ranks(values["auroc"]), **medians}
    return {
        "tables": len(tables),
        "critical_difference_of_ranks": critical_difference(len(methods), len(tables)),
        "methods": {m: {key: float(column[i]) for key, column in columns.items()} for i, m in enumerate(methods)},
    }


def draw(summary: Result, rows: Mapping[str, Result]) -> Figure:
    """Draw the mean ranks of methods, and their AUROC over the tables."""
    methods = summary["methods"]
    figure, (left, right) = open_panels(10.0, 0.3 * max(len(methods), 8) + 1.5, 1, 2)
    ranks = {method: cell["rank"] for method, cell in methods.items()}
    order = draw_ranks(left, ranks, summary["critical_difference_of_ranks"], OURS, 8)
    values = [[row["methods"][method]["auroc"] for row in rows.values()] for method in order]
    right.boxplot(values, orientation="horizontal", tick_labels=order)
    right.invert_yaxis()
    right.set_xlabel("AUROC over the tables", fontsize=8)
    right.tick_params(labelsize=8)
    return figure


ADBENCH = study("adbench", "outliers in tables of ADBench: ours and twelve detectors of PyOD", PRESETS, body)
