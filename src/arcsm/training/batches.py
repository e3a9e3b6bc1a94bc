"""The rows that :func:`arcsm.fit` accepts, and the reading of batches from data sets and loaders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from arcsm._runtime.conditions import Condition
from arcsm._runtime.random import fold_in
from arcsm.model import AutoregressiveModel
from arcsm.training import data
from arcsm.training.config import TrainConfig
from arcsm.training.purposes import Purpose

#: Rows: a tensor, an array, a :class:`RowStream`, a map-style ``Dataset``, or an iterable of batches. Items of the last
#: two are ``x`` or ``(x, condition)``.
Rows = Any
Batch = tuple[Tensor, Condition | None]


def is_in_memory(x: object) -> bool:
    """Return whether this is a tensor, an array, or something that yields no batches, which a later check rejects."""
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
    """Return an iterable of batches; reject mappings, text, settings and a pair that may be rows with conditions."""
    if isinstance(x, TrainConfig):
        raise ValueError(f"{name}: expected rows, got a TrainConfig; give it as config=...")
    if isinstance(x, Mapping | str | bytes):
        raise ValueError(f"{name}: expected a tensor, a Dataset or an iterable of batches, got {type(x).__name__}")
    if isinstance(x, tuple) and len(x) == 2 and not isinstance(x[0], list | tuple):
        raise ValueError(f"{name}: got a tuple of two; pass the conditions apart, or give a list of batches")
    return cast(Iterable[Any], x)


class Reader:
    """A reader of batches ``x`` or ``(x, condition)`` of a data set or loader, for a model on a device."""

    def __init__(self, model: AutoregressiveModel, device: torch.device, name: str) -> None:
        self.model, self.device, self.name = model, device, name

    def __call__(self, batch: Any) -> Batch:
        """Return checked rows ``(B, D)`` and conditions on the device."""
        x, condition = self.split(batch)
        return data.moved(self.device, data.check_rows(self.model, x, self.name), condition)

    def split(self, batch: Any) -> Batch:
        """Return the rows ``(B, D)`` of a batch and their conditions, unchecked."""
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


def concatenated(batches: Sequence[Batch], name: str) -> Batch:
    """Join batches into one."""
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
    """Return the first batches, as many as ``count`` rows need, iterated under a seed."""
    found, rows = [], 0
    with seeded(batches, seed):
        for batch in batches:
            found.append(batch)
            rows += len(read.split(batch)[0])
            if rows >= count:
                break
    return found


@contextmanager
def seeded(batches: Iterable[Any], seed: int) -> Iterator[None]:
    """Seed torch's global generator and those of a loader, the latter also by their own seeds; restore all of them."""
    samplers = [getattr(batches, name, None) for name in ("sampler", "batch_sampler")]
    owners = (batches, *samplers, getattr(samplers[1], "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    generators = {id(each): each for each in found if isinstance(each, torch.Generator)}
    generators.pop(id(torch.default_generator), None)
    states = [(generator, generator.get_state()) for generator in generators.values()]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for generator, _ in states:
            generator.manual_seed(fold_in(seed, Purpose.ORDER, generator.initial_seed()))
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)
