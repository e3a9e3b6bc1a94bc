"""Numbers written as text: with currency and percent signs, units, thousands separators and decimal commas."""

import re
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

_MINUS = "\u2212"  # the typographic one
_SIGNS = f"-+{_MINUS}"
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
_CURRENCY = re.compile(rf"{_CODES}|[A-Z]{{0,3}}[{_CURRENCIES}]")
_MAX_INSPECTED = 5_000  # distinct texts of a column
_MAX_DECIMALS = 8  # that anyone would write; with more, numbers have all their digits


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
        negative: ``-$5``, ``$-5`` or ``($5)``, written with ``{}`` for prefix, digits and suffix. The minus may be the
            typographic one.
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

        A unit that fewer than half of the numbers have is a mistake. A mark that may separate decimals or thousands
        separates thousands if three digits follow in every cell, and decimals otherwise or if ``decimal`` says so.
        """
        distinct = cells.dropna().unique()
        inspected = distinct[:: max(1, len(distinct) // _MAX_INSPECTED)]
        parts = _parts(pd.Series(inspected, dtype=object))
        parts = parts[parts["digits"].notna()]
        if not len(parts):
            return None
        marked = parts[parts["unit"] != ""]
        few = 2 * len(marked) < len(parts)
        prefix, suffix = ("", "") if few else marked[["prefix", "suffix"]].value_counts().index[0]
        unit = (prefix + suffix).strip()
        typical = parts[parts["unit"] == unit]
        parts = typical if _has_scale(unit) else parts[parts["unit"].isin(["", unit])]
        thousands, decimal = _marks(parts["digits"], decimal)
        if not (unit or thousands) and decimal == ".":
            typical = parts[pd.to_numeric(parts["text"], errors="coerce").isna()]  # such as (5)
            if not len(typical):
                return None
        parts = parts[parts["digits"].str.fullmatch(_pattern(thousands, decimal))]
        if not len(parts):
            return None
        decimals = parts["digits"].str.partition(decimal)[2].str.len()
        shown = parts[parts.index.isin(typical.index)]
        longest = (shown if len(shown) else parts).sort_values(
            "digits", key=lambda digits: -digits.str.len(), kind="stable"
        )
        return cls(
            prefix, suffix, thousands, decimal, int(decimals.max()), decimals.nunique() == 1,
            _negative(parts), str(longest["text"].iloc[0]),
        )  # fmt: skip

    @property
    def unit(self) -> str:
        """The currency or unit of the numbers, or an empty string."""
        return (self.prefix + self.suffix).strip()

    @property
    def has_scale(self) -> bool:
        """Whether a number without the unit may be on another scale: 0.2 is not 20 %. An amount has its currency."""
        return _has_scale(self.unit)

    def parse(self, cells: pd.Series, any_scale: bool = False) -> pd.Series:
        """Return the numbers of texts, NaN where a cell is missing or has another format.

        Numbers other than 0 that lack a unit with a scale have another format, unless ``any_scale``.
        """
        distinct = pd.Series(cells.dropna().unique(), dtype=object)
        parts = _parts(distinct)
        fits = parts["unit"].isin([self.unit, ""])
        if self.has_scale and not any_scale:
            fits &= (parts["unit"] != "") | _is_zero(parts["digits"])
        fits &= parts["digits"].str.fullmatch(_pattern(self.thousands, self.decimal)).eq(True)
        plain = parts["digits"].where(fits)
        if self.thousands:
            plain = plain.str.replace(f"[{re.escape(self.thousands)}]", "", regex=True)
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


def write_like(values: pd.Series, cells: pd.Series, decimal: str = ".") -> list[str]:
    """Return numbers as texts in the form of cells that hold plain numbers: ``13.0`` beside ``7.0``.

    The numbers have at least as many decimals as any cell, at most as many as the cell with the most, and exponents if
    most cells have them.
    """
    pattern = rf"^[-+]?(?P<digits>\d*(?:{re.escape(decimal)}(?P<decimals>\d*))?)(?:[eE](?P<exponent>[-+]?\d+))?$"
    texts = pd.Series(cells.unique(), dtype=object).str.strip()
    parts = texts.str.extract(pattern)
    with_exponent = parts["exponent"].notna()
    scientific = 2 * int(with_exponent.sum()) > len(parts)
    counts = parts["decimals"][parts["digits"].notna() & (with_exponent == scientific)].fillna("").str.len()
    least, most = (int(counts.min()), int(counts.max())) if len(counts) else (0, _MAX_DECIMALS + 1)
    if scientific:
        letter = "E" if bool(texts.str.contains("E").any()) else "e"
        exponents = parts["exponent"].dropna()
        plus = "+" if bool(exponents.str.startswith("+").any()) else ""
        width = int(exponents.str.lstrip("+-").str.len().min())
        split = [f"{value:.{most}e}".split("e") for value in values]
        written = [
            f"{_shorten(digits, least)}{letter}{'-' if int(power) < 0 else plus}{abs(int(power)):0{width}d}"
            for digits, power in split
        ]
    elif most > _MAX_DECIMALS:
        written = values.astype(str).tolist()
    else:
        written = [_shorten(f"{value:.{most}f}", least) for value in values]
    return [text.replace(".", decimal) for text in written]


def _shorten(digits: str, least: int) -> str:
    """Remove zeros at the end, but for the ``least`` decimals."""
    whole, point, decimals = digits.partition(".")
    kept = decimals[:least] + decimals[least:].rstrip("0")
    return whole + point * bool(kept) + kept


def count_units(cells: pd.Series) -> dict[str, int]:
    """Return how many cells hold numbers with each unit, most first; zeros without a unit do not count."""
    parts = _parts(cells.dropna())
    parts = parts[parts["digits"].notna() & ((parts["unit"] != "") | ~_is_zero(parts["digits"]))]
    return {str(unit): int(count) for unit, count in parts["unit"].value_counts().items()}


def _parts(cells: pd.Series) -> pd.DataFrame:
    """Split texts into signs, prefix, digits, suffix and unit; the digits are missing where a text is no number."""
    texts = cells.astype(str).str.strip()
    parts = texts.str.extract(rf"^{_CELL.pattern}$")
    in_brackets = parts["open"].notna()
    is_code = in_brackets & parts["digits"].str.match(r"0\d").eq(True)  # such as the area code (030)
    parts.loc[is_code | (in_brackets != parts["close"].notna())] = None
    unit = parts["prefix"].fillna("") + parts["suffix"].fillna("")
    return parts.assign(text=texts, unit=unit.str.strip())


def _has_scale(unit: str) -> bool:
    return bool(unit) and not _CURRENCY.fullmatch(unit)


def _is_zero(digits: pd.Series) -> pd.Series:
    return ~digits.str.contains("[1-9]").eq(True)


def _is_negative(parts: pd.DataFrame) -> np.ndarray:
    signs = parts["sign"].fillna("") + parts["inner"].fillna("")
    return np.asarray(signs.str.contains(f"[-{_MINUS}]") | parts["open"].notna())


def _negative(parts: pd.DataFrame) -> str:
    """Return how most negative cells are written."""
    negative = parts[_is_negative(parts)]
    if not len(negative):
        return "-{}{}{}"
    if 2 * negative["open"].notna().sum() > len(negative):
        return "({}{}{})"
    inner = negative["inner"].fillna("")
    is_typographic = (negative["sign"].fillna("") + inner).str.contains(_MINUS)
    minus = _MINUS if 2 * is_typographic.sum() > len(negative) else "-"
    return f"{{}}{minus}{{}}{{}}" if 2 * (inner != "").sum() > len(negative) else f"{minus}{{}}{{}}{{}}"


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
