"""Types of columns: text among numbers, codes and dates."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcsm.data import read_frame, write_frame
from quick_tables import normal


def test_text_far_down_a_file_makes_the_whole_column_names(tmp_path: Path) -> None:
    codes = ["1", "2", "3"] * 6_000 + ["A", "B"] * 3_000  # more than pandas infers types from at a time
    pd.DataFrame({"code": codes, **{f"z{d}": 1 for d in range(60)}}).to_csv(tmp_path / "t.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(read_frame(tmp_path / "t.csv")["code"]) == {"1", "2", "3", "A", "B"}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1,450", "600", "2,100"], r"expected a number, got '\d,\d+' \(write numbers without commas\)"),
        (["-", "17"], r"expected a number, got '-'"),
    ],
)
def test_a_few_mistakes_among_numbers_are_rejected(tmp_path: Path, cells: list[str], message: str) -> None:
    random = np.random.default_rng(0)
    column = [str(random.integers(100, 900)) if random.random() < 0.75 else random.choice(cells) for _ in range(200)]
    if "," in cells[0]:
        column = [f"{int(cell.replace(',', '')) + 1000:,}" for cell in column]
    pd.DataFrame({"price": column, "z": normal(200)}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=rf"line \d+, column 'price': {message}"):
        read_frame(tmp_path / "t.csv")


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%d.%m.%Y", "%m/%d/%y", "%Y-%m-%dT%H:%M:%SZ"])
def test_dates_in_text_are_rejected(tmp_path: Path, form: str) -> None:
    days = pd.date_range("2026-01-01", periods=20).strftime(form)
    table = pd.DataFrame({"a": normal(80), "day": list(days) * 4})
    write_frame(tmp_path / "t.csv", table)
    with pytest.raises(ValueError, match=r"column 'day' holds dates or times; turn them into numbers.*--ignore"):
        read_frame(tmp_path / "t.csv")
    assert list(read_frame(tmp_path / "t.csv", ignore=["day"]).columns) == ["a"]
    write_frame(tmp_path / "t.csv", table.assign(day=["1-2", "version 1.2.3", "10.0.0.1", "2026"] * 20))
    assert read_frame(tmp_path / "t.csv")["day"].nunique() == 4
