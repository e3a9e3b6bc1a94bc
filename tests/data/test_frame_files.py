"""Tables in files: headers, categories, parts, interrupted writing."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcsm.data import frame_parts, frame_writer, read_frame, write_frame
from arcsm.estimators.column_types import Categories
from arcsm.estimators.encoder import Columns
from small_tables import mixed_table


def test_categories_of_numerals_are_read_as_categories(tmp_path: Path) -> None:
    codes = pd.Series(["10", None, "20"] * 20, dtype="category")
    pd.DataFrame({"code": codes, "x": np.arange(60.0)}).to_parquet(tmp_path / "t.parquet")
    found = read_frame(tmp_path / "t.parquet")
    assert found["code"].iloc[:3].tolist()[::2] == ["10", "20"]
    assert found["code"].isna().sum() == 20
    pd.DataFrame({"x": [1.0], "code": [20]}).to_csv(tmp_path / "t.csv", index=False)
    assert read_frame(tmp_path / "t.csv", like=found)["code"].tolist() == ["20"]
    assert read_frame(tmp_path / "t.parquet", like=found)["code"].equals(found["code"])
    assert isinstance(Columns.infer(found).kinds[0], Categories)


@pytest.mark.parametrize("suffix", [".csv.gz", ".parquet"])
def test_the_parts_of_a_table_make_up_the_table(tmp_path: Path, suffix: str) -> None:
    table = mixed_table(100)
    table["code"] = np.array(["7", "8"] * 50, dtype=object)
    table.loc[table.index[70], "height"] = np.nan
    path = tmp_path / f"table{suffix}"
    table.to_parquet(path, index=False) if suffix == ".parquet" else table.to_csv(path, index=False)
    like = table.head(10)
    whole = read_frame(path, like)
    parts = list(frame_parts(path, like, 30))
    assert [len(part) for part in parts] == [30, 30, 30, 10]
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole, check_dtype=False)
    assert set(parts[0]["code"]) == {"7", "8"}  # names, though every part of them looks like numbers


def test_an_error_in_a_later_part_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n" + "1,2\n" * 50 + "1,oops\n")
    parts = frame_parts(tmp_path / "a.csv", pd.DataFrame({"x": [1], "y": [2]}), 20)
    assert len(next(parts)) == len(next(parts)) == 20
    with pytest.raises(ValueError, match=r"row 51 \(line 52\), column 'y': expected a number, got 'oops'"):
        next(parts)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_written_in_parts_is_complete_or_absent(tmp_path: Path, suffix: str) -> None:
    path, table = tmp_path / f"table{suffix}", mixed_table(40)
    with frame_writer(path) as write:
        write(table.head(25))
        write(table.tail(15))
    pd.testing.assert_frame_equal(read_frame(path, table), read_frame(path), check_dtype=False)
    assert read_frame(path)["income"].tolist() == table["income"].tolist()
    before = path.read_bytes()

    def interrupted() -> None:
        with frame_writer(path) as write:
            write(table.head(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_csv_file_without_a_header_gets_column_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2.5\n3,\n")
    table = read_frame(tmp_path / "a.csv")
    assert list(table.columns) == ["x0", "x1"]
    assert table.isna().to_numpy().tolist() == [[False, False], [False, True]]
    with pytest.raises(ValueError, match=r"expected a file name that ends in"):
        write_frame(tmp_path / "a.txt", table)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("red,1.5,3", "blue,7.5,8", "1.5"),  # data, or names such as those of a spectrum
        ("red,true,2", "blue,false,8", "true"),
        ("name,2001,2002", "blue,7.5,8", None),  # years
    ],
)
def test_a_first_row_with_text_is_a_header_and_values_in_it_warn(
    tmp_path: Path, first: str, second: str, message: str | None
) -> None:
    (tmp_path / "a.csv").write_text(f"{first}\n{second}\n{second}\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = read_frame(tmp_path / "a.csv")
    assert table.columns.tolist() == first.split(",")
    assert len(table) == 2
    assert [str(warning.message).count(f"though {message!r} looks like a value") for warning in caught] == [1] * bool(
        message
    )
