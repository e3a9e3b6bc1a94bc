"""Tables larger than memory: read a window of rows at a time, in another order each epoch."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
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
from arcsm.data.checks import check_finite, check_spread, check_unique, check_width
from arcsm.data.column_types import default_names, number_array, row_place
from arcsm.data.numpy_files import npy_header
from arcsm.data.parquet_limits import expansion_check

STREAMED_SUFFIXES = (".npy", ".parquet")
MIN_STREAMED_BYTES = 1 << 30  #: tables larger than this are streamed by default
WINDOW_BYTES = 128 << 20  #: rows in memory at a time
_BLOCK_BYTES = 1 << 20  # of an array, read in one piece
_MAX_HELD_OUT = 10_000  # rows


class Blocks(ABC):
    """A table in a file, as blocks of rows that are each read in one piece."""

    path: Path
    columns: tuple[str, ...]  # D names
    ends: list[int]  # for each block, the number of rows up to its end

    @abstractmethod
    def read(self, block: int) -> np.ndarray:
        """Return the rows of a block, ``(n, D)``, in the type of the file."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return self.ends[-1], len(self.columns)

    def span(self, block: int) -> tuple[int, int]:
        """Return the first row of a block and the first row after it."""
        return self.ends[block - 1] if block else 0, self.ends[block]


class ArrayBlocks(Blocks):
    """A one- or two-dimensional array in an NPY file, mapped into memory while a block is read."""

    def __init__(self, path: FilePath) -> None:
        self.path = existing_file(path)
        with self.path.open("rb") as file:
            shape, dtype = npy_header(file, str(path), self.path.stat().st_size)
        if len(shape) not in (1, 2) or min(shape) < 1:
            raise ValueError(f"{path}: expected an array of shape (n, D), got {shape}")
        features = shape[1] if len(shape) == 2 else 1
        check_width(features, self.path)
        self.columns = default_names(features)
        rows = max(1, _BLOCK_BYTES // (features * dtype.itemsize))
        self.ends = [*range(rows, shape[0], rows), shape[0]]

    def read(self, block: int) -> np.ndarray:
        with reading(self.path):
            mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
            rows = np.array(mapped[slice(*self.span(block))], dtype=mapped.dtype.newbyteorder("="))
        return rows[:, None] if rows.ndim == 1 else rows  # (n, D)


class ParquetBlocks(Blocks):
    """The row groups of a Parquet file."""

    def __init__(self, path: FilePath) -> None:
        self.path = existing_file(path)
        with reading(self.path):
            metadata = parquet.read_metadata(self.path)
            empty = parquet.read_schema(self.path).empty_table().to_pandas()  # drops the index that pandas saved
        self.columns = tuple(str(name) for name in empty.columns)
        check_unique(self.columns, self.path)
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        self.ends = list(itertools.accumulate(group.num_rows for group in groups))
        if not groups or not self.ends[-1]:
            raise ValueError(f"{path}: expected at least one row of data, got none")
        check_fits(2 * max(group.total_byte_size for group in groups), f"{path}: its largest row group")
        self._check_expansion = expansion_check(self.path, max(group.num_rows for group in groups))

    def read(self, block: int) -> np.ndarray:
        self._check_expansion(self.ends[block])
        with reading(self.path), parquet.ParquetFile(self.path) as file:
            table = file.read_row_group(block)
            table.validate(full=True)  # text that is not in UTF-8, for one, would fail later
            frame = table.to_pandas()
        first, end = self.span(block)
        if frame.shape != (end - first, len(self.columns)):
            raise ValueError(f"{self.path}: is damaged: {end - first} rows are announced, and {len(frame)} found")
        frame = frame.set_axis(self.columns, axis=1).set_axis(range(first, end), axis=0)
        return np.array(number_array(frame, self.path, row_place))  # a copy that torch may write to


def blocks_of(path: FilePath) -> Blocks:
    """Return the blocks of an NPY or Parquet file.

    Raises:
        ValueError: If the file is of another kind, damaged or empty.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in STREAMED_SUFFIXES:
        listing = " and ".join(STREAMED_SUFFIXES)
        raise ValueError(f"{path}: streaming supports only {listing} files; convert it to one of them")
    return ArrayBlocks(path) if suffix == ".npy" else ParquetBlocks(path)


class RowStream:
    """Training rows that stay on disk.

    An epoch reads the blocks of the file in random order, as many at a time as fill a window, and shuffles the rows of
    the window. Memory does not grow with the file, and the order depends on the seed alone.

    A first pass over the file checks every value, computes the moments of the columns, and holds out rows for
    validation and test: random ones of the whole file, at most 10,000 each.

    Arguments:
        blocks: The file.
        validation: Fraction of the rows held out for validation.
        test: Fraction of the rows held out for results.
        seed: Seed of the choice of held-out rows.
        window: Bytes of rows in memory at a time. Default: 128 MiB. A window holds at least one block.
        dtype: Type of the rows. Default: torch's default type.
        progress: Show a progress bar during the first pass.

    Attributes:
        shape: ``(N, D)`` of the training rows.
        counts: For each block, the numbers of validation, test and training rows.
        valid: The rows held out for validation.
        test: The rows held out for results.
        mean: Column means of the training rows, ``(D,)``, in double precision.
        deviation: Column standard deviations of the training rows, ``(D,)``.

    Raises:
        ValueError: If values are missing, infinite or not numbers, or there are too few rows.
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
        self.window = WINDOW_BYTES if window is None else window
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        rows, features = blocks.shape
        fractions = [min(fraction, _MAX_HELD_OUT / rows) for fraction in (validation, test)]
        self.counts = [_split_counts(*blocks.span(block), fractions) for block in range(len(blocks.ends))]
        n_valid, _, n_train = (sum(counts) for counts in zip(*self.counts, strict=True))
        if min(n_valid, n_train) < 1:
            raise ValueError(f"data: {rows} rows are too few to hold out {validation:.0%} for validation")
        self.shape = (n_train, features)
        self._first_pass(progress)

    def __len__(self) -> int:
        return self.shape[0]

    def epoch(self, seed: int) -> StreamEpoch:
        """Return the training rows in a random order."""
        return StreamEpoch(self, seed)

    def first(self, count: int) -> Tensor:
        """Return at most ``count`` training rows, ``(count, D)``, from a random place in the file."""
        return self.epoch(self.seed).rows(slice(0, min(count, len(self))))

    def train_rows(self, block: int) -> Tensor:
        """Return the training rows of a block."""
        return self._split(block, self._values(block))[2]

    def _values(self, block: int) -> np.ndarray:
        """Read and check all values of a block, ``(n, D)``."""
        values, (first, last) = self.blocks.read(block), self.blocks.span(block)
        if values.shape != (last - first, self.shape[1]):
            raise ValueError(f"{self.blocks.path}: has changed since it was opened")
        check_finite(values, self.blocks.columns, self.blocks.path, lambda row: row_place(first + row))
        return values

    def _split(self, block: int, values: np.ndarray) -> tuple[Tensor, ...]:
        """Return the validation, test and training rows of a block."""
        rows = torch.from_numpy(values).to(self.dtype)
        order = torch.randperm(len(rows), generator=_generator(self.seed, block))
        return tuple(rows[places] for places in order.split(self.counts[block]))

    def _first_pass(self, progress: bool) -> None:
        held_out: tuple[list[Tensor], list[Tensor]] = ([], [])
        train_moments, moments, size = RunningMoments(), RunningMoments(), np.zeros(self.shape[1])
        path = self.blocks.path
        with track(f"checking {path.name}", len(self.blocks.ends), progress) as advance:
            for block in range(len(self.blocks.ends)):
                values = self._values(block)
                moments.add(torch.from_numpy(values))
                np.maximum(size, np.abs(values).max(0), out=size)
                *others, train = self._split(block, values)
                for parts, rows in zip(held_out, others, strict=True):
                    parts.append(rows)
                train_moments.add(train)
                advance()
        if self.dtype == torch.float32:
            check_spread(moments.deviation.numpy(), moments.mean.numpy(), size, self.blocks.columns, path)
        self.valid, self.test = (torch.cat(parts) for parts in held_out)
        self.mean, self.deviation = train_moments.mean, train_moments.deviation


class StreamEpoch:
    """All training rows of a stream in one random order, one window of them in memory."""

    def __init__(self, stream: RowStream, seed: int) -> None:
        self.stream, self.seed = stream, seed
        self._window: tuple[int, Tensor] | None = None

    @cached_property
    def windows(self) -> list[list[int]]:
        """The blocks of each window."""
        order = torch.randperm(len(self.stream.blocks.ends), generator=_generator(self.seed, -1)).tolist()
        row_bytes = self.stream.shape[1] * self.stream.dtype.itemsize
        windows: list[list[int]] = [[]]
        size = 0
        for block in order:
            block_bytes = self.stream.counts[block][2] * row_bytes
            if windows[-1] and size + block_bytes > self.stream.window:
                windows.append([])
                size = 0
            windows[-1].append(block)
            size += block_bytes
        return windows

    @cached_property
    def ends(self) -> list[int]:
        """For each window, the number of rows up to its end."""
        sizes = (sum(self.stream.counts[block][2] for block in window) for window in self.windows)
        return list(itertools.accumulate(sizes))

    def rows(self, part: slice) -> Tensor:
        """Return the rows of a part of the epoch, ``(n, D)``."""
        pieces, begin = [], 0
        for window, end in enumerate(self.ends):
            if begin < part.stop and part.start < end:
                pieces.append(self._read(window)[max(part.start, begin) - begin : min(part.stop, end) - begin])
            begin = end
        return torch.cat(pieces)

    def _read(self, window: int) -> Tensor:
        if self._window is None or self._window[0] != window:
            self._window = None  # frees its memory for the next
            count = self.ends[window] - (self.ends[window - 1] if window else 0)
            places = torch.randperm(count, generator=_generator(self.seed, window))
            rows, filled = torch.empty(count, self.stream.shape[1], dtype=self.stream.dtype), 0
            for block in self.windows[window]:
                block_rows = self.stream.train_rows(block)
                rows[places[filled : filled + len(block_rows)]] = block_rows
                filled += len(block_rows)
            self._window = (window, rows)
        return self._window[1]


def _split_counts(first: int, last: int, fractions: Sequence[float]) -> tuple[int, int, int]:
    """Return how many rows of a block are for validation, test and training, close to their fractions in total."""
    valid, test = (int(fraction * last + 0.5) - int(fraction * first + 0.5) for fraction in fractions)
    test = min(test, last - first - valid)
    return valid, test, last - first - valid - test


def is_large(path: FilePath) -> bool:
    """Return whether a table is streamed by default: if it exceeds 1 GiB and every block is small in comparison.

    Free memory plays no part, so that a resumed run sees the same rows.
    """
    path = Path(path)
    if path.suffix.lower() not in STREAMED_SUFFIXES or not path.is_file():
        return False
    if path.suffix.lower() == ".npy":
        return path.stat().st_size > MIN_STREAMED_BYTES
    with reading(path):
        metadata = parquet.read_metadata(path)
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return 8 * sum(rows) * metadata.num_columns > MIN_STREAMED_BYTES and 4 * max(rows) <= sum(rows)


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(fold_in(seed, number + 1, 0))
