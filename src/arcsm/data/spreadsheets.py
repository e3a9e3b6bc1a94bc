"""CSV files that spreadsheet programs open: text that they would take for a formula."""

import re

import pandas as pd

from arcsm.data.column_types import holds_numbers

_FORMULA = re.compile(r"(?![-+][\d.,]+(?:[eE][-+]?\d+)?\s*%?$)[=+\-@\t\r]")  # other than a signed number


def without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """Put an apostrophe before names and cells of text that begin with ``=``, ``+``, ``-``, ``@``, a tab or a return.

    Spreadsheet programs would compute them as formulas, which can start programs and send data away. Numbers stay.

    Example:
        >>> without_formulas(pd.DataFrame({"=a": ["=1+1", "-1.5", "b"]})).to_dict("list")
        {"'=a": ["'=1+1", '-1.5', 'b']}
    """
    columns = {place: _quoted_cells(frame.iloc[:, place]) for place in range(frame.shape[1])}
    quoted = pd.DataFrame(columns, index=frame.index)
    return quoted.set_axis([_quoted(str(name)) for name in frame.columns], axis=1)


def _quoted_cells(column: pd.Series) -> pd.Series:
    if holds_numbers(column.dtype) or pd.api.types.is_datetime64_any_dtype(column.dtype):
        return column
    return column.astype(object).map(lambda cell: _quoted(cell) if isinstance(cell, str) else cell)


def _quoted(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) else text
