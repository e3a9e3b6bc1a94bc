"""The base class of the estimators of one density: encoding of rows and the training of the model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from arcsm._native import start_compiling
from arcsm._runtime.devices import resolve_device
from arcsm.estimators.base import TableEstimator
from arcsm.estimators.checks import check_training_rows
from arcsm.estimators.column_inference import DEFAULT_RULES, NumberRules
from arcsm.estimators.column_types import Array, Constant
from arcsm.estimators.encoder import Columns, Table
from arcsm.estimators.native_frames import FrameKind, is_native, to_native, to_pandas
from arcsm.estimators.table_config import TableConfig
from arcsm.estimators.table_model import TableModel
from arcsm.estimators.table_training import lines_of, train_table_model
from arcsm.estimators.target_maps import with_target_maps

Rows = NDArray[np.intp]
_RANDOM_STATES = 2**31 - 1
_MIN_MISSING = 0.05  # of the values, above which a table has gaps
_MIN_ROWS_FOR_SELECTION = 600  # with fewer, held-out rows are too few to choose between configurations
_MAX_HELD_OUT = 5_000  # rows


class DensityEstimator(TableEstimator):
    """The base class of estimators of the density of a table.

    Attributes:
        columns_: The inferred column types.
        config_: The configuration of the model.
        model_: The trained model; ``None`` if all columns are constant.
        held_out_rows_: Indices of the held-out rows.
    """

    config_: TableConfig
    model_: TableModel | None
    held_out_rows_: Rows
    _native: FrameKind | None
    _hint_count: int  # of columns right before the targets that are not in the table; see HintedDensity
    _rules = NumberRules(most=100)  # of all columns; features and targets have the default ones
    _smooth = False  # see TableConfig.for_table; also leaves slopes of numeric columns, and spikes, out of the density

    def count_held_out(self, X: Any) -> int:
        """Return how many rows of a table :meth:`fit` would hold out, without fitting."""
        return len(clone(self)._prepare(X)[2])

    def _prepare(self, X: Any, targets: int | None = None) -> tuple[Array, Rows, Rows, int]:
        """Infer the columns; return encoded rows ``(N, D)``, indices of training and held-out rows, and a seed."""
        table = self._validated(X, reset=True)
        self._native = FrameKind(X[:0]) if is_native(X) else None
        self._hint_count = 0
        check_training_rows(table, X)
        self.columns_ = Columns.infer(table, self._rules if targets is None else DEFAULT_RULES)
        numbers = self.columns_.encode(table)
        if targets is not None:
            last = (table.iloc if isinstance(table, pd.DataFrame) else table)[:, -targets:]
            self.columns_ = with_target_maps(self.columns_, numbers, np.asarray(last, dtype=float))
            numbers = self.columns_.encode(table)
        random = check_random_state(self.random_state)
        seed = int(random.randint(_RANDOM_STATES))
        train, held_out = _split(numbers[:, self.columns_.modelled], self.validation_fraction, random)
        return numbers, train, held_out, seed

    def _fit_table(self, X: Any, targets: int | None = None) -> Array:
        """Train the model of a table and return its encoded rows, ``(N, D)``.

        With ``targets``, it models the conditionals of so many last columns given the others, and nothing else.
        """
        self._check_arguments()
        start_compiling()
        numbers, train, held_out, seed = self._prepare(X, targets)
        modelled = torch.from_numpy(numbers[:, self.columns_.modelled])
        self.held_out_rows_ = held_out
        train, held_out = self._screened(modelled.numpy(), train, held_out, seed)
        configs = self._configs(len(train), modelled, targets)
        self.config_ = configs[0]
        self.model_ = None
        first = 0 if targets is None else numbers.shape[1] - targets
        places = [m for m, d in enumerate(self.columns_.modelled) if d >= first]
        if places:
            model_columns = self.columns_.in_model(spikes=not self._smooth)
            lines = lines_of(model_columns, modelled[train])
            extended = lines.extended if targets is None else [m for m in lines.scales if m in places]
            if extended:
                self.columns_ = self.columns_.with_room([self.columns_.modelled[m] for m in extended])
                model_columns = self.columns_.in_model(spikes=not self._smooth)
            model_columns = model_columns.with_rough_levels(modelled[train])
            hints = [m for m, d in enumerate(self.columns_.modelled) if first - self._hint_count <= d < first]
            self.model_ = train_table_model(
                modelled[train], modelled[held_out], model_columns, lines, configs, seed,
                str(resolve_device(self.device)), bool(self.verbose), choose_level=not self._smooth,
                targets=None if targets is None else places, hints=hints,
            )  # fmt: skip
            self.config_ = self.model_.config
        return numbers

    def _screened(self, x: Array, train: Rows, held_out: Rows, seed: int) -> tuple[Rows, Rows]:
        """Return the training rows and the held-out rows that train the model, of the modelled numbers ``(N, M)``."""
        return train, held_out

    def _hints_of(self, features: Array) -> Array:
        """Return the numbers of the hints ``(N, H)``, from those of the features ``(N, D)``."""
        return np.empty((len(features), 0))

    def _configs(self, rows: int, modelled: Tensor, targets: int | None) -> list[TableConfig]:
        has_gaps = float(modelled.isnan().double().mean()) > _MIN_MISSING if modelled.numel() else False
        config = TableConfig.for_table(rows, max(1, modelled.shape[1]), self._smooth, has_gaps)
        configs = [config]
        nominal = targets is not None and all(len(kind.level_numbers) for kind in self.columns_.kinds[-targets:])
        if not self._smooth and not config.sinusoids and rows >= _MIN_ROWS_FOR_SELECTION:
            configs.append(config.high_resolution())
        if targets is not None:
            configs = [config.for_targets(rows, nominal) for config in configs]
        chosen: dict[str, Any] = {}
        if not isinstance(self.n_estimators, str):
            chosen["orders"] = int(self.n_estimators)
        if not isinstance(self.max_steps, str):
            chosen["max_steps"] = int(self.max_steps)
        if not isinstance(self.hidden_features, str):
            chosen["hidden_features"] = tuple(map(int, self.hidden_features))
            chosen["embedding_features"] = chosen["hidden_features"][0]
        found = [replace(config, **chosen) for config in configs]
        if self._smooth:
            return found
        return [shorter.with_rate_of(config) for shorter, config in zip(found, configs, strict=True)]

    def _generator(self, random_state: Any) -> torch.Generator:
        """Return a generator on the device of the model, by default with the randomness of fitting."""
        random = check_random_state(self.random_state if random_state is None else random_state)
        device = "cpu" if self.model_ is None else self.model_.model.shift.device
        return torch.Generator(device).manual_seed(int(random.randint(_RANDOM_STATES)))

    def _decode(self, numbers: Array) -> Any:
        """Return the rows of numbers of the modelled columns ``(N, M)``, in the format of the fitted table."""
        return self._as_fitted(self.columns_.decode(numbers))

    def _as_fitted(self, rows: Table) -> Any:
        """Return rows in the library of the fitted table."""
        if self._native is None or not isinstance(rows, pd.DataFrame):
            return rows
        return to_native(rows, self._native.empty)

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

    def _given_others(self, X: Any) -> Array:
        """Return the log density of each value given all others of its row, ``(N, D)``; NaN where it is missing.

        The unit is that of :meth:`_contributions`.
        """
        modelled, found = self.encode_rows(X)
        if self.model_ is not None:
            found[:, self.columns_.modelled] += self.model_.log_prob_given_others(modelled).numpy()
            if not self._smooth:
                found[:, self.columns_.modelled] += self.columns_.log_slopes(modelled.numpy())
        return found

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
