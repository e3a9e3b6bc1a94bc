"""Tables as their files hold them, with missing values filled in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from arcsm.data import FrameFile
from arcsm.data.column_types import MISSING, has_leading_zeros
from arcsm.data.number_formats import write_like
from arcsm.data.row_labels import label_name
from arcsm.estimators.encoder import clip_to_dtype, is_categorical
from arcsm.estimators.rounding import count_decimals, round_column

_PART_ROWS = 50_000


def fill_in_file(table: FrameFile, rows: pd.DataFrame, filled: pd.DataFrame, out: Path) -> pd.DataFrame:
    """Return the table of a file with its missing values filled in, and all else unchanged.

    From CSV to CSV known cells keep their text; from Parquet columns keep their types. ``rows`` are the rows as read,
    perhaps without some columns of the file.
    """
    file, filled = table.file, _rounded(rows, filled)
    whole = pd.concat(file.raw_parts(_PART_ROWS), ignore_index=True)
    whole.columns = pd.Index([str(name) for name in whole.columns])
    if file.is_text and out.suffix.lower() == ".parquet":
        gaps = (*MISSING, *table.options.missing)
        others = {name: _text_as_numbers(whole[name], gaps) for name in whole.columns if name not in filled.columns}
        typed = whole.assign(**others, **{name: filled[name].to_numpy() for name in filled.columns})
        return typed.rename(columns={"": label_name(whole.columns)})
    for name in rows.columns:
        missing = rows[name].isna().to_numpy()
        if missing.any():
            values = filled[name][missing]
            cells = whole[name]
            whole[name] = cells.astype(object) if cells.dtype == "str" else cells
            whole.loc[missing, name] = _cells(table, rows[name], values, cells)
    return whole


def _rounded(rows: pd.DataFrame, filled: pd.DataFrame) -> pd.DataFrame:
    """Round the filled numbers to as many decimals as the known ones have."""
    filled = filled.copy()
    for name in rows.columns:
        if pd.api.types.is_float_dtype(filled[name].dtype) and rows[name].isna().any():
            decimals = count_decimals(rows[name])
            if decimals is not None:
                known = rows[name].notna().to_numpy()
                filled[name] = filled[name].where(known, round_column(filled[name], decimals))
    return filled


def _cells(table: FrameFile, known: pd.Series, values: pd.Series, cells: pd.Series) -> Any:
    """Return values in the form of the other cells of a column."""
    form = table.types[str(known.name)].format
    if form is not None:
        return form.write(values).to_numpy()
    if not table.file.is_text:
        return clip_to_dtype(values.to_numpy(dtype=object), cells.dtype)
    if not is_categorical(values.dtype):
        return write_like(values, cells[known.notna().to_numpy()], table.file.decimal)
    return values.astype(str).replace(table.truth_words.get(str(known.name), {})).to_numpy()


def _text_as_numbers(column: pd.Series, gaps: Sequence[str]) -> pd.Series:
    """Convert a text column to numbers if all of its cells are numbers and none is a code with leading zeros."""
    numbers = pd.to_numeric(column.mask(column.isin(gaps)), errors="coerce")
    texts = column[~column.isin(gaps)]
    return column if numbers[texts.index].isna().any() or has_leading_zeros(texts) else numbers
