"""Numbers written as text: with currency and percent signs, units, thousands separators and decimal commas."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

from arcsm.stored_values import stored

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
_CELL = re.compile(  # brackets around all, or as in $ (5) around the digits
    rf"(?P<open>\()?(?P<sign>[{_SIGNS}]?)(?P<prefix>{_PREFIX})(?P<inner>[{_SIGNS}]?)(?(open)|(?P<inside>\()?)"
    rf"(?P<digits>{_DIGITS})(?(inside)\))(?P<suffix>{_SUFFIX})(?(open)\))"
)
_CURRENCY = re.compile(rf"{_CODES}|[A-Z]{{0,3}}[{_CURRENCIES}]")
_DASH = re.compile(rf"^(?P<currency>(?:{_CODES}|[A-Z]{{0,3}}[{_CURRENCIES}])[{_SPACES}]?)[-–]$")  # no amount, 0
LEADING_ZERO = r"0\d+"  # a postcode, say, whose zeros matter
_INDIAN = r"\d{1,2}(?:,\d{2})+,\d{3}"  # 12,34,567
#: Units of one quantity: numbers with several of them could be converted, and so are no names.
_QUANTITIES = (
    {"", "k", "K", "M", "m", "Mio", "Mn", "mn", "B", "bn", "Bn", "T"},
    {"mg", "g", "kg", "t", "oz", "lb", "lbs"},
    {"mm", "cm", "m", "km", "in", "ft", "yd", "mi"},
    {"ml", "mL", "cl", "l", "L", "gal"},
    {"ns", "us", "µs", "ms", "s", "sec", "min", "h", "hr", "hrs", "d", "days"},
    {"B", "kB", "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB"},
    {"Hz", "kHz", "MHz", "GHz"},
    {"W", "kW", "MW", "GW"},
    {"°C", "°F", "°K", "° C", "° F"},
)
_MAX_INSPECTED = 5_000  # distinct texts of a column
_MOST_DIGITS = 400  # of a number in a file
_MAX_CHANGE = 1e-6  # of a number when it is written, relative
_MAX_DECIMALS = 8  # that anyone would write; with more, numbers have all their digits


@stored
@dataclass(frozen=True)
class NumberFormat:
    """How the cells of a column write their numbers, so that other numbers can be written in the same way.

    Attributes:
        prefix: Text before the digits, such as ``$``.
        suffix: Text after the digits, such as ``" %"`` or ``kg``.
        thousands: The mark between groups of digits, or an empty string.
        decimal: The decimal mark.
        decimals: The most decimals of a cell.
        fixed: Whether all cells have as many decimals.
        negative: ``-$5``, ``$-5``, ``($5)`` or ``$(5)``, written with ``{}`` for prefix, digits and suffix. The minus
            may be the typographic one.
        example: A cell.
        indian: Whether only the last group has three digits and the others two, as in 12,34,567.
        width: How many digits a code has at least, filled up with zeros, such as 5 for 02285; 0 for other numbers.
        limit: The highest code of the width, if all cells have just as many digits.
        zero: The dash that stands for an amount of zero, such as ``$ -``, or an empty string.
    """

    prefix: str = ""
    suffix: str = ""
    thousands: str = ""
    decimal: str = "."
    decimals: int = 0
    fixed: bool = True
    negative: str = "-{}{}{}"
    example: str = ""
    indian: bool = False
    width: int = 0
    limit: int | None = None
    zero: str = ""

    def check_read(self) -> None:
        """Check a format that was read from a file."""
        if not 0 <= max(self.decimals, self.width) <= _MOST_DIGITS:
            raise ValueError(f"NumberFormat: expected at most {_MOST_DIGITS} digits")
        if self.negative.replace("{}", "").strip(_SIGNS + "()") or self.negative.count("{}") != 3:
            raise ValueError(
                f"NumberFormat: negative: expected a form such as '-{{}}{{}}{{}}', got {self.negative!r:.60}"
            )

    @classmethod
    def infer_codes(cls, cells: pd.Series) -> Self | None:
        """Return the format of whole numbers that zeros fill up to a width, or ``None``."""
        distinct = cells.dropna().unique()
        if not all(isinstance(text, str) and text.strip().isdecimal() for text in distinct):
            return None
        texts = [text.strip() for text in distinct]
        lengths = set(map(len, texts))
        padded = [text for text in texts if re.fullmatch(LEADING_ZERO, text)]
        if not padded or min(lengths) < max(map(len, padded)):
            return None
        width = min(lengths)
        limit = 10**width - 1 if len(lengths) == 1 else None
        return cls(width=width, limit=limit, example=padded[0])

    @classmethod
    def infer(cls, cells: pd.Series, decimal: str = ".") -> Self | None:
        """Return the format that fits the most texts, or ``None`` if they are no numbers, or plain ones.

        A unit that fewer than half of the numbers have is a mistake. A mark that may separate decimals or thousands
        separates thousands if three digits follow in every cell, and decimals otherwise or if ``decimal`` says so.
        """
        distinct = cells.dropna().unique()
        inspected = distinct[:: max(1, len(distinct) // _MAX_INSPECTED)]
        parts = split_numbers(pd.Series(inspected, dtype=object))
        parts = parts[parts["digits"].notna()]
        if not len(parts):
            return None
        marked = parts[parts["unit"] != ""]
        few = 2 * len(marked) < len(parts)
        prefix, suffix = ("", "") if few else marked[["prefix", "suffix"]].value_counts().index[0]
        unit = (prefix + suffix).strip()
        typical = parts[parts["unit"] == unit]
        parts = typical if has_scale(unit) else parts[parts["unit"].isin(["", unit])]
        thousands, decimal = _marks(parts["digits"], decimal)
        if not (unit or thousands) and decimal == ".":
            typical = parts[pd.to_numeric(parts["text"], errors="coerce").isna()]  # such as (5)
            if not len(typical):
                return None
        indian = thousands == "," and _are_indian(parts["digits"])
        parts = parts[parts["digits"].str.fullmatch(_pattern(thousands, decimal, indian))]
        if not len(parts):
            return None
        dashes = parts["text"][parts["is_dash"]]
        parts = parts[~parts["is_dash"]] if len(dashes) < len(parts) else parts
        decimals = parts["digits"].str.partition(decimal)[2].str.len()
        shown = parts[parts.index.isin(typical.index)]
        longest = (shown if len(shown) else parts).sort_values(
            "digits", key=lambda digits: -digits.str.len(), kind="stable"
        )
        return cls(
            prefix, suffix, thousands, decimal, int(decimals.max()), decimals.nunique() == 1,
            _negative(parts), str(longest["text"].iloc[0]), indian, zero=str(dashes.iloc[0]) if len(dashes) else "",
        )  # fmt: skip

    @property
    def is_code(self) -> bool:
        """Whether the numbers are codes, whose leading zeros matter."""
        return self.width > 0

    @property
    def unit(self) -> str:
        """The currency or unit of the numbers, or an empty string."""
        return (self.prefix + self.suffix).strip()

    @property
    def has_scale(self) -> bool:
        """Whether a number without the unit may be on another scale: 0.2 is not 20 %. An amount has its currency."""
        return has_scale(self.unit)

    def parse(self, cells: pd.Series, any_scale: bool = False) -> pd.Series:
        """Return the numbers of texts, NaN where a cell is missing or has another format.

        Numbers other than 0 that lack a unit with a scale have another format, unless ``any_scale``.
        """
        if self.is_code:
            return pd.to_numeric(cells, errors="coerce")
        distinct = pd.Series(cells.dropna().unique(), dtype=object)
        parts = split_numbers(distinct)
        fits = parts["unit"].isin([self.unit, ""])
        if self.has_scale and not any_scale:
            fits &= (parts["unit"] != "") | _is_zero(parts["digits"])
        fits &= parts["digits"].str.fullmatch(_pattern(self.thousands, self.decimal, self.indian)).eq(True)
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
        if self.is_code:
            code = abs(round(value))  # a draw beyond the range is mirrored into it
            if self.limit is not None and code > self.limit:
                code = max(2 * self.limit - code, 0)
            return f"{code:0{self.width}d}"
        text = f"{abs(value):{',' if self.thousands else ''}.{self.decimals}f}"
        if not self.fixed and self.decimals:
            text = text.rstrip("0").rstrip(".")
        is_zero = not text.strip("0.,")
        if is_zero and self.zero:
            return self.zero
        text = _indian_groups(text) if self.indian else text
        digits = text.translate({ord(","): self.thousands, ord("."): self.decimal})
        return ("{}{}{}" if value >= 0 or is_zero else self.negative).format(self.prefix, digits, self.suffix)

    def describe(self) -> str:
        """Return how the example is read, such as ``numbers ('$1,234.50' is 1234.5)``."""
        if self.is_code:
            return f"numbers with leading zeros ({self.example!r})"
        return f"numbers ({self.example!r} is {float(self.parse(pd.Series([self.example])).iloc[0]):.15g})"


@stored
@dataclass(frozen=True)
class PlainNumbers:
    """How cells write plain numbers, so that others can be written in the same way: ``13.0`` beside ``7.0``.

    Attributes:
        decimal: The decimal mark.
        least: The fewest decimals of a cell.
        most: The most decimals.
        exponent: How exponents begin, such as ``e+``; an empty string if most cells have none.
        width: How many digits exponents have at least.
    """

    decimal: str = "."
    least: int = 0
    most: int = _MAX_DECIMALS + 1
    exponent: str = ""
    width: int = 1

    def check_read(self) -> None:
        """Check what was read from a file."""
        if not 0 <= max(self.least, self.most, self.width) <= _MOST_DIGITS:
            raise ValueError(f"PlainNumbers: expected at most {_MOST_DIGITS} digits")

    @classmethod
    def of(cls, cells: pd.Series, decimal: str = ".") -> Self:
        """Return how the texts of a column write their numbers."""
        pattern = rf"^[-+]?(?P<digits>\d*(?:{re.escape(decimal)}(?P<decimals>\d*))?)(?:[eE](?P<exponent>[-+]?\d+))?$"
        texts = pd.Series(cells.unique(), dtype=object).str.strip()
        parts = texts.str.extract(pattern)
        with_exponent = parts["exponent"].notna()
        scientific = 2 * int(with_exponent.sum()) > len(parts)
        counts = parts["decimals"][parts["digits"].notna() & (with_exponent == scientific)].fillna("").str.len()
        least, most = (int(counts.min()), int(counts.max())) if len(counts) else (0, _MAX_DECIMALS + 1)
        if not scientific:
            return cls(decimal, least, most)
        letter, exponents = "E" if bool(texts.str.contains("E").any()) else "e", parts["exponent"].dropna()
        plus = "+" if bool(exponents.str.startswith("+").any()) else ""
        return cls(decimal, least, most, letter + plus, int(exponents.str.lstrip("+-").str.len().min()))

    def write(self, values: pd.Series) -> list[str]:
        """Return numbers as texts.

        They have at least as many decimals as any cell. They have exponents if most cells do, with at most as many
        decimals as the cell with the most.
        """
        if self.exponent:
            split = [f"{value:.{self.most}e}".split("e") for value in values]
            written = [
                f"{_shorten(digits, self.least)}{self.exponent[0] + '-' if int(power) < 0 else self.exponent}"
                f"{abs(int(power)):0{self.width}d}"
                for digits, power in split
            ]
        elif self.most > _MAX_DECIMALS:
            written = values.astype(str).tolist()
        else:
            written = [_plain_text(value, self.least, self.most) for value in values]
        return [text.replace(".", self.decimal) for text in written]


def _plain_text(value: float, least: int, most: int) -> str:
    """Return a number without an exponent, with more than ``most`` decimals only if it would change otherwise."""
    text = f"{value:.{most}f}"
    if abs(float(text) - value) > _MAX_CHANGE * abs(value):  # such as a given value
        text = np.format_float_positional(value, trim="-")
    return _padded(_shorten(text, least), least)


def _padded(text: str, least: int) -> str:
    """Add zeros up to ``least`` decimals."""
    whole, _, decimals = text.partition(".")
    return f"{whole}.{decimals:0<{least}}" if least else text


def _shorten(digits: str, least: int) -> str:
    """Remove zeros at the end, but for the ``least`` decimals."""
    whole, point, decimals = digits.partition(".")
    kept = decimals[:least] + decimals[least:].rstrip("0")
    return whole + point * bool(kept) + kept


def count_units(cells: pd.Series) -> dict[str, int]:
    """Return how many cells hold numbers with each unit, most first; zeros without a unit do not count."""
    parts = split_numbers(cells.dropna())
    parts = parts[parts["digits"].notna() & ((parts["unit"] != "") | ~_is_zero(parts["digits"]))]
    return {str(unit): int(count) for unit, count in parts["unit"].value_counts().items()}


def split_numbers(cells: pd.Series) -> pd.DataFrame:
    """Split texts into signs, prefix, digits, suffix and unit; the digits are missing where a text is no number.

    The digits of an amount that is a dash, such as ``$ -``, are 0.
    """
    texts = cells.astype(str).str.strip()
    is_dash = texts.str.fullmatch(_DASH)
    digits = texts.mask(is_dash, texts.str.replace(_DASH, r"\g<currency>0", regex=True))
    parts = digits.str.extract(rf"^{_CELL.pattern}$")
    is_code = parts["open"].notna() & parts["digits"].str.match(LEADING_ZERO).eq(True)  # such as the area code (030)
    parts.loc[is_code] = None
    unit = parts["prefix"].fillna("") + parts["suffix"].fillna("")
    return parts.assign(text=texts, unit=unit.str.strip(), is_dash=is_dash)


def has_scale(unit: str) -> bool:
    """Return whether a number without a unit may be on another scale, unlike an amount without its currency."""
    return bool(unit) and not is_currency(unit)


def is_currency(unit: str) -> bool:
    """Return whether a unit is a currency."""
    return _CURRENCY.fullmatch(unit) is not None


def _is_zero(digits: pd.Series) -> pd.Series:
    return ~digits.str.contains("[1-9]").eq(True)


def _is_negative(parts: pd.DataFrame) -> np.ndarray:
    signs = parts["sign"].fillna("") + parts["inner"].fillna("")
    return np.asarray(signs.str.contains(f"[-{_MINUS}]") | parts["open"].notna() | parts["inside"].notna())


def _negative(parts: pd.DataFrame) -> str:
    """Return how most negative cells are written."""
    negative = parts[_is_negative(parts)]
    if not len(negative):
        return "-{}{}{}"
    if 2 * negative["open"].notna().sum() > len(negative):
        return "({}{}{})"
    if 2 * negative["inside"].notna().sum() > len(negative):
        return "{}({}){}"
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
        if bool((found.str.count(re.escape(mark)) > 1).any()) or (mark != decimal and _are_grouped(found, mark)):
            return mark, other
        rest = digits[digits.str.contains(other, regex=False)]
        return other * (len(rest) > 0 and _are_grouped(rest, other)), mark
    return "", "."


def _are_grouped(digits: pd.Series, mark: str) -> bool:
    """Return whether three digits follow every mark, and no number begins with a zero."""
    return bool(digits.str.fullmatch(rf"[1-9]\d{{0,2}}(?:{re.escape(mark)}\d{{3}})+").all())


def _pattern(thousands: str, decimal: str, indian: bool) -> str:
    mark = re.escape(decimal)
    groups = [rf"\d{{1,3}}(?:{re.escape(thousands)}\d{{3}})+"] * bool(thousands) + [_INDIAN] * indian
    grouped = "".join(rf"|{group}(?:{mark}\d+)?" for group in groups)
    return rf"(?:\d+(?:{mark}\d+)?|{mark}\d+{grouped})"


def _are_indian(digits: pd.Series) -> bool:
    """Return whether digits are in groups of two before the last group, in all cells with several groups."""
    several = digits[digits.str.count(",") > 1]
    return len(several) > 0 and bool(several.str.fullmatch(rf"{_INDIAN}(?:\.\d+)?").all())


def _indian_groups(text: str) -> str:
    """Return digits in groups of three as groups of two before the last.

    Example:
        >>> _indian_groups("1,234,567.5")
        '12,34,567.5'
    """
    whole, point, decimals = text.replace(",", "").partition(".")
    head, last = whole[:-3], whole[-3:]
    return re.sub(r"(?<=\d)(?=(?:\d\d)+$)", ",", head) + "," * bool(head) + last + point + decimals


def digits_of_amount(cell: str) -> str:
    """Return the digits and marks of a plain number, an amount of money or a percentage; nothing of other text.

    Example:
        >>> [digits_of_amount(cell) for cell in ("-1,5", "1.234,50 €", "2.0 TDI")]
        ['1,5', '1.234,50', '']
    """
    match = _CELL.fullmatch(cell.strip())
    unit = "" if match is None else (match["prefix"] + match["suffix"]).strip()
    return match["digits"] if match is not None and (unit in ("", "%") or not has_scale(unit)) else ""


def are_of_one_quantity(units: Collection[str]) -> bool:
    """Return whether several units measure the same, such as kg and g, or are all currencies.

    Example:
        >>> are_of_one_quantity(["kg", "g"]), are_of_one_quantity(["$", "EUR"]), are_of_one_quantity(["A", "C"])
        (True, True, False)
    """
    scales = {_CURRENCY.sub("", unit).strip() for unit in units}
    return len(set(units)) > 1 and (scales == {""} or any(scales <= quantity for quantity in _QUANTITIES))
