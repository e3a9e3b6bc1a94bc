"""Fitting detectors to tables of several sizes and scoring rows: arcsm and PyOD, in one run.

python -m benchmarks.tables
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcsm.estimators import ScoreOutlierDetector
from benchmarks.timing import show

SIZES = ((500, 20), (2_000, 20), (10_000, 5), (10_000, 20))  # fitted rows, columns
_SCORED = 10_000  # rows


def table(rows: int, columns: int) -> NDArray[np.float64]:
    """Return correlated columns, transformed nonlinearly, with noise."""
    random = np.random.default_rng(0)
    mixing = random.normal(size=(columns, columns)) / np.sqrt(columns)
    return np.tanh(random.normal(size=(rows, columns)) @ mixing) + 0.3 * random.normal(size=(rows, columns))


def detectors() -> dict[str, Any]:
    """Return fresh detectors with default settings."""
    from pyod.models.ecod import ECOD
    from pyod.models.iforest import IForest
    from pyod.models.knn import KNN
    from pyod.models.lof import LOF

    return {
        "arcsm": ScoreOutlierDetector(random_state=0),
        "KNN": KNN(n_jobs=-1),
        "LOF": LOF(n_jobs=-1),
        "IForest": IForest(random_state=0, n_jobs=-1),
        "ECOD": ECOD(),
    }


def main() -> None:
    warnings.simplefilter("ignore")  # warnings of the peers about their own settings
    found = []
    for rows, columns in SIZES:
        data = table(rows + _SCORED, columns)
        for name, detector in detectors().items():
            begun = time.perf_counter()
            detector.fit(data[:rows])
            fitted = time.perf_counter()
            detector.decision_function(data[rows:])
            scored = time.perf_counter()
            found.append(
                {
                    "rows": rows,
                    "columns": columns,
                    "detector": name,
                    "fit_seconds": round(fitted - begun, 3),
                    "scored_rows_a_second": round(_SCORED / (scored - fitted)),
                }
            )
    show("tables", {"scored_rows": _SCORED, "sizes": found})


if __name__ == "__main__":
    main()
