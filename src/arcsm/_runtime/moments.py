"""Moments of rows that arrive in parts."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class RunningMoments:
    """Mean and variance of rows ``(n, ...)`` that arrive in parts, in double precision.

    References:
        Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (Chan, Golub and LeVeque, 1979)
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    #: sum of squared deviations from the mean
    square: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, rows: Tensor) -> None:
        if not len(rows):
            return
        rows, count = rows.double(), self.count + len(rows)
        mean = rows.mean(0)
        between = (mean - self.mean).square() * (self.count * len(rows) / count)
        self.square = self.square + (rows - mean).square().sum(0) + between
        self.mean = self.mean + (mean - self.mean) * (len(rows) / count)
        self.count = count

    @property
    def deviation(self) -> Tensor:
        return (self.square / max(1, self.count)).sqrt()

    @property
    def standard_error(self) -> float:
        """Standard error of the mean of scalars; NaN for a single one."""
        if self.count < 2:
            return math.nan
        return math.sqrt(float(self.square) / (self.count - 1) / self.count)
