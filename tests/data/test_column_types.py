"""Types of columns: text among numbers, codes and dates."""

from __future__ import annotations

import decimal
import re
import warnings
from pathlib import Path

import pandas as pd
import pytest

from arcsm.data import FrameFile, ReadOptions, read_frame, read_table, write_frame
from small_tables import normal


@pytest.mark.parametrize(
    ("odd", "numbers", "is_code"),
    [
        (["136A"], ["001", "002", "103"], True),  # zeros in front
        (["207a", "207b"] * 2, ["300", "301", "302"], True),  # several codes that repeat
        (["105m", "98m"], ["100", "101", "102"], False),  # units
    ],
)
def test_a_few_codes_with_letters_make_a_column_names(
    tmp_path: Path, odd: list[str], numbers: list[str], is_code: bool
) -> None:
    cells = numbers * 40 + odd
    pd.DataFrame({"code": cells, "z": normal(len(cells))}).to_csv(tmp_path / "t.csv", index=False)
    if is_code:
        with pytest.warns(UserWarning, match=rf"read 'code' as names \('{odd[0]}' is no number\)"):
            assert read_frame(tmp_path / "t.csv")["code"].tolist() == cells
        return
    advice = r"--categorical 'code'; to leave it out: --ignore 'code'\)"
    with pytest.raises(ValueError, match=rf"expected a number, got .*differ: .* with none and .*{advice}"):
        read_frame(tmp_path / "t.csv")
    assert read_frame(tmp_path / "t.csv", options=ReadOptions(categorical=["code"]))["code"].tolist() == cells


def test_text_far_down_a_file_makes_the_whole_column_names(tmp_path: Path) -> None:
    codes = ["1", "2", "3"] * 1_000 + ["A", "B"] * 500  # more than pandas infers types from at a time
    pd.DataFrame({"code": codes, **{f"z{d}": 1 for d in range(60)}}).to_csv(tmp_path / "t.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(read_frame(tmp_path / "t.csv")["code"]) == {"1", "2", "3", "A", "B"}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            ["20.1%", "0.206", "22.7%"],
            r"row 2 \(line 3\), .* such as '20.1%', got '0.206' .*40 with '%' and 20 with none",
        ),
        (["(13.03)"] + ["9.50"] * 20 + ["13.03-"], r"got '13.03-' \(write it as a number; if the column holds codes: "),
        ([f"2,2,3{n}.50" for n in range(411, 441)], r"\(a number in an unknown form; write it without marks"),
        (["63 kg", "700 g"], r"got '63 kg' \(the units differ: 20 with 'kg' and 20 with 'g'; write all"),
        (["5.1", "5.2"] * 8 + ["1,23"], r"got '1,23' \(a number in another form than the others; if the column"),
    ],
)
def test_numbers_in_another_form_are_no_marks_of_missing_values(cells: list[str], message: str, tmp_path: Path) -> None:
    pd.DataFrame({"pct": cells * 20, "z": 1}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=message) as caught:
        read_frame(tmp_path / "t.csv")
    assert "--na" not in str(caught.value)


@pytest.mark.parametrize(
    ("first", "other", "units"),
    [
        ("20.1%", "30.1%", None),
        ("20.1 €", "30.1", None),
        ("20.1%", "0.301", "none here and '%'"),
        ("20.1", "30.1 kg", "'kg' here and none"),
    ],
)
def test_another_table_must_have_the_unit_of_the_first(
    first: str, other: str, units: str | None, tmp_path: Path
) -> None:
    for name, cell in (("train", first), ("test", other)):
        pd.DataFrame({"pct": [cell] * 20}).to_csv(tmp_path / f"{name}.csv", index=False)
    train = FrameFile(tmp_path / "train.csv")
    train.read()
    test = FrameFile(tmp_path / "test.csv", like=train.types)
    if units is None:
        assert set(test.read()["pct"]) == {30.1}
        return
    with pytest.raises(ValueError, match=re.escape(f"got '{other}' (the units differ: {units} in the other table")):
        test.read()


def test_dates_in_several_forms_are_rejected_unless_they_are_names(tmp_path: Path) -> None:
    cells = ["2026-11-25", "2026-11-26 14:30"]  # with and without a time
    pd.DataFrame({"day": cells * 20, "z": 1}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(
        ValueError, match=r"row 1 .*got .* \(write all dates and times in one form; .*--categorical 'day'"
    ):
        read_frame(tmp_path / "t.csv")
    assert read_frame(tmp_path / "t.csv", options=ReadOptions(categorical=["day"]))["day"].tolist() == cells * 20


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%Y-%m-%dT%H:%M:%SZ"])
def test_dates_in_text_are_dates(tmp_path: Path, form: str) -> None:
    days = pd.date_range("2026-01-01", periods=20)
    table = pd.DataFrame({"a": normal(80), "day": list(days.strftime(form)) * 4})
    write_frame(tmp_path / "t.csv", table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = read_frame(tmp_path / "t.csv")["day"]
    assert read.dt.tz_localize(None).tolist() == list(days) * 4
    assert list(read_frame(tmp_path / "t.csv", ignore=["day"]).columns) == ["a"]
    write_frame(tmp_path / "t.csv", table.assign(day=["1-2", "version 1.2.3", "10.0.0.1", "2026"] * 20))
    assert read_frame(tmp_path / "t.csv")["day"].nunique() == 4


def test_decimals_in_parquet_are_numbers_and_text_is_not(tmp_path: Path) -> None:
    pd.DataFrame({"a": [decimal.Decimal("1.50"), None]}).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", allow_missing=True).values[0, 0] == 1.5
    pd.DataFrame({"a": ["1.5", None]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"row 1, column 'a': expected a number, got '1.5' \(text\)"):
        read_table(tmp_path / "t.parquet")
