"""Tables of numbers and names, in a form that every method understands."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from arcsm.data.datasets import data_folder
from arcsm.experiments.comparisons import Array

UCI = ("concrete", "elevators", "energy", "parkinsons", "protein", "sml", "wine")
MIXED = ("Computers", "HI", "Hdma", "Males", "OFP", "Star", "Wages", "adult", "diamonds")


@dataclass(frozen=True)
class Table:
    """Rows of numbers; names are the numbers of their levels, and NaN are gaps."""

    values: Array  # (N, M)
    names: tuple[tuple[str, ...], ...]  # of the levels of each column, () for numbers

    @cached_property
    def nominal(self) -> NDArray[np.bool_]:
        """Which columns hold names, ``(M,)``."""
        return np.array([bool(levels) for levels in self.names])

    def without(self, hidden: NDArray[np.bool_]) -> "Table":
        """Return the table with gaps where ``hidden (N, M)``."""
        return Table(np.where(hidden, np.nan, self.values), self.names)

    def frame(self) -> pd.DataFrame:
        """Return the table with its names."""
        columns = {}
        for m, (column, levels) in enumerate(zip(self.values.T, self.names, strict=True)):
            texts = [None if np.isnan(value) else levels[int(value)] for value in column] if levels else None
            columns[f"x{m}"] = column if texts is None else pd.Series(texts, dtype=object)
        return pd.DataFrame(columns)

    def codes(self, frame: pd.DataFrame) -> Array:
        """Return the numbers of a frame of the same columns, ``(N, M)``."""
        found = np.empty(frame.shape)
        for m, levels in enumerate(self.names):
            column = frame.iloc[:, m]
            places = {name: code for code, name in enumerate(levels)}
            found[:, m] = column.map(places).to_numpy(float) if levels else column.to_numpy(float)
        return found


def read_rows(name: str, most_rows: int, seed: int) -> Table:
    """Return random rows of a table in the folder ``mixed`` or ``uci`` of the data folder.

    Columns of a single value are left out.
    """
    folder = data_folder()
    mixed, numeric = folder / "mixed" / f"{name}.csv.gz", folder / "uci" / f"{name}.csv.gz"
    if not mixed.is_file() and not numeric.is_file():
        raise ValueError(f"{mixed}: no such table; put it there, or set ARCSM_DATA")
    frame = pd.read_csv(mixed) if mixed.is_file() else pd.read_csv(numeric, header=None)
    frame = frame.sample(min(most_rows, len(frame)), random_state=seed)
    frame = frame.loc[:, frame.nunique() > 1]
    values, names = np.empty(frame.shape), list[tuple[str, ...]]()
    for m, (_, column) in enumerate(frame.items()):
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            values[:, m] = column.to_numpy(float)
            names.append(())
        else:
            texts = column.astype("string").astype("category")
            values[:, m] = np.where(texts.isna(), np.nan, texts.cat.codes)
            names.append(tuple(map(str, texts.cat.categories)))
    return Table(values, tuple(names))
