"""Values of columns that a command line gives."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from arcsm.data.cell_forms import CellForms
from arcsm.data.column_types import ColumnType, typed_column
from arcsm.data.number_formats import NumberFormat
from arcsm.estimators.checks import check_not_empty
from arcsm.estimators.column_types import Column
from arcsm.estimators.encoder import Columns, encode_value, is_categorical
from arcsm.estimators.times import value_text


def given_values(
    pairs: Sequence[str], forms: CellForms, table: pd.DataFrame, kinds: Mapping[str, Column] | None = None
) -> dict[str, Any]:
    """Parse ``COLUMN=VALUE`` pairs into values of the table's types, by column.

    Arguments:
        pairs: The pairs.
        forms: How the table writes its values.
        table: The table, or rows with the lowest and the highest number of each column and all names.
        kinds: The types that estimators infer of the columns. Default: those of the table.

    Raises:
        ValueError: If a column is unknown or repeated, or cannot have the value.
    """
    values: dict[str, Any] = {}
    check_not_empty(table)
    for pair in pairs:
        splits = [parts for parts in (pair.rpartition("="), pair.partition("=")) if parts[1] and parts[0] in table]
        if not splits:
            raise ValueError(f"--given {pair}: expected COLUMN=VALUE, with a column of {', '.join(table.columns[:20])}")
        name, _, text = splits[0]
        if name in values:
            raise ValueError(f"--given {pair}: {name} is given already")
        inferred = Columns.infer(table[[name]]).kinds[0] if kinds is None else kinds[name]
        values[name] = given_value(f"--given {pair}", name, text, forms, table)
        _check_near(f"--given {pair}", table[name], values[name], forms.types[name], inferred)
    return values


def given_value(source: str, name: str, text: str, forms: CellForms, table: pd.DataFrame) -> Any:
    """Parse the text of a column's value; the message of an error begins with its ``source``.

    For the other arguments see :func:`given_values`.
    """
    return _parse(source, table[name], text, forms.types[name], forms.decimal, forms.truth_words.get(name, {}))


def _check_near(source: str, column: pd.Series, value: Any, kind: ColumnType, inferred: Column) -> None:
    """Check before the fit that a column has a value, or one near it."""
    try:
        encode_value(inferred, value, near=True)
    except ValueError as error:
        if is_categorical(column.dtype) and kind.kind != "time":
            raise ValueError(f"{source}: column {column.name!r} {error}") from error
        known = column.dropna()
        low, high = in_form(pd.Series([known.min(), known.max()], dtype=column.dtype), kind)
        raise ValueError(
            f"{source}: {column.name} has no such value, nor one near it; its values range from {low} to {high}"
        ) from error


def in_form(values: pd.Series, kind: ColumnType) -> list[str]:
    """Return values as the file writes them."""
    return [str(text) for text in (values.map(value_text) if kind.format is None else kind.format.write(values))]


def _parse(source: str, column: pd.Series, text: str, kind: ColumnType, decimal: str, words: Mapping[str, str]) -> Any:
    """Return the value of a column that a text stands for. Names may differ in case if only one matches.

    ``words`` are the words of the file for truth values.
    """
    if kind.kind == "time" or kind.format is not None:
        cells = pd.Series([text], name=column.name, dtype=object)
        if isinstance(kind.format, NumberFormat) and (number := kind.format.parse(cells, any_scale=True)).notna().all():
            return number.iloc[0]
        try:
            if pd.api.types.is_timedelta64_dtype(column.dtype) or isinstance(column.dtype, pd.PeriodDtype):
                return cells.astype(column.dtype).iloc[0]
            return typed_column(cells, kind, lambda _: source, decimal).iloc[0]
        except ValueError as error:
            example = value_text(column.dropna().iloc[0]) if kind.format is None else kind.format.example
            raise ValueError(f"{source}: expected a value such as {example}, got {text!r}") from error
    if not is_categorical(column.dtype):
        whole = pd.api.types.is_integer_dtype(column.dtype)
        try:
            return int(text) if whole else float(text.replace(decimal, "."))
        except ValueError as error:
            raise ValueError(f"{source}: expected a {'whole ' * whole}number, got {text!r}") from error
    values = {str(value): value for value in column.dropna().unique()}
    matches = [value for name, value in values.items() if name.lower() == text.lower()]
    if text not in values and len(matches) != 1:
        listed = ", ".join(sorted(words.get(name, name) for name in values))[:200]
        raise ValueError(f"{source}: {column.name} has no {text!r}; it has {listed}")
    return values.get(text, matches[0])
