"""The base class of estimators that predict targets: one model of the targets given any of the features."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import Tensor

from arcsm.estimators.base import TableEstimator
from arcsm.estimators.column_types import Array, Column
from arcsm.estimators.density_estimator import DensityEstimator
from arcsm.estimators.encoder import Columns, Table, unused_names
from arcsm.estimators.table_model import TableModel


class TargetEstimator(TableEstimator):
    """The base class of estimators of targets; :class:`ScoreDensity` documents the arguments.

    Attributes:
        columns_: The inferred types of the features.
        model_: The model of the targets given features; ``None`` if all targets are constant.
    """

    _density_class: ClassVar[type[DensityEstimator]] = DensityEstimator
    _joint: DensityEstimator  # of features and targets; the targets are the last columns
    _members: list[TableModel]  # with the same columns, of which `model_` is the first; none if that is `None`
    model_: TableModel | None

    def _fit_joint(self, X: Any, targets: Table, members: int = 1) -> None:
        """Fit the conditionals of targets ``(N, T)`` given rows ``(N, D)``; members differ in their held-out rows."""
        features = self._validated(X, reset=True)
        check_consistent_length(features, targets)
        joint = _joined(features, targets)
        arguments = self.get_params(deep=False)
        random, joints = check_random_state(self.random_state), list[DensityEstimator]()
        for _ in range(members):
            seed = self.random_state if members == 1 else int(random.randint(2**31 - 1))
            joints.append(self._density_class(**{**arguments, "random_state": seed}))
            joints[-1]._fit_table(joint, targets.shape[1])
        self._joint = joints[0]
        self._members = [one.model_ for one in joints if one.model_ is not None]
        self.model_, known = self._joint.model_, self._joint.columns_
        count = features.shape[1]
        if isinstance(features, pd.DataFrame):
            self.columns_ = Columns(known.kinds[:count], tuple(features.dtypes), tuple(features.columns))
        else:
            self.columns_ = replace(known, kinds=known.kinds[:count], dtypes=None, names=None)

    def _models(self) -> list[Any]:
        return list(self._members)

    def _target(self, t: int) -> tuple[Column, int | None]:
        """Return the type of a target and its place among the columns of the model; ``None`` if it is constant."""
        d = len(self.columns_.kinds) + self._joint._hint_count + t
        modelled = self._joint.columns_.modelled
        return self._joint.columns_.kinds[d], modelled.index(d) if d in modelled else None

    def encode_rows(self, X: Any) -> tuple[Tensor, Array]:
        """Encode features as :class:`ScoreDensity` does; the targets, in the last columns, are missing."""
        check_is_fitted(self)
        numbers = self.columns_.encode(self._validated(X))
        self.columns_.warn_of_ignored_values(numbers)
        hints = self._joint._hints_of(self.columns_.without_ignored_values(numbers))
        known = np.concatenate([numbers, hints], 1)
        targets = len(self._joint.columns_.kinds) - known.shape[1]
        return self._joint._separate(np.pad(known, ((0, 0), (0, targets)), constant_values=np.nan))


def _joined(features: Table, targets: Table) -> Table:
    """Return features and targets side by side: an array if both are, otherwise a data frame."""
    if isinstance(features, pd.DataFrame) or isinstance(targets, pd.DataFrame):
        frame = pd.DataFrame(features)
        frame = frame.set_axis([str(name) for name in frame.columns], axis=1).reset_index(drop=True)
        frames = [frame, pd.DataFrame(targets)]
        names = unused_names("target", frames[1].shape[1], frame.columns)
        return pd.concat([frames[0], frames[1].set_axis(names, axis=1)], axis=1)
    return np.column_stack([features, targets])
