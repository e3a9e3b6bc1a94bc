"""Where the rows to train on come from, in another order each epoch: memory, or a file that is larger than it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from arcsm.data.streams import RowStream, StreamEpoch


class Epoch(Protocol):
    """All rows to train on in one order."""

    def rows(self, part: slice) -> tuple[Tensor, Tensor | None]:
        """Rows from and up to a place in it, ``(n, D)``, and what they are conditioned on."""


class Source(Protocol):
    """Where the rows to train on come from."""

    def __len__(self) -> int: ...

    def epoch(self, seed: int) -> Epoch: ...


class InMemory:
    """Rows and conditions that lie on the device."""

    def __init__(self, x: Tensor, condition: Tensor | None) -> None:
        self.x, self.condition = x, condition

    def __len__(self) -> int:
        return len(self.x)

    def epoch(self, seed: int) -> Epoch:
        generator = torch.Generator(self.x.device).manual_seed(seed)
        order = torch.randperm(len(self.x), generator=generator, device=self.x.device)
        return _EpochInMemory(self, order)


@dataclass(frozen=True)
class _EpochInMemory:
    source: InMemory
    order: Tensor

    def rows(self, part: slice) -> tuple[Tensor, Tensor | None]:
        rows, condition = self.order[part], self.source.condition
        return self.source.x[rows], None if condition is None else condition[rows]


class OnDisk:
    """Rows that are read as they are needed.

    Arguments:
        stream: The rows.
        like: Of the type and on the device that they are to have.
    """

    def __init__(self, stream: RowStream, like: Tensor) -> None:
        self.stream, self.like = stream, like

    def __len__(self) -> int:
        return len(self.stream)

    def epoch(self, seed: int) -> Epoch:
        return _EpochOnDisk(self.stream.epoch(seed), self.like)


@dataclass(frozen=True)
class _EpochOnDisk:
    epoch: StreamEpoch
    like: Tensor

    def rows(self, part: slice) -> tuple[Tensor, Tensor | None]:
        return self.epoch.rows(part).to(self.like), None
