"""The base class of the estimators: arguments, checks, encoding and the training of the model."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from arcsm._runtime.devices import resolve_device
from arcsm.estimators.checks import check_numbers, check_same_columns, check_training_rows, checked_frame
from arcsm.estimators.column_types import Array, Constant, Continuous, Grid
from arcsm.estimators.encoder import Columns, Table
from arcsm.estimators.native_frames import check_holds_no_times, is_native, to_native, to_pandas
from arcsm.estimators.table_config import TableConfig
from arcsm.estimators.table_model import TableModel

Rows = NDArray[np.intp]
_MIN_ROWS_FOR_SELECTION = 600  # with fewer, held-out rows are too few to choose between configurations
_MAX_HELD_OUT = 5_000  # rows


class TableEstimator(BaseEstimator):
    """The base class of estimators of a table; :class:`arcsm.estimators.ScoreDensity` documents the arguments."""

    _smooth = False  # see TableConfig.for_table; also leaves slopes of numeric columns, and spikes, out of the density

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

    def count_held_out(self, X: Any) -> int:
        """Return how many rows of a table :meth:`fit` would hold out, without fitting."""
        return len(clone(self)._prepare(X)[2])

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

    def _prepare(self, X: Any) -> tuple[Array, Rows, Rows, int]:
        """Infer the columns; return encoded rows ``(N, D)``, indices of training and held-out rows, and a seed."""
        table = self._validated(X, reset=True)
        self._native = X[:0] if is_native(X) else None  # a frame without rows, in whose form rows come back
        check_training_rows(table, X)
        self.columns_ = Columns.infer(table)
        numbers = self.columns_.encode(table)
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        train, held_out = _split(numbers[:, self.columns_.modelled], self.validation_fraction, random)
        return numbers, train, held_out, seed

    def _fit_table(self, X: Any) -> Array:
        """Train the model of a table and return its encoded rows, ``(N, D)``."""
        numbers, train, held_out, seed = self._prepare(X)
        modelled = torch.from_numpy(numbers[:, self.columns_.modelled])
        self.held_out_rows_ = held_out
        configs = self._configs(len(train), modelled)
        self.config_ = configs[0]
        self.model_ = None
        if modelled.shape[1]:
            self.model_ = TableModel.train(
                modelled[train], modelled[held_out], self.columns_.in_model(spikes=not self._smooth), configs, seed,
                str(resolve_device(self.device)), bool(self.verbose), not self._smooth,
            )  # fmt: skip
            self.config_ = self.model_.config
        return numbers

    def _configs(self, rows: int, modelled: Tensor) -> list[TableConfig]:
        self._check_arguments()
        config = TableConfig.for_table(rows, max(1, modelled.shape[1]), self._smooth)
        configs = [config]
        if not self._smooth and not config.sinusoids and rows >= _MIN_ROWS_FOR_SELECTION:
            configs.append(config.high_resolution())
        chosen: dict[str, Any] = {}
        if not isinstance(self.n_estimators, str):
            chosen["orders"] = int(self.n_estimators)
        if not isinstance(self.max_steps, str):
            chosen["max_steps"] = int(self.max_steps)
        if not isinstance(self.hidden_features, str):
            chosen["hidden_features"] = tuple(map(int, self.hidden_features))
            chosen["embedding_features"] = chosen["hidden_features"][0]
        return [replace(config, **chosen) for config in configs]

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
        X = to_pandas(X)
        if not isinstance(X, pd.DataFrame):
            check_holds_no_times(X)
            try:
                return validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan")  # type: ignore[no-any-return]
            except ValueError as error:
                if "could not convert" in str(error):
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

    def _decode(self, numbers: Array) -> Any:
        """Return the rows of numbers of the modelled columns ``(N, M)``, in the format of the fitted table."""
        return self._as_fitted(self.columns_.decode(numbers))

    def _as_fitted(self, rows: Table) -> Any:
        """Return rows in the library of the fitted table."""
        return to_native(rows, self._native) if isinstance(rows, pd.DataFrame) and self._native is not None else rows

    def _labelled(self, values: Array | pd.DataFrame, X: Any) -> Any:
        """Return numbers, a line for each row of ``X``, as a frame of its library with its index, if it is a frame.

        The names of an array ``(N, D)`` are the columns of ``X``.
        """
        rows = to_pandas(X)
        if not isinstance(rows, pd.DataFrame):
            return values
        columns = values.columns if isinstance(values, pd.DataFrame) else rows.columns
        frame = pd.DataFrame(np.asarray(values), index=rows.index, columns=columns)
        return to_native(frame, X, keep_types=False) if is_native(X) else frame

    def encode_rows(self, X: Any) -> tuple[Tensor, Array]:
        """Encode rows: return numbers of the modelled columns, ``(N, M)``, and log probabilities of the constant ones.

        The log probabilities, ``(N, D)``, are 0 in the other columns and NaN where a value is missing.
        """
        check_is_fitted(self)
        return self._separate(self.columns_.encode(self._validated(X)))

    def _separate(self, numbers: Array) -> tuple[Tensor, Array]:
        """Return what :meth:`encode_rows` returns, from encoded rows ``(N, D)``."""
        constants = np.where(np.isnan(numbers), np.nan, 0.0)
        for d, kind in enumerate(self.columns_.kinds):
            if isinstance(kind, Constant):
                constants[:, d] = kind.log_prob(numbers[:, d])
        return self._clip_modelled(numbers), constants

    def _clip_modelled(self, numbers: Array) -> Tensor:
        """Return numbers of the modelled columns, clipped to the range of the model, ``(N, M)``."""
        modelled = torch.from_numpy(np.ascontiguousarray(numbers[:, self.columns_.modelled]))
        return modelled if self.model_ is None else self.model_.clip(modelled)

    def _contributions(self, modelled: Tensor, constants: Array) -> Array:
        """Return the log density of every value in each order, ``(K, N, D)``; NaN where a value is missing.

        The arguments are what :meth:`encode_rows` returns. The unit is that of the table, or for a smooth estimator
        that of the encoded columns, which share one scale.
        """
        if self.model_ is None:
            return constants[None]
        contributions = np.repeat(constants[None], len(self.model_.orders), 0)
        contributions[:, :, self.columns_.modelled] += self.model_.log_conditionals(modelled).numpy()
        if not self._smooth:
            contributions[:, :, self.columns_.modelled] += self.columns_.log_slopes(modelled.numpy())
        return contributions

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.non_deterministic = False
        return tags


def _split(numbers: Array, fraction: float, random: np.random.RandomState) -> tuple[Rows, Rows]:
    """Split rows into training and held-out ones; the rows of a tiny table serve as both.

    Every column must vary among the training rows, so held-out rows with rare values move there. If most of them would
    have to move, all rows serve as both.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"validation_fraction: expected a number between 0 and 1, got {fraction}")
    rows = len(numbers)
    order = random.permutation(rows)
    count = min(max(round(fraction * rows), min(20, rows // 4)), _MAX_HELD_OUT)
    if count < 2:
        return order, order
    train, held_out = order[count:], order[:count]
    moved = np.zeros(count, dtype=bool)
    for column in numbers.T:
        while len(known := np.unique(column[train][~np.isnan(column[train])])) < 2:
            rare = np.flatnonzero(~np.isnan(column[held_out]) & ~moved & ~np.isin(column[held_out], known))
            if not len(rare):  # the column's values have the same number
                break
            moved[rare[0]] = True
            train = np.append(train, held_out[rare[0]])
    if 2 * moved.sum() > count or count - moved.sum() < 2:
        return np.arange(rows), np.arange(rows)
    return train, held_out[~moved]
