"""Points and commas in numbers: which one separates thousands, and which one comes before decimals.

A mark is ambiguous in a number if exactly three digits follow it, as in ``1.637`` and ``1,637``: then only other
numbers tell what it means.
"""

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from arcsm.data.column_types import MISSING
from arcsm.data.number_formats import digits_of_amount, is_currency, split_numbers

OTHER_MARK = {".": ",", ",": "."}
_SMALL = r"[1-9]\d{0,2}"  # from 1 to 999
_SPACING = re.compile("[ \u00a0\u202f\u2009'’]")  # separates thousands in any case
_DECIMAL = {  # a mark before decimals, or an ambiguous one
    mark: re.compile(rf"(?:\d*|\d{{1,3}}(?:\{other}\d{{3}})+)\{mark}\d+") for mark, other in OTHER_MARK.items()
}
_GROUPED = {mark: rf"{_SMALL}(?:\{mark}\d{{3}})+" for mark in OTHER_MARK}  # such as 1.637 and 1.637.000
_LARGE_GROUPED = {mark: rf"[1-9]\d{{1,2}}(?:\{mark}\d{{3}})+" for mark in OTHER_MARK}
_THOUSANDS = {mark: rf"{_GROUPED[mark]}(?:\{other}\d+)?" for mark, other in OTHER_MARK.items()}
_AMBIGUOUS_POINT = re.compile(rf"[-+]?{_SMALL}\.\d{{3}}")
_PROOF = r".*[.,].*[.,].*"  # a second mark: thousands, or decimals
_PLAIN_UNITS = ("", "%")  # numbers that are rarely above 999 or often have three decimals
_MAX_INSPECTED = 5_000  # distinct texts of a column


def proven_decimal(rows: Sequence[Sequence[str]], separator: str) -> str | None:
    """Return the decimal mark that some number in the cells of rows proves, ``None`` if no number does.

    A point before decimals proves most, then a comma before decimals or several points in a number, then several
    commas. Between commas, ``"1,3"`` may be a list: it proves something only in columns of numbers.
    """
    if any(_is_decimal(digits, ".") for digits in _amounts(cell for row in rows for cell in row)):
        return "."
    columns = _columns(rows)
    groups = rows if separator != "," else [column for column in columns if _are_numbers(column)]
    if any(_is_decimal(digits, ",") for cells in groups for digits in _amounts(cells)):
        return ","
    series = [pd.Series(column, dtype=object) for column in columns]
    return next((OTHER_MARK[mark] for mark in (".", ",") if any(_has_proof(cells, mark) for cells in series)), None)


def likely_decimal(rows: Sequence[Sequence[str]], separator: str) -> str:
    """Return the decimal mark of rows whose numbers are all ambiguous.

    In files with semicolons it is a comma if plain numbers or percentages have one, and none below 1000 lacks it.
    """
    if separator != ";":
        return "."
    has_commas = False
    for column in _columns(rows):
        marked, others = _with_mark(pd.Series(column, dtype=object), ",")
        if _has_small(others) and len(marked):
            return "."
        has_commas |= bool(len(marked)) and bool(marked["unit"].isin(_PLAIN_UNITS).all())
    return "," if has_commas else "."


def separates_thousands(cells: pd.Series, mark: str) -> bool:
    """Return whether a mark in numbers with a unit separates thousands, whatever the other columns of the file say.

    Exactly three digits must follow every mark, and some number must have several marks, or be from 1 to 999 without
    one: if the mark came before three decimals, that number would have it, too. An amount of money is enough that has
    two or three digits before the mark: only small prices, such as those of fuel, have three decimals.
    """
    marked, others = _with_mark(cells, mark)
    if not len(marked):
        return False
    units = pd.concat([marked["unit"], others["unit"]])
    unit = str(units.mode().iloc[0])
    if not unit or not bool((marked["unit"] == unit).all()):
        return False
    return _is_proven(marked, others, mark)


def may_separate_thousands(cells: pd.Series, mark: str) -> bool:
    """Return whether some number has a mark, and exactly three digits follow it in all that do."""
    return len(_with_mark(cells, mark)[0]) > 0


def is_undecided(cells: pd.Series, mark: str) -> bool:
    """Return whether a mark is ambiguous, and no other number of the column tells what it separates."""
    marked, others = _with_mark(cells, mark)
    return len(marked) > 0 and not _is_proven(marked, others, mark)


def ambiguous_points(rows: Sequence[Sequence[str]]) -> dict[int, str]:
    """Return the first plain number with an ambiguous point in each column that has one, by its place."""
    found: dict[int, str] = {}
    for row in rows:
        for place, cell in enumerate(map(str.strip, row)):
            if _AMBIGUOUS_POINT.fullmatch(cell):
                found.setdefault(place, cell)
    return found


def _amounts(cells: Iterable[str]) -> set[str]:
    """Return the digits and marks of plain numbers, amounts of money and percentages."""
    return {_SPACING.sub("", digits) for cell in set(cells) if (digits := digits_of_amount(cell))}


def _is_decimal(digits: str, mark: str) -> bool:
    """Return whether a mark can only come before decimals."""
    return bool(_DECIMAL[mark].fullmatch(digits)) and not re.fullmatch(_GROUPED[mark], digits)


def _are_numbers(cells: Iterable[str]) -> bool:
    """Return whether all cells that are not missing are numbers as in a file with decimal commas."""
    known = (digits_of_amount(cell) for cell in cells if cell.strip() not in MISSING)
    return all(text.isdecimal() or _DECIMAL[","].fullmatch(text) or re.fullmatch(_GROUPED["."], text) for text in known)


def _columns(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the columns of rows below the first, without rows of another length."""
    return list(zip(*(row for row in rows[1:] if len(row) == len(rows[0])), strict=True))


def _has_proof(cells: pd.Series, mark: str) -> bool:
    """Return whether some number of a column, of one unit, has several marks."""
    marked, _ = _with_mark(cells, mark)
    return len(marked) > 0 and marked["unit"].nunique() == 1 and _have_several_marks(marked)


def _is_proven(marked: pd.DataFrame, others: pd.DataFrame, mark: str) -> bool:
    """Return whether numbers of one unit, with and without a mark, prove that the mark separates thousands."""
    is_large = marked["digits"].str.fullmatch(_LARGE_GROUPED[mark]) & marked["unit"].map(is_currency)
    return bool(is_large.any()) or _have_several_marks(marked) or _has_small(others)


def _have_several_marks(marked: pd.DataFrame) -> bool:
    return bool(marked["digits"].str.fullmatch(_PROOF).any())


def _has_small(others: pd.DataFrame) -> bool:
    return len(others) > 0 and bool(others["digits"].str.fullmatch(_SMALL).any())


def _with_mark(cells: pd.Series, mark: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the numbers with a mark and the others; none if not every mark can separate thousands."""
    distinct = pd.Series(cells.dropna().unique()[:_MAX_INSPECTED], dtype=object).astype(str)
    if not bool(distinct.str.contains(mark, regex=False).any()):
        return pd.DataFrame(), pd.DataFrame()
    parts = split_numbers(distinct)
    parts = parts[parts["digits"].notna()]
    has_mark = parts["digits"].str.contains(mark, regex=False)
    marked = parts[has_mark]
    if not bool(marked["digits"].str.fullmatch(_THOUSANDS[mark]).all()):
        return pd.DataFrame(), pd.DataFrame()
    return marked, parts[~has_mark]
