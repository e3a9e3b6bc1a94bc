"""Moments of values that come part by part."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class RunningMoments:
    """Mean and spread of rows ``(n, ...)`` that come in parts, in double precision.

    Attributes:
        count: Rows so far.
        mean: Their mean, ``(...)``.
        square: Sum of their squared distances from it, ``(...)``.

    References:
        Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (Chan, Golub and LeVeque, 1979)
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    square: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, rows: Tensor) -> None:
        """Take a part in."""
        if not len(rows):
            return
        rows, count = rows.double(), self.count + len(rows)
        own = rows.mean(0)
        apart = (own - self.mean).square() * (self.count * len(rows) / count)
        self.square = self.square + (rows - own).square().sum(0) + apart
        self.mean = self.mean + (own - self.mean) * (len(rows) / count)
        self.count = count

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of the rows."""
        return (self.square / max(1, self.count)).sqrt()

    @property
    def error(self) -> float:
        """Standard error of the mean of single numbers; of one it is not known."""
        if self.count < 2:
            return math.nan
        return math.sqrt(float(self.square) / (self.count - 1) / self.count)
