"""Which columns of a table a model treats as levels, and how their numbers become levels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from arcsm.estimators.column_types import Column


@dataclass(frozen=True)
class ColumnLevels:
    """The levels of the columns that a model sees.

    The numbers of a nominal column are its levels, except that in a column of very many levels, the rarest share one.

    Attributes:
        counts: Number of levels of each column in the model; 0 for a column of numbers.
        known: Number of different numbers in each nominal column: ``counts``, unless the rarest share a level.
        widths: Distance between the numbers of each discrete column that the model treats as numbers; 0 for the others.
        rarest: Probabilities ``(K,)`` of the numbers that share the last level of a column, given that level.
        log_unseen: Log probability of any number without a level, in each nominal column.
    """

    counts: tuple[int, ...]
    known: tuple[int, ...]
    widths: tuple[float, ...]
    rarest: dict[int, Tensor]
    log_unseen: tuple[float, ...]

    @classmethod
    def of_columns(cls, kinds: Sequence[Column]) -> Self:
        """Return the levels of columns of these types."""
        counts = tuple(kind.levels_in_model for kind in kinds)
        widths = tuple(float(kind.discrete and not count) for kind, count in zip(kinds, counts, strict=True))
        shares = {m: kind.shares_of_last_level for m, kind in enumerate(kinds) if kind.levels_in_model}
        rarest = {m: torch.tensor(share, dtype=torch.float64) for m, share in shares.items() if len(share) > 1}
        known = tuple(count + (len(rarest[m]) - 1 if m in rarest else 0) for m, count in enumerate(counts))
        return cls(counts, known, widths, rarest, tuple(kind.log_unseen for kind in kinds))

    @property
    def nominal(self) -> list[bool]:
        """Whether each column has levels."""
        return [count > 0 for count in self.counts]

    def merged(self, x: Tensor) -> Tensor:
        """Return rows ``(N, M)`` with the levels of the model: NaN for unknown numbers, one level for the rarest."""
        x = x.clone()
        for m, column in self._nominal_columns(x):
            x[..., m] = self.level(m, column)
        return x

    def level(self, m: int, numbers: Tensor) -> Tensor:
        """Return the levels in the model of numbers ``(*,)`` of one nominal column; NaN for unknown ones."""
        return torch.where(self._is_known(m, numbers), numbers.round().clamp(max=self.counts[m] - 1), torch.nan)

    def log_shares(self, x: Tensor) -> Tensor:
        """Return log probabilities of numbers ``(*, M)`` given their levels, or of unknown ones their own; else 0."""
        found = torch.zeros_like(x)
        for m, column in self._nominal_columns(x):
            found[..., m] = self.log_share(m, column)
        return found

    def log_share(self, m: int, numbers: Tensor) -> Tensor:
        """Return :meth:`log_shares` of numbers ``(*,)`` of one nominal column."""
        known = self._is_known(m, numbers)
        share = torch.zeros_like(numbers)
        if m in self.rarest:
            place = (numbers - self.counts[m] + 1).round().clamp(0, len(self.rarest[m]) - 1).nan_to_num(nan=0.0).long()
            log_rarest = self.rarest[m].log().to(numbers)
            share = torch.where(numbers.round() >= self.counts[m] - 1, log_rarest[place], 0.0)
        unseen = self.log_unseen[m]
        found = torch.where(known, share + math.log1p(-math.exp(unseen)), unseen)
        return torch.where(numbers.isnan(), 0.0, found)

    def _nominal_columns(self, x: Tensor) -> list[tuple[int, Tensor]]:
        return [(m, x[..., m]) for m, count in enumerate(self.counts) if count]

    def _is_known(self, m: int, numbers: Tensor) -> Tensor:
        return (numbers > -0.5) & (numbers < self.known[m] - 0.5)

    def separated(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return drawn rows ``(*, M)`` in which a number has been drawn for each level that the rarest share."""
        for m, shares in self.rarest.items():
            merged = rows[..., m] == self.counts[m] - 1
            if bool(merged.any()):
                weights = shares.to(generator.device)
                drawn = torch.multinomial(weights, int(merged.sum()), replacement=True, generator=generator)
                rows[..., m][merged] += drawn.to(rows)
        return rows
