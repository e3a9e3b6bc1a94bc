"""Types of columns: text among numbers, codes and dates."""

from __future__ import annotations

import decimal
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcsm.data import FrameFile, ReadOptions, read_frame, read_table, write_frame
from small_tables import normal


@pytest.mark.parametrize(
    ("odd", "numbers", "is_code"),
    [
        (["136A"], ["001", "002", "103"], True),  # zeros in front
        (["207a", "207b"] * 2, ["300", "301", "302"], True),  # several codes that repeat
        (["c168", "c118"], ["117", "1083"], True),
        (["105m", "98m"], ["100", "101", "102"], False),  # units
        (["3O"], ["30", "31", "32"], False),  # a mistake
        (["12a", "12b"] * 2, ["1.5", "2.5"], False),  # measurements
        (["12a", "oops"] * 2, ["001", "002"], False),
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
    codes = ["1", "2", "3"] * 6_000 + ["A", "B"] * 3_000  # more than pandas infers types from at a time
    pd.DataFrame({"code": codes, **{f"z{d}": 1 for d in range(60)}}).to_csv(tmp_path / "t.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(read_frame(tmp_path / "t.csv")["code"]) == {"1", "2", "3", "A", "B"}


def test_a_few_mistakes_among_numbers_are_rejected(tmp_path: Path) -> None:
    column = ["-" if place % 8 == 3 else str(100 + 7 * place) for place in range(200)]
    pd.DataFrame({"price": column, "z": normal(200)}).to_csv(tmp_path / "t.csv", index=False)
    message = r"row 4 \(line 5\), column 'price': expected a number, got '-' \(if it marks missing values.* --na '-'"
    with pytest.raises(ValueError, match=message):
        read_frame(tmp_path / "t.csv")
    assert read_frame(tmp_path / "t.csv", options=ReadOptions(missing=["-"]))["price"].isna().sum() == 25


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            ["20.1%", "0.206", "22.7%"],
            r"row 2 \(line 3\), .* such as '20.1%', got '0.206' .*40 with '%' and 20 with none",
        ),
        (
            ["0.201", "0.206", "22.7%"],
            r"row 3 .* got '22.7%' \(the units differ: 40 with none and 20 with '%'; write all",
        ),
        (["0.201"] * 30 + ["22.7%"], r"row 31 .* got '22.7%' \(the units differ: 600 with none and 20 with '%'"),
        (["180 cm", "1.75", "160 cm"], r"row 2 .* such as '180 cm', got '1.75' .*40 with 'cm' and 20 with none"),
        (["(13.03)"] + ["9.50"] * 20 + ["13.03-"], r"got '13.03-' \(write it as a number; if the column holds codes: "),
        ([f"2,2,3{n}.50" for n in range(411, 441)], r"\(a number in an unknown form; write it without marks"),
        (["63k", "7M", "3k"], r"got '63k' \(the units differ: 40 with 'k' and 20 with 'M'; write all"),
        (["63 kg", "700 g"], r"got '63 kg' \(the units differ: 20 with 'kg' and 20 with 'g'; write all"),
        (["$5", "7 €"], r"got '\$5' \(the units differ: 20 with '\$' and 20 with '€'; write all"),
        (["5.1", "5.2"] * 8 + ["1,23"], r"got '1,23' \(a number in another form than the others; if the column"),
    ],
)
def test_numbers_in_another_form_are_no_marks_of_missing_values(cells: list[str], message: str, tmp_path: Path) -> None:
    pd.DataFrame({"pct": cells * 20, "z": 1}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=message) as caught:
        read_frame(tmp_path / "t.csv")
    assert "--na" not in str(caught.value)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.05])
def test_accounting_negatives_are_numbers_in_their_form(share: float, tmp_path: Path) -> None:
    numbers = np.where(np.arange(200) < 200 * share, -1.0, 1.0) * (1.0 + np.arange(200) / 8).round(2)
    cells = [f"({-number:.2f})" if number < 0 else f"{number:.2f}" for number in numbers]
    pd.DataFrame({"x": cells}).to_csv(tmp_path / "t.csv", index=False)
    file = FrameFile(tmp_path / "t.csv")
    with pytest.warns(UserWarning, match=r"read 'x' as numbers \('\(\d+\.\d+\)' is -\d"):
        read = file.read()
    assert read["x"].tolist() == numbers.round(2).tolist()
    assert file.forms.written(read, as_text=True)["x"].tolist() == cells


@pytest.mark.parametrize(
    ("first", "other", "reads"),
    [
        ("20.1%", "30.1%", True), ("20.1%", "0.301", False), ("20.1%", "300 g", False), ("20.1 €", "30.1 €", True),
        ("20.1 €", "30.1", True), ("20.1 €", "$30.1", False), ("$20.1", "¥30.1", False), ("20.1 €", "30.1 kg", False),
        ("20.1", "30.1%", False), ("20.1", "$30.1", False), ("20.1", "30.1 kg", False), ("1,100", "$1,234", False),
    ],
)  # fmt: skip
def test_another_table_must_have_the_unit_of_the_first(first: str, other: str, reads: bool, tmp_path: Path) -> None:
    for name, cell in (("train", first), ("test", other)):
        pd.DataFrame({"pct": [cell] * 20}).to_csv(tmp_path / f"{name}.csv", index=False)
    train = FrameFile(tmp_path / "train.csv")
    train.read()
    test = FrameFile(tmp_path / "test.csv", like=train.types)
    if reads:
        assert set(test.read()["pct"]) == {30.1}
    else:
        like = "" if first == "20.1" else f" such as '{first}'"
        units = {"20.1": "none", "1,100": "none", "20.1%": "'%'", "20.1 €": "'€'", "$20.1": "'$'"}
        unit = next((repr(unit) for unit in ("%", "kg", "g", "$", "¥") if unit in other), "none")
        message = f"a number{like}, got '{other}' (the units differ: {unit} here and {units[first]} in the other table"
        with pytest.raises(ValueError, match=re.escape(message)):
            test.read()


@pytest.mark.parametrize(
    "cells",
    [
        ["2026-11-25", "2026-11-26 14:30"],  # with and without a time
        ["25.11.2026", "2026-11-26", "11/27/2026"],
        ["12:30", "12:30:15"],
    ],
)
def test_dates_in_several_forms_are_rejected_unless_they_are_names(cells: list[str], tmp_path: Path) -> None:
    pd.DataFrame({"day": cells * 20, "z": 1}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(
        ValueError, match=r"row 1 .*got .* \(write all dates and times in one form; .*--categorical 'day'"
    ):
        read_frame(tmp_path / "t.csv")
    assert read_frame(tmp_path / "t.csv", options=ReadOptions(categorical=["day"]))["day"].tolist() == cells * 20


def test_numbers_of_cases_that_look_like_months_may_be_names(tmp_path: Path) -> None:
    cells = [f"{number}/2000" for number in range(1, 13)] * 5 + ["13/2000"]
    pd.DataFrame({"case": cells, "z": 1}).to_csv(tmp_path / "t.csv", index=False)
    message = r"expected a date such as 1/2000, got '13/2000' \(if they are names: --categorical 'case'\)"
    with pytest.raises(ValueError, match=message):
        read_frame(tmp_path / "t.csv")
    assert read_frame(tmp_path / "t.csv", options=ReadOptions(categorical=["case"]))["case"].tolist() == cells


@pytest.mark.parametrize(
    ("cells", "are_names"),
    [
        (["1B", "2K", "3T"], True), (["12K", "7M", "3B"], True), (["1.5K", "2K", "7M"], False),
        (["1K", "2K", "7k"], False), (["1K", "2500K", "7M"], False), (["1B", "2kB"], False),
    ],
)  # fmt: skip
def test_numbers_with_several_capitals_are_seats(cells: list[str], are_names: bool, tmp_path: Path) -> None:
    pd.DataFrame({"seat": cells * 20, "z": 1}).to_csv(tmp_path / "t.csv", index=False)
    if are_names:
        assert read_frame(tmp_path / "t.csv")["seat"].tolist() == cells * 20
    else:
        with pytest.raises(ValueError, match=r"the units differ: .*--categorical 'seat'"):
            read_frame(tmp_path / "t.csv")


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%d.%m.%Y", "%m/%d/%y", "%Y-%m-%dT%H:%M:%SZ"])
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


def test_codes_keep_their_leading_zeros_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("0100,1.5\n0200,2.5\n" * 20)
    assert set(read_frame(tmp_path / "t.csv")["x0"]) == {"0100", "0200"}


def test_decimals_in_parquet_are_numbers_and_text_is_not(tmp_path: Path) -> None:
    pd.DataFrame({"a": [decimal.Decimal("1.50"), None]}).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", allow_missing=True).values[0, 0] == 1.5
    pd.DataFrame({"a": ["1.5", None]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"row 1, column 'a': expected a number, got '1.5' \(text\)"):
        read_table(tmp_path / "t.parquet")


def test_errors_in_a_csv_file_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,"two\nlines"\n\n1,2\n3,inf\n')
    for read in (read_frame, read_table):
        with pytest.raises(ValueError, match=r"row 2 \(line 5\), column"):
            read(tmp_path / "t.csv")
