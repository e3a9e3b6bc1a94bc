"""Points before three digits: whether they separate thousands, as in 1.637 €, or come before decimals."""

import pandas as pd

from arcsm.data.number_formats import split_numbers

_THOUSANDS = r"[1-9]\d{0,2}(?:\.\d{3})+(?:,\d+)?"
_PROOF = r".*\..*[.,].*"  # a second point, or decimals behind a comma
_MAX_INSPECTED = 5_000  # distinct texts of a column


def points_separate_thousands(cells: pd.Series) -> bool:
    """Return whether points in numbers with a unit, in a file with semicolons between cells, separate thousands.

    Exactly three digits must follow every point. Some number must prove it (:func:`points_surely_separate_thousands`)
    or be from 1 to 999 and have no point: with three decimals it would have one.
    """
    marked, others = _with_points(cells)
    if not _have_one_unit(marked, others):
        return False
    return bool(marked["digits"].str.fullmatch(_PROOF).any() or others["digits"].str.fullmatch(r"[1-9]\d{0,2}").any())


def points_surely_separate_thousands(cells: pd.Series) -> bool:
    """Return whether some number with a unit has several points or a decimal comma behind one, such as 1.234,50 €."""
    marked, others = _with_points(cells)
    return _have_one_unit(marked, others) and bool(marked["digits"].str.fullmatch(_PROOF).any())


def points_may_separate_thousands(cells: pd.Series) -> bool:
    """Return whether every number with a point has exactly three digits behind it, as if it separated thousands."""
    return len(_with_points(cells)[0]) > 0


def _with_points(cells: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the numbers with points and the others; none if not all points can separate thousands."""
    distinct = pd.Series(cells.dropna().unique()[:_MAX_INSPECTED], dtype=object).astype(str)
    if not bool(distinct.str.contains(".", regex=False).any()):
        return pd.DataFrame(), pd.DataFrame()
    parts = split_numbers(distinct)
    parts = parts[parts["digits"].notna()]
    has_point = parts["digits"].str.contains(".", regex=False)
    marked = parts[has_point]
    if not bool(marked["digits"].str.fullmatch(_THOUSANDS).all()):
        return pd.DataFrame(), pd.DataFrame()
    return marked, parts[~has_point]


def _have_one_unit(marked: pd.DataFrame, others: pd.DataFrame) -> bool:
    """Return whether all numbers with points have the most frequent unit."""
    if not len(marked):
        return False
    unit = str(pd.concat([marked["unit"], others["unit"]]).mode().iloc[0])
    return bool(unit) and bool((marked["unit"] == unit).all())
