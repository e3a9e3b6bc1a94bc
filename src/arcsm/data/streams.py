"""Tables that are larger than memory: read a window of rows at a time, in another order each epoch."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
from torch import Tensor

from arcsm._runtime.files import FilePath, existing_file, reading
from arcsm._runtime.memory import check_fits
from arcsm._runtime.moments import RunningMoments
from arcsm._runtime.progress import track
from arcsm._runtime.random import fold_in
from arcsm.data.arrays import check_columns, check_finite, check_spread, frame_numbers, npy_header, row_place
from arcsm.data.csv_files import check_width, default_columns

STREAMED_SUFFIXES = (".npy", ".parquet")
LARGE = 1 << 30  #: bytes of a table from which on it is streamed
WINDOW = 128 << 20  #: bytes of rows that are in memory at a time
_BLOCK = 1 << 20  # bytes of an array that are read in one piece
_MOST_HELD_OUT = 10_000  # rows


class Blocks(ABC):
    """A table in a file, as blocks of rows that are each read in one piece.

    Attributes:
        path: The file.
        columns: Names of the ``D`` columns.
        ends: For each block the number of rows up to its end.
    """

    path: Path
    columns: tuple[str, ...]
    ends: list[int]

    @abstractmethod
    def read(self, block: int) -> np.ndarray:
        """The rows of a block, ``(n, D)``, of whatever type the file has."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.ends[-1], len(self.columns)

    def span(self, block: int) -> tuple[int, int]:
        """The first row of a block, and the first after it."""
        return self.ends[block - 1] if block else 0, self.ends[block]


class ArrayBlocks(Blocks):
    """A two-dimensional array in an NPY file, which is mapped into memory while a block is read."""

    def __init__(self, path: FilePath) -> None:
        self.path = existing_file(path)
        with self.path.open("rb") as file:
            shape, dtype = npy_header(file, str(path))
        if len(shape) not in (1, 2) or min(shape) < 1:
            raise ValueError(f"{path}: expected an array of shape (n, D), got {shape}")
        if math.prod(shape) * dtype.itemsize > self.path.stat().st_size:
            raise ValueError(f"{path}: cannot be read, damaged: too short for an array of shape {shape}")
        check_width(shape[1] if len(shape) == 2 else 1, self.path)
        self.columns = default_columns(shape[1] if len(shape) == 2 else 1)
        rows = max(1, _BLOCK // (len(self.columns) * dtype.itemsize))
        self.ends = [*range(rows, shape[0], rows), shape[0]]

    def read(self, block: int) -> np.ndarray:
        with reading(self.path):
            mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
            rows = np.array(mapped[slice(*self.span(block))], dtype=mapped.dtype.newbyteorder("="))
        return rows[:, None] if rows.ndim == 1 else rows


class ParquetBlocks(Blocks):
    """The row groups of a Parquet file."""

    def __init__(self, path: FilePath) -> None:
        self.path = existing_file(path)
        with reading(self.path):
            metadata = parquet.read_metadata(self.path)
            empty = parquet.read_schema(self.path).empty_table().to_pandas()  # without the index that pandas saves
        self.columns = tuple(str(name) for name in empty.columns)
        check_columns(self.columns, len(self.columns), self.path)
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        self.ends = list(itertools.accumulate(group.num_rows for group in groups))
        if not groups or not self.ends[-1]:
            raise ValueError(f"{path}: expected at least one row of data, got none")
        check_fits(2 * max(group.total_byte_size for group in groups), f"{path}: its largest row group")

    def read(self, block: int) -> np.ndarray:
        with reading(self.path), parquet.ParquetFile(self.path) as file:
            frame = file.read_row_group(block).to_pandas()
        return np.array(frame_numbers(frame, self.path, self.span(block)[0]))  # its own, so that torch may write


def blocks_of(path: FilePath) -> Blocks:
    """The blocks of an NPY or Parquet file.

    Raises:
        ValueError: for a file of another kind, or one that is damaged or empty.
    """
    kinds: dict[str, Callable[[FilePath], Blocks]] = {".npy": ArrayBlocks, ".parquet": ParquetBlocks}
    suffix = Path(path).suffix.lower()
    if suffix not in kinds:
        raise ValueError(f"{path}: only {' and '.join(kinds)} files are read a part at a time; convert it to one")
    return kinds[suffix](path)


class RowStream:
    """Rows to train on that stay on disk.

    An epoch goes through the blocks of the file in random order. As many as fill a window are read at a time, and
    their rows are shuffled; so memory does not grow with the file, and the order is a function of the seed alone.

    One pass over the file comes first: it checks every value, finds the moments of the columns and takes out rows to
    validate and to test on, at random from the whole of the file, but no more than 10,000 of each.

    Arguments:
        blocks: The file.
        validation: Share of the rows that is held out for validation.
        test: Share that is held out for results.
        seed: Seed of the choice of the rows that are held out.
        window: Bytes of rows that are in memory at a time, 128 MiB by default; at least one block is.
        dtype: Of the rows; by default torch's.
        progress: Show a progress bar while the file is looked at.

    Attributes:
        shape: ``(N, D)`` of the rows to train on.
        counts: For each block the number of rows that are for validation, for the test and for training.
        valid: Rows held out for validation.
        test: Rows held out for results.
        mean: Means of the columns, ``(D,)`` in double precision, of the rows to train on.
        deviation: Their standard deviations, ``(D,)``.

    Raises:
        ValueError: for values that are missing, infinite or no numbers, and for too few rows.
    """

    def __init__(
        self,
        blocks: Blocks,
        validation: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        window: int | None = None,
        dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> None:
        self.blocks, self.seed = blocks, seed
        self.window = WINDOW if window is None else window
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        rows, features = blocks.shape
        shares = [min(share, _MOST_HELD_OUT / rows) for share in (validation, test)]
        self.counts = [_divided(*blocks.span(block), shares) for block in range(len(blocks.ends))]
        n_valid, _, n_train = (sum(counts) for counts in zip(*self.counts, strict=True))
        if min(n_valid, n_train) < 1:
            raise ValueError(f"data: {rows} rows are too few to hold out {validation:.0%} for validation")
        self.shape = (n_train, features)
        self._look(progress)

    def __len__(self) -> int:
        return self.shape[0]

    def epoch(self, seed: int) -> StreamEpoch:
        """The rows in a random order."""
        return StreamEpoch(self, seed)

    def first(self, count: int) -> Tensor:
        """Some rows, ``(count, D)`` at most, from a random place of the file."""
        return self.epoch(self.seed).rows(slice(0, min(count, len(self))))

    def train_rows(self, block: int) -> Tensor:
        """The rows of a block that are not held out."""
        return self._split(block)[2]

    def _split(self, block: int, look: Callable[[np.ndarray], None] = lambda _: None) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of a block that are for validation, for the test and for training; ``look`` is given all values."""
        values, (first, last) = self.blocks.read(block), self.blocks.span(block)
        if values.shape != (last - first, self.shape[1]):
            raise ValueError(f"{self.blocks.path}: has changed since it was opened")
        check_finite(values, self.blocks.columns, self.blocks.path, row_place, first)
        look(values)
        rows = torch.from_numpy(values).to(self.dtype)
        order = torch.randperm(len(rows), generator=_generator(self.seed, block))
        ends = list(itertools.accumulate([0, *self.counts[block]]))
        valid, test, train = (rows[order[a:b]] for a, b in itertools.pairwise(ends))
        return valid, test, train

    def _look(self, progress: bool) -> None:
        """Go through the file once."""
        held_out: tuple[list[Tensor], list[Tensor]] = ([], [])
        moments, of_all, size = RunningMoments(), RunningMoments(), np.zeros(self.shape[1])

        def look(values: np.ndarray) -> None:
            of_all.add(torch.from_numpy(values))
            np.maximum(size, np.abs(values).max(0), out=size)

        with track(f"looking at {self.blocks.path.name}", len(self.blocks.ends), progress) as advance:
            for block in range(len(self.blocks.ends)):
                *others, train = self._split(block, look)
                for kept, rows in zip(held_out, others, strict=True):
                    kept.append(rows)
                moments.add(train)
                advance()
        if self.dtype == torch.float32:
            middle, deviation = of_all.mean.numpy(), of_all.deviation.numpy()
            check_spread(deviation, middle, size, self.blocks.columns, self.blocks.path)
        self.valid, self.test = (torch.cat(kept) for kept in held_out)
        self.mean, self.deviation = moments.mean, moments.deviation


class StreamEpoch:
    """All rows of a stream in one random order, of which a window is in memory."""

    def __init__(self, stream: RowStream, seed: int) -> None:
        self.stream, self.seed = stream, seed
        self._window: tuple[int, Tensor] | None = None

    @cached_property
    def windows(self) -> list[list[int]]:
        """The blocks of each window."""
        order = torch.randperm(len(self.stream.blocks.ends), generator=_generator(self.seed, -1)).tolist()
        row = self.stream.shape[1] * self.stream.dtype.itemsize
        windows: list[list[int]] = [[]]
        size = 0
        for block in order:
            own = self.stream.counts[block][2] * row
            if windows[-1] and size + own > self.stream.window:
                windows.append([])
                size = 0
            windows[-1].append(block)
            size += own
        return windows

    @cached_property
    def ends(self) -> list[int]:
        """For each window the number of rows up to its end."""
        sizes = (sum(self.stream.counts[block][2] for block in window) for window in self.windows)
        return list(itertools.accumulate(sizes))

    def rows(self, part: slice) -> Tensor:
        """Rows from and up to a place in the epoch, ``(n, D)``."""
        return torch.cat(list(self._pieces(part.start, part.stop)))

    def _pieces(self, first: int, last: int) -> Iterator[Tensor]:
        begin = 0
        for window, end in enumerate(self.ends):
            if begin < last and first < end:
                yield self._read(window)[max(first, begin) - begin : min(last, end) - begin]
            begin = end

    def _read(self, window: int) -> Tensor:
        if self._window is None or self._window[0] != window:
            self._window = None  # its memory is needed for the next
            count = self.ends[window] - (self.ends[window - 1] if window else 0)
            places = torch.randperm(count, generator=_generator(self.seed, window))
            rows, filled = torch.empty(count, self.stream.shape[1], dtype=self.stream.dtype), 0
            for block in self.windows[window]:
                own = self.stream.train_rows(block)
                rows[places[filled : filled + len(own)]] = own
                filled += len(own)
            self._window = (window, rows)
        return self._window[1]


def _divided(first: int, last: int, shares: Sequence[float]) -> tuple[int, int, int]:
    """How many rows of a block are for validation, for the test and for training: together about their shares."""
    valid, test = (int(share * last + 0.5) - int(share * first + 0.5) for share in shares)
    test = min(test, last - first - valid)
    return valid, test, last - first - valid - test


def is_large(path: FilePath) -> bool:
    """Whether a table is streamed unless it is said otherwise: more than 1 GiB, and no block of it much of that.

    What memory is free plays no part, so that a run that goes on does so with the same rows.
    """
    path = Path(path)
    if path.suffix.lower() not in STREAMED_SUFFIXES or not path.is_file():
        return False
    if path.suffix.lower() == ".npy":
        return path.stat().st_size > LARGE
    with reading(path):
        metadata = parquet.read_metadata(path)
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return 8 * sum(rows) * metadata.num_columns > LARGE and 4 * max(rows) <= sum(rows)


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(fold_in(seed, number + 1, 0))


__all__: Sequence[str] = ["STREAMED_SUFFIXES", "Blocks", "RowStream", "StreamEpoch", "blocks_of", "is_large"]
