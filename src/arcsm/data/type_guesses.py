"""The type of a column, guessed from its cells."""

import pandas as pd

from arcsm.data.column_types import ColumnType, holds_numbers, is_time, is_truth, plain_numbers
from arcsm.data.number_formats import LEADING_ZERO, NumberFormat, are_of_one_quantity, count_units
from arcsm.data.time_formats import TimeFormat, are_times_in_several_forms

_SEAT = r"\d{1,3}[BKMT]"  # in an aeroplane, say, rather than thousands (K) or millions
_CODE = r"\d+[A-Za-z]{1,2}|[A-Za-z]{1,2}\d+"  # such as 136A or c168
_MIN_FRACTION = 0.9  # of a text column's cells that are numbers or times; the other cells are then mistakes
_MAX_INSPECTED = 10_000  # cells that decide the type of a column
_MAX_NUMERIC_CODES = 20  # distinct numbers that may serve as names among other names


def infer_type(column: pd.Series, decimal: str = ".") -> ColumnType:
    """Infer the type of a column.

    Text is a number or a time if nearly all of its cells are; the others are then mistakes. ``decimal`` is the decimal
    mark of the file, which also tells how its days and months are probably ordered.
    """
    if is_truth(column):
        return ColumnType("truth")
    if isinstance(column.dtype, pd.CategoricalDtype):
        return ColumnType("name")
    if is_time(column):
        return ColumnType("time")
    if holds_numbers(column.dtype):
        whole = pd.api.types.is_integer_dtype(column.dtype) or bool((column.dropna() % 1 == 0).all())
        compact = TimeFormat.infer_compact(column) if whole else None
        if compact is not None:
            return ColumnType("time", compact)
        return ColumnType("number", None, "", _count_digits(column) if whole else 0)
    if _has_leading_zeros(column) or odd_code(column) is not None:
        return ColumnType("name")
    codes = NumberFormat.infer_codes(column)
    if codes is not None:
        return ColumnType("number", codes, "")
    present = column.dropna()
    inspected = present.iloc[:: max(1, len(present) // _MAX_INSPECTED)]

    def fits(values: pd.Series) -> bool:
        return len(values) > 0 and bool(values.notna().mean() >= _MIN_FRACTION)

    plain = plain_numbers(inspected, decimal)
    number_format = None if plain.notna().all() else NumberFormat.infer(column, decimal)
    if fits(plain):
        reads_more = number_format is not None and number_format.parse(inspected).count() > plain.count()
        unit = "" if number_format is None else number_format.unit
        return _number_type(number_format if reads_more else None, unit)
    time_format = TimeFormat.infer(column, day_first=decimal == ",")
    if time_format is not None and fits(time_format.parse(inspected)):
        return ColumnType("time", time_format)
    if number_format is not None and fits(number_format.parse(inspected, any_scale=True)):
        return _number_type(number_format, number_format.unit)  # numbers that lack the unit are errors later
    if are_times_in_several_forms(inspected):
        return ColumnType("time")  # an error later
    return ColumnType("number" if _are_mostly_numbers(column) or _mix_units(inspected) else "name")


def _number_type(form: NumberFormat | None, unit: str) -> ColumnType:
    digits = 0 if form is None or form.decimals else sum(map(str.isdigit, form.example))
    return ColumnType("number", form, unit, digits)


def _count_digits(numbers: pd.Series) -> int:
    """Return how many digits the longest of whole numbers has."""
    longest = numbers.abs().max()
    return len(f"{longest:.0f}") if pd.notna(longest) else 0


def _has_leading_zeros(column: pd.Series) -> bool:
    """Return whether a text column holds numeric codes, some with leading zeros, that repeat as names do."""
    texts = pd.Series(column.dropna().unique(), dtype=object)
    if 2 * len(texts) > column.notna().sum() or not all(isinstance(text, str) for text in texts):
        return False
    return bool(texts.str.fullmatch(LEADING_ZERO).any()) and bool(pd.to_numeric(texts, errors="coerce").notna().all())


def odd_code(column: pd.Series) -> str | None:
    """Return a code with letters, such as 136A, among the whole numbers of a text column that holds codes, or ``None``.

    All cells with letters must look like codes. Some number must have a leading zero, or there must be several of these
    cells that repeat or begin with letters, as numbers with units and mistakes rarely do.
    """
    counts = column.dropna().value_counts(sort=False)
    if not len(counts) or not all(isinstance(text, str) for text in counts.index):
        return None
    texts = counts.index.str.strip()
    odd = counts[~texts.str.fullmatch(r"\d+")]
    if not len(odd) or len(odd) == len(counts) or not odd.index.str.strip().str.fullmatch(_CODE).all():
        return None
    begin_with_letters = bool(odd.index.str.strip().str.fullmatch(r"[A-Za-z].*").all())
    several = len(odd) > 1 and (begin_with_letters or 2 * len(odd) <= odd.sum())
    return str(odd.index[0]) if several or bool(texts.str.fullmatch(LEADING_ZERO).any()) else None


def _are_mostly_numbers(column: pd.Series) -> bool:
    """Return whether most distinct texts are numbers, so that the others are mistakes and not names."""
    texts = pd.Series(column.dropna().unique()).astype(str)
    numbers = pd.to_numeric(texts.str.replace(",", ""), errors="coerce").notna().sum()
    return bool(numbers > max(_MAX_NUMERIC_CODES, 0.5 * len(texts)))


def _mix_units(cells: pd.Series) -> bool:
    """Return whether nearly all texts are numbers, in several units of a quantity or some in percent: a mistake."""
    units = count_units(cells)
    if bool(cells.astype(str).str.fullmatch(_SEAT).all()):
        return False
    return ("%" in units or are_of_one_quantity(units)) and sum(units.values()) >= _MIN_FRACTION * len(cells)
