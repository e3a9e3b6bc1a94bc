"""The base class of all estimators: their arguments, and checks of these and of rows."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data

from arcsm.data.arrays import without_mask
from arcsm.errors import is_no_number
from arcsm.estimators.card import estimator_card
from arcsm.estimators.checks import check_numbers, check_same_columns, checked_frame
from arcsm.estimators.column_types import Grid
from arcsm.estimators.continua import Continuous
from arcsm.estimators.encoder import Columns, Table
from arcsm.estimators.files import EstimatorFiles
from arcsm.estimators.native_frames import check_holds_no_times, to_pandas


class TableEstimator(EstimatorFiles):
    """The base class of estimators of a table; :class:`arcsm.estimators.ScoreDensity` documents the arguments."""

    columns_: Columns
    n_features_in_: int
    feature_names_in_: NDArray[np.object_]

    def __init__(
        self,
        n_estimators: int | str = "auto",
        max_steps: int | str = "auto",
        hidden_features: tuple[int, ...] | str = "auto",
        validation_fraction: float = 0.15,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        verbose: bool = False,
    ) -> None:
        self.n_estimators = n_estimators
        self.max_steps = max_steps
        self.hidden_features = hidden_features
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def _card(self) -> str:
        name = type(self).__name__
        module = "arcsm.estimators" if type(self).__module__.startswith("arcsm.") else type(self).__module__
        use = f'{name}.load("this folder")'
        if module != "__main__":
            use = f"from {module} import {name}\n\n{use}"
        return estimator_card(f"A fitted {name}", self._facts(), self.columns_.names_by_type(), use)

    def _models(self) -> list[Any]:
        """Return the fitted table models."""
        model = getattr(self, "model_", None)
        return [] if model is None else [model]

    def _facts(self) -> list[str]:
        """Return lines of the card that say what the estimator holds."""
        weights = sum(weight.numel() for model in self._models() for weight in model.model.parameters())
        return [f"{len(self.columns_.kinds)} columns", f"{weights:,} weights"]

    @staticmethod
    def _check_fit_arguments(arguments: Collection[str]) -> None:
        """Raise a TypeError for arguments of :meth:`fit` other than the rows."""
        if "sample_weight" in arguments:
            raise TypeError(
                "fit: sample_weight is not supported; every row counts alike, in training and among the held-out rows"
            )
        if arguments:
            raise TypeError(f"fit: unexpected arguments {', '.join(arguments)}")

    @contextmanager
    def _unchanged_on_failure(self) -> Iterator[None]:
        """Restore the estimator if fitting fails or is interrupted."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    def _check_arguments(self) -> None:
        def is_count(value: Any) -> bool:
            return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1

        for name, value in (("n_estimators", self.n_estimators), ("max_steps", self.max_steps)):
            if value != "auto" and not is_count(value):
                raise ValueError(f'{name}: expected a whole number of at least 1, or "auto", got {value!r}')
        units = self.hidden_features
        valid = units == "auto" if isinstance(units, str) else isinstance(units, Iterable) and all(map(is_count, units))
        if not valid:
            raise ValueError(f'hidden_features: expected whole numbers of at least 1, or "auto", got {units!r}')

    def _validated(self, X: Any, reset: bool = False) -> Table:
        """Return a checked data frame of pandas, or an array of floats of anything else."""
        X = without_mask(to_pandas(X))
        if not isinstance(X, pd.DataFrame):
            check_holds_no_times(X)
            try:
                return validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan")  # type: ignore[no-any-return]
            except ValueError as error:
                if is_no_number(error):
                    check_numbers(pd.DataFrame(np.asarray(X, dtype=object)))
                raise
        validate_data(self, X, reset=reset, skip_check_array=True)
        if not reset and self.columns_.names is not None:
            check_same_columns(list(X.columns), list(self.columns_.names))
        for count, what in ((len(X.columns), "feature"), (len(X), "sample")):
            if not count:
                raise ValueError(f"Found array with 0 {what}(s) (shape={X.shape}) while a minimum of 1 is required.")
        frame = checked_frame(X)
        if not reset:
            check_numbers(frame, [isinstance(kind, Continuous | Grid) for kind in self.columns_.kinds])
        return frame

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.non_deterministic = False
        return tags
