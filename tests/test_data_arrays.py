"""Tables: what is read comes back, and every damaged file is refused in one line that names it."""

import gzip
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arcsm.data import Table, read_array, read_table, write_table


def message(path: Path | str, **options: Any) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_table(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert Path(path).name in text
    return text


def text_file(folder: Path, content: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


class Hostile:
    """Unpickling makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


# --- reading CSV ------------------------------------------------------------------------------------------------------


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
def test_csv(tmp_path: Path, content: str, columns: tuple[str, ...], values: list[list[float]]) -> None:
    table = read_table(text_file(tmp_path, content))
    assert table.columns == columns
    assert table.values.dtype == np.float64
    assert table.values.tolist() == values
    assert len(table) == len(values)


def test_gzipped_csv(tmp_path: Path) -> None:
    path = tmp_path / "Table.CSV.GZ"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert read_table(path).values.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b\n1,2\n\n3,x\n4,y\n", "line 4, column 'b': expected a number, got 'x'"),
        ("1,2\n3,1_000\n", "line 2, column 'x1': expected a number, got '1_000'"),
        ("a\n2020-01-01\n", "line 2, column 'a': expected a number, got '2020-01-01'"),
        ("a;b\n1;2\n", "expected cells separated by commas, but ';' seems to separate them"),
        ("a,b\n1,2\n3,4,5\n", "line 3: expected 2 cells like the first row, got 3"),
        ("a,b\n1,2\n3\n", "line 3: expected 2 cells like the first row, got 1"),
        ("a,b\n1,2,3\n", "line 2: expected 2 cells like the first row, got 3"),
        ("a,b,c\n1,2\n", "line 2: expected 3 cells like the first row, got 2"),
        ("a,b\n1,2\n\n,4\n5,inf\n", "got 2 missing or infinite, the first at line 4, column 'a': nan"),
        ("1,2\n3,1e999\n", "got 1 missing or infinite, the first at line 2, column 'x1': inf"),
        ("a,b,a\n1,2,3\n", "expected different column names, got 'a' more than once"),
        ("a,b\n", "expected at least one row of data, got none"),
        ("\n \n\n", "the file is empty"),
        ("", "the file is empty"),
    ],
)
def test_csv_refused(tmp_path: Path, content: str, expected: str) -> None:
    assert expected in message(text_file(tmp_path, content))


def test_short_csv_row_is_refused_even_where_missing_cells_are_allowed(tmp_path: Path) -> None:
    path = text_file(tmp_path, "a,b\n1,\n3\n")
    assert "line 3: expected 2 cells" in message(path, allow_missing=True)


def test_csv_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"a,b\n1,\xff\xfe\n")
    assert "is not in UTF-8; save it in that encoding" in message(path)


def test_truncated_gzip(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(str(hash(str(i)) % 10**9) for i in range(5000)).encode())
    path = tmp_path / "table.csv.gz"
    for content in (whole[: len(whole) // 2], whole[:12], b"1,2\n3,4\n"):
        path.write_bytes(content)
        assert "cannot be read" in message(path)


# --- reading Parquet --------------------------------------------------------------------------------------------------


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": [True, False]}, index=[7, 9])
    frame.to_parquet(path)
    table = read_table(path)
    assert table.columns == ("a", "b", "c")
    assert table.values.tolist() == [[1, 0.5, 1], [2, 1.5, 0]]
    frame.astype(np.float32).to_parquet(path)
    assert read_table(path).values.dtype == np.float32


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), "row 1, column 'b': expected a number, got 'x'"),
        (pd.DataFrame({"b": [None, "y"]}), "row 2, column 'b': expected a number, got 'y'"),
        (pd.DataFrame({"a": [1.0, np.nan]}), "got 1 missing or infinite, the first at row 2, column 'a': nan"),
        (pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}), "the first at row 2, column 'a': nan"),
        (pd.DataFrame({"a": pd.to_datetime(["2020-01-01"])}), "column 'a' holds dates or times"),
        (pd.DataFrame({"a": np.zeros(0)}), "expected at least one row of data"),
        (pd.DataFrame(index=[0, 1]), "expected at least one"),
    ],
)
def test_parquet_refused(tmp_path: Path, frame: pd.DataFrame, expected: str) -> None:
    path = tmp_path / "table.parquet"
    frame.to_parquet(path)
    assert expected in message(path)


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pd.DataFrame({"a": np.arange(100.0)}).to_parquet(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"a,b\n1,2\n", whole[:100] + b"\0" * (len(whole) - 104) + whole[-4:]):
        path.write_bytes(content)
        assert "cannot be read" in message(path)


# --- reading NumPy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.ones((3, 2), np.float16), np.float32),
        (np.ones((3, 2), ">f4"), np.float32),
        (np.ones((3, 2), np.float64), np.float64),
        (np.ones((3, 2), np.int8), np.float64),
        (np.ones((3, 2), bool), np.float64),
        (np.asfortranarray(np.ones((3, 2))), np.float64),
    ],
)
def test_npy(tmp_path: Path, array: np.ndarray, dtype: type) -> None:
    np.save(tmp_path / "table.npy", array)
    table = read_table(tmp_path / "table.npy")
    assert table.values.dtype == dtype
    assert table.values.dtype.isnative
    assert table.columns == ("x0", "x1")
    assert np.array_equal(table.values, array)


def test_npy_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "table.npy"
    np.save(path, np.arange(24.0).reshape(2, 3, 4))
    assert "expected an array of shape (n, D), got (2, 3, 4) (in Python, flatten=True)" in message(path)
    assert read_table(path, flatten=True).values.shape == (2, 12)
    np.save(path, np.arange(3.0))
    assert read_table(path).values.tolist() == [[0], [1], [2]]
    np.save(path, np.float64(3))
    assert "got a single number" in message(path)
    np.save(path, np.zeros((0, 3)))
    assert "expected at least one row" in message(path)
    np.save(path, np.zeros((3, 0)))
    assert "expected at least one column" in message(path)


@pytest.mark.parametrize("array", [np.array(["a"]), np.zeros(2, complex), np.zeros(2, "M8[s]"), np.zeros(2, "f4,f4")])
def test_npy_of_no_numbers(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "table.npy", array)
    assert "expected real numbers, got dtype" in message(tmp_path / "table.npy")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    target = tmp_path / "made_by_the_pickle"
    hostile = Hostile(target)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(hostile))
    np.save(tmp_path / "objects.npy", np.array([hostile], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", X=np.array([hostile], dtype=object))
    assert "cannot be read" in message(tmp_path / "raw.npy")
    assert "pickled Python objects, which are never loaded" in message(tmp_path / "objects.npy")
    assert "[X]: expected numbers, got pickled Python objects" in message(tmp_path / "objects.npz")
    assert not target.exists()


def test_damaged_npy(tmp_path: Path) -> None:
    path = tmp_path / "table.npy"
    np.save(path, np.arange(100.0))
    whole = path.read_bytes()
    huge = whole.replace(b"(100,), ", b"(9" + b"9" * 20 + b",), ")[: len(whole)]
    for content in (whole[:300], whole[:90], whole[:4], b"hello", huge, b"PK\x03\x04" + whole):
        path.write_bytes(content)
        assert "cannot be read" in message(path)


def test_npz_key(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    np.savez(path, only=np.ones((2, 2)))
    assert read_table(path).values.shape == (2, 2)
    np.savez_compressed(path, y=np.zeros(3), X=np.ones((3, 1)), x_train=np.ones((4, 1)))
    assert read_table(path).values.shape == (3, 1)
    assert read_table(path, key="x_train").values.shape == (4, 1)
    assert "key: expected one of y, X, x_train, got 'z'" in message(path, key="z")
    np.savez(path, a=np.ones((2, 2)), x_train=np.ones((5, 2)))
    assert len(read_table(path)) == 5
    np.savez(path, a=np.ones((2, 2)), b=np.ones((5, 2)))
    assert f"expected one array or one named X or x_train, got a, b; name one as in {path}:a" in message(path)
    assert len(read_table(f"{path}:b")) == len(read_table(path, "b")) == 5
    with pytest.raises(ValueError, match="key: expected one of a, b, got 'c'"):
        read_table(f"{path}:c")
    assert "names an array already, got 'a'" in message(f"{path}:b", key="a")
    np.savez(path)
    assert "expected an archive of arrays, got one without any" in message(path)


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    np.savez_compressed(path, X=np.random.default_rng(0).normal(size=1000))
    whole = path.read_bytes()
    for content in (whole[:500], b"hello", whole[:500] + b"\0" * 500 + whole[1000:]):
        path.write_bytes(content)
        assert "cannot be read" in message(path)


def test_read_array_keeps_shape_and_dtype(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.savez(tmp_path / "a.npz", images=array, other=array[0])
    read = read_array(tmp_path / "a.npz", preferred=("images",))
    assert read.dtype == np.uint8
    assert np.array_equal(read, array)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=r"^key: expected None for a \.npy file, got 'X'"):
        read_array(tmp_path / "a.npy", key="X")


# --- any format -------------------------------------------------------------------------------------------------------


def test_paths_refused(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "no.csv")
    assert "ends in .csv, .csv.gz, .parquet, .npy, .npz" in message(tmp_path / "table.xlsx")
    (tmp_path / "folder.npy").mkdir()
    assert "got a folder" in message(tmp_path / "folder.npy")
    (tmp_path / "empty.parquet").touch()
    assert "empty (0 bytes)" in message(tmp_path / "empty.parquet")
    assert "key: expected None for a .csv file, got 'X'" in message(text_file(tmp_path, "1,2\n"), key="X")


def test_missing_values_on_request(tmp_path: Path) -> None:
    values = read_table(text_file(tmp_path, "a,b\n1,\nNA,inf\n"), allow_missing=True).values
    assert np.array_equal(values, [[1, np.nan], [np.nan, np.inf]], equal_nan=True)
    np.save(tmp_path / "t.npy", np.array([[1, 2], [np.inf, np.nan]]))
    assert "got 2 missing or infinite, the first at row 2, column 'x0': inf" in message(tmp_path / "t.npy")


def test_constant_columns_are_read(tmp_path: Path) -> None:
    assert read_table(text_file(tmp_path, "a\n5\n5\n")).values.tolist() == [[5], [5]]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.floats(-(2.0**60), 2.0**60, width=32),
    )
)
def test_written_tables_come_back(tmp_path: Path, suffix: str, values: np.ndarray) -> None:
    path = tmp_path / f"table{suffix}"
    write_table(path, values)
    table = read_table(path)
    assert np.array_equal(table.values.astype(values.dtype), values)
    assert table.columns == tuple(f"x{i}" for i in range(values.shape[1]))


def test_write_keeps_names_and_leaves_nothing_else(tmp_path: Path) -> None:
    for suffix in (".csv", ".parquet"):
        write_table(tmp_path / f"t{suffix}", np.array([[1 / 3, 2]]), ["a,b", 'quo"te'])
        table = read_table(tmp_path / f"t{suffix}")
        assert table.columns == ("a,b", 'quo"te')
        assert table.values[0, 0] == pytest.approx(1 / 3, rel=1e-15)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.parquet"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.npy"
    write_table(path, np.ones((2, 2)))

    def fail(target: Path, values: np.ndarray, allow_pickle: bool) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_table(path, np.zeros((2, 2)))
    assert np.array_equal(read_table(path).values, np.ones((2, 2)))
    assert list(tmp_path.iterdir()) == [path]


def test_write_refused(tmp_path: Path) -> None:
    table = np.ones((2, 2))
    with pytest.raises(ValueError, match=r"ends in \.csv, \.parquet, \.npy$"):
        write_table(tmp_path / "t.npz", table)
    with pytest.raises(ValueError, match="expected an existing folder"):
        write_table(tmp_path / "no" / "t.csv", table)
    with pytest.raises(ValueError, match=r"^values: expected numbers of shape \(n, D\)"):
        write_table(tmp_path / "t.csv", np.ones(3))
    with pytest.raises(ValueError, match=r"^columns: expected 2 column names, got 1"):
        write_table(tmp_path / "t.csv", table, ["a"])
    with pytest.raises(ValueError, match=r"^columns: expected different column names, got 'a'"):
        write_table(tmp_path / "t.csv", table, ["a", "a"])
    with pytest.raises(ValueError, match=r"^columns: expected a name that is not a number"):
        write_table(tmp_path / "t.csv", table, ["0", "1"])
    assert not any(tmp_path.iterdir())


def test_table_checks_its_fields() -> None:
    with pytest.raises(ValueError, match=r"^values: expected a float32 or float64 array"):
        Table(np.ones((2, 2), int), ("a", "b"))
    with pytest.raises(ValueError, match=r"^columns: expected 2 column names, got 1"):
        Table(np.ones((2, 2)), ("a",))


@pytest.mark.data
def test_real_tables() -> None:
    folder = Path(os.environ.get("ARCSM_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    paths = [*sorted((folder / "uci").glob("*.csv.gz")), *sorted((folder / "adbench").glob("*.npz"))[:3]]
    if not paths:
        pytest.skip(f"no uci/*.csv.gz or adbench/*.npz in {folder}; ARCSM_DATA names another folder")
    for path in paths:
        table = read_table(path)
        assert len(table) > 10
        assert np.isfinite(table.values).all()
