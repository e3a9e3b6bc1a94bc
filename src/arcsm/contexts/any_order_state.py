"""What an any-order context knows of rows whose values become known one after another."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from arcsm.contexts.parents import Parents


@dataclass
class AnyOrderState:
    """What is known of ``B`` rows: the sum of the vectors of their known values, and their number."""

    order: tuple[int, ...]
    total: Tensor  # (B, E)
    count: Tensor  # (B,)
    condition_terms: list[Tensor]  # (B, 2 H) for each network
    batch_shape: tuple[int, ...]
    x: Tensor | None  # (B, D), the known values, NaN for others; only for linear predictors
    position: int = 0  # in the order
    absent: dict[int, Tensor] = field(default_factory=dict)  # rows (B,) in which a dimension has no value

    def in_sets(self, d: int, values: Tensor, parents: Parents, rows: slice | Tensor) -> Tensor:
        """Return values of a dimension, ``(n,)``, with NaN for those that no set has; see :meth:`Parents.left_out`.

        Values of a parent say in which rows other dimensions are absent.
        """
        for child, parent in parents.of.items():
            if parent == d:
                absent = self.absent.setdefault(child, torch.zeros_like(self.count, dtype=torch.bool))
                absent[rows] = values > 0.5
                values = values.masked_fill(values < 0.5, torch.nan)
        return values.masked_fill(self.absent[d][rows], torch.nan) if d in self.absent else values

    def add(self, d: int, values: Tensor, vectors: Tensor, rows: Tensor | None = None) -> None:
        """Add values of a dimension, ``(n,)``, with their vectors ``(n, E)``, to all or some rows; NaN adds nothing."""
        known = (~values.isnan()).to(vectors)
        vectors = vectors * known.unsqueeze(-1)
        if self.x is not None:
            self.x = self.x.clone()
            self.x[slice(None) if rows is None else rows, d] = values
        if rows is None:
            self.total, self.count = self.total + vectors, self.count + known
        else:
            self.total, self.count = self.total.index_add(0, rows, vectors), self.count.index_add(0, rows, known)

    def add_all(self, x: Tensor, vectors: Tensor, known: Tensor, parents: Parents) -> None:
        """Add the ``known (B, D)`` values of rows with their vectors, ``(B, D, E)``, which are 0 for the others."""
        self.total, self.count = self.total + vectors.sum(1), self.count + known.sum(1)
        if self.x is not None:
            self.x = torch.where(known > 0.0, x, self.x)
        for d, parent in parents.of.items():
            self.absent[d] = x[:, parent] > 0.5

    def select(self, rows: Tensor) -> None:
        """Replace the rows by some of them, ``rows (M,)``, repeated or reordered."""
        self.batch_shape = (len(rows),)
        self.total, self.count = self.total[rows], self.count[rows]
        self.condition_terms = [term[rows] for term in self.condition_terms]
        self.x = None if self.x is None else self.x[rows]
        self.absent = {d: absent[rows] for d, absent in self.absent.items()}
