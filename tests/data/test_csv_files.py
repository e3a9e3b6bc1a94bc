"""CSV files: headers, indices and gaps are recognised, and malformed files are rejected in one line."""

from __future__ import annotations

import gzip
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas._libs.parsers import STR_NA_VALUES

from arcsm.data import read_frame, read_table
from arcsm.data.column_types import MISSING, is_number
from arcsm.errors import SkippedWarning
from rejections import read_error
from small_tables import normal


def text_file(folder: Path, content: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("content", "columns", "values"),
    [
        ("a,b\n1,2\n3,4.5\n", ("a", "b"), [[1, 2], [3, 4.5]]),
        ("1,2\n3,4\n", ("x0", "x1"), [[1, 2], [3, 4]]),
        ("\n\na, b\n\n1 , 2\n\n", ("a", "b"), [[1, 2]]),
        ("\ufeffa,b\r\n1e-3,-2\r\n", ("a", "b"), [[1e-3, -2]]),
        ('"two\nlines","a,b"\n1,2\n', ("two\nlines", "a,b"), [[1, 2]]),
        ("7\n", ("x0",), [[7]]),
        ("400,label\n1,2\n", ("400", "label"), [[1, 2]]),
        ("flag\nTrue\nFalse\n", ("flag",), [[1], [0]]),
        ("a,b,c\n1,2,3", ("a", "b", "c"), [[1, 2, 3]]),
    ],
)
def test_csv_files_are_read(tmp_path: Path, content: str, columns: tuple[str, ...], values: list[list[float]]) -> None:
    table = read_table(text_file(tmp_path, content))
    assert table.columns == columns
    assert table.values.dtype == np.float64
    assert table.values.tolist() == values
    assert len(table) == len(values)


@pytest.mark.parametrize("gap", ["", "NA", "#N/A", "<NA>", "-nan", "1.#QNAN", "?"])
def test_every_mark_of_a_missing_value_counts_everywhere(gap: str, tmp_path: Path) -> None:
    assert is_number(gap)
    first = read_table(text_file(tmp_path, f"1,{gap}\n2,3\n"), allow_missing=True)  # no header
    np.testing.assert_array_equal(first.values, [[1, np.nan], [2, 3]])
    frame = read_frame(text_file(tmp_path, f"a,b\nx,1\n{gap},{gap}\n"))
    assert frame.isna().to_numpy().tolist() == [[False, False], [True, True]]


def test_gzipped_csv_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "Table.CSV.GZ"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert read_table(path).values.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b\n1,2\n\n3,x\n4,y\n", "row 2 (line 4), column 'b': expected a number, got 'x'"),
        ("1,2\n3,1_000\n", "row 2 (line 2), column 'x1': expected a number, got '1_000'"),
        ("a\n2020-01-01\n", "row 1 (line 2), column 'a': expected a number, got '2020-01-01'"),
        ("a,b\n1,2\n3,4,5\n", "line 3: expected 2 cells like the first row, got 3"),
        ("a,b\n1,2\n3\n", "line 3: expected 2 cells like the first row, got 1"),
        ("a,b\n1,2,3\n", "line 2: expected 2 cells like the first row, got 3"),
        ("a,b,c\n1,2\n", "line 2: expected 3 cells like the first row, got 2"),
        ("a,b\n1,2\n\n,4\n5,inf\n", "got 2 missing or infinite, the first at row 2 (line 4), column 'a': nan"),
        ("1,2\n3,1e999\n", "row 2 (line 2), column 'x1': "),  # infinite, or before version 3 of pandas text
        ("a,b,a\n1,2,3\n", "expected different column names, got 'a' more than once"),
        ("a,b\n", "expected at least one row of data, got none"),
        ("\n \n\n", "the file is empty"),
        ("", "the file is empty"),
    ],
)
def test_malformed_csv_files_are_rejected(tmp_path: Path, content: str, expected: str) -> None:
    assert expected in read_error(text_file(tmp_path, content))


def test_a_short_row_is_rejected_even_if_missing_values_are_allowed(tmp_path: Path) -> None:
    path = text_file(tmp_path, "a,b\n1,\n3\n")
    assert "line 3: expected 2 cells" in read_error(path, allow_missing=True)


def test_a_csv_file_that_is_not_text_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"a,b\n1,\xff\xfe\n")
    assert "is not in UTF-8; give its encoding, such as --encoding cp1252" in read_error(path)


def test_a_workbook_with_the_name_of_a_csv_file_is_called_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.csv", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>" * 100)
    error = read_error(tmp_path / "t.csv")
    assert error.endswith("t.csv: is a workbook or an archive, not a CSV file; export it as CSV")


def test_truncated_gzip_files_are_rejected(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(str(hash(str(i)) % 10**9) for i in range(5000)).encode())
    path = tmp_path / "table.csv.gz"
    for content in (whole[: len(whole) // 2], whole[:12], b"1,2\n3,4\n"):
        path.write_bytes(content)
        assert "cannot be read" in read_error(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,2,3\n4,5\n6,7,8\n", "line 3: expected 3 cells like the first row, got 2"),
        ("a,b\n1,2\n3,4\n5", "line 4: expected 2 cells like the first row, got 1"),
        ("a,b,\n" + "1,2,\n" * 40, "column 3 has no name; name it, or remove the separator"),
    ],
)
def test_files_without_rows_of_equal_length_are_rejected(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_frame(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("header", "rows", "names"),
    [
        ("0,1,2", "0.5,1.25,3", ["0", "1", "2"]),  # what pandas writes of an array
        ("2019,2020,2021", "0.5,1.25,3.5", ["2019", "2020", "2021"]),
        ("2019,2020,2021", "0.5,1,3.5", None),  # a table of counts and fractions may begin so
        ("0.5,1,3", "0.25,1,3", None),
        ("1,1,3", "0.25,1.5,3.5", None),
        ("0,1", "1,0", None),
    ],
)
def test_a_row_of_numbers_may_be_a_header(tmp_path: Path, header: str, rows: str, names: list[str] | None) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n" + f"{rows}\n" * 5)
    width = header.count(",") + 1
    for read in (read_frame, read_table):
        if names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert list(read(path).columns) == [f"x{place}" for place in range(width)]
        else:
            with pytest.warns(UserWarning, match="its first row was taken for a header"):
                assert list(read(path).columns) == names


def test_numbers_above_a_column_of_text_are_a_header(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("2019,2020,2021\n" + "1,b,3\n" * 5)
    assert list(read_frame(path).columns) == ["2019", "2020", "2021"]


@pytest.mark.parametrize("first", ["0,1,2", "2019,2020,2021"])
def test_an_ascending_first_row_that_is_taken_for_data_warns(tmp_path: Path, first: str) -> None:
    (tmp_path / "t.csv").write_text(f"{first}\n3,4,5\n6,7,9\n")
    with pytest.warns(UserWarning, match="was taken for data; if it is a header, give the columns names with letters"):
        assert len(read_frame(tmp_path / "t.csv")) == 3


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_the_index_that_pandas_writes_is_left_out(tmp_path: Path, name: str) -> None:
    table = pd.DataFrame({"a": normal(90), "b": normal(90, 1)}, index=pd.RangeIndex(200, 290, name=name or None))
    path = tmp_path / "t.csv"
    table.to_csv(path)
    for read in (read_frame, read_table):
        with pytest.warns(SkippedWarning, match="its first column has no name and only labels the rows: not modelled"):
            assert list(read(path).columns) == ["a", "b"]
    r_names = [f"{place // 3}.{place % 3 + 9}" for place in range(90)]  # 0.9, 0.10, 0.11, 1.9, ...
    for labels in (np.arange(90)[::-1], [f"row {place}" for place in range(90)], *([] if name else [r_names])):
        table.set_axis(labels).rename_axis(name or None).to_csv(path)
        with pytest.warns(SkippedWarning):
            assert list(read_frame(path).columns) == ["a", "b"]
    for values in (np.arange(90) % 7, normal(90)):  # no labels: a column like any other, without a name
        table.set_axis(values).rename_axis(name or None).to_csv(path)
        if name:
            assert list(read_frame(path).columns) == [name, "a", "b"]
        else:
            with pytest.raises(ValueError, match=r"column 1 has no name; name it$"):
                read_frame(path)


def test_spaces_after_commas_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a, t, b\n30, "x, y",2\n31, "x, z",\n')
    read = read_frame(tmp_path / "t.csv")
    assert read["t"].tolist() == ["x, y", "x, z"]
    assert read["b"].isna().tolist() == [False, True]


def test_other_encodings_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("a,b\nzo\u00eb,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t\.csv: is not in UTF-8; give its encoding"):
        read_frame(tmp_path / "t.csv")


def test_missing_last_cells_are_not_short_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,"b, or c"\n1,\n\n3,4\n')
    read = read_frame(tmp_path / "t.csv")
    assert read["b, or c"].isna().tolist() == [True, False]


def test_marks_of_missing_values_of_pandas_are_known(tmp_path: Path) -> None:
    assert set(STR_NA_VALUES) < set(MISSING)
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f'"{mark}",x\n' for mark in MISSING) + "1.5,y\n")
    assert read_frame(tmp_path / "t.csv")["a"].isna().sum() == len(MISSING)
