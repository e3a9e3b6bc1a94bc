"""Tables as their files hold them, with missing values filled in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow

from arcsm.data import FrameFile
from arcsm.data.column_types import MISSING
from arcsm.data.number_formats import LEADING_ZERO, NumberFormat, PlainNumbers
from arcsm.data.parquet_files import fill_categories, read_index
from arcsm.data.row_labels import label_name
from arcsm.estimators.encoder import clip_to_dtype, is_categorical
from arcsm.estimators.rounding import count_decimals, round_column

_PART_ROWS = 50_000


def fill_in_file(table: FrameFile, rows: pd.DataFrame, filled: pd.DataFrame, out: Path) -> pd.DataFrame:
    """Return the table of a file with its missing values filled in, and all else unchanged.

    From CSV to CSV known cells keep their text. From CSV to Parquet numbers, times and truth values get their types;
    codes with leading zeros stay text. From Parquet columns keep their types and, to Parquet, rows their index.
    ``rows`` are the rows as read, perhaps without some columns of the file.
    """
    file, filled = table.file, _rounded(rows, filled)
    whole = pd.concat(file.raw_parts(_PART_ROWS), ignore_index=True)
    whole.columns = pd.Index([str(name) for name in whole.columns])
    to_parquet = out.suffix.lower() == ".parquet"
    cells = whole.copy()
    for name in rows.columns:
        cells[name] = _filled_cells(table, rows[name], filled[name], whole[name])
    if file.is_text and to_parquet:
        return _typed(table, cells, filled).rename(columns={"": label_name(whole.columns)})
    if file.suffix == ".parquet" and to_parquet and file.index:
        return cells.drop(columns=file.index).set_axis(read_index(file.path), axis=0)
    return cells


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


def _filled_cells(table: FrameFile, known: pd.Series, filled: pd.Series, cells: pd.Series) -> pd.Series:
    """Fill in the missing cells of a column in the form of the others."""
    missing = known.isna().to_numpy()
    if not missing.any():
        return cells
    if isinstance(cells.dtype, pd.ArrowDtype) and pyarrow.types.is_dictionary(cells.dtype.pyarrow_dtype):
        return fill_categories(cells, missing, filled[missing].tolist())
    whole = cells.astype(object) if cells.dtype == "str" else cells.copy()
    whole[missing] = _in_form(table, known, filled[missing], cells)
    return whole


def _in_form(table: FrameFile, known: pd.Series, values: pd.Series, cells: pd.Series) -> Any:
    """Return values in the form of the other cells of a column."""
    form = table.format_of(str(known.name))
    if form is not None:
        return form.write(values).to_numpy()
    if not table.file.is_text:
        return clip_to_dtype(values.to_numpy(dtype=object), cells.dtype)
    if not is_categorical(values.dtype):
        return PlainNumbers.of(cells[known.notna().to_numpy()], table.file.decimal).write(values)
    return values.astype(str).replace(table.truth_words.get(str(known.name), {})).to_numpy()


def _typed(table: FrameFile, cells: pd.DataFrame, filled: pd.DataFrame) -> pd.DataFrame:
    """Convert the columns of a CSV file, apart from codes, to the types of their values."""
    gaps, typed = (*MISSING, *table.options.missing), cells.copy()
    for name in cells.columns:
        form = table.format_of(name)
        if name not in filled.columns:
            typed[name] = _text_as_numbers(cells[name], gaps)
        elif not (isinstance(form, NumberFormat) and form.is_code):
            typed[name] = pd.Series(filled[name].to_numpy(), index=cells.index)
    return typed


def _text_as_numbers(column: pd.Series, gaps: Sequence[str]) -> pd.Series:
    """Convert a text column to numbers if all of its cells are numbers, none is a code and none would lose digits."""
    texts = column[~column.isin(gaps)].str.strip()
    numbers = pd.to_numeric(column.mask(column.isin(gaps)), errors="coerce")
    if numbers[texts.index].isna().any() or bool(texts.str.fullmatch(rf"{LEADING_ZERO}|\d+[eE]\d+").any()):
        return column
    if not bool(texts.str.fullmatch(r"[-+]?\d+").all()):
        return numbers
    exact = texts.map(int)
    if len(exact) and not bool(exact.between(-(2**63), 2**63 - 1).all()):
        return column
    return exact.astype("Int64").reindex(column.index) if len(exact) < len(column) else exact.astype(np.int64)
