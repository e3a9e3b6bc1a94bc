"""Columns of times: whole numbers of steps, and times of the same kind again."""

from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from arcsm.estimators.column_inference import NumberRules
from arcsm.estimators.detection import detection_table
from arcsm.estimators.encoder import Columns
from arcsm.estimators.times import Times, TimeScale, value_text
from small_tables import QUICK, normal, use_small_models

STEPS = np.random.default_rng(0).integers(0, 300, 60)
DAYS = pd.to_datetime("2024-01-15") + pd.to_timedelta(STEPS, unit="D")
CASES: dict[str, tuple[Any, str]] = {
    "days": (DAYS, "D"),
    "firsts of months": (pd.date_range("2000-01-01", periods=60, freq="MS"), "M"),
    "last days of months": (pd.date_range("2000-01-31", periods=60, freq="ME"), "M"),
    "hours in a zone": ((DAYS + pd.Timedelta(hours=5)).tz_localize("Europe/Rome"), "h"),
    "seconds over years": (pd.to_datetime("2024-01-15") + pd.to_timedelta(STEPS * 10**6 + 1, unit="s"), "s"),
    "durations": (pd.to_timedelta(STEPS, unit="min"), "m"),
    "quarters": (pd.period_range("2000Q1", periods=60, freq="Q"), "M"),
    "date objects": ([day.date() for day in DAYS], "D"),
    "clock objects": ([datetime.time(int(step) % 24, 30) for step in STEPS], "m"),
    "Arrow's": (pd.Series(DAYS).astype("timestamp[us][pyarrow]"), "D"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_times_become_numbers_and_times_again(name: str) -> None:
    values, unit = CASES[name]
    table = pd.DataFrame({"t": values, "z": normal(60)})
    table.loc[3, "t"] = None
    columns = Columns.infer(table)
    kind = columns.kinds[0]
    assert isinstance(kind, Times)
    assert kind.scale.unit == unit
    numbers = columns.encode(table)
    assert np.isnan(numbers[3, 0])
    back = columns.decode(numbers)
    assert isinstance(back, pd.DataFrame)
    assert back["t"].dtype == table["t"].dtype
    known = table["t"].notna()
    assert back["t"][known].tolist() == table["t"][known].tolist()
    assert columns.describe() == "2 columns: 1 temporal, 1 continuous"


def test_estimators_draw_fill_and_condition_on_times(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    table = pd.DataFrame({
        "day": DAYS.tz_localize("Europe/Rome"), "long": pd.to_timedelta(STEPS * 10**6 + 1, unit="s"), "z": normal(60),
    })  # fmt: skip
    gaps = table.copy()
    gaps.loc[[3, 7], "day"] = gaps.loc[4, "long"] = None
    density = ScoreDensity(**QUICK).fit(gaps)
    drawn, filled = pd.DataFrame(density.sample(20)), pd.DataFrame(density.impute(gaps, draws=8))
    for rows in (drawn, filled):
        assert rows.dtypes.tolist() == table.dtypes.tolist()
        assert (rows["day"] == rows["day"].dt.normalize()).all()
    assert not filled.isna().any(axis=None)
    given = pd.DataFrame(density.conditional({"day": table["day"][5]}, 4))
    assert given["day"].tolist() == [table["day"][5]] * 4
    with pytest.raises(ValueError, match="column 'day' does not contain"):
        density.conditional({"day": pd.Timestamp("1890-01-01", tz="Europe/Rome")})
    with pytest.raises(ValueError, match="column 'day': expected values like the fitted ones, got 'x'"):
        density.score_samples(table.assign(day="x"))


def test_reasons_name_dates(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    table = pd.DataFrame({"day": DAYS, "z": 0.01 * normal(60)})
    odd = table.head(1).assign(day=pd.Timestamp("1890-05-01"))
    found = detection_table(ScoreOutlierDetector(**QUICK).fit(table), odd)
    because = found["because"].item()
    assert because.startswith("day: expected 2024-")
    assert because.split("; ")[0].endswith("saw 1890-05-01")
    assert found["row"].tolist() == [1]


@pytest.mark.parametrize(("few", "levels"), [(16, 5), (2, 0)])
def test_few_times_have_levels_if_the_rules_say_so(few: int, levels: int) -> None:
    table = pd.DataFrame({"t": np.tile(DAYS[:5].to_numpy(), 12), "z": normal(60)})
    assert DAYS[:5].nunique() == 5
    assert len(Columns.infer(table, NumberRules(few=few, most=few)).kinds[0].level_numbers) == levels


def test_values_in_words() -> None:
    for value, text in (
        (0.123456, "0.1235"), (pd.Timestamp("2024-02-01"), "2024-02-01"), (pd.Timedelta(hours=14.5), "14:30"),
        (pd.Timedelta(hours=-1), "-01:00"), (pd.Timestamp("2024-02-01 10:00"), "2024-02-01 10:00:00"), ("x", "x"),
    ):  # fmt: skip
        assert value_text(value) == text


def test_a_column_that_counts_rows_warns() -> None:
    table = pd.DataFrame({"id": range(60), "z": normal(60)})
    with pytest.warns(UserWarning, match="column 'id' has a different whole number in every row; if it labels rows"):
        Columns.infer(table)


def test_fine_durations_are_never_negative() -> None:
    seconds = np.random.default_rng(0).exponential(1e6, 500).round()
    columns = Columns.infer(pd.DataFrame({"wait": pd.to_timedelta(seconds, unit="s")}))
    assert columns.kinds[0].log_unseen == pytest.approx(-math.log(502.0))
    assert columns.decode(np.array([[-1e6]]))["wait"].tolist() == [pd.Timedelta(0)]


def test_fine_moments_have_no_hard_ends() -> None:
    seconds = np.random.default_rng(0).uniform(0.0, 1e9, 500).round()  # from the moment that they are counted from
    columns = Columns.infer(pd.DataFrame({"at": pd.to_datetime(seconds, unit="s")}))
    assert columns.kinds[0].ends is None
    assert columns.decode(np.array([[-2.0]]))["at"][0] < pd.Timestamp("1970-01-01")


def test_text_without_a_day_is_whole_in_a_column_of_months_alone() -> None:
    days, months = (TimeScale.fit(pd.date_range("2024-01-01", periods=9, freq=unit)) for unit in ("D", "MS"))
    assert days.days_of("2024-02") == (datetime.date(2024, 2, 1), datetime.date(2024, 2, 29))
    assert days.days_of("2024Q2") == (datetime.date(2024, 4, 1), datetime.date(2024, 6, 30))
    assert [days.days_of(text) for text in ("2024-02-01", "2024-02-01 10:00", "noon", "")] == [None] * 4
    assert months.days_of("2024-02") is None
