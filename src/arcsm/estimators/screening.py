"""Rows of a table that are left out of a fit because they may be outliers."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest

from arcsm.estimators.column_types import Array, Column
from arcsm.estimators.forest import tree_features

_TREES = 300
_CAUTION = 3.0  # rows that are left out, over the expected outliers: a few of these look ordinary at first
_MAX_SHARE = 0.5  # of the rows


def suspicious_rows(kinds: Sequence[Column], x: Array, contamination: float, seed: int) -> NDArray[np.int_]:
    """Return which rows ``(N, D)`` of columns of these types may be outliers, if a share ``contamination`` is.

    A density that is fitted to outliers gives them a high density, those in groups above all. An isolation forest
    compares few rows at a time, among which outliers have no group. It is less accurate otherwise, so that three times
    as many rows are suspicious as outliers are expected, and at most half.

    References:
        Isolation Forest (Liu, Ting and Zhou, 2008)
    """
    count = round(min(_CAUTION * contamination, _MAX_SHARE) * len(x))
    forest = IsolationForest(n_estimators=_TREES, n_jobs=torch.get_num_threads(), random_state=seed)
    features = tree_features(kinds, x)
    ordinary = forest.fit(features).score_samples(features)
    return np.sort(np.argsort(ordinary, kind="stable")[:count])


def without_suspicious(x: Array, rows: NDArray[np.int_], suspicious: NDArray[np.int_]) -> NDArray[np.int_]:
    """Return ``rows`` without suspicious ones, except for those without which a column of ``x (N, D)`` is constant."""
    kept, dropped = rows[~np.isin(rows, suspicious)], rows[np.isin(rows, suspicious)]
    for column in x.T:
        known = np.unique(column[kept][~np.isnan(column[kept])])
        if len(known) < 2:
            others = dropped[~np.isnan(column[dropped]) & ~np.isin(column[dropped], known)]
            _, first = np.unique(column[others], return_index=True)
            kept = np.union1d(kept, others[np.sort(first)[: 2 - len(known)]])
    return rows[np.isin(rows, kept)]
