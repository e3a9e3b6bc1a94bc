"""Tables of numbers on disk, for the tests of streams and data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd


def counted_rows(rows: int = 1000, columns: int = 3) -> np.ndarray:
    """Return random numbers whose first column counts the rows."""
    values = np.random.default_rng(0).normal(5.0, 2.0, (rows, columns))
    values[:, 0] = np.arange(rows)
    return values


def write_rows(path: Path, values: np.ndarray) -> Path:
    """Write an NPY file, or a Parquet file with small row groups, by the suffix."""
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        pd.DataFrame(values, columns=[f"c{d}" for d in range(values.shape[1])]).to_parquet(path, row_group_size=70)
    return path
