"""Sources of batches, one for each optimizer step, from anything that :func:`arcsm.fit` takes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from arcsm._runtime.conditions import Condition, map_condition
from arcsm._runtime.random import fold_in
from arcsm.data.streams import RowStream
from arcsm.errors import TrainingWarning, warn
from arcsm.model import AutoregressiveModel
from arcsm.training import data
from arcsm.training.batches import (
    Batch,
    Reader,
    Rows,
    as_batches,
    concatenated,
    first_batches,
    is_dataset,
    is_in_memory,
    seeded,
)
from arcsm.training.config import TrainConfig
from arcsm.training.purposes import Purpose

_SAMPLED_ROWS, _SAMPLED_VALUES = 10_000, 1 << 25  # from which the units of a data set or loader are computed


class BatchSource(ABC):
    """The training rows in batches, one for each optimizer step.

    Attributes:
        steps_per_epoch: Number of batches in a pass over the rows; ``None`` if unknown.
        data: A fingerprint by which a resumed run recognises its data.
        ended: Whether no batch follows the current one.
    """

    steps_per_epoch: int | None
    data: dict[str, int]
    ended: bool = False

    @abstractmethod
    def load(self, step: int) -> int:
        """Load the batch of a step, which becomes the current one, and return its number of rows."""

    @abstractmethod
    def part(self, rows: slice) -> Batch:
        """Return some rows of the current batch, ``(n, D)`` on the device, and their conditions."""

    @property
    def position(self) -> int:
        """Number of batches used so far in the current pass; a checkpoint keeps it."""
        return 0

    def resume(self, step: int, position: int) -> None:  # noqa: B027
        """Continue at a step, whose pass has used ``position`` batches."""


class ShuffledRows(BatchSource):
    """Rows that can be read in any order. Each epoch shuffles them and drops the last, incomplete batch."""

    def __init__(
        self,
        table: data.RowsInMemory | data.RowsOnDisk | RowsOfDataset,
        batch_size: int,
        seed: Callable[[int], int],
        fingerprint: dict[str, int],
    ) -> None:
        self.table, self.seed, self.data = table, seed, fingerprint
        self.batch = min(batch_size, len(table))
        self.epoch_length = self.steps_per_epoch = len(table) // self.batch
        self._epoch: tuple[int, data.Epoch] | None = None

    def load(self, step: int) -> int:
        number, place = divmod(step, self.epoch_length)
        if self._epoch is None or self._epoch[0] != number:
            self._epoch = (number, self.table.epoch(self.seed(number)))
        self._first = place * self.batch
        return self.batch

    def part(self, rows: slice) -> Batch:
        assert self._epoch is not None
        return self._epoch[1](slice(self._first + rows.start, self._first + rows.stop))


class RowsOfDataset:
    """The rows of a map-style ``Dataset``, read on demand and in this process."""

    def __init__(self, dataset: Dataset[Any], read: Reader) -> None:
        self.dataset, self.read = dataset, read
        self.length = len(cast(Sequence[Any], dataset))
        if not self.length:
            raise ValueError(f"{read.name}: expected at least one row, got none")

    def __len__(self) -> int:
        return self.length

    def epoch(self, seed: int) -> data.Epoch:
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(seed))
        return lambda places: self.read(self.raw(order[places].tolist(), seed + places.start))

    def raw(self, indices: Sequence[int], seed: int) -> Any:
        """Return the collated items at some indices. Their transforms see a seeded global generator of torch."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if hasattr(self.dataset, "__getitems__"):
                return default_collate(self.dataset.__getitems__(indices))
            return default_collate([self.dataset[index] for index in indices])

    def sample(self, count: int, seed: int) -> Batch:
        """Return ``count`` random rows, unchecked, or all rows in order if there are no more."""
        generator = torch.Generator().manual_seed(seed)
        few = self.length <= count
        order = torch.arange(self.length) if few else torch.randperm(self.length, generator=generator)[:count]
        return self.read.split(self.raw(order.tolist(), seed))


class GivenBatches(BatchSource):
    """Batches from a ``DataLoader`` or any other iterable.

    Each pass iterates anew, except that an iterator has one pass only. Torch's global generator and those of a loader
    are seeded for each batch, so that a shuffling loader has an order that depends on the seed alone. A resumed run
    skips the batches that were used.
    """

    def __init__(
        self, batches: Iterable[Any], read: Reader, seed: Callable[[int], int], expected: int | None = None
    ) -> None:
        self.batches, self.read, self.seed, self.expected = batches, read, seed, expected
        self.steps_per_epoch = _length(batches)
        if self.steps_per_epoch == 0:
            raise ValueError(f"{read.name}: expected at least one batch, got none")
        self.data = {"batches": self.steps_per_epoch or 0}
        self._has_one_pass = isinstance(batches, Iterator)
        self._sampled: list[Any] = []  # of an iterator
        self._iterator: Iterator[Any] | None = None
        self._used = 0
        self._next: Any = None

    def load(self, step: int) -> int:
        batch = self._next if self._next is not None else self._fetch(step)
        if batch is None and self._used and not self._has_one_pass:
            self._iterator, self._used = None, 0
            batch = self._fetch(step)
        if batch is None:
            raise ValueError(f"{self.read.name}: yields no batch" + (" any more" if self._used else ""))
        self._used += 1
        self._next = self._fetch(step + 1) if self._has_one_pass else None
        self.ended = self._has_one_pass and self._next is None
        self._current = self.read(batch)
        rows = len(self._current[0])
        self._check_size(rows)
        return rows

    def _check_size(self, rows: int) -> None:
        """Check the size of the first batch; the last one of a pass may be smaller."""
        is_last = self.ended or self._used == self.steps_per_epoch
        if self.expected is None or (is_last and rows < self.expected):
            return
        if rows != self.expected:
            name = self.read.name
            raise ValueError(f"batch_size: {self.expected}, but {name} yields batches of {rows} rows; leave it out")
        self.expected = None

    def part(self, rows: slice) -> Batch:
        x, condition = self._current
        return x[rows], map_condition(lambda part: part[rows], condition)

    @property
    def position(self) -> int:
        return self._used

    def resume(self, step: int, position: int) -> None:
        if getattr(self.batches, "persistent_workers", False):
            warn(
                f"{self.read.name}: random transforms in persistent workers go on differently in a resumed run; "
                "set persistent_workers=False to resume exactly",
                TrainingWarning,
            )
        for earlier in range(step - position, step):
            if self._fetch(earlier) is None:
                raise ValueError(f"{self.read.name}: ended before step {step}, where the run continues; pass it anew")
        self._used, self.expected = position, None  # checked when the run began
        if self._has_one_pass:
            self._next = self._fetch(step)
            self.ended = self._next is None

    def _fetch(self, step: int) -> Any:
        """Return the next batch of the pass, or ``None`` at its end."""
        with seeded(self.batches, self.seed(step)):
            if self._iterator is None:
                self._iterator = iter(self.batches)
            return self._sampled.pop(0) if self._sampled else next(self._iterator, None)

    def sample(self, count: int) -> Batch:
        """Return the rows of the first batches, unchecked; the training still gets those of an iterator."""
        batches = first_batches(self.batches, self.read, count, self.seed(0))
        self._sampled = batches if self._has_one_pass else []
        return concatenated([self.read.split(batch) for batch in batches], self.read.name)


class TrainingData(NamedTuple):
    """A source of batches, and the rows and conditions whose moments become the model's units."""

    source: BatchSource
    rows: Tensor | RowStream
    condition: Condition | None


def training_data(
    x: Rows, condition: Any, model: AutoregressiveModel, device: torch.device, config: TrainConfig, processes: int
) -> TrainingData:
    """Check the training data and return them for one of a number of processes."""
    order_seed = partial(fold_in, config.seed, Purpose.ORDER)
    if isinstance(x, RowStream):
        if condition is not None:
            raise ValueError("condition_train: streamed rows have no conditions; a torch Dataset may yield them")
        if x.shape[1] != model.features:
            raise ValueError(f"x_train: expected rows of {model.features} columns, got {x.shape[1]}")
        stream = data.RowsOnDisk(x, model.shift.to(device))
        return TrainingData(ShuffledRows(stream, config.batch_size, order_seed, data.fingerprint(x, None)), x, None)
    if is_in_memory(x):
        x, condition = data.as_tensor(x, "x_train"), data.as_condition(condition)
        rows = data.check_rows(model, x, "x_train")
        data.check_resolution(model, x)
        data.check_condition(model.context, x, condition)
        table = data.RowsInMemory(*data.moved(device, rows, condition))
        source = ShuffledRows(table, config.batch_size, order_seed, data.fingerprint(x, condition))
        return TrainingData(source, x, condition)
    if condition is not None:
        raise ValueError("condition_train: expected none; a data set or loader yields (x, condition)")
    return _from_outside(x, model, device, config, processes)


def _from_outside(
    x: Any, model: AutoregressiveModel, device: torch.device, config: TrainConfig, processes: int
) -> TrainingData:
    read, order_seed = Reader(model, device, "x_train"), partial(fold_in, config.seed, Purpose.ORDER)
    count = 1 if config.standardise == "none" else min(_SAMPLED_ROWS, -(-_SAMPLED_VALUES // model.features))
    source: BatchSource
    if is_dataset(x):
        dataset = RowsOfDataset(x, read)
        source = ShuffledRows(dataset, config.batch_size, order_seed, {"rows": len(dataset)})
        sample = dataset.sample(count, order_seed(0))
    else:
        if processes > 1:
            raise ValueError(
                f"x_train: {processes} processes cannot share an iterable of batches; give a tensor or a Dataset"
            )
        expected = config.batch_size if "batch_size" in config.model_fields_set else None
        source = GivenBatches(as_batches(x, "x_train"), read, partial(fold_in, config.seed, Purpose.BATCHES), expected)
        sample = source.sample(count)
    rows, condition = sample
    checked = data.check_rows(model, rows, "x_train")
    data.check_resolution(model, rows)
    data.check_condition(model.context, checked, condition)
    return TrainingData(source, rows, condition)  # as they were given: their moments need all digits


def number_of_steps(config: TrainConfig, source: BatchSource) -> int:
    """Return the number of optimizer steps that a configuration asks for."""
    if config.epochs is None:
        return config.steps
    if source.steps_per_epoch is None:
        raise ValueError("epochs: x_train has no length; give steps instead")
    return max(1, math.ceil(config.epochs * source.steps_per_epoch))


class HeldOut(NamedTuple):
    """Held-out rows and conditions, and a checksum by which a resumed run recognises them, if they are in memory."""

    rows: Tensor
    condition: Condition | None
    checksum: int | None


def held_out_rows(x: Rows, condition: Any, model: AutoregressiveModel, count: int) -> HeldOut:
    """Check held-out rows and return them: all that are in memory, or at least the first ``count`` of others."""
    checksum = None
    if is_in_memory(x):
        given, condition = data.as_tensor(x, "x_valid"), data.as_condition(condition)
        rows = data.check_rows(model, given, "x_valid")
        checksum = data.fingerprint(given, condition)["checksum"]
    elif condition is not None:
        raise ValueError("condition_valid: expected none; a data set or loader yields (x, condition)")
    else:
        read = Reader(model, model.shift.device, "x_valid")
        if is_dataset(x):
            dataset = RowsOfDataset(x, read)
            rows, condition = read.split(dataset.raw(range(min(count, len(dataset))), 0))
        else:
            batches = first_batches(as_batches(x, "x_valid"), read, count, 0)
            rows, condition = concatenated([read.split(batch) for batch in batches], "x_valid")
        rows = data.check_rows(model, rows, "x_valid")
    data.check_condition(model.context, rows, condition)
    return HeldOut(rows.detach(), condition, checksum)


def _length(batches: Iterable[Any]) -> int | None:
    try:
        return len(cast(Sequence[Any], batches))
    except TypeError:  # also of a loader whose data set has no length
        return None
