"""Points and commas in numbers: the values of all kinds of ambiguous numbers, in files with every separator."""

from __future__ import annotations

import warnings
from pathlib import Path

import pandas as pd
import pytest

from arcsm.data import FrameFile, ReadOptions, frame_writer, read_frame


def _write(path: Path, separator: str, rows: list[list[str]]) -> None:
    lines = [[f"x{place}" for place in range(len(rows[0]))], *rows]
    path.write_text(
        "".join(separator.join(f'"{cell}"' if separator in cell else cell for cell in line) + "\n" for line in lines)
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("separator", "cells", "beside", "number"),
    [
        (",", ["1.637", "2.107"], ["3", "4"], 1.637),
        (";", ["1,637", "2,107"], ["3", "4"], 1.637),
        ("\t", ["1,637", "2,107"], ["3", "4"], 1637),
        (";", ["1,637 €", "2,107 €"], ["3", "4"], 1637),
        (";", ["1.637 €", "2.107 €"], ["3", "4"], 1.637),
        (";", ["1.637 €", "887 €"], ["3", "4"], 1637),
        (",", ["$1.637", "$887"], ["3", "4"], 1.637),
        (";", ["1.637", "2.107"], ["2,5", "3"], 1637),
        ("|", ["1,637", "2,107"], ["2.5", "3"], 1637),
        ("\t", ["1.637 kg", "887 kg"], ["2,5", "3"], 1637),
        (",", ["1.637", "2.107.333"], ["3", "4"], 1637),
        (";", ["1,637", "2,107"], ["2.107.333", "3"], 1.637),
    ],
)
def test_an_ambiguous_number_has_the_value_that_its_file_tells(
    separator: str, cells: list[str], beside: list[str], number: float, tmp_path: Path
) -> None:
    _write(tmp_path / "t.csv", separator, list(map(list, zip(cells, beside, strict=True))))
    assert read_frame(tmp_path / "t.csv").iloc[0, 0] == number


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("first", "other", "numbers"),
    [
        ("p;s\n1.100 €;0.5\n998 €;1\n", "p;s\n1.637;2.5\n887;1.5\n", [1637, 887]),  # floats, if read without types
        ("p;s\n5 kg;0.5\n9 kg;1\n", "p;s\n1.637 kg;2.5\n2.887 kg;1.5\n", [1.637, 2.887]),  # too small for thousands
        ("p;s\n1637;0.5\n998;1\n", "p;s\n1.637;2.5\n2.887;1.5\n", [1637, 2887]),
        ("p,s\n120,0.5\n98,1\n", "p,s\n120.125,2\n98.250,1\n", [120.125, 98.25]),  # six digits beside three
        ("p;s\n$1,100.50;0.5\n$9.00;1\n", "p;s\n$1.637;2,5\n$2.887;1,5\n", [1637, 2887]),  # other marks in TEST
        ("p;s\n1.100,50 €;0,5\n9,00 €;1\n", "p;s\n1.637 €;2.5\n2.887 €;1.5\n", [1.637, 2.887]),
        ("p;s\n1.5;0.5\n9.0;1\n", "p;s\n1.637;2\n2.887;1\n", [1.637, 2.887]),
    ],
)
def test_another_table_is_on_the_scale_of_the_first(
    first: str, other: str, numbers: list[float], tmp_path: Path
) -> None:
    (tmp_path / "train.csv").write_text(first)
    (tmp_path / "test.csv").write_text(other)
    train = FrameFile(tmp_path / "train.csv")
    train.read()
    options = ReadOptions(default_decimal=train.file.decimal)
    assert FrameFile(tmp_path / "test.csv", options, train.types).read()["p"].tolist() == numbers


def test_points_between_thousands_of_another_table_are_reported_with_the_option_that_overrules_them(
    tmp_path: Path,
) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("v,k\n8151,48\n1039,11\n")
    test.write_text("v,k\n8.151,48\n1.039,11\n".replace(",", ";"))
    types = FrameFile(train)
    types.read()
    for decimal, values, reports in ((None, [8151, 1039], 1), (".", [8.151, 1.039], 0)):
        options = ReadOptions(separator=";", decimal=decimal, default_decimal=".")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            file = FrameFile(test, options, types.types)
            assert pd.concat(file.parts(1))["v"].tolist() == values
        report = "read 'v' as numbers ('8.151' is 8151), whole numbers as in the other table; if points come before"
        assert [str(warning.message) for warning in caught] == [f"{test}: {report} decimals: --decimal ."] * reports


@pytest.mark.parametrize(
    ("text", "number", "option"),
    [
        ("a;b\n1.637;x\n887;y\n", 1.637, "if points separate thousands: --decimal ,"),
        ("a\tb\n$1,637\tx\n$2,887\ty\n", 1637.0, "if commas come before decimals: --decimal ,"),
        ("a;b\n1.637 €;x\n2.887 €;y\n", 1.637, "if points separate thousands: --decimal ,"),
        ("a;b\n1,637 €;2,5\n2,887 €;3\n", 1.637, r"if commas separate thousands: --decimal \."),
    ],
)
def test_undecided_marks_name_the_option_that_changes_them(
    text: str, number: float, option: str, tmp_path: Path
) -> None:
    path, mark = tmp_path / "t.csv", option[-1]
    path.write_text(text)
    with pytest.warns(UserWarning, match=option):
        assert read_frame(path)["a"].iloc[0] == number
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "if")
        other = 1.637 if number == 1637 else 1637
        assert read_frame(path, options=ReadOptions(decimal=mark))["a"].iloc[0] == other


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_decimal_commas_in_quotation_marks_are_written_back(tmp_path: Path) -> None:
    text = 'a,b\n"1,637","2,5"\n1.637,"3,5"\n'
    (tmp_path / "t.csv").write_text(text)
    file = FrameFile(tmp_path / "t.csv")
    table = file.read()
    assert table["a"].tolist() == [1.637, 1637]
    assert FrameFile(tmp_path / "t.csv", file.known_options, file.types).read().equals(table)
    with frame_writer(tmp_path / "o.csv", file.file) as write:
        write(file.forms.written(table[["b"]], as_text=True))
    assert (tmp_path / "o.csv").read_text() == 'b\n"2,5"\n"3,5"\n'
