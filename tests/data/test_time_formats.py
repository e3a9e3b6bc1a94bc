"""Dates and times as text: read in common formats and written back in the same."""

from __future__ import annotations

import pandas as pd
import pytest

from arcsm.data.time_formats import TimeFormat


@pytest.mark.parametrize(
    ("cells", "first"),
    [
        (["31.12.2020", "1.1.2021"], "2020-12-31"),
        (["13/02/2020", "03/04/2020"], "2020-02-13"),  # thirteen is no month
        (["3-Jan-20", "14-Feb-21"], "2020-01-03"),
        (["SEP 1 2000", "OCT 12 2001"], "2000-09-01"),
        (["2020Q2", "2021Q4"], "2020-04-01"),
        (["09/2020", "12/2021"], "2020-09-01"),
        (["1/15/2008 0:00", "2/1/2009 13:45"], "2008-01-15"),
        (["2020-01-01 10:00:00.250+01:00", "2020-01-02 10:00:00.500+01:00"], "2020-01-01T10:00:00.25+01:00"),
    ],
)
def test_dates_are_read_and_written_back(cells: list[str], first: str) -> None:
    column = pd.Series([*cells, None])
    form = TimeFormat.infer(column)
    assert form is not None
    parsed = form.parse(column)
    assert parsed[0] == pd.Timestamp(first)
    assert parsed.isna().tolist() == [False, False, True]
    assert form.write(parsed).tolist()[:-1] == cells


@pytest.mark.parametrize(
    ("cells", "first"),
    [
        (["14:30", "09:05"], "14:30:00"),
        (["2:05 PM", "12:30 AM"], "14:05:00"),
        (["125:30:10", "0:00:05"], "125:30:10"),
    ],
)
def test_clock_times_and_durations_are_read_and_written_back(cells: list[str], first: str) -> None:
    column = pd.Series(cells)
    form = TimeFormat.infer(column)
    assert form is not None
    assert form.parse(column)[0] == pd.Timedelta(first)
    assert form.write(form.parse(column)).tolist() == cells


def test_whole_seconds_may_lack_the_fraction_that_others_have() -> None:
    cells = pd.Series(["2024-04-05 14:19:32", "2024-01-14 12:38:30.250000", "2024-04-05T14:19:32"])
    form = TimeFormat.infer(cells)
    assert form is not None
    assert form.parse(cells).tolist() == [*map(pd.Timestamp, cells[:2]), pd.NaT]
    assert form.write(form.parse(cells)).tolist()[:2] == cells[:2].tolist()
    whole = TimeFormat.infer(cells[:1])
    assert whole is not None
    assert whole.parse(cells)[1] == pd.Timestamp(cells[1])  # a fraction, though there was none before


def test_ambiguous_days_and_months_are_decided_by_order_or_by_the_file() -> None:
    rising = pd.Series(["05/01/2020", "11/01/2020", "02/02/2020", "09/02/2020"])
    form = TimeFormat.infer(rising)
    assert form is not None
    assert form.template == "{d}/{m}/{Y}"
    unordered = pd.Series(["03/04/2020", "01/02/2020", "05/04/2020"])
    for day_first, example in ((False, "2020-03-04"), (True, "2020-04-03")):
        form = TimeFormat.infer(unordered, day_first)
        assert form is not None
        assert form.is_guess
        assert form.describe() == f"dates ('03/04/2020' is {example})"


@pytest.mark.parametrize("cells", [["10.0.0.1", "1.2.3"], ["16:9", "4:3"], ["00:01.5", "00:02.5"]])
def test_other_texts_are_not_times(cells: list[str]) -> None:
    assert TimeFormat.infer(pd.Series(cells)) is None


def test_years_of_two_digits_lie_between_1930_and_2029() -> None:
    column = pd.Series(["25/11/63", "5/11/30", "31/12/29", "5/1/00"])
    form = TimeFormat.infer(column)
    assert form is not None
    assert form.parse(column).dt.year.tolist() == [1963, 1930, 2029, 2000]
    assert form.write(form.parse(column)).tolist() == column.tolist()


def test_several_time_zones_become_one() -> None:
    column = pd.Series(["2024-01-01T10:00+01:00", "2024-07-01T10:00+02:00"])
    form = TimeFormat.infer(column)
    assert form is not None
    assert form.is_guess
    assert form.write(form.parse(column)).tolist() == ["2024-01-01T09:00+00:00", "2024-07-01T08:00+00:00"]


def test_whole_numbers_that_are_all_dates_are_dates() -> None:
    days = pd.Series(pd.date_range("2019-12-28", periods=9).strftime("%Y%m%d").astype(int))
    form = TimeFormat.infer_compact(days)
    assert form is not None
    assert TimeFormat.infer_compact(days + 40) is None
