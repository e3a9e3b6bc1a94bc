"""Numbers written as text: with currency and percent signs, units, thousands separators and decimal commas."""

import re
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

_SIGNS = "-+\u2212"
_CURRENCIES = "$€£¥₹₽₩₺₪₫฿₴₦₱¢"
_CODES = "USD|EUR|GBP|CHF|JPY|CNY|INR|SEK|NOK|DKK|PLN|CZK|HUF|RON|CAD|AUD|NZD|HKD|SGD|ZAR|BRL|MXN|KRW|TRY|RUB|ILS|THB"
_SPACES = " \u00a0\u202f\u2009"
_PREFIX = rf"(?:{_CODES}|[A-Z]{{0,3}}[{_CURRENCIES}])?[{_SPACES}]?"
_UNIT = (  # a letter, then letters, digits and signs, such as km/h or m2; no exponent
    rf"(?![eE]-?\d)[^\W\d_%°{_CURRENCIES}][^\s\"',;:!?()+]{{0,11}}"
)
_SUFFIX = rf"(?:[{_SPACES}]?(?:%|‰|°(?:[{_SPACES}]?[CFK])?|{_CODES}|[{_CURRENCIES}]|{_UNIT}))?"
_DIGITS = rf"(?:\d(?:[\d.,'’{_SPACES}]*\d)?|[.,]\d+)"
_CELL = re.compile(
    rf"(?P<open>\()?(?P<sign>[{_SIGNS}]?)(?P<prefix>{_PREFIX})(?P<inner>[{_SIGNS}]?)(?P<digits>{_DIGITS})"
    rf"(?P<suffix>{_SUFFIX})(?P<close>\))?"
)
_MAX_INSPECTED = 5_000  # distinct texts of a column


@dataclass(frozen=True)
class NumberFormat:
    """How the cells of a column write their numbers, so that other numbers can be written in the same way.

    Attributes:
        prefix: Text before the digits, such as ``$``.
        suffix: Text after the digits, such as ``" %"`` or ``kg``.
        thousands: The mark between groups of three digits, or an empty string.
        decimal: The decimal mark.
        decimals: The most decimals of a cell.
        fixed: Whether all cells have as many decimals.
        negative: ``-$5``, ``$-5`` or ``($5)``, written with ``{}`` for prefix, digits and suffix.
        example: A cell.
    """

    prefix: str = ""
    suffix: str = ""
    thousands: str = ""
    decimal: str = "."
    decimals: int = 0
    fixed: bool = True
    negative: str = "-{}{}{}"
    example: str = ""

    @classmethod
    def infer(cls, cells: pd.Series, decimal: str = ".") -> Self | None:
        """Return the format that fits the most texts, or ``None`` if they are no numbers, or plain ones.

        A unit must be the same in all cells that have one, at least in half of them. A mark that may separate decimals
        or thousands separates thousands if three digits follow in every cell, and decimals otherwise or if ``decimal``
        says so.
        """
        distinct = cells.dropna().unique()
        inspected = distinct[:: max(1, len(distinct) // _MAX_INSPECTED)]
        texts = pd.Series(inspected, dtype=object).astype(str).str.strip()
        parts = _parts(texts)
        parts = parts[parts["digits"].notna()]
        if not len(parts):
            return None
        affixes = parts[["prefix", "suffix"]].apply(lambda part: part.str.strip())
        marked = parts[(affixes != "").any(axis=1)]
        few = 2 * len(marked) < len(parts)  # units among plain numbers are mistakes
        prefix, suffix = ("", "") if few else marked[["prefix", "suffix"]].value_counts().index[0]
        same = (affixes == ["", ""]).all(axis=1) | (affixes == [prefix.strip(), suffix.strip()]).all(axis=1)
        parts = parts[same]
        thousands, decimal = _marks(parts["digits"], decimal)
        if not (prefix or suffix or thousands) and decimal == ".":
            return None
        parts = parts[parts["digits"].str.fullmatch(_pattern(thousands, decimal))]
        if not len(parts):
            return None
        decimals = (
            parts["digits"].str.rpartition(decimal)[[1, 2]].agg(lambda ends: len(ends[2]) * bool(ends[1]), axis=1)
        )
        longest = parts["digits"].str.len().idxmax()
        return cls(
            prefix, suffix, thousands, decimal, int(decimals.max()), decimals.nunique() == 1,
            _negative(parts), str(texts[longest]),
        )  # fmt: skip

    def parse(self, cells: pd.Series) -> pd.Series:
        """Return the numbers of texts, NaN where a cell is missing or has another format."""
        distinct = pd.Series(cells.dropna().unique(), dtype=object)
        parts = _parts(distinct.astype(str).str.strip())
        affixes = parts["prefix"].str.strip() + "\n" + parts["suffix"].str.strip()
        fits = affixes.isin([f"{self.prefix.strip()}\n{self.suffix.strip()}", "\n"])
        fits &= parts["digits"].str.fullmatch(_pattern(self.thousands, self.decimal)).eq(True)
        fits &= parts["open"].notna() == parts["close"].notna()
        plain = parts["digits"].where(fits)
        if self.thousands:
            plain = plain.str.replace(self.thousands, "", regex=False)
        numbers = pd.to_numeric(plain.str.replace(self.decimal, ".", regex=False), errors="coerce").astype(float)
        numbers *= np.where(_is_negative(parts), -1.0, 1.0)
        column = cells.map(dict(zip(distinct, numbers, strict=True))).astype(float)
        whole = (
            not column.isna().any() and bool((column == np.rint(column)).all()) and bool((column.abs() < 2**53).all())
        )
        return column.astype(np.int64) if whole and self.decimals == 0 else column

    def write(self, values: pd.Series) -> pd.Series:
        """Return numbers as texts in this format; missing values stay missing."""
        return values.map(self._text, na_action="ignore").astype(object)

    def _text(self, value: float) -> str:
        text = f"{abs(value):{',' if self.thousands else ''}.{self.decimals}f}"
        if not self.fixed and self.decimals:
            text = text.rstrip("0").rstrip(".")
        is_zero = not text.strip("0.,")
        digits = text.translate({ord(","): self.thousands, ord("."): self.decimal})
        return ("{}{}{}" if value >= 0 or is_zero else self.negative).format(self.prefix, digits, self.suffix)

    def describe(self) -> str:
        """Return how the example is read, such as ``numbers ('$1,234.50' is 1234.5)``."""
        return f"numbers ({self.example!r} is {float(self.parse(pd.Series([self.example])).iloc[0]):.15g})"


def _parts(texts: pd.Series) -> pd.DataFrame:
    """Split texts into signs, prefix, digits and suffix; all are missing where a text is no number."""
    return texts.str.extract(rf"^{_CELL.pattern}$")


def _is_negative(parts: pd.DataFrame) -> np.ndarray:
    signs = parts["sign"].fillna("") + parts["inner"].fillna("")
    return np.asarray(signs.str.contains("[-\u2212]") | parts["open"].notna())


def _negative(parts: pd.DataFrame) -> str:
    """Return how most negative cells are written."""
    negative = parts[_is_negative(parts)]
    if not len(negative):
        return "-{}{}{}"
    if 2 * negative["open"].notna().sum() > len(negative):
        return "({}{}{})"
    inner = 2 * (negative["inner"].fillna("") != "").sum() > len(negative)
    return "{}-{}{}" if inner else "-{}{}{}"


def _marks(digits: pd.Series, decimal: str) -> tuple[str, str]:
    """Return the thousands separator, which may be empty, and the decimal mark of digits."""
    for mark in (*_SPACES, "'", "’"):
        if bool(digits.str.contains(mark, regex=False).any()):
            return mark, "," if bool(digits.str.contains(",", regex=False).any()) else "."
    both = digits[digits.str.contains(",", regex=False) & digits.str.contains(".", regex=False)]
    if len(both):
        last = both.str.rfind(",") > both.str.rfind(".")
        return (".", ",") if bool(last.mean() > 0.5) else (",", ".")
    for mark, other in ((",", "."), (".", ",")):
        found = digits[digits.str.contains(mark, regex=False)]
        if not len(found):
            continue
        groups = rf"[1-9]\d{{0,2}}(?:{re.escape(mark)}\d{{3}})+"
        if bool((found.str.count(re.escape(mark)) > 1).any()):
            return mark, other
        if mark != decimal and bool(found.str.fullmatch(groups).all()):
            return mark, other
        return "", mark
    return "", "."


def _pattern(thousands: str, decimal: str) -> str:
    mark = re.escape(decimal)
    grouped = rf"|\d{{1,3}}(?:{re.escape(thousands)}\d{{3}})+(?:{mark}\d+)?" if thousands else ""
    return rf"(?:\d+(?:{mark}\d+)?|{mark}\d+{grouped})"
