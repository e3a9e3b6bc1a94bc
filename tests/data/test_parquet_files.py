"""Parquet files: numbers come back, and damaged files and other columns are rejected in one line."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet

from arcsm.data import frame_writer
from arcsm.data.parquet_files import fill_categories, parquet_parts, read_index
from arcsm.data.table import TableFile
from arcsm.errors import SkippedWarning
from rejections import read_error


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), "row 1, column 'b': expected a number, got 'x'"),
        (pd.DataFrame({"a": [1.0, np.nan]}), "got 1 missing or infinite, the first at row 2, column 'a': nan"),
        (pd.DataFrame({"a": pd.to_datetime(["2020-01-01"])}), "column 'a' holds dates or times, where numbers are"),
        (pd.DataFrame(index=[0, 1]), "expected at least one"),
    ],
)
def test_parquet_files_without_finite_numbers_are_rejected(tmp_path: Path, frame: pd.DataFrame, expected: str) -> None:
    path = tmp_path / "table.parquet"
    frame.to_parquet(path)
    assert expected in read_error(path)


def test_damaged_parquet_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pd.DataFrame({"a": np.arange(100.0)}).to_parquet(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"a,b\n1,2\n", whole[:100] + b"\0" * (len(whole) - 104) + whole[-4:]):
        path.write_bytes(content)
        assert "cannot be read" in read_error(path)


@pytest.mark.parametrize("rows", [None, 10])
def test_text_that_is_not_utf_8_is_a_one_line_error(rows: int | None, tmp_path: Path) -> None:
    offsets = pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0")
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, pyarrow.py_buffer(b"\xff\xfe")])
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"text": text}), path)
    with pytest.raises(ValueError, match=r"t\.parquet: cannot be read: damaged"):
        list(parquet_parts(path, rows))


@pytest.mark.parametrize(
    ("index", "names"),
    [
        (pd.RangeIndex(4), []),  # numbers the rows, no labels
        (pd.Index([*"wxyz"], name="a"), ["level_0"]),  # the file has columns a and index
        (pd.MultiIndex.from_arrays([[*"wxyz"], [3, 1, 2, 0]]), ["level_0", "level_1"]),
    ],
)
def test_labels_of_rows_become_columns(index: pd.Index, names: list[str], tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": np.arange(4.0), **({"index": 1} if index.name == "a" else {})}).set_axis(index)
    frame.to_parquet(tmp_path / "t.parquet")
    file = TableFile(tmp_path / "t.parquet")
    assert file.index == names
    raw = pd.concat(file.raw_parts(3), ignore_index=True)
    assert list(raw.columns) == [*names, *frame.columns]
    for place, name in enumerate(names):
        assert raw[name].tolist() == index.get_level_values(place).tolist()
    if names:
        with pytest.warns(SkippedWarning, match=f"its index only labels the rows: not modelled .'{names[0]}'"):
            next(file.parts(None))


def test_statistics_that_do_not_fit_a_column_are_a_one_line_error(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"a": [[1.0, None], [2.0]]}), path, store_schema=False)
    optional, required = b"\x25\x02\x18\x07element", b"\x25\x00\x18\x07element"
    assert optional in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(optional, required))
    for rows in (None, 1):
        with pytest.raises(ValueError, match=r"t\.parquet: cannot be read: damaged"):  # pyarrow would end the process
            list(parquet_parts(path, rows))


def test_filled_categories_keep_their_order_and_those_that_do_not_occur() -> None:
    types = pyarrow.dictionary(pyarrow.int8(), pyarrow.string(), ordered=True)
    parts = [
        pyarrow.DictionaryArray.from_arrays(pyarrow.array(places, pyarrow.int8()), names, ordered=True)
        for places, names in (([0, None], ["small", "medium", "large"]), ([0, 1], ["small", "medium"]))
    ]
    column = pd.Series(pd.arrays.ArrowExtensionArray(pyarrow.chunked_array(parts, types)))
    filled = pyarrow.array(fill_categories(column, column.isna().to_numpy(), ["medium"]))
    assert filled.to_pylist() == ["small", "medium", "small", "medium"]
    assert filled.dictionary.to_pylist() == ["small", "medium", "large"]
    assert filled.type == types


@pytest.mark.parametrize("index", [pd.Index([3, 1, 2, 0], name="shop"), pd.RangeIndex(5, 9)])
def test_an_index_is_written_and_read(index: pd.Index, tmp_path: Path) -> None:
    path, out = tmp_path / "t.parquet", tmp_path / "o.parquet"
    frame = pd.DataFrame({"a": pd.array([1, None, 3, 4], dtype="Int64")}).set_axis(index)
    frame.to_parquet(path)
    labels = read_index(path)
    assert labels.equals(index)
    with frame_writer(out, TableFile(path)) as write:
        write(frame[:3].set_axis(labels[:3]))
        write(frame[3:].set_axis(labels[3:]))
    pd.testing.assert_frame_equal(pd.read_parquet(out), frame, check_index_type=False)
