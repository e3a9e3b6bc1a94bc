"""Sources of training rows: what :func:`arcsm.fit` takes, and the batch of each optimizer step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from arcsm._runtime.conditions import Condition, map_condition
from arcsm._runtime.random import fold_in
from arcsm.data.streams import RowStream
from arcsm.errors import TrainingWarning, warn
from arcsm.model import AutoregressiveModel
from arcsm.training import data
from arcsm.training.config import TrainConfig

#: Rows: a tensor, an array, a :class:`RowStream`, a map-style ``Dataset``, or an iterable of batches. Items of the last
#: two are ``x`` or ``(x, condition)``.
Rows = Any
Batch = tuple[Tensor, Condition | None]

_SAMPLED_ROWS, _SAMPLED_VALUES = 10_000, 1 << 25  # from which the units of a data set or loader are computed
_ORDER, _BATCHES = 1, 5  # purposes of random numbers


class Source(ABC):
    """Training rows by batches, one for each optimizer step.

    Attributes:
        steps_per_epoch: Number of batches in a pass; ``None`` if unknown.
        data: A fingerprint, by which a resumed run recognises its data.
        ended: Whether the current batch is the last that there is.
    """

    steps_per_epoch: int | None
    data: dict[str, int]
    ended: bool = False

    @abstractmethod
    def load(self, step: int) -> int:
        """Make the batch of a step the current one, and return its number of rows."""

    @abstractmethod
    def part(self, rows: slice) -> Batch:
        """Return some rows of the current batch, ``(n, D)`` on the device, and their conditions."""

    @property
    def position(self) -> int:
        """Number of batches of the current pass that were used, which a checkpoint keeps."""
        return 0

    def resume(self, step: int, position: int) -> None:  # noqa: B027
        """Continue before a step, after a number of batches of its pass."""


class ShuffledRows(Source):
    """Rows that can be read in any order: each epoch shuffles them and drops the incomplete batch."""

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
    """The rows of a map-style ``Dataset``, read in this process when they are needed."""

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
        """Return the collated items at some indices; torch's global generator is seeded for their transforms."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if hasattr(self.dataset, "__getitems__"):
                return default_collate(self.dataset.__getitems__(indices))
            return default_collate([self.dataset[index] for index in indices])

    def sample(self, count: int, seed: int) -> Batch:
        """Return random rows as the data set has them, or all in order if they are few."""
        generator = torch.Generator().manual_seed(seed)
        few = self.length <= count
        order = torch.arange(self.length) if few else torch.randperm(self.length, generator=generator)[:count]
        return self.read.split(self.raw(order.tolist(), seed))


class GivenBatches(Source):
    """Batches from a ``DataLoader`` or any other iterable.

    Every pass iterates anew; an iterator has one pass. Torch's global generator and those of a loader are seeded for
    each batch, so the order of a loader that shuffles is a function of the seed. A resumed run reads past the batches
    that were used.
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
        if self.expected not in (None, rows):
            name = self.read.name
            raise ValueError(f"batch_size: {self.expected}, but {name} yields batches of {rows} rows; leave it out")
        self.expected = None  # the last batch of a pass may be smaller
        return rows

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
        self._used = position
        if self._has_one_pass:
            self._next = self._fetch(step)
            self.ended = self._next is None

    def _fetch(self, step: int) -> Any:
        """Return the next batch of the pass, or ``None`` at its end."""
        with _seeded(self.batches, self.seed(step)):
            if self._iterator is None:
                self._iterator = iter(self.batches)
            return self._sampled.pop(0) if self._sampled else next(self._iterator, None)

    def sample(self, count: int) -> Batch:
        """Return the rows of the first batches; those of an iterator are kept for the training."""
        batches = first_batches(self.batches, self.read, count, self.seed(0))
        self._sampled = batches if self._has_one_pass else []
        return concatenated([self.read.split(batch) for batch in batches], self.read.name)


class Reader:
    """Reads batches ``x`` or ``(x, condition)`` of a data set or loader, for a model and on a device."""

    def __init__(self, model: AutoregressiveModel, device: torch.device, name: str) -> None:
        self.model, self.device, self.name = model, device, name

    def __call__(self, batch: Any) -> Batch:
        """Return checked rows ``(B, D)`` and conditions on the device."""
        x, condition = self.split(batch)
        return data.moved(self.device, data.check_rows(self.model, x, self.name), condition)

    def split(self, batch: Any) -> Batch:
        """Return the rows ``(B, D)`` of a batch and their conditions, as they are."""
        if isinstance(batch, list | tuple):
            if len(batch) not in (1, 2):
                raise ValueError(f"{self.name}: expected batches x or (x, condition), got {len(batch)} parts")
            x, condition = (*batch, None)[:2]
        else:
            x, condition = batch, None
        if isinstance(x, Mapping):
            raise ValueError(f"{self.name}: expected batches x or (x, condition), got a mapping of {[*x]}")
        if condition is not None and not self.model.context.is_conditional:
            raise ValueError(
                f"{self.name}: yields (x, condition), but the model has no condition; yield x alone, or set classes "
                "or condition_features"
            )
        x = data.as_tensor(x, self.name)
        if x.ndim > 2:
            x = x.flatten(1)  # images
        elif x.ndim == 1 and len(x) == self.model.features:
            raise ValueError(f"{self.name}: yields single rows; put it into a torch.utils.data.DataLoader")
        return x, data.as_condition(condition)


class TrainingData(NamedTuple):
    """A source of batches, and rows and conditions from which units are computed."""

    source: Source
    rows: Tensor | RowStream
    condition: Condition | None


def training_data(
    x: Rows, condition: Any, model: AutoregressiveModel, device: torch.device, config: TrainConfig, processes: int
) -> TrainingData:
    """Return the training data of one of ``processes``, checked."""
    order_seed = partial(fold_in, config.seed, _ORDER)
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
    read, order_seed = Reader(model, device, "x_train"), partial(fold_in, config.seed, _ORDER)
    count = 1 if config.standardise == "none" else min(_SAMPLED_ROWS, -(-_SAMPLED_VALUES // model.features))
    source: Source
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
        source = GivenBatches(as_batches(x, "x_train"), read, partial(fold_in, config.seed, _BATCHES), expected)
        sample = source.sample(count)
    rows, condition = sample
    checked = data.check_rows(model, rows, "x_train")
    data.check_resolution(model, rows)
    data.check_condition(model.context, checked, condition)
    return TrainingData(source, rows, condition)  # as they were given: their moments need all digits


def number_of_steps(config: TrainConfig, source: Source) -> int:
    """Return the number of optimizer steps that a configuration asks for."""
    if config.epochs is None:
        return config.steps
    if source.steps_per_epoch is None:
        raise ValueError("epochs: x_train has no length; give steps instead")
    return max(1, math.ceil(config.epochs * source.steps_per_epoch))


def held_out_rows(x: Rows, condition: Any, model: AutoregressiveModel, count: int) -> Batch:
    """Return held-out rows, checked: all of those in memory, or at least the first ``count`` of others."""
    if is_in_memory(x):
        rows, condition = data.check_rows(model, data.as_tensor(x, "x_valid"), "x_valid"), data.as_condition(condition)
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
    return rows.detach(), condition


def is_in_memory(x: object) -> bool:
    """Return whether this is a tensor or an array, or nothing that yields batches, which a later check rejects."""
    if isinstance(x, list | tuple):
        return not _holds_batches(x)
    if isinstance(x, Tensor) or hasattr(x, "__array__"):
        return True
    return not is_dataset(x) and not hasattr(x, "__iter__")


def _holds_batches(x: Sequence[Any]) -> bool:
    """Return whether a list or tuple holds tensors, arrays or pairs of them, and not numbers."""
    first = x[0] if x else None
    if isinstance(first, list | tuple):
        first = first[0] if first else None
    return getattr(first, "ndim", 0) > 0


def is_dataset(x: object) -> bool:
    """Return whether this is a map-style data set."""
    other = isinstance(x, IterableDataset | Mapping | str | bytes | list | tuple)
    return not other and hasattr(x, "__getitem__") and hasattr(x, "__len__")


def as_batches(x: Any, name: str) -> Iterable[Any]:
    """Return an iterable of batches, or raise an error for a mapping, a text or what may be rows with conditions."""
    if isinstance(x, Mapping | str | bytes):
        raise ValueError(f"{name}: expected a tensor, a Dataset or an iterable of batches, got {type(x).__name__}")
    if isinstance(x, tuple) and len(x) == 2 and not isinstance(x[0], list | tuple):
        raise ValueError(f"{name}: got a tuple of two; pass the conditions apart, or give a list of batches")
    return cast(Iterable[Any], x)


def concatenated(batches: Sequence[Batch], name: str) -> Batch:
    """Return batches as one."""
    if not batches:
        raise ValueError(f"{name}: yields no batch")
    conditions = [condition for _, condition in batches if condition is not None]
    if len(conditions) not in (0, len(batches)):
        raise ValueError(f"{name}: yields some batches with conditions and some without")
    x = torch.cat([rows for rows, _ in batches])
    if not conditions or isinstance(conditions[0], Tensor):
        return x, torch.cat(cast(list[Tensor], conditions)) if conditions else None
    parts = cast(list[Mapping[str, Tensor]], conditions)
    return x, {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def first_batches(batches: Iterable[Any], read: Reader, count: int, seed: int) -> list[Any]:
    """Return batches until they have ``count`` rows, seeded like those of :class:`GivenBatches`."""
    found, rows = [], 0
    with _seeded(batches, seed):
        for batch in batches:
            found.append(batch)
            rows += len(read.split(batch)[0])
            if rows >= count:
                break
    return found


@contextmanager
def _seeded(batches: Iterable[Any], seed: int) -> Iterator[None]:
    """Seed torch's global generator, and those of a loader by their own seeds too; restore all of them afterwards."""
    samplers = [getattr(batches, name, None) for name in ("sampler", "batch_sampler")]
    owners = (batches, *samplers, getattr(samplers[1], "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    generators = {id(each): each for each in found if isinstance(each, torch.Generator)}
    generators.pop(id(torch.default_generator), None)
    states = [(generator, generator.get_state()) for generator in generators.values()]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for generator, _ in states:
            generator.manual_seed(fold_in(seed, _ORDER, generator.initial_seed()))
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)


def _length(batches: Iterable[Any]) -> int | None:
    try:
        return len(cast(Sequence[Any], batches))
    except TypeError:  # also of a loader whose data set has no length
        return None
