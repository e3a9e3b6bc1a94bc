"""The configuration of the model of a table: how large it is and how long it trains, by the size of the table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from arcsm.contexts import AnyOrder
from arcsm.heads import CategoricalHead, Head, MixedHead, ScoreHead
from arcsm.model import AutoregressiveModel
from arcsm.noise import NoiseLadder
from arcsm.training.config import TrainConfig

_SINUSOIDS = 6
_SIGMA_MAX = 3.0  # standard deviations of a column
_LEVELS = 16
_MAX_SMOOTH_RATIO = 2.0  # between noise levels of a smooth model: the most that the flow takes in one step


@dataclass(frozen=True)
class TableConfig:
    """The configuration of the model of a table."""

    orders: int  # of the columns, whose densities are averaged
    context_features: int  # of the context of each column
    hidden_features: tuple[int, ...]  # units of each layer of the context network
    embedding_features: int  # of the embedding of each value
    dropout: float  # of the context network
    head_features: tuple[int, ...]  # units of each layer of the head of numeric columns
    sinusoids: int  # frequencies at which context and head see a value
    sigma_min: float  # smallest noise, in standard deviations of a column
    noise_levels: int
    tolerance: float  # error of a conditional's log density, in nats
    max_steps: int
    batch_size: int
    learning_rate: float  # peak
    weight_decay: float

    @classmethod
    def for_table(cls, rows: int, columns: int, smooth: bool = False) -> Self:
        """Return the configuration for a number of training rows and of columns that vary.

        A ``smooth`` density has more noise and no sinusoids: it ranks rows and has no fine structure.
        """
        small, large = rows < 2_000, rows >= 20_000
        if smooth:
            sigma_min = 0.3 if rows < 500 else 0.15 if small else 0.05 if large else 0.08
        else:
            sigma_min = 0.05 if small else 0.02
        wide = columns > 300  # time grows with rows, columns and orders: keep a fit to minutes
        smooth_levels = 1 + math.ceil(math.log(_SIGMA_MAX / sigma_min) / math.log(_MAX_SMOOTH_RATIO))
        return cls(
            orders=min(math.factorial(min(columns, 4)), 2 if wide else 4),
            context_features=8 if wide else 16,
            hidden_features=(128, 128),
            embedding_features=128,
            dropout=0.1,
            head_features=(32, 32) if small or smooth else (48, 48),
            sinusoids=0 if small or smooth else _SINUSOIDS,
            sigma_min=sigma_min,
            noise_levels=smooth_levels if smooth else _LEVELS,
            tolerance=1e-2 if smooth else 1e-3,
            max_steps=2_000 if small else 4_000,
            batch_size=128,
            learning_rate=5e-3,
            weight_decay=1e-2,
        )

    def high_resolution(self) -> Self:
        """Return a variant with sinusoids and finer noise, for a small table whose values repeat or cluster.

        It overfits other small tables, so held-out rows must choose between the two.
        """
        return replace(self, sinusoids=_SINUSOIDS, sigma_min=0.01, noise_levels=22, max_steps=2 * self.max_steps)

    def build_model(self, levels: Sequence[int], parents: Sequence[int]) -> AutoregressiveModel:
        """Return an untrained model of dimensions with these numbers of levels, 0 for numbers, and these parents."""
        max_frequency = 0.5 / self.sigma_min
        context = AnyOrder(
            len(levels), self.context_features, self.hidden_features, self.embedding_features,
            sinusoids=self.sinusoids, max_frequency=max_frequency, dropout=self.dropout, levels=levels, parents=parents,
        )  # fmt: skip
        numeric = ScoreHead(self.context_features, self.head_features, self.sinusoids, max_frequency)
        noise = NoiseLadder(_SIGMA_MAX, self.sigma_min, self.noise_levels)
        return AutoregressiveModel(context, self._with_levels(numeric, levels), noise)

    def _with_levels(self, numeric: Head, levels: Sequence[int]) -> Head:
        """Return a head with a part for each nominal column; columns of equally many levels share one if it is exact.

        The context of each column has weights of its own, so a shared head is no restriction for as many levels as the
        context has features.
        """
        if not any(levels):
            return numeric
        heads, shared, indices = [numeric] if 0 in levels else [], dict[int, int](), []
        for count in levels:
            if count not in shared or count > self.context_features:
                shared[count] = 0 if not count else len(heads)
                heads += [CategoricalHead(self.context_features, count)] if count else []
            indices.append(shared[count])
        return MixedHead(heads, indices)

    def train_config(self, widths: Sequence[float], seed: int, device: str) -> TrainConfig:
        """Return the training configuration for columns with these level widths."""
        return TrainConfig(
            objective="csm", steps=self.max_steps, batch_size=self.batch_size, learning_rate=self.learning_rate,
            warmup_steps=50, ema=0.99, optimizer="adamw", weight_decay=self.weight_decay, dequantise=tuple(widths),
            validate_every=max(1, self.max_steps // 20), patience=6, seed=seed, device=device,
        )  # fmt: skip
