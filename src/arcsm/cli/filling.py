"""Tables as their files hold them, with missing values filled in."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow

from arcsm.data import FrameFile
from arcsm.data.cell_forms import CellForms
from arcsm.data.column_types import MISSING
from arcsm.data.number_formats import LEADING_ZERO, NumberFormat, PlainNumbers
from arcsm.data.parquet_files import fill_categories, read_index
from arcsm.data.row_labels import label_name
from arcsm.estimators.encoder import clip_to_dtype, is_categorical
from arcsm.estimators.rounding import count_decimals, round_column

_PART_ROWS = 50_000


def fill_in_file(
    table: FrameFile,
    rows: pd.DataFrame,
    filled: pd.DataFrame,
    out: Path,
    forms: CellForms | None = None,
    decimals: Mapping[str, int | None] | None = None,
) -> pd.DataFrame:
    """Return the table of a file with its missing values filled in, and all else unchanged.

    From CSV to CSV known cells keep their text. From CSV to Parquet numbers, times and truth values get their types;
    codes with leading zeros stay text. From Parquet columns keep their types and, to Parquet, rows their index.
    ``rows`` are the rows as read, perhaps without some columns of the file. If they were filled by a model of another
    table, ``forms`` and ``decimals`` are how that one writes its values.
    """
    file, filled = table.file, _rounded(rows, filled, decimals)
    whole = pd.concat(file.raw_parts(_PART_ROWS), ignore_index=True)
    whole.columns = pd.Index([str(name) for name in whole.columns])
    to_parquet = out.suffix.lower() == ".parquet"
    cells = whole.copy()
    for name in rows.columns:
        cells[name] = _filled_cells(table, rows[name], filled[name], whole[name], forms)
    if file.is_text and to_parquet:
        return _typed(table, cells, filled).rename(columns={"": label_name(whole.columns)})
    if file.suffix == ".parquet" and to_parquet and file.index:
        return cells.drop(columns=file.index).set_axis(read_index(file.path), axis=0)
    return cells


def _rounded(
    rows: pd.DataFrame, filled: pd.DataFrame, decimals_of_columns: Mapping[str, int | None] | None
) -> pd.DataFrame:
    """Round the filled numbers to as many decimals as those of the fitted table have; by default, as the known ones."""
    filled, fitted = filled.copy(), decimals_of_columns or {}
    for name in rows.columns:
        if pd.api.types.is_float_dtype(filled[name].dtype) and rows[name].isna().any():
            decimals = fitted[name] if name in fitted else count_decimals(rows[name])
            if decimals is not None:
                known = rows[name].notna().to_numpy()
                filled[name] = filled[name].where(known, round_column(filled[name], decimals))
    return filled


def _filled_cells(
    table: FrameFile, known: pd.Series, filled: pd.Series, cells: pd.Series, forms: CellForms | None
) -> pd.Series:
    """Fill in the missing cells of a column in the form of the others."""
    missing = known.isna().to_numpy()
    if not missing.any():
        return cells
    if isinstance(cells.dtype, pd.ArrowDtype) and pyarrow.types.is_dictionary(cells.dtype.pyarrow_dtype):
        return fill_categories(cells, missing, filled[missing].tolist())
    whole = cells.astype(object) if cells.dtype == "str" else cells.copy()
    whole[missing] = _in_form(table, known, filled[missing], cells, forms)
    return whole


def _in_form(table: FrameFile, known: pd.Series, values: pd.Series, cells: pd.Series, forms: CellForms | None) -> Any:
    """Return values in the form of the other cells of a column, or of the fitted table if there are none."""
    name, others = str(known.name), cells[known.notna().to_numpy()]
    form = table.format_of(name)
    if form is not None:
        return form.write(values).to_numpy()
    if not table.file.is_text:
        return clip_to_dtype(values.to_numpy(dtype=object), cells.dtype)
    if not is_categorical(values.dtype):
        fitted = None if forms is None else forms.plain.get(name)
        if len(others) or fitted is None:
            return PlainNumbers.of(others, table.file.decimal).write(values)
        return replace(fitted, decimal=table.file.decimal).write(values)
    words = {} if forms is None else forms.truth_words.get(name, {})
    return values.astype(str).replace(words | table.truth_words.get(name, {})).to_numpy()


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
