"""Points and commas in numbers: the values of all kinds of ambiguous numbers, in files with every separator."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import pandas as pd
import pytest

from arcsm.data import FrameFile, ReadOptions, frame_writer, read_frame
from arcsm.data.number_marks import is_undecided, separates_thousands

_UNITS = {"plain": ("{}",), "units": ("${}", "USD {}", "{} €", "{} kg")}
_COMPANIES = {  # other cells of the columns, and a column beside them
    "alone": (["2{}107"], ["3", "4"]),
    "small": (["887"], ["3", "4"]),
    "comma": (["2{}107"], ["2,5", "3"]),
    "point": (["2{}107"], ["2.5", "3"]),
    "small, comma": (["887"], ["2,5", "3"]),
    "small, point": (["887"], ["2.5", "3"]),
    "several": (["2{0}107{0}333"], ["3", "4"]),
    "points beside": (["2{}107"], ["2.107.333", "3"]),
    "commas beside": (["2{}107"], ["2,107,333", "3"]),
}


def _write(path: Path, separator: str, rows: list[list[str]]) -> None:
    lines = [[f"x{place}" for place in range(len(rows[0]))], *rows]
    path.write_text(
        "".join(separator.join(f'"{cell}"' if separator in cell else cell for cell in line) + "\n" for line in lines)
    )


def _rows(mark: str, units: str, company: str) -> list[list[str]]:
    others, beside = _COMPANIES[company]
    numbers = [number.format(mark) for number in ("1{}637", *others)]
    return [
        [*(unit.format(number) for unit in _UNITS[units]), cell] for number, cell in zip(numbers, beside, strict=True)
    ]


def _is_thousands(separator: str, mark: str, units: str, company: str) -> bool:
    """Return whether ``1.637`` or ``1,637`` should be 1637."""
    has_unit = units == "units"
    if company in ("comma", "points beside"):
        return mark == "."
    if company in ("point", "commas beside"):
        return mark == ","
    if company == "small, comma":
        return mark == "." or has_unit
    if company in ("small", "small, point"):
        return mark == "," or (has_unit and separator == ";")
    return company == "several" or (mark == "," and (separator != ";" or has_unit))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("units", _UNITS)
@pytest.mark.parametrize("mark", [".", ","])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_every_kind_of_ambiguous_number_has_its_value(separator: str, mark: str, units: str, tmp_path: Path) -> None:
    found = {}
    for company in _COMPANIES:
        _write(tmp_path / "t.csv", separator, _rows(mark, units, company))
        found[company] = set(read_frame(tmp_path / "t.csv").iloc[0, :-1])
    expected = {company: {1637 if _is_thousands(separator, mark, units, company) else 1.637} for company in _COMPANIES}
    assert found == expected


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("other", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [".", ","])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_row_alone_has_the_values_that_it_has_in_the_other_table(
    separator: str, mark: str, other: str, tmp_path: Path
) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    for units, company in itertools.product(_UNITS, ("small", "comma", "small, comma", "point")):
        rows = _rows(mark, units, company)
        _write(train, separator, rows)
        _write(test, other, [[*rows[0][:-1], "3"]])
        first = FrameFile(train)
        values = first.read().iloc[0, :-1].tolist()
        options = ReadOptions(separator=other, default_decimal=first.file.decimal)
        second = FrameFile(test, options, first.types).read()
        assert (units, company, second.iloc[0, :-1].tolist()) == (units, company, values)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("first", "other", "numbers"),
    [
        ("p;s\n1.100 €;0.5\n998 €;1\n", "p;s\n1.637;2.5\n887;1.5\n", [1637, 887]),  # floats, if read without types
        ("p;s\n500 €;0.5\n998 €;1\n", "p;s\n1.637 €;2.5\n2.887 €;1.5\n", [1637, 2887]),  # no decimals in TRAIN
        ("p;s\n5 kg;0.5\n9 kg;1\n", "p;s\n1.637 kg;2.5\n2.887 kg;1.5\n", [1.637, 2.887]),  # too small for thousands
        ("p;s\n1637;0.5\n998;1\n", "p;s\n1.637;2.5\n2.887;1.5\n", [1637, 2887]),
        ("p;s\n1637;0,5\n998;1\n", "p;s\n1,637;2,5\n2,887;1,5\n", [1637, 2887]),
        ("p,s\n120,0.5\n98,1\n", "p,s\n120.125,2\n98.250,1\n", [120.125, 98.25]),  # six digits beside three
        ("p,s\n1637,0.5\n998,1\n", "p,s\n1.637,2\n2.887,1\n", [1637, 2887]),
        ("p;s\n3;0.5\n7;1\n", "p;s\n1.637;2.5\n2.887;1.5\n", [1.637, 2.887]),
        ("p;s\n$500;0.5\n$998;1\n", "p;s\n$1,637;2.5\n$2,887;1.5\n", [1637, 2887]),
        ("p;s\n$1,100.50;0.5\n$9.00;1\n", "p;s\n$1.637;2,5\n$2.887;1,5\n", [1637, 2887]),  # other marks in TEST
        ("p;s\n1.100,50 €;0,5\n9,00 €;1\n", "p;s\n1.637 €;2.5\n2.887 €;1.5\n", [1.637, 2.887]),
        ("p;s\n1.100,50 €;0,5\n9,00 €;1\n", "p;s\n1.637 €;2\n2.887 €;1\n", [1637, 2887]),
        ("p;s\n1,5 €;0,5\n9,00 €;1\n", "p;s\n1,637 €;2\n2,887 €;1\n", [1.637, 2.887]),
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


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_points_between_thousands_of_another_table_are_reported_with_the_option_that_overrules_them(
    separator: str, tmp_path: Path
) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("v,k\n8151,48\n1039,11\n")
    test.write_text("v,k\n8.151,48\n1.039,11\n".replace(",", separator))
    types = FrameFile(train)
    types.read()
    for decimal, values, reports in ((None, [8151, 1039], 1), (".", [8.151, 1.039], 0)):
        options = ReadOptions(separator=separator, decimal=decimal, default_decimal=".")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            file = FrameFile(test, options, types.types)
            for _ in range(2):
                assert pd.concat(file.parts(1))["v"].tolist() == values
        report = "read 'v' as numbers ('8.151' is 8151), whole numbers as in the other table; if points come before"
        assert [str(warning.message) for warning in caught] == [f"{test}: {report} decimals: --decimal ."] * reports


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_all_parts_of_another_table_decide_together_what_a_point_separates(tmp_path: Path) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("v;k\n815 €;48\n103 €;11\n")
    test.write_text("v;k\n8.151 €;48\n2.5 €;11\n")
    types = FrameFile(train)
    types.read()
    assert pd.concat(FrameFile(test, like=types.types).parts(1))["v"].tolist() == [8.151, 2.5]


@pytest.mark.parametrize(
    ("text", "number", "option"),
    [
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
    with pytest.warns(UserWarning, match=rf"read 'a' as numbers .*{option}"):
        assert read_frame(path)["a"].iloc[0] == number
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "if")
        other = 1.637 if number == 1637 else 1637
        assert read_frame(path, options=ReadOptions(decimal=mark))["a"].iloc[0] == other


def test_one_column_with_points_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("price;lat;fuel\n1.100 €;-1.125;1.400 €\n887 €;-2.125;1.500 €\n")
    with pytest.warns(UserWarning, match=r"'fuel' as numbers \('1.400 €' is 1.4\) \(if points separate thousands"):
        table = read_frame(tmp_path / "t.csv")
    assert table.iloc[0].tolist() == [1100, -1.125, 1.4]


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
    (tmp_path / "t.csv").write_text('a,b\n1.637,"1,3"\n2.887,"1,2,4"\n')  # lists
    assert read_frame(tmp_path / "t.csv")["a"].tolist() == [1.637, 2.887]


@pytest.mark.parametrize(
    ("cells", "mark", "separate", "undecided"),
    [
        (["1.637 €", "887 €"], ".", True, False),
        (["139.750 €", "57.800 €"], ".", True, False),
        (["139.750 kg", "57.800 kg"], ".", False, True),
        (["1.750 €", "2.800 €"], ".", False, True),
        (["1.637.000 €", "2.500,50 €"], ".", True, False),
        (["1.637 €", "8.5 €"], ".", False, False),
        (["0.637 €", "8 €"], ".", False, False),
        (["1.637 kg", "887 kg"], ".", True, False),
        (["1.637", "887"], ".", False, False),
        (["887 €", "name"], ".", False, False),
        (["$1,637", "$887"], ",", True, False),
        (["$1,637", "$2,887"], ",", False, True),
        (["$1,637", "$8,5"], ",", False, False),
    ],
)
def test_marks_before_three_digits_may_separate_thousands(
    cells: list[str], mark: str, separate: bool, undecided: bool
) -> None:
    column = pd.Series([*cells, None])
    assert separates_thousands(column, mark) is separate
    assert is_undecided(column, mark) is undecided


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("separator", "first"), [(";", 139_750), ("\t", 139.75), ("|", 139.75)])
def test_amounts_of_ten_or_more_have_points_between_thousands_beside_semicolons(
    separator: str, first: float, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("a;b\n139.750 €;x\n57.800 €;y\n".replace(";", separator))
    assert read_frame(tmp_path / "t.csv", options=ReadOptions(separator=separator))["a"][0] == first
