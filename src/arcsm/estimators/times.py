"""Columns of dates, times of day, durations and periods: whole numbers of steps as fine as the values."""

import datetime
from dataclasses import dataclass, replace
from numbers import Number
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from arcsm.estimators.column_inference import DEFAULT_RULES, NumberRules, fit_continuous
from arcsm.estimators.column_types import MAX_LEVELS, Array, Column, Constant, Grid, Values
from arcsm.estimators.range_ends import hard_ends
from arcsm.stored_values import stored

_UNITS = ("D", "h", "m", "s", "ms", "us", "ns")  # as NumPy calls them
_DAY = np.timedelta64(1, "D")
_LARGEST_WITHOUT_EXPONENT = 1e15  # of the numbers in texts

Form = Literal["moment", "date", "clock", "duration", "period"]


@stored
@dataclass(frozen=True)
class TimeScale:
    """The step in which the times of a column are counted, and the form in which they come back.

    Times with a time zone are counted by the clock of that zone.

    Attributes:
        form: Whether values are moments, dates, times of day, durations or periods.
        unit: The step: the coarsest of a month, day, hour, minute, second, ... on which all values lie.
        at_end: Whether values are last days of their months.
        zone: The time zone.
        period: The frequency of periods.
    """

    form: Form
    unit: str
    at_end: bool = False
    zone: Any = None
    period: str | None = None

    def check_read(self) -> None:
        """Check a scale that was read from a file."""
        if self.unit not in ("M", *_UNITS):
            raise ValueError(f"TimeScale: unknown unit {self.unit!r:.60}")

    @classmethod
    def fit(cls, values: Any) -> Self:
        """Return the scale of the known values of a column."""
        known = pd.Series(values).dropna()
        form = _form_of(known)
        times = _as_series(known, form)
        zone = getattr(times.dt, "tz", None)
        counts = _as_counts(times)
        period = str(times.dtype).removeprefix("period[").removesuffix("]") if form == "period" else None
        if counts.dtype.kind == "M":
            for at_end in (False, True):
                if _lie_on(counts + at_end * _DAY, "M"):
                    return cls(form, "M", at_end, zone, period)
        unit = next((unit for unit in _UNITS if _lie_on(counts, unit)), "ns")
        return cls(form, unit, False, zone, period)

    def count(self, values: Any) -> Array:
        """Return times as numbers of steps, NaN for missing ones.

        Text is parsed. Periods may also be dates or moments in them.

        Raises:
            ValueError: If values are not times of this form.
        """
        values = pd.Series(values)
        numbers = np.full(len(values), np.nan)
        known = values.dropna()
        if len(known):
            counts = _as_counts(_as_series(known, self.form, self.zone, self.period))
            counts = counts + self.at_end * _DAY if self.unit == "M" else counts
            whole = counts.astype(f"{counts.dtype.kind}8[{self.unit}]")
            numbers[values.notna().to_numpy()] = whole.astype(np.int64) + _fractions(counts, whole)
        return numbers

    def days_of(self, text: str) -> tuple[datetime.date, datetime.date] | None:
        """Return the first and the last day of a year, quarter or month in a column of days or moments.

        ``None`` for any other text, and in a column of months.
        """
        if self.form not in ("moment", "date") or self.unit == "M":
            return None
        try:
            period = pd.Period(text)
        except ValueError:
            return None
        if not isinstance(period, pd.Period) or period.freqstr.split("-")[0] not in ("Y", "Q", "M"):
            return None
        return period.start_time.date(), period.end_time.date()

    def times(self, numbers: Array) -> Values:
        """Return the times of numbers of steps as objects, rounded to whole steps; NaT for NaN."""
        known = ~np.isnan(numbers)
        whole = np.rint(np.where(known, numbers, 0.0)).astype(np.int64)
        kind = "m" if self.form in ("clock", "duration") else "M"
        counts = whole.astype(f"{kind}8[{self.unit}]")
        counts = counts.astype("M8[D]") - self.at_end * _DAY if self.unit == "M" else counts
        series = pd.Series(counts.astype(f"{kind}8[{'s' if self.unit in 'MDhm' else self.unit}]"))
        if self.zone is not None:
            series = series.dt.tz_localize(
                self.zone, ambiguous=np.zeros(len(series), bool), nonexistent="shift_forward"
            )
        if self.form == "period":
            series = series.dt.to_period(self.period)
        objects = np.array(series.astype(object), dtype=object)
        if self.form == "date":
            objects = np.array([moment.date() for moment in objects], dtype=object)
        elif self.form == "clock":
            objects = np.array([_clock(duration % datetime.timedelta(1)) for duration in objects], dtype=object)
        objects[~known] = pd.NaT
        return objects


def _clock(since_midnight: datetime.timedelta) -> datetime.time:
    return (datetime.datetime.min + since_midnight).time()


def _form_of(known: pd.Series) -> Form:
    if isinstance(known.dtype, pd.PeriodDtype) or (len(known) and isinstance(known.iloc[0], pd.Period)):
        return "period"
    first = known.iloc[0]
    if isinstance(first, datetime.time):
        return "clock"
    if isinstance(first, datetime.timedelta | np.timedelta64):
        return "duration"
    return "date" if type(first) is datetime.date else "moment"


def _as_series(known: pd.Series, form: Form, zone: Any = None, period: str | None = None) -> pd.Series:
    """Return known times of a form as a series with an accessor ``dt``; text is parsed."""
    try:
        is_object = known.dtype == object
        if pd.api.types.is_numeric_dtype(known) or (is_object and any(isinstance(value, Number) for value in known)):
            raise TypeError("expected times")  # pandas takes numbers for nanoseconds
        if isinstance(known.dtype, pd.PeriodDtype):
            return known
        if form == "period":
            return pd.Series(pd.PeriodIndex([_period(value, period) for value in known]))
        if form == "clock":
            known = known.map(_clock_text).astype(object)
        if form in ("clock", "duration"):
            return pd.to_timedelta(known)
        moments = pd.to_datetime(known.astype(object) if isinstance(known.dtype, pd.ArrowDtype) else known)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected values such as the fitted ones, got {known.iloc[0]!r}") from error
    if not hasattr(moments, "dt"):
        raise ValueError("expected times of one time zone, got several")
    return moments if zone is None or moments.dt.tz is None else moments.dt.tz_convert(zone)


def _period(value: Any, frequency: str | None) -> pd.Period:
    """Return a period as it is, and the period of a frequency that holds a date, moment or text."""
    return value if isinstance(value, pd.Period) else pd.Period(value, frequency)


def _clock_text(value: Any) -> str:
    """Return a time of day as text with seconds."""
    if isinstance(value, datetime.time):
        return value.isoformat()
    if not isinstance(value, str):
        raise TypeError("expected a time of day")
    return f"{value}:00" if value.count(":") == 1 else value


def _as_counts(times: pd.Series) -> NDArray[Any]:
    """Return times, by the clock of their zone, as a NumPy array."""
    if isinstance(times.dtype, pd.PeriodDtype):
        return times.dt.start_time.to_numpy()
    if getattr(times.dt, "tz", None) is not None:
        times = times.dt.tz_localize(None)
    return times.to_numpy()


def _lie_on(counts: NDArray[Any], unit: str) -> bool:
    return bool((counts.astype(f"{counts.dtype.kind}8[{unit}]") == counts).all())


def _fractions(counts: NDArray[Any], whole: NDArray[Any]) -> Array:
    """Return how far times lie beyond whole steps, in steps."""
    if (whole == counts).all():
        return np.zeros(len(counts))
    step = (whole + np.ones(1, np.int64).astype(f"m8[{np.datetime_data(whole.dtype)[0]}]")) - whole
    return (counts - whole) / step.astype(f"m8[{np.datetime_data(counts.dtype)[0]}]")


@stored
@dataclass(frozen=True)
class Times(Column):
    """A column of dates, times of day, durations or periods.

    Attributes:
        scale: The step in which they are counted.
        numbers: The type of a column of these counts.
    """

    scale: TimeScale
    numbers: Column

    @property
    def discrete(self) -> bool:  # type: ignore[override]
        return self.numbers.discrete

    @property
    def example_numbers(self) -> Array:
        return self.numbers.example_numbers

    @property
    def level_numbers(self) -> Array:
        return self.numbers.level_numbers

    @property
    def ends(self) -> tuple[float, float] | None:
        return self.numbers.ends

    @property
    def spike_numbers(self) -> Array:
        return self.numbers.spike_numbers

    @property
    def log_unseen(self) -> float:
        return self.numbers.log_unseen

    def with_room(self) -> "Times":
        return self if self.scale.form == "clock" else replace(self, numbers=self.numbers.with_room())

    def encode(self, values: Values) -> Array:
        return self.numbers.encode(self.scale.count(values))

    def decode(self, numbers: Array) -> Values:
        return self.scale.times(np.asarray(self.numbers.decode(numbers), dtype=float))

    def log_slope(self, numbers: Array) -> Array:
        """Return the log of the slope in numbers per step of the scale."""
        return self.numbers.log_slope(numbers)

    def allows(self, number: float, value: Any) -> bool:
        return self.numbers.allows(number, float(self.scale.count([value])[0]))

    def must_parse(self, value: Any) -> bool:
        """Return whether a value is text, or a date or moment in place of a period."""
        return isinstance(value, str) or (self.scale.form == "period" and not isinstance(value, pd.Period))


def counted(kind: Column) -> Column:
    """Return the type of the counts of a column of times, and of any other column its own type."""
    return kind.numbers if isinstance(kind, Times) else kind


def infer_times(values: pd.Series, rules: NumberRules = DEFAULT_RULES) -> Column:
    """Infer the type of a column of times: on the grid of its steps or, if that is too fine, continuous.

    Each different time has a level if there are few, as numbers have.
    """
    known = values.dropna()
    if known.nunique() == 1:
        return Constant(known.iloc[0], len(known))
    scale = TimeScale.fit(known)
    counts = scale.count(known)
    low, high = float(counts.min()), float(counts.max())
    step = float(np.gcd.reduce(np.diff(np.unique(counts)).astype(np.int64)))
    levels = round((high - low) / step) + 1
    distinct = np.unique(counts)
    few = tuple(distinct.tolist()) if len(distinct) <= rules.few else ()
    grid = Grid(step, low, levels, whole=True, training_rows=len(known), few=few)
    if levels < MAX_LEVELS:
        return Times(scale, grid)
    continuum = fit_continuous(counts)
    if scale.form in ("clock", "duration"):  # dates go on
        continuum = replace(continuum, hard_ends=hard_ends(counts, counts))
    return Times(scale, continuum)


def value_text(value: Any, digits: int = 4) -> str:
    """Return a value of a table in a few characters: a few digits, or a date without the time of midnight.

    Example:
        >>> [value_text(value) for value in (0.123456, 71065.4, 2e5, 1e-9, 2e20)]
        ['0.1235', '71065', '200000', '1e-09', '2e+20']
    """
    if isinstance(value, float | np.floating):
        text = f"{value:.{digits}g}"
        return f"{value:.0f}" if 10.0**digits <= abs(float(value)) < _LARGEST_WITHOUT_EXPONENT else text
    if isinstance(value, pd.Timestamp):
        return value.strftime("%Y-%m-%d") if value == value.normalize() else str(value)
    if isinstance(value, datetime.timedelta) and value < datetime.timedelta(0):
        return f"-{value_text(-value)}"
    if isinstance(value, datetime.timedelta) and value < datetime.timedelta(1):
        clock = _clock(value)
        return clock.isoformat("minutes" if not clock.second and not clock.microsecond else "auto")
    return str(value)
