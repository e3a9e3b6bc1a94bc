"""What the estimators share: tables in, an ensemble of models inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
from arcsm.estimators.checks import check_not_empty, check_numbers, check_repeating, checked_frame, varies
from arcsm.estimators.column_types import Constant
from arcsm.estimators.encoder import Columns
from arcsm.estimators.ensemble import Ensemble, Plan

Array = NDArray[np.float64]
_FEW_TO_CHOOSE = 200  # rows, below which those held out are too few to say which of two plans is better


class TableEstimator(BaseEstimator):
    """An estimator of a table: its arguments, its fit, and the rows that it takes."""

    _smooth = False  # whether it is for ranking rows: more noise, and always the same

    def __init__(
        self,
        n_estimators: int | str = "auto",
        max_steps: int | str = "auto",
        hidden_features: tuple[int, ...] | str = "auto",
        validation_fraction: float = 0.15,
        missing: bool | str = "auto",
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        verbose: bool = False,
    ) -> None:
        self.n_estimators = n_estimators
        self.max_steps = max_steps
        self.hidden_features = hidden_features
        self.validation_fraction = validation_fraction
        self.missing = missing
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """A fit that fails, or is interrupted, leaves the estimator as it was."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    def count_held_out(self, X: Any) -> int:
        """How many rows :meth:`fit` would hold out of a table; nothing is fitted."""
        return len(clone(self)._prepared(X)[2])

    def _prepared(self, X: Any) -> tuple[Tensor, NDArray[np.intp], NDArray[np.intp], int]:
        """Learn the columns: numbers of the modelled ones, rows to train on and rows held out, and a seed."""
        table = self._table(X, reset=True)
        if len(table) < 2:
            raise ValueError(f"Expected at least 2 samples to fit, got n_samples = {len(table)}")
        check_not_empty(table)
        check_repeating(table)
        check_numbers(table)
        self.columns_ = Columns.of(table)
        numbers = self.columns_.encode(table)
        self._check_gaps(numbers, not isinstance(self.missing, str) and not self.missing, "missing=False")
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        train, held_out = _split(len(numbers), self.validation_fraction, random)
        modelled = torch.from_numpy(numbers[:, self.columns_.modelled])
        train, held_out = _with_every_column(numbers[:, self.columns_.modelled], train, held_out)
        return modelled, train, held_out, seed

    def _fit_table(self, X: Any) -> None:
        """Learn the columns, hold rows out, train the members."""
        modelled, train, held_out, seed = self._prepared(X)
        self.held_out_rows_ = held_out
        plans = self._plans(len(train), modelled)
        self.plan_ = plans[0]
        self.ensemble_ = None
        if modelled.shape[1]:
            self.ensemble_ = Ensemble.train(
                modelled[train], modelled[held_out], self.columns_.widths, plans, seed,
                str(resolve_device(self.device)), bool(self.verbose), not self._smooth,
            )  # fmt: skip
            self.plan_ = self.ensemble_.plan

    def _plans(self, rows: int, modelled: Tensor) -> list[Plan]:
        """The plans to try for the table, with what was asked for."""
        gaps = bool(modelled.isnan().any()) if isinstance(self.missing, str) else self.missing
        self._check_arguments()
        plan = Plan.of(rows, max(1, modelled.shape[1]), gaps, self._smooth)
        plans = [plan] if self._smooth or plan.sinusoids or rows < _FEW_TO_CHOOSE else [plan, plan.sharper()]
        return [
            replace(
                plan,
                members=plan.members if isinstance(self.n_estimators, str) else int(self.n_estimators),
                steps=plan.steps if isinstance(self.max_steps, str) else int(self.max_steps),
                hidden=plan.hidden if isinstance(self.hidden_features, str) else tuple(map(int, self.hidden_features)),
            )
            for plan in plans
        ]

    def _check_arguments(self) -> None:
        """Raise for what :meth:`_plans` cannot make sense of."""
        for name, value in (("n_estimators", self.n_estimators), ("max_steps", self.max_steps)):
            if value != "auto" and not (isinstance(value, Integral) and not isinstance(value, bool) and value >= 1):
                raise ValueError(f'{name}: expected a whole number of at least 1, or "auto", got {value!r}')
        units = self.hidden_features
        if isinstance(units, str) or not isinstance(units, Iterable):
            if units != "auto":
                raise ValueError(f'hidden_features: expected the units of every layer, or "auto", got {units!r}')
        elif not all(isinstance(size, Integral) and size >= 1 for size in units):
            raise ValueError(f"hidden_features: expected whole numbers of at least 1, got {units!r}")
        if not isinstance(self.missing, bool | np.bool_) and self.missing != "auto":
            raise ValueError(f'missing: expected True, False or "auto", got {self.missing!r}')

    def _table(self, X: Any, reset: bool = False) -> pd.DataFrame | Array:
        """A checked table: frames keep their columns, all else becomes an array of numbers."""
        if isinstance(X, pd.DataFrame):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if not reset and self.columns_.names is not None and list(X.columns) != list(self.columns_.names):
                raise ValueError(f"columns: expected {list(self.columns_.names)}, got {list(X.columns)}")
            if not len(X.columns):
                raise ValueError(
                    "Found array with 0 feature(s) (a frame without columns) while a minimum of 1 is required."
                )
            if not len(X):
                raise ValueError("Found array with 0 sample(s) (shape=(0,)) while a minimum of 1 is required.")
            return checked_frame(X)
        return validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan")  # type: ignore[no-any-return]

    def _numbers(self, X: Any) -> tuple[Tensor, Array]:
        """Numbers of the modelled columns ``(N, M)``, and log probabilities of the constant ones, ``(N, D)``."""
        check_is_fitted(self)
        numbers = self.columns_.encode(self._table(X))
        constants = np.where(np.isnan(numbers), np.nan, 0.0)
        for d, kind in enumerate(self.columns_.kinds):
            if isinstance(kind, Constant):
                constants[:, d] = kind.log_prob(numbers[:, d])
        complete = self.ensemble_ is not None and not self.plan_.missing
        self._check_gaps(numbers, complete, "no value was missing when fitting", " with impute")
        return self._modelled(numbers), constants

    def _check_gaps(self, numbers: Array, complete: bool, why: str, by: str = "") -> None:
        """Raise for missing values in the modelled columns, if they are to be complete."""
        gaps = np.isnan(numbers[:, self.columns_.modelled])
        if complete and gaps.any():
            row, column = (int(i) for i in np.argwhere(gaps)[0])
            place = self.columns_.modelled[column]
            name = place if self.columns_.names is None else repr(self.columns_.names[place])
            raise ValueError(
                f"Input X contains NaN: row {row}, column {name}, but {why}; fit with missing=True, or fill these{by}"
            )

    def _modelled(self, numbers: Array) -> Tensor:
        """Numbers of the modelled columns, none too far out for the model, ``(N, M)``."""
        modelled = torch.from_numpy(np.ascontiguousarray(numbers[:, self.columns_.modelled]))
        return modelled if self.ensemble_ is None else self.ensemble_.inside(modelled)

    def _contributions(self, X: Any) -> Array:
        """Log densities of every column, of each member ``(E, N, D)``; NaN where missing.

        In units of the table; smooth ones in those of the columns' numbers, where all columns have one scale.
        """
        modelled, constants = self._numbers(X)
        members = 1 if self.ensemble_ is None else len(self.ensemble_.members)
        found = np.repeat(constants[None], members, 0)
        if self.ensemble_ is not None:
            slopes = self.columns_.log_slopes(modelled.numpy(), of_maps=not self._smooth)
            found[:, :, self.columns_.modelled] += self.ensemble_.terms(modelled).numpy() + slopes
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.non_deterministic = False
        return tags


def _split(rows: int, fraction: float, random: np.random.RandomState) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to train on and rows held out; a handful of rows serve as both."""
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"validation_fraction: expected a share between 0 and 1, got {fraction}")
    order = random.permutation(rows)
    held_out = held_out_rows(rows, fraction)
    return (order, order) if held_out == rows else (order[held_out:], order[:held_out])


def _with_every_column(
    numbers: Array, train: NDArray[np.intp], held_out: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to train on in which every column varies: a rare value that is among those held out moves over.

    Where most of them would have to, all rows serve as both.
    """
    moved = np.zeros(len(held_out), dtype=bool)
    for column in numbers.T:
        while not varies(column[train][:, None]):
            known = column[train][~np.isnan(column[train])]
            others = np.flatnonzero(~np.isnan(column[held_out]) & ~moved & ~np.isin(column[held_out], known[:1]))
            if not len(others):  # its values are one to the models
                break
            moved[others[0]] = True
            train = np.append(train, held_out[others[0]])
    if 2 * moved.sum() > len(held_out):
        return np.arange(len(numbers)), np.arange(len(numbers))
    return train, held_out[~moved]


def held_out_rows(rows: int, fraction: float = 0.15) -> int:
    """How many of some rows are held out; all, where they are a handful."""
    held_out = min(max(round(fraction * rows), min(20, rows // 4)), 5_000)
    return rows if held_out < 2 else held_out
