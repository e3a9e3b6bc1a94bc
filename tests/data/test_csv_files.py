"""CSV files: headers, indices and gaps are recognised, and malformed files are rejected in one line."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas._libs.parsers import STR_NA_VALUES

from arcsm.data import Table, read_frame, read_table
from arcsm.data.column_types import MISSING
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
        ("1,2\n3,4\n", ("x0", "x1"), [[1, 2], [3, 4]]),
        ("\n\na, b\n\n1 , 2\n\n", ("a", "b"), [[1, 2]]),
        ("\ufeffa,b\r\n1e-3,-2\r\n", ("a", "b"), [[1e-3, -2]]),
        ('"two\nlines","a,b"\n1,2\n', ("two\nlines", "a,b"), [[1, 2]]),
        ("flag\nTrue\nFalse\n", ("flag",), [[1], [0]]),
    ],
)
def test_csv_files_are_read(tmp_path: Path, content: str, columns: tuple[str, ...], values: list[list[float]]) -> None:
    table = read_table(text_file(tmp_path, content))
    assert table.columns == columns
    assert table.values.dtype == np.float64
    assert table.values.tolist() == values
    assert len(table) == len(values)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b\n1,2\n\n3,x\n4,y\n", "row 2 (line 4), column 'b': expected a number, got 'x'"),
        ("1,2\n3,1_000\n", "row 2 (line 2), column 'x1': expected a number, got '1_000'"),
        ("a,b\n1,2\n3,4,5\n", "line 3: expected 2 cells like the first row, got 3"),
        ("a,b\n1,2\n\n,4\n5,inf\n", "got 2 missing or infinite, the first at row 2 (line 4), column 'a': nan"),
        ("a,b,a\n1,2,3\n", "expected different column names, got 'a' more than once"),
        ("a,b\n", "expected at least one row of data, got none"),
        ("", "the file is empty"),
        ("a,b,\n" + "1,2,\n" * 40, "column 3 has no name; name it, or remove the separator"),
    ],
)
def test_malformed_csv_files_are_rejected(tmp_path: Path, content: str, expected: str) -> None:
    assert expected in read_error(text_file(tmp_path, content))


def test_a_workbook_with_the_name_of_a_csv_file_is_called_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.csv", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>" * 100)
    error = read_error(tmp_path / "t.csv")
    assert error.endswith("t.csv: is a workbook or an archive, not a CSV file; export it as CSV")


def test_truncated_gzip_files_are_rejected(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(map(str, np.random.default_rng(0).integers(0, 10**9, 5000))).encode())
    path = tmp_path / "table.csv.gz"
    for content in (whole[: len(whole) // 2], whole[:12], b"1,2\n3,4\n"):
        path.write_bytes(content)
        assert "cannot be read" in read_error(path)


@pytest.mark.parametrize("read", [read_frame, read_table])
def test_a_row_of_numbers_may_be_a_header(tmp_path: Path, read: Callable[[Path], Table | pd.DataFrame]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("0,1,2\n" + "0.5,1.25,3\n" * 5)  # what pandas writes of an array
    with pytest.warns(UserWarning, match="its first row was taken for a header"):
        assert list(read(path).columns) == ["0", "1", "2"]
    path.write_text("0.5,1,3\n" + "0.25,1,3.5\n" * 5)
    assert list(read(path).columns) == ["x0", "x1", "x2"]


def test_an_ascending_first_row_that_is_taken_for_data_warns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("2019,2020,2021\n3,4,5\n6,7,9\n")
    with pytest.warns(UserWarning, match="was taken for data; if it is a header, give the columns names with letters"):
        assert len(read_frame(tmp_path / "t.csv")) == 3


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_the_index_that_pandas_writes_is_left_out(tmp_path: Path, name: str) -> None:
    table = pd.DataFrame({"a": normal(90), "b": normal(90, 1)}, index=pd.RangeIndex(200, 290, name=name or None))
    path = tmp_path / "t.csv"
    table.to_csv(path)
    with pytest.warns(SkippedWarning, match="its first column has no name and only labels the rows: not modelled"):
        assert list(read_table(path).columns) == ["a", "b"]
    for labels in (np.arange(90)[::-1], [f"row {place}" for place in range(90)]):
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


def test_marks_of_missing_values_of_pandas_are_known(tmp_path: Path) -> None:
    assert set(STR_NA_VALUES) < set(MISSING)
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f'"{mark}",x\n' for mark in MISSING) + "1.5,y\n")
    assert read_frame(tmp_path / "t.csv")["a"].isna().sum() == len(MISSING)
