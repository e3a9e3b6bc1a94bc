"""Forests of random trees, which predict numbers from the numbers of columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor

from arcsm.estimators.column_types import Array, Categories, Column
from arcsm.stored_values import stored

_MOST_TREES, _LEAST_TREES = 200, 100
_ROWS_OF_ALL_TREES = 250_000  # about, which bounds the leaves
_MAX_ROWS = 5_000  # of a tree
_SHARE_OF_FEATURES, _MAX_TRIED = 0.5, 16  # features that a node tries
_MAX_DEPTH = 64
_MIN_SHARE_OF_GAPS = 0.01  # of the values of a column, from which on trees learn what a gap says
_MAX_INDICATORS = 32  # names of a column, up to which each has a feature of its own
_AT_ONCE = 1_000_000  # rows times trees
_LEAF = -1  # in place of a feature
_DTYPES = {
    "lowest": np.dtype(np.float64), "has_gaps": np.dtype(np.bool_), "roots": np.dtype(np.int32),
    "features": np.dtype(np.int32), "thresholds": np.dtype(np.float32), "children": np.dtype(np.int32),
    "values": np.dtype(np.float32),
}  # fmt: skip


@stored
@dataclass(frozen=True)
class Forest:
    """Extremely randomised trees, as arrays: their mean predicts ``T`` numbers of a row from its ``D`` columns.

    All nodes are in one list, a tree after another, and each before those below it: the left child of a node is the
    next one. Rows whose feature is at most the threshold go left. A missing number is below all others. Few names
    without an order have an indicator each. Trees know nothing of a gap in a column that had hardly any, so then there
    is no prediction.

    References:
        Extremely randomized trees (Geurts, Ernst and Wehenkel, 2006)

    Attributes:
        lowest: What a missing number of each column counts as, ``(D,)``.
        has_gaps: Which columns may have gaps, ``(D,)``: those that had some, or a single value.
        levels: Number of indicators of each column, 0 for a number.
        roots: The first node of each tree.
        features: The feature that each node compares, -1 in a leaf, ``(K,)``.
        thresholds: What it is compared with, ``(K,)``.
        children: The right child of each node, and the place of a leaf among the values, ``(K,)``.
        values: The predictions of leaves, ``(L, T)``.
    """

    lowest: Array
    has_gaps: NDArray[np.bool_]
    levels: tuple[int, ...]
    roots: NDArray[np.int32]
    features: NDArray[np.int32]
    thresholds: NDArray[np.float32]
    children: NDArray[np.int32]
    values: NDArray[np.float32]

    @classmethod
    def grow(cls, kinds: Sequence[Column], x: Array, y: Array, seed: int, most_trees: int = _MOST_TREES) -> Self:
        """Grow a forest on rows ``(N, D)`` of columns of these types and their targets ``(N, T)``."""
        lowest, levels = _encoding(kinds, x)
        features = _features(x, lowest, levels)
        is_constant = np.array([len(np.unique(column[~np.isnan(column)])) < 2 for column in x.T])
        has_gaps = (np.isnan(x).mean(0) >= _MIN_SHARE_OF_GAPS) | is_constant
        share = min(1.0, _MAX_ROWS / len(x))
        trees = min(max(round(_ROWS_OF_ALL_TREES / (share * len(x))), _LEAST_TREES), most_trees)
        grown = ExtraTreesRegressor(
            trees, max_features=min(max(1, int(_SHARE_OF_FEATURES * features.shape[1])), _MAX_TRIED),
            max_depth=_MAX_DEPTH, bootstrap=True, max_samples=share, n_jobs=torch.get_num_threads(), random_state=seed,
        )  # fmt: skip
        grown.fit(features, y[:, 0] if y.shape[1] == 1 else y)
        return cls(lowest, has_gaps, levels, *_arrays([one.tree_ for one in grown.estimators_]))

    def check_read(self) -> None:
        """Check a forest that was read from a file: that all paths end soon, in leaves that have values."""
        fitting = [getattr(self, name).dtype for name in _DTYPES] == list(_DTYPES.values())
        fitting &= 0 < len(self.levels) == len(self.lowest) == len(self.has_gaps)
        fitting &= self.lowest.ndim == self.has_gaps.ndim == self.roots.ndim == self.features.ndim == 1
        fitting &= self.features.shape == self.thresholds.shape == self.children.shape and self.values.ndim == 2
        if not fitting or not 0 <= min(self.levels) <= max(self.levels) <= _MAX_INDICATORS or not self._paths_end():
            raise ValueError("Forest: expected trees whose nodes lead to leaves")

    def _paths_end(self) -> bool:
        """Return whether all paths end, after at most 64 nodes, in leaves that have values."""
        count, nodes = sum(max(levels, 1) for levels in self.levels), np.unique(self.roots)
        for _ in range(_MAX_DEPTH + 1):
            if len(nodes) and (nodes[0] < 0 or nodes[-1] >= len(self.features)):
                return False
            features, children = self.features[nodes], self.children[nodes]
            is_leaf = features == _LEAF
            leaves, inner = children[is_leaf], nodes[~is_leaf]
            if (leaves < 0).any() or (leaves >= len(self.values)).any():
                return False
            if (features[~is_leaf] < 0).any() or (features >= count).any():
                return False
            if not len(inner):
                return len(self.roots) > 0
            nodes = np.unique(np.concatenate([inner + 1, children[~is_leaf]]))
        return False

    @property
    def targets(self) -> int:
        """Number of predicted numbers."""
        return self.values.shape[1]

    def predict(self, x: Array) -> Array:
        """Return the mean predictions ``(N, T)`` of rows ``(N, D)``; NaN if a value is missing that never was."""
        found = np.full((len(x), self.targets), np.nan)
        chosen = np.flatnonzero(~np.isnan(x[:, ~self.has_gaps]).any(1))
        rows = max(1, _AT_ONCE // len(self.roots))
        for start in range(0, len(chosen), rows):
            part = chosen[start : start + rows]
            found[part] = self._predict(_features(x[part], self.lowest, self.levels))
        return found

    def _predict(self, features: NDArray[np.float32]) -> Array:
        node = np.tile(self.roots, (len(features), 1)).ravel()  # of each row in each tree
        row = np.repeat(np.arange(len(features)), len(self.roots))
        walking = np.arange(len(node))
        while len(walking):
            walking = walking[self.features[node[walking]] != _LEAF]
            at = node[walking]
            goes_left = features[row[walking], self.features[at]] <= self.thresholds[at]
            node[walking] = np.where(goes_left, at + 1, self.children[at])
        leaves = self.children[node].reshape(len(features), -1)
        found: Array = self.values[leaves].mean(1, dtype=np.float64)
        return found


def _arrays(trees: Sequence[Any]) -> tuple[NDArray[Any], ...]:
    """Return roots, features, thresholds, children and values of scikit-learn's trees, whose nodes have this order."""
    sizes = np.array([tree.node_count for tree in trees])
    roots = np.cumsum(sizes) - sizes
    is_leaf = np.concatenate([tree.children_left for tree in trees]) < 0
    thresholds = np.concatenate([tree.threshold for tree in trees])
    single = thresholds.astype(np.float32)
    above = single > thresholds
    single[above] = np.nextafter(single[above], np.float32(-np.inf))  # between the same single-precision numbers
    right = np.concatenate([tree.children_right + root for tree, root in zip(trees, roots, strict=True)])
    return (
        roots.astype(np.int32),
        np.where(is_leaf, _LEAF, np.concatenate([tree.feature for tree in trees])).astype(np.int32),
        np.where(is_leaf, np.float32(0.0), single),
        np.where(is_leaf, np.cumsum(is_leaf) - 1, right).astype(np.int32),
        np.concatenate([tree.value[:, :, 0] for tree in trees])[is_leaf].astype(np.float32),
    )


def tree_features(kinds: Sequence[Column], x: Array) -> NDArray[np.float32]:
    """Return what trees see of rows ``(N, D)`` of columns of these types: numbers and indicators, ``(N, F)``."""
    return _features(x, *_encoding(kinds, x))


def _encoding(kinds: Sequence[Column], x: Array) -> tuple[Array, tuple[int, ...]]:
    """Return what a missing number of each column counts as, ``(D,)``, and the number of its indicators."""
    return np.array([_of_gaps(column[~np.isnan(column)]) for column in x.T]), tuple(map(_indicators, kinds))


def _of_gaps(numbers: Array) -> float:
    """Return what a missing number counts as: so far below the others that random thresholds lie between, too."""
    return 2.0 * float(numbers.min()) - float(numbers.max()) - 1.0 if len(numbers) else 0.0


def _indicators(kind: Column) -> int:
    """Return the number of indicators of a column: those of its names, if they are few and have no order."""
    if not isinstance(kind, Categories) or kind.ordered or len(kind.names) > _MAX_INDICATORS:
        return 0
    return len(kind.names)


def _features(x: Array, lowest: Array, levels: Sequence[int]) -> NDArray[np.float32]:
    """Return the features ``(N, F)`` of rows ``(N, D)``."""
    found = np.empty((len(x), sum(max(count, 1) for count in levels)), dtype=np.float32)
    limit, place = float(np.finfo(np.float32).max), 0
    for column, low, count in zip(x.T, lowest, levels, strict=True):
        if count:
            found[:, place : place + count] = column[:, None] == np.arange(count)
        else:
            found[:, place] = np.clip(np.where(np.isnan(column), low, column), -limit, limit)
        place += max(count, 1)
    return found
