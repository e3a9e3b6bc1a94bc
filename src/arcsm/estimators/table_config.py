"""The configuration of the model of a table: how large it is and how long it trains, by the size of the table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import Tensor

from arcsm.contexts import AnyOrder
from arcsm.contexts.linear_features import units_of
from arcsm.estimators.model_columns import ModelColumns
from arcsm.heads import CategoricalHead, Head, LocatedHead, MixedHead, ScoreHead
from arcsm.model import AutoregressiveModel
from arcsm.noise import NoiseLadder
from arcsm.stored_values import stored
from arcsm.training.config import TrainConfig

_SIGMA_MAX = 3.0  # standard deviations of a column
FEW_ROWS = 1_000  # below which a training is soon overfitted
_FINE_ROWS = 1_000  # from which on a model has sinusoids and fine noise
_WIDE = 300  # columns
_MAX_STEPS_OF_TARGETS, _RATE_OF_TARGETS = 1_500, 5e-3  # of a model of few conditionals
_RATE_OF_LEVELS, _DROPOUT_OF_LEVELS, _WEIGHT_DECAY_OF_LEVELS = 2e-3, 0.3, 1.0  # of a model of nominal columns
_RATE = 1e-2  # of densities and of most detectors, and the highest one of shortened trainings
_RATE_OF_FEW_ROWS = 1e-3  # of nominal columns with few training rows
_MIN_ROWS_FOR_SINUSOIDS = 500  # from which on the head of such a model sees sinusoids
_MIN_ROWS_OF_FAST = 500  # of training, from which on a smooth model learns fast, from large batches
_MAX_UNITS = 48  # numbers and levels, whose correlations are inverted for each row of a batch
_MAX_OWN_HEADS = 32  # of nominal columns
_MAX_SMOOTH_RATIO = 2.0  # between noise levels of a smooth model


@stored
@dataclass(frozen=True)
class TableConfig:
    """The configuration of the model of a table."""

    orders: int  # of the columns, whose densities are averaged
    context_features: int  # of the context of each column
    hidden_features: tuple[int, ...]  # units of each layer of the context network
    embedding_features: int  # of the embedding of each value
    dropout: float  # of the context network
    head_features: tuple[int, ...]  # units of each layer of the head of numeric columns
    sinusoids: int  # frequencies at which the context network sees a value
    sinusoid_decay: float  # exponent of the frequency by which those of the context network count less
    head_sinusoids: int  # frequencies at which the head sees a value
    sigma_min: float  # smallest noise, in standard deviations of a column
    noise_levels: int
    tolerance: float  # error of a conditional's log density, in nats
    max_steps: int
    batch_size: int
    learning_rate: float  # peak
    weight_decay: float
    optimizer: Literal["adamw", "muon"] = "adamw"
    max_units: int = 0  # of linear predictors, numbers and levels, up to which contexts see what these say
    rate_of_small_sets: float = 5e-3  # of known values, whose network is trained further
    small_set_steps: float = 0.2  # relative to those of the training of all sets
    batch_size_of_small_sets: int = 1_024  # with more rows a step, probabilities depend less on the seed

    @classmethod
    def for_table(cls, rows: int, columns: int, smooth: bool = False, has_gaps: bool = False) -> Self:
        """Return the configuration for a number of training rows and of columns that vary.

        A ``smooth`` density has more noise and no sinusoids: it ranks rows and has no fine structure. Contexts of other
        ones see linear predictors if rows are few, or if the table ``has_gaps``.
        """
        if smooth:
            return cls._smooth(rows, columns)
        fine, large = rows >= _FINE_ROWS, rows >= 2_000
        return cls(
            orders=_orders(columns),
            context_features=_context_features(columns),
            hidden_features=(128, 128, 128),
            embedding_features=128,
            dropout=0.1,
            head_features=(48, 48),
            sinusoids=6 if large else 4 if fine else 0,
            sinusoid_decay=1.0,
            head_sinusoids=6 if large else 4,
            sigma_min=0.01 if large else 0.02 if fine else 0.05,
            noise_levels=20 if large else 16,
            tolerance=1e-3,
            max_steps=8_000 if rows >= 20_000 else 5_000 if large else 3_000 if fine else 2_000,
            batch_size=256,
            learning_rate=_RATE,
            weight_decay=1e-2,
            optimizer="muon",
            max_units=0 if large and not has_gaps else _MAX_UNITS,
            rate_of_small_sets=5e-3 if fine else 5e-4,
            small_set_steps=0.1 if fine else 0.2,
            batch_size_of_small_sets=1_024 if fine else 256,
        )

    @classmethod
    def _smooth(cls, rows: int, columns: int) -> Self:
        few, small, large = rows < _MIN_ROWS_OF_FAST, rows < 2_000, rows >= 20_000
        sigma_min = 0.3 if few else 0.15 if small else 0.05 if large else 0.08
        return cls(
            orders=_orders(columns),
            context_features=_context_features(columns),
            hidden_features=(128, 128),
            embedding_features=128,
            dropout=0.0,
            head_features=(32, 32),
            sinusoids=0,
            sinusoid_decay=1.0,
            head_sinusoids=0,
            sigma_min=sigma_min,
            noise_levels=1 + math.ceil(math.log(_SIGMA_MAX / sigma_min) / math.log(_MAX_SMOOTH_RATIO)),
            tolerance=1e-2,
            max_steps=1_000 if small else 4_000 if large else 2_500,
            batch_size=128 if few else 512,
            learning_rate=5e-3 if few else _RATE,
            weight_decay=0.1 if few else 1e-2,
        )

    def for_targets(self, rows: int, nominal: bool) -> Self:
        """Return a variant for the conditionals of few columns, which are learned sooner, and soon overfitted.

        With few training rows its head has no sinusoids: they would leave some probability between distant groups. If
        all of these columns are ``nominal``, it learns more slowly and is regularised more: a row says less about them.
        """
        rate = _RATE_OF_FEW_ROWS if rows < FEW_ROWS else _RATE_OF_LEVELS
        return replace(
            self,
            head_sinusoids=self.head_sinusoids if rows >= _MIN_ROWS_FOR_SINUSOIDS else self.sinusoids,
            max_steps=min(self.max_steps, _MAX_STEPS_OF_TARGETS),
            learning_rate=rate if nominal else _RATE_OF_TARGETS,
            optimizer="adamw" if nominal else self.optimizer,
            dropout=_DROPOUT_OF_LEVELS if nominal else self.dropout,
            weight_decay=_WEIGHT_DECAY_OF_LEVELS if nominal else self.weight_decay,
        )

    def with_rate_of(self, longer: Self) -> Self:
        """Return a variant that learns as much faster than a ``longer`` training as it is shorter, within limits."""
        rate = longer.learning_rate * max(1.0, longer.max_steps / self.max_steps)
        return replace(self, learning_rate=max(longer.learning_rate, min(rate, _RATE)))

    def high_resolution(self) -> Self:
        """Return a variant with more sinusoids and finer noise, for a small table whose values repeat or cluster.

        It overfits other small tables, so held-out rows must choose between the two.
        """
        return replace(
            self, sinusoids=6, sinusoid_decay=0.0, head_sinusoids=6, sigma_min=0.01, noise_levels=20, max_steps=3_000,
            rate_of_small_sets=5e-3,
        )  # fmt: skip

    def build_model(
        self,
        columns: ModelColumns,
        targets: Sequence[int] | None = None,
        balance: float = 0.0,
        located: bool = False,
        exponents: Tensor | None = None,
    ) -> AutoregressiveModel:
        """Return an untrained model of the dimensions of columns.

        It will learn the conditionals of the ``targets``, by default all dimensions, with the ``balance`` of
        :class:`AnyOrder`. If ``located``, numbers have a :class:`LocatedHead`; with ``exponents``, they are on a line
        before their maps.
        """
        levels, ordered = columns.counts, columns.ordered
        max_frequency, context_features = 0.5 / self.sigma_min, self.context_features + 2 * located
        are_ordered = [d for d, in_order in enumerate(ordered) if in_order]
        context = AnyOrder(
            len(levels), context_features, self.hidden_features, self.embedding_features,
            sinusoids=self.sinusoids, max_frequency=max_frequency, dropout=self.dropout, levels=levels,
            parents=columns.parents, targets=targets, ordered=are_ordered, sinusoid_decay=self.sinusoid_decay,
            balance=balance, located=located, ranked=columns.ranked,
            linear_features=0 < len(units_of(levels, columns.ranked)) <= self.max_units,
        )  # fmt: skip
        if context.base is not None and exponents is not None:
            context.base.set_maps(exponents)
        plain = ScoreHead(self.context_features, self.head_features, self.head_sinusoids, max_frequency)
        numeric = LocatedHead(plain) if located else plain
        noise = NoiseLadder(_SIGMA_MAX, self.sigma_min, self.noise_levels)
        return AutoregressiveModel(context, self._with_levels(numeric, levels, ordered), noise)

    def _with_levels(self, numeric: Head, levels: Sequence[int], ordered: Sequence[bool]) -> Head:
        """Return a head with a part for each nominal column; if there are many, those of equal levels share one.

        The context of each column has weights of its own, so a shared head is no restriction for as many levels as the
        context has features.
        """
        may_share = sum(map(bool, levels)) > _MAX_OWN_HEADS
        if not any(levels):
            return numeric
        heads, shared, indices = [numeric] if 0 in levels else [], dict[tuple[int, bool], int](), []
        for count, in_order in zip(levels, ordered, strict=True):
            kind = count, in_order
            if kind not in shared or (count and not (may_share and count <= self.context_features)):
                shared[kind] = 0 if not count else len(heads)
                heads += [CategoricalHead(numeric.context_features, count, in_order)] if count else []
            indices.append(shared[kind])
        return MixedHead(heads, indices)

    def train_config(self, widths: Sequence[float], seed: int, device: str, to_the_end: bool = False) -> TrainConfig:
        """Return the training configuration for columns with these level widths; without patience ``to_the_end``."""
        return TrainConfig(
            objective="csm", steps=self.max_steps, batch_size=self.batch_size, learning_rate=self.learning_rate,
            warmup_steps=50, ema=0.99, optimizer=self.optimizer, weight_decay=self.weight_decay,
            dequantise=tuple(widths), validate_every=max(1, self.max_steps // 20),
            patience=None if to_the_end else 6, seed=seed, device=device,
        )  # fmt: skip


def _orders(columns: int) -> int:
    """Return the number of orders; the time to score grows with it and with the number of columns."""
    return min(math.factorial(min(columns, 4)), 2 if columns > _WIDE else 4)


def _context_features(columns: int) -> int:
    return 8 if columns > _WIDE else 16
