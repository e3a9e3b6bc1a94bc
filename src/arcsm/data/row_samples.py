"""Random rows of a table that is larger than memory."""

import csv
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet

from arcsm._runtime.files import FilePath, reading
from arcsm._runtime.progress import Track, track
from arcsm._runtime.sizes import check_size
from arcsm.data.frames import FrameFile
from arcsm.data.parquet_limits import PARQUET_KIND, row_count
from arcsm.data.read_options import ReadOptions
from arcsm.data.streams import ArrayBlocks
from arcsm.data.table import Sample, TableFile, frame_writer, write_table
from arcsm.errors import SkippedWarning, warn

Numbers = NDArray[np.int64]

MOST_ROWS, MOST_CELLS = 1_000_000, 50_000_000  #: of a sample by default
_PART_ROWS, _PART_CELLS = 50_000, 2_000_000  # at most, that are read at once
_SUFFIXES = {".csv.gz": ".csv", ".tsv.gz": ".tsv", ".npz": ".npy"}  # of copies
_TEXT = pd.ArrowDtype(pyarrow.string())  # far smaller than Python's strings


class SampledFile(FrameFile):
    """Random rows of a table in a file, each with equal probability, in their order in the file.

    The file is read a part at a time, so that memory does not grow with it. The rows are copied to a temporary
    file in the form of the first, from which types are inferred. It lives as long as the object.

    Arguments:
        path: A CSV, Parquet or NPY file; see :func:`~arcsm.data.read_table`. NPZ files are read whole.
        rows: How many rows. Default: a million, and at most 50 million cells.
        seed: Seed of the choice.
        options: How to read the file.
        source: The name of the file in messages. Default: its path.
        progress: Show a progress bar.

    Raises:
        ValueError: As in :class:`~arcsm.data.FrameFile`.
    """

    def __init__(
        self,
        path: FilePath,
        rows: int | None = None,
        seed: int = 0,
        options: ReadOptions | None = None,
        source: str | None = None,
        progress: bool = False,
    ) -> None:
        file = TableFile(path, None, options, source=source)
        columns, most = _size(file)
        rows = min(MOST_ROWS, max(1, MOST_CELLS // columns)) if rows is None else rows
        check_size("SampledFile", rows=rows)
        if most <= rows:
            super().__init__(path, options, source=source)
            return
        with track(f"drawing rows of {Path(file.source).name}", most, progress) as work:
            drawn, numbers, total = _draw(
                _parts(file, max(1, min(_PART_ROWS, _PART_CELLS // columns))), rows, seed, work
            )
        if not total:
            raise ValueError(f"{file.source}: expected at least one row of data, got none")
        if file.index:
            listed = ", ".join(map(repr, file.index))
            warn(f"{file.source}: its index only labels the rows: not modelled ({listed})", SkippedWarning)
        folder = tempfile.mkdtemp(prefix="arcsm-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        copy = Path(folder) / f"sample{_SUFFIXES.get(file.suffix, file.suffix)}"
        if file.is_text:
            dialect = file.csv.dialect
            form: dict[str, Any] = {
                "sep": dialect.separator,
                "encoding": dialect.encoding,
                "lineterminator": dialect.line_end,
            }
            drawn.to_csv(copy, index=False, quoting=csv.QUOTE_ALL, **form)  # quotes keep spaces
        elif file.suffix == ".parquet":
            with frame_writer(copy, file) as write:
                write(drawn)
        else:
            write_table(copy, drawn.to_numpy(), list(drawn.columns))
        super().__init__(copy, options, source=file.source)
        self.file.sample = Sample(numbers, total, file)


def sample_rows(
    path: FilePath,
    rows: int | None = None,
    seed: int = 0,
    options: ReadOptions | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Return random rows of a table of numbers, truth values, names and times that may be larger than memory.

    Arguments:
        path: A CSV, Parquet or NPY file.
        rows: How many rows; all if the file has fewer. Default: a million, and at most 50 million cells.
        seed: Seed of the choice.
        options: How to read the file.
        progress: Show a progress bar.

    Returns:
        The rows, in the order of the file, with an index from 0. Columns that only label the rows are left out.

    Raises:
        ValueError: As in :meth:`FrameFile.read`.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "large.csv"
        ...     _ = path.write_text("size\\n" + "\\n".join(f"{row}.5" for row in range(9_999)))
        ...     sample_rows(path, rows=3).shape
        (3, 1)
    """
    return SampledFile(path, rows, seed, options, progress=progress).read(set_aside=True)


def _size(file: TableFile) -> tuple[int, int]:
    """Return the number of columns of a file, and of rows or a bound on it."""
    if file.suffix == ".npz":
        values = file.array()
        return values.shape[1], len(values)
    if file.suffix == ".npy":
        rows, columns = ArrayBlocks(file.path).shape
        return columns, rows
    if file.suffix == ".parquet":
        with reading(file.path, PARQUET_KIND):
            metadata = parquet.read_metadata(file.path)
            return max(1, metadata.num_columns), row_count(metadata)
    return len(file.csv.columns), file.csv.most_rows


def _parts(file: TableFile, rows: int) -> Iterator[pd.DataFrame]:
    """Yield the rows of a file as :meth:`TableFile.raw_parts` does, without an index; text as that of Arrow."""
    if file.suffix == ".npy":
        blocks = ArrayBlocks(file.path)
        yield from (pd.DataFrame(blocks.read(block), columns=list(blocks.columns)) for block in range(len(blocks.ends)))
        return
    is_checked = False
    for part in file.raw_parts(rows):
        if file.is_text and not is_checked and bool((part.iloc[:, -1] == "").any()):
            file.csv.check_lengths()  # pandas fills up short rows
            is_checked = True
        part = part.drop(columns=file.index)
        yield part.astype(_TEXT) if file.is_text else part


def _draw(parts: Iterable[pd.DataFrame], rows: int, seed: int, work: Track) -> tuple[pd.DataFrame, Numbers, int]:
    """Return ``rows`` random rows of a table, their numbers, and how many rows there are.

    Each row has a random key, and the rows with the smallest keys are kept: at most twice as many, and a part.
    """
    random, bound, total = np.random.default_rng(seed), np.inf, 0
    kept: list[pd.DataFrame] = []
    keys, numbers = np.empty(0), np.empty(0, dtype=np.int64)

    def prune() -> None:
        nonlocal keys, numbers, bound
        if len(keys) > rows:
            lowest = np.sort(np.argpartition(keys, rows - 1)[:rows])
            kept[:] = [pd.concat(kept, ignore_index=True).iloc[lowest]]
            keys, numbers = keys[lowest], numbers[lowest]
            bound = float(keys.max())

    for part in parts:
        key = random.random(len(part))
        chosen = np.flatnonzero(key < bound)
        kept.append(part.iloc[chosen])
        keys, numbers = np.concatenate([keys, key[chosen]]), np.concatenate([numbers, total + chosen])
        total += len(part)
        if len(keys) > 2 * rows:
            prune()
        work(len(part))
    prune()
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame(), numbers, total
