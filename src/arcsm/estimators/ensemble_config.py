"""The configuration of an ensemble: how large its models are and how long they train, by the size of the table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from arcsm.contexts import MADE
from arcsm.heads import ScoreHead
from arcsm.model import AutoregressiveModel
from arcsm.noise import NoiseLadder
from arcsm.training.config import TrainConfig

_SINUSOIDS = 6
_SIGMA_MAX = 3.0  # standard deviations of a column
_LEVELS = 16
_MAX_SMOOTH_RATIO = 2.0  # between noise levels of a smooth model: the most that the flow takes in one step


@dataclass(frozen=True)
class EnsembleConfig:
    """The configuration of an ensemble."""

    members: int  # models, each with a different order of the columns
    context_features: int  # of the context of each column
    hidden_features: tuple[int, ...]  # units of each layer of the context network
    head_features: tuple[int, ...]  # units of each layer of the head
    sinusoids: int  # frequencies at which context and head see a value
    sigma_min: float  # smallest noise, in standard deviations of a column
    levels: int  # noise levels
    tolerance: float  # error of a conditional's log density, in nats
    max_steps: int
    batch_size: int
    learning_rate: float  # peak
    missing: bool  # whether values may be missing

    @classmethod
    def for_table(cls, rows: int, columns: int, missing: bool, smooth: bool = False) -> Self:
        """Return the configuration for a number of training rows and of columns that vary.

        A ``smooth`` density has more noise and no sinusoids: it ranks rows and has no fine structure.
        """
        small, large = rows < 2_000, rows >= 20_000
        width = max(64 if small else 256 if large else 128, min(2 * columns, 512))
        if smooth:
            sigma_min = 0.3 if rows < 500 else 0.15 if small else 0.05 if large else 0.08
        else:
            sigma_min = 0.05 if small else 0.02
        wide = columns > 300  # time grows with rows, columns and members: keep a fit to minutes
        return cls(
            members=1 if columns == 1 or large else 2 if wide or not small else 4,
            context_features=8 if wide else 16,
            hidden_features=(width, width),
            head_features=(32, 32) if small or smooth else (48, 48),
            sinusoids=0 if small or smooth else _SINUSOIDS,
            sigma_min=sigma_min,
            levels=1 + math.ceil(math.log(_SIGMA_MAX / sigma_min) / math.log(_MAX_SMOOTH_RATIO)) if smooth else _LEVELS,
            tolerance=1e-2 if smooth else 1e-3,
            max_steps=1_000 if small else 4_000 if large else 2_500,
            batch_size=128 if small else 512,
            learning_rate=5e-3,
            missing=missing,
        )

    def high_resolution(self) -> Self:
        """Return a variant with sinusoids and finer noise, for a small table whose values repeat or cluster.

        It overfits other small tables, so held-out rows must choose between the two.
        """
        return replace(self, sinusoids=_SINUSOIDS, sigma_min=0.01, levels=22, max_steps=2 * self.max_steps)

    def build_model(self, columns: int, order: Sequence[int]) -> AutoregressiveModel:
        """Return an untrained model of columns in an order."""
        max_frequency = 0.5 / self.sigma_min
        context = MADE(
            columns, self.context_features, self.hidden_features, order=order, sinusoids=self.sinusoids,
            max_frequency=max_frequency, missing=self.missing, hide=0.3 if self.missing else 0.0,
        )  # fmt: skip
        head = ScoreHead(self.context_features, self.head_features, self.sinusoids, max_frequency)
        return AutoregressiveModel(context, head, NoiseLadder(_SIGMA_MAX, self.sigma_min, self.levels))

    def train_config(self, widths: Sequence[float], seed: int, device: str) -> TrainConfig:
        """Return the training configuration for columns with these level widths."""
        return TrainConfig(
            objective="csm", steps=self.max_steps, batch_size=self.batch_size, learning_rate=self.learning_rate,
            warmup_steps=50, ema=0.99, optimizer="adamw", weight_decay=1e-2, dequantise=tuple(widths),
            validate_every=max(1, self.max_steps // 20), patience=6, seed=seed, device=device,
        )  # fmt: skip
