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

MOST_TREES, _LEAST_TREES = 200, 100
_LEAVES = 250_000  # of all trees, about
_MAX_ROWS = 5_000  # of a tree
_SHARE_OF_FEATURES = 0.5  # that a node tries
_MAX_INDICATORS = 32  # names of a column, up to which each has a feature of its own
_AT_ONCE = 1_000_000  # rows times trees
_LEAF = -1  # in place of a feature


@stored
@dataclass(frozen=True)
class Forest:
    """Extremely randomised trees, as arrays: their mean predicts ``T`` numbers of a row from its ``D`` columns.

    All nodes are in one list, a tree after another, and each before those below it: the left child of a node is the
    next one. Rows whose feature is at most the threshold go left. A missing number is below all others. Few names
    without an order have an indicator each.

    References:
        Extremely randomized trees (Geurts, Ernst and Wehenkel, 2006)

    Attributes:
        lowest: What a missing number of each column counts as, ``(D,)``.
        levels: Number of indicators of each column, 0 for a number.
        roots: The first node of each tree.
        features: The feature that each node compares, -1 in a leaf, ``(K,)``.
        thresholds: What it is compared with, ``(K,)``.
        children: The right child of each node, and the place of a leaf among the values, ``(K,)``.
        values: The predictions of leaves, ``(L, T)``.
    """

    lowest: Array
    levels: tuple[int, ...]
    roots: NDArray[np.int32]
    features: NDArray[np.int32]
    thresholds: NDArray[np.float32]
    children: NDArray[np.int32]
    values: NDArray[np.float32]

    @classmethod
    def grow(cls, kinds: Sequence[Column], x: Array, y: Array, seed: int, most_trees: int = MOST_TREES) -> Self:
        """Grow a forest on rows ``(N, D)`` of columns of these types and their targets ``(N, T)``."""
        lowest = np.array([np.nanmin(column, initial=np.inf) for column in x.T]) - 1.0
        lowest = np.where(np.isfinite(lowest), lowest, 0.0)
        features = _features(x, lowest, levels := tuple(map(_indicators, kinds)))
        share = min(1.0, _MAX_ROWS / len(x))
        trees = min(max(round(_LEAVES / (share * len(x))), _LEAST_TREES), most_trees)
        grown = ExtraTreesRegressor(
            trees, max_features=_SHARE_OF_FEATURES, bootstrap=True, max_samples=share,
            n_jobs=torch.get_num_threads(), random_state=seed,
        )  # fmt: skip
        grown.fit(features, y[:, 0] if y.shape[1] == 1 else y)
        return cls._of_trees([one.tree_ for one in grown.estimators_], lowest, levels)

    @classmethod
    def _of_trees(cls, trees: Sequence[Any], lowest: Array, levels: tuple[int, ...]) -> Self:
        """Return the forest of scikit-learn's trees, whose nodes have this order, too."""
        sizes = np.array([tree.node_count for tree in trees])
        roots = np.cumsum(sizes) - sizes
        is_leaf = np.concatenate([tree.children_left for tree in trees]) < 0
        thresholds = np.concatenate([tree.threshold for tree in trees])
        single = thresholds.astype(np.float32)
        above = single > thresholds
        single[above] = np.nextafter(single[above], np.float32(-np.inf))  # between the same single-precision numbers
        right = np.concatenate([tree.children_right + root for tree, root in zip(trees, roots, strict=True)])
        return cls(
            lowest, levels, roots.astype(np.int32),
            np.where(is_leaf, _LEAF, np.concatenate([tree.feature for tree in trees])).astype(np.int32),
            np.where(is_leaf, np.float32(0.0), single),
            np.where(is_leaf, np.cumsum(is_leaf) - 1, right).astype(np.int32),
            np.concatenate([tree.value[:, :, 0] for tree in trees])[is_leaf].astype(np.float32),
        )  # fmt: skip

    def check_read(self) -> None:
        """Check a forest that was read from a file: that paths through it end, in leaves that have values."""
        nodes, is_leaf = np.arange(len(self.features)), self.features == _LEAF
        width = sum(max(count, 1) for count in self.levels)
        fitting = self.lowest.shape == (len(self.levels),) and min(self.levels, default=0) >= 0
        fitting &= self.features.shape == self.thresholds.shape == self.children.shape == nodes.shape
        fitting &= len(nodes) > 0 and self.values.ndim == 2 and len(self.roots) > 0 and self.roots.ndim == 1
        fitting = fitting and bool(
            (self.roots >= 0).all() and (self.roots < len(nodes)).all()
            and (self.features >= _LEAF).all() and (self.features < width).all()
            and (self.children[~is_leaf] > nodes[~is_leaf]).all() and (self.children[~is_leaf] < len(nodes)).all()
            and (self.children[is_leaf] >= 0).all() and (self.children[is_leaf] < len(self.values)).all()
            and is_leaf[-1]
        )  # fmt: skip
        if not fitting:
            raise ValueError("Forest: expected trees whose nodes lead to leaves")

    @property
    def targets(self) -> int:
        """Number of predicted numbers."""
        return self.values.shape[1]

    def predict(self, x: Array) -> Array:
        """Return the mean predictions ``(N, T)`` of rows ``(N, D)``."""
        rows = max(1, _AT_ONCE // len(self.roots))
        parts = [self._predict(_features(part, self.lowest, self.levels)) for part in _split(x, rows)]
        return np.concatenate(parts) if parts else np.zeros((0, self.targets))

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


def _indicators(kind: Column) -> int:
    """Return the number of indicators of a column: those of its names, if they are few and have no order."""
    if not isinstance(kind, Categories) or kind.ordered or len(kind.names) > _MAX_INDICATORS:
        return 0
    return len(kind.names)


def _features(x: Array, lowest: Array, levels: Sequence[int]) -> NDArray[np.float32]:
    """Return the features ``(N, F)`` of rows ``(N, D)``."""
    parts = list[Array]()
    for column, low, count in zip(x.T, lowest, levels, strict=True):
        if count:
            parts.append(column[:, None] == np.arange(count))
        else:
            parts.append(np.where(np.isnan(column), low, column)[:, None])
    limit = np.finfo(np.float32).max
    return np.clip(np.concatenate(parts, 1), -limit, limit).astype(np.float32)


def _split(x: Array, rows: int) -> list[Array]:
    return [x[start : start + rows] for start in range(0, len(x), rows)]
