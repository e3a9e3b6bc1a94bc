"""Columns of times: whole numbers of steps, and times of the same kind again."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from arcsm.estimators import ScoreDensity
from arcsm.estimators.continua import Continuous
from arcsm.estimators.encoder import Columns
from arcsm.estimators.times import Times
from small_tables import QUICK, normal, use_small_models

STEPS = np.random.default_rng(0).integers(0, 300, 60)
DAYS = pd.to_datetime("2024-01-15") + pd.to_timedelta(STEPS, unit="D")
CASES: dict[str, tuple[Any, str]] = {
    "days": (DAYS, "D"),
    "last days of months": (pd.date_range("2000-01-31", periods=60, freq="ME"), "M"),
    "hours in a zone": ((DAYS + pd.Timedelta(hours=5)).tz_localize("Europe/Rome"), "h"),
    "seconds over years": (pd.to_datetime("2024-01-15") + pd.to_timedelta(STEPS * 10**6 + 1, unit="s"), "s"),
    "quarters": (pd.period_range("2000Q1", periods=60, freq="Q"), "M"),
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
    with pytest.raises(ValueError, match="column 'day': expected values like the fitted ones, got 'x'"):
        density.score_samples(table.assign(day="x"))


def test_a_column_that_counts_rows_warns() -> None:
    table = pd.DataFrame({"id": range(60), "z": normal(60)})
    with pytest.warns(UserWarning, match="column 'id' has a different whole number in every row; if it labels rows"):
        Columns.infer(table)


@pytest.mark.parametrize(("form", "ends"), [("moment", False), ("duration", True), ("clock", True)])
def test_times_on_too_fine_a_grid_are_continuous_and_days_go_on(form: str, ends: bool) -> None:
    seconds = pd.to_timedelta(np.random.default_rng(0).random(400) * 86_000, unit="s").round("us")
    moments = pd.Timestamp("2024-01-15") + seconds
    values = {"moment": moments, "duration": seconds, "clock": [moment.time() for moment in moments]}[form]
    (kind,) = Columns.infer(pd.DataFrame({"t": pd.Series(values)})).kinds
    assert isinstance(kind, Times)
    assert isinstance(kind.numbers, Continuous)
    assert np.isfinite(kind.numbers.hard_ends).any() == ends
    given = pd.Series(values)[:20].to_numpy()
    np.testing.assert_allclose(kind.encode(kind.decode(kind.encode(given))), kind.encode(given), atol=1e-5)
