"""Dates, times of day and durations written as text."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self

import numpy as np
import pandas as pd

from arcsm.stored_values import stored

_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
           "November", "December")  # fmt: skip
_FIELDS = {
    "Y": r"\d{4}", "y": r"\d{2}", "q": "[1-4]", "m": r"(?:0?[1-9]|1[0-2])", "d": r"(?:0?[1-9]|[12]\d|3[01])",
    "b": f"(?i:{'|'.join(rf'{name}|{name[:3]}' for name in _MONTHS)}|Sept)",
    "H": r"\d{1,2}", "h": r"\d{1,4}", "I": r"(?:0?[1-9]|1[0-2])", "M": r"[0-5]\d", "S": r"[0-5]\d",
    "p": r"(?i:[ap]\.?m\.?)", "z": r"(?: ?(?:UTC|GMT|Z)|[+-]\d{2}:?\d{2})",
}  # fmt: skip
_DATES = (
    "{Y}-{m}-{d}", "{Y}/{m}/{d}", "{Y}.{m}.{d}", "{m}/{d}/{Y}", "{d}/{m}/{Y}", "{m}/{d}/{y}", "{d}/{m}/{y}",
    "{m}-{d}-{Y}", "{d}-{m}-{Y}", "{d}.{m}.{Y}", "{d}.{m}.{y}", "{m}-{d}-{y}", "{d}-{m}-{y}", "{d}-{b}-{Y}",
    "{d}-{b}-{y}", "{d} {b} {Y}", "{d}. {b} {Y}", "{b} {d}, {Y}", "{b} {d} {Y}", "{b}-{d}-{Y}", "{Y}-{b}-{d}",
    "{d}{b}{Y}",
)  # fmt: skip
_MONTHS_OF_YEARS = ("{m}/{Y}", "{m}-{Y}")  # from 1900 to 2099; others are ratios or codes
_PERIODS = (
    "{Y}-{m}",
    "{Y}/{m}",
    *_MONTHS_OF_YEARS,
    "{b} {Y}",
    "{b}-{Y}",
    "{Y}Q{q}",
    "{Y}-Q{q}",
    "{Y} Q{q}",
    "Q{q} {Y}",
)
_COMPACT = "{Y}{m}{d}"
_CLOCKS = ("{H}:{M}", "{H}:{M}:{S}", "{I}:{M} {p}", "{I}:{M}{p}", "{I}:{M}:{S} {p}", "{I} {p}")
_DURATIONS = tuple(clock.replace("{H}", "{h}") for clock in _CLOCKS)
_LAST_SHORT_YEAR = 29  # of this century, as in spreadsheets; fixed, so that a file is read alike in every year
_FRACTION = r"(?P<f>[.,]\d{1,9})?"  # of a second, which whole seconds may lack
_FIELD = re.compile(r"\{(\w)\}")
_MAX_INSPECTED = 2_000  # distinct texts of a column
_MIN_COMPACT = 5  # distinct whole numbers that are dates such as 20201231
_MAX_SHAPES = 40  # distinct arrangements of digits and letters in a column of times
_MIN_TIMES = 0.9  # of a column's texts, for the others to be mistakes
_ISO = re.compile(r"\{Y\}-\{m\}-\{d\}")


@stored
@dataclass(frozen=True)
class TimeFormat:
    """How the cells of a column write dates, times of day or durations, so that others can be written in the same way.

    Attributes:
        template: The order of the fields, such as ``{d}.{m}.{Y} {H}:{M}``.
        unpadded: The fields that are written without a leading zero, such as ``md``.
        month: How months are written: ``title``, ``upper`` or ``lower``, of three letters unless ``full_months``.
        full_months: Whether names of months are written in full.
        half: The words for the halves of a day, such as ``("AM", "PM")``.
        digits: The most digits of a fraction of a second, 0 if there are no fractions.
        fixed: Whether all seconds have a fraction.
        zone: The common time zone as written, such as ``Z`` or ``+01:00``.
        example: A cell.
    """

    template: str
    unpadded: str = ""
    month: str = "title"
    full_months: bool = False
    half: tuple[str, str] = ("AM", "PM")
    digits: int = 0
    fixed: bool = False
    zone: str = ""
    example: str = ""

    def check_read(self) -> None:
        """Check a format that was read from a file."""
        if self.template not in _templates() or self.month not in ("title", "upper", "lower"):
            raise ValueError(f"TimeFormat: unknown template {self.template!r:.60} or months {self.month!r:.60}")

    @classmethod
    def infer(cls, cells: pd.Series, day_first: bool = False) -> Self | None:
        """Return the format of most texts, or ``None`` if most are no dates or times.

        If days and months may be exchanged, dates that rise or fall from row to row decide, and otherwise
        ``day_first``.
        """
        texts = cells.dropna().astype(str).str.strip()
        distinct = pd.Series(texts.unique()[:_MAX_INSPECTED], dtype=object)
        heads = [text for text in distinct.iloc[:3] if any(map(str.isdigit, text))]
        candidates = [template for template in _templates() if any(_fits(template, head) for head in heads)]
        counts = {template: int(distinct.str.fullmatch(_regex(template)).sum()) for template in candidates}
        if not counts or 2 * max(counts.values()) <= len(distinct):
            return None
        best = [template for template in candidates if counts[template] == max(counts.values())]
        formats = [cls(template).with_style(distinct) for template in best]
        parsed = {one: int(one.parse(distinct).notna().sum()) for one in formats}
        formats = [one for one in formats if parsed[one] == max(parsed.values())]
        if len(formats) > 1:
            sorted_ones = [one for one in formats if _is_sorted(one.parse(texts))]
            formats = sorted_ones if len(sorted_ones) == 1 else formats
        starts = tuple(field for field in ("{d}", "{m}") if any(one.template.startswith(field) for one in formats))
        if len(starts) == 2:
            formats = [one for one in formats if one.template.startswith("{d}" if day_first else "{m}")]
        known = distinct[formats[0].parse(distinct).notna()]
        return replace(formats[0], example=str(known.iloc[0])) if len(known) else None

    @classmethod
    def infer_compact(cls, numbers: pd.Series) -> Self | None:
        """Return the format of whole numbers that are all dates such as 20201231, or ``None``."""
        distinct = numbers.dropna().unique()
        if len(distinct) < _MIN_COMPACT or not ((distinct >= 19000101) & (distinct <= 21001231)).all():
            return None
        form = cls(_COMPACT, example=str(int(distinct[0])))
        return form if bool(form.parse(pd.Series(distinct).map("{:.0f}".format)).notna().all()) else None

    def with_style(self, texts: pd.Series) -> Self:
        """Return the format with the padding, the spelling and the time zone of texts."""
        found = texts.str.extract(f"^{_regex(self.template).pattern}$").dropna(how="all")
        fractions = found["f"].str.len() - 1 if "f" in found else pd.Series(dtype=float)
        fields = {name: found[name] for name in found.columns}
        halves, months, zones = (fields.get(name) for name in "pbz")
        half = ("AM", "PM") if halves is None or not len(halves) else _halves(str(halves.iloc[0]))
        word = "" if months is None or not len(months) else str(months.iloc[months.str.len().argmax()])
        return type(self)(
            self.template,
            "".join(name for name in "mdHhI" if name in fields and bool((fields[name].str.len() == 1).any())),
            "upper" if word.isupper() else "lower" if word.islower() else "title",
            len(word) > 4,
            half,
            int(fractions.fillna(0).max()) if len(fractions) else 0,
            len(fractions) > 0 and bool(fractions.notna().all()),
            "" if zones is None else str(zones.iloc[0]) if zones.nunique() == 1 else "+00:00",
        )

    @property
    def is_clock(self) -> bool:
        """Whether cells are times of day or durations, without a date."""
        return "{Y}" not in self.template and "{y}" not in self.template

    @property
    def is_guess(self) -> bool:
        """Whether a reader may doubt the format, unlike 2020-12-31 or 14:30, or time zones are converted to UTC."""
        if not self.example.endswith(self.zone):
            return True
        return not _ISO.match(self.template) and not (self.is_clock and "{p}" not in self.template)

    def parse(self, cells: pd.Series) -> pd.Series:
        """Return dates, or time since midnight; NaT where a cell is missing or has another format."""
        distinct = pd.Series(cells.dropna().unique(), dtype=object)
        fields = distinct.astype(str).str.strip().str.extract(f"^{_regex(self.template).pattern}$")
        times = self._durations(fields)
        if not self.is_clock:
            times = self._dates(fields) + times
            if "z" in fields:
                offsets = pd.to_timedelta(
                    fields["z"].map(_offset_minutes, na_action="ignore").astype(float), unit="min"
                )
                utc = (times - offsets).dt.tz_localize("UTC")
                times = utc.dt.tz_convert(pd.Timestamp(f"2000-01-01 00:00{_as_offset(self.zone)}").tz)
        return pd.Series(times.reindex(pd.Index(distinct).get_indexer(cells)).array, index=cells.index)

    def _durations(self, fields: pd.DataFrame) -> pd.Series:
        """Return the time of day of each row."""

        def number(name: str) -> pd.Series:
            return pd.to_numeric(fields[name]) if name in fields else pd.Series(0.0, index=fields.index)

        hours = number("H") + number("h")
        hours = hours.where(number("H") < 24)
        if "p" in fields:
            hours = number("I") % 12 + 12 * fields["p"].str.lower().str.startswith("p").astype(float)
        durations: Any = pd.to_timedelta(3600.0 * hours + 60.0 * number("M") + number("S"), unit="s")
        if "f" in fields:
            fraction = pd.to_numeric(fields["f"].str.replace(",", "."))
            durations = durations + pd.to_timedelta((1e9 * fraction.fillna(0.0)).round(), unit="ns")
        return durations

    @staticmethod
    def _dates(fields: pd.DataFrame) -> pd.Series:
        year = pd.to_numeric(fields["Y"]) if "Y" in fields else pd.to_numeric(fields["y"])
        if "y" in fields:
            year = year.where(year > _LAST_SHORT_YEAR, year + 100) + 1900
        if "b" in fields:
            names = {name[:3].lower(): place + 1 for place, name in enumerate(_MONTHS)}
            month = fields["b"].str[:3].str.lower().map(names)
        else:
            month = pd.to_numeric(fields["m"]) if "m" in fields else 3 * pd.to_numeric(fields["q"]) - 2
        day = pd.to_numeric(fields["d"]) if "d" in fields else year * 0 + 1
        parts = pd.DataFrame({"year": year, "month": month, "day": day})
        return pd.to_datetime(parts, errors="coerce")

    def write(self, values: pd.Series) -> pd.Series:
        """Return dates or durations as texts in this format; missing values stay missing."""
        known = values[values.notna()]
        pieces = _FIELD.split(self.template)  # text, field, text, field, ..., text
        texts = pd.Series(pieces[0], index=known.index, dtype=object)
        for field, text in zip(pieces[1::2], pieces[2::2], strict=True):
            texts = texts + self._field(known, field) + text
        return texts.reindex(values.index)

    def _field(self, values: pd.Series, field: str) -> pd.Series:
        """Return one field of each value as text."""
        if field == "z":
            return pd.Series(self.zone, index=values.index, dtype=object)
        if field == "b":
            names = [name if self.full_months else name[:3] for name in _MONTHS]
            return values.dt.month.map(lambda month: getattr(names[month - 1], self.month)())
        if self.is_clock:
            total = values.dt.total_seconds() // 1
            hours, minutes, seconds, fraction = total // 3600, total // 60 % 60, total % 60, values.dt.microseconds
        else:
            hours, minutes, seconds, fraction = (values.dt.hour, values.dt.minute, values.dt.second,
                                                 values.dt.microsecond)  # fmt: skip
        if field == "p":
            return pd.Series(np.where(hours % 24 >= 12, *self.half[::-1]), index=values.index, dtype=object)
        if field == "I":
            hours = (hours - 1) % 12 + 1
        numbers = {"H": hours, "h": hours, "I": hours, "M": minutes, "S": seconds}.get(field)
        if numbers is None:
            parts = values.dt
            numbers = {"Y": parts.year, "y": parts.year % 100, "q": parts.quarter, "m": parts.month, "d": parts.day}[
                field
            ]
        width = 4 if field == "Y" else 1 if field == "q" or field in self.unpadded else 2
        texts = numbers.astype(np.int64).map(f"{{:0{width}d}}".format).astype(object)
        if field == "S" and self.digits:
            fractions = "." + fraction.map("{:06d}".format).str.ljust(9, "0").str[: self.digits]
            texts += fractions if self.fixed else fractions.where(fraction > 0, "")
        return texts

    def describe(self) -> str:
        """Return how the example is read, such as ``dates ('3.4.2020' is 2020-04-03)``."""
        value = self.parse(pd.Series([self.example])).iloc[0]
        if self.is_clock:
            return f"times ({self.example!r} is {value.total_seconds() / 3600:.6g} hours)"
        midnight = value == value.normalize()
        return f"dates ({self.example!r} is {value.strftime('%Y-%m-%d') if midnight else value})"


def are_times_in_several_forms(cells: pd.Series) -> bool:
    """Return whether nearly all texts are dates or times, but of several forms: some lack the time of day, say."""
    texts = cells.dropna().astype(str).str.strip()
    shapes = texts.str.replace(r"\d", "9", regex=True).str.replace(r"[^\W\d_]+", "a", regex=True)
    counts = Counter(shapes)
    if not 1 < len(counts) <= _MAX_SHAPES:
        return False
    fitting: Counter[str] = Counter()  # the rows that each form fits
    rows = 0
    for shape, text in zip(shapes, texts, strict=True):
        count = counts.pop(shape, 0)  # once for each shape
        forms = [template for template in _templates() if count and _fits(template, text)]
        fitting.update(dict.fromkeys(forms, count))
        rows += count * bool(forms)
    return rows >= _MIN_TIMES * len(texts) > max(fitting.values(), default=0)


@cache
def _templates() -> tuple[str, ...]:
    """Return all templates, the most common ones first."""

    def combined() -> Iterator[str]:
        yield from _DATES
        for date in _DATES:
            for between in (" ", "T", ", "):
                for clock in _CLOCKS:
                    yield f"{date}{between}{clock}"
                    yield f"{date}{between}{clock}{{z}}"
        yield from _PERIODS
        yield from _DURATIONS

    return tuple(combined())


@cache
def _literals(template: str) -> frozenset[str]:
    return frozenset(_FIELD.sub("", template))


def _fits(template: str, text: str) -> bool:
    return _literals(template) <= set(text) and _regex(template).fullmatch(text) is not None


@cache
def _regex(template: str) -> re.Pattern[str]:
    pieces = _FIELD.split(template)
    patterns = {**_FIELDS, "Y": r"(?:19|20)\d{2}"} if template in _MONTHS_OF_YEARS else _FIELDS
    fields = [
        f"(?P<{field}>{patterns[field]}){_FRACTION if field == 'S' else ''}" + re.escape(text)
        for field, text in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    return re.compile(re.escape(pieces[0]) + "".join(fields))


def _is_sorted(times: pd.Series) -> bool:
    known = times.dropna()
    return known.nunique() > 2 and (known.is_monotonic_increasing or known.is_monotonic_decreasing)


def _halves(word: str) -> tuple[str, str]:
    """Return the words for both halves of a day, spelled like one of them."""
    rest = word[1:]
    return ("A" + rest, "P" + rest) if word[0].isupper() else ("a" + rest, "p" + rest)


def _as_offset(zone: str) -> str:
    return zone if zone.startswith(("+", "-")) else "+00:00"


def _offset_minutes(zone: str) -> float:
    digits = _as_offset(zone).replace(":", "")
    return (-1.0 if digits[0] == "-" else 1.0) * (60 * int(digits[1:3]) + int(digits[3:5]))
