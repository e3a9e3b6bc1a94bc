"""A classifier with scikit-learn's interface, by the probabilities of labels given any of the features."""

from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array

from arcsm.data.arrays import without_mask
from arcsm.estimators.column_types import Array
from arcsm.estimators.table_config import FEW_ROWS
from arcsm.estimators.target_estimator import TargetEstimator


class ScoreClassifier(ClassifierMixin, TargetEstimator):
    """A classifier whose features may be of any type and may be missing, when fitting and when predicting.

    It fits the probabilities of the labels given any of the features, and predicts with those that are known.

    Arguments:
        n_estimators: Number of models whose probabilities are averaged. They hold out different rows. ``"auto"``: three
            for fewer than 1,000 rows, where a single one depends much on these, else one.
        validation_fraction: As in :class:`ScoreDensity`, like all other arguments.

    Attributes:
        classes_: The labels in ascending order.
        columns_: The inferred types of the features.
        model_: The first model of the labels given features; ``None`` if all labels are equal.
        n_features_in_: Number of features.
        feature_names_in_: Names of the features, if they are a data frame with string names.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> classifier = ScoreClassifier(max_steps=20, n_estimators=1, random_state=0)
        >>> classifier = classifier.fit(x, np.where(x[:, 0] > 0.0, "right", "left"))
        >>> classifier.predict([[3.0, 0.0]]), classifier.predict_proba([[3.0, np.nan]]).shape
        (array(['right'], dtype='<U5'), (1, 2))
    """

    classes_: NDArray[Any]

    def fit(self, X: Any, y: Any) -> Self:
        """Fit rows ``(N, D)``, an array or a data frame, and their labels ``(N,)``.

        Raises:
            ValueError: If a label is missing, if the labels are numbers of a regression, if the lengths differ, or as
                in :meth:`ScoreDensity.fit`.
        """
        if y is None:
            raise ValueError("y: expected labels; ScoreClassifier requires y to be passed, but the target y is None")
        self._check_arguments()
        labels = _checked_labels(y)
        with self._unchanged_on_failure():
            self.classes_, codes = np.unique(labels, return_inverse=True)
            column = pd.Categorical(codes, categories=range(len(self.classes_)))
            few = 3 if len(labels) < FEW_ROWS else 1
            members = few if isinstance(self.n_estimators, str) else int(self.n_estimators)
            self._fit_joint(X, pd.DataFrame({0: column}), members)
        return self

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each of ``classes_`` given the features of each row, ``(N, K)``."""
        numbers, _ = self.encode_rows(X)
        kind, column = self._target(0)
        if self.model_ is None or column is None:
            return np.ones((len(numbers), 1))
        codes = torch.from_numpy(kind.encode(np.arange(len(self.classes_))))
        found = [model.level_probabilities(numbers, column, codes) for model in self._members]
        return torch.stack(found).mean(0).numpy()

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logs of :meth:`predict_proba`."""
        return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most likely label of each row, ``(N,)``."""
        probabilities = self.predict_proba(X)
        return np.asarray(self.classes_[probabilities.argmax(1)])


def _checked_labels(y: Any) -> NDArray[Any]:
    """Return labels as an array ``(N,)`` without missing values."""
    labels = column_or_1d(without_mask(y), warn=True)
    if labels.dtype.kind == "f":
        check_array(labels, ensure_2d=False, ensure_min_samples=0, input_name="y")
    missing = np.asarray(pd.isna(labels))
    if missing.any():
        raise ValueError(f"Input y contains NaN: the label of row {int(missing.argmax()) + 1} is missing")
    check_classification_targets(labels)
    return np.asarray(labels)
