"""Tables of any format: written tables come back, and missing values need permission."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arcsm.data import Table, read_table, write_table
from rejections import read_error


def text_file(folder: Path, content: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_bad_paths_are_rejected(tmp_path: Path) -> None:
    assert "does not exist" in read_error(tmp_path / "no.csv")
    assert "ends in .csv, .csv.gz, .tsv, .tsv.gz, .parquet, .npy, .npz" in read_error(tmp_path / "table.xlsx")
    (tmp_path / "folder.npy").mkdir()
    assert "got a folder" in read_error(tmp_path / "folder.npy")
    (tmp_path / "empty.parquet").touch()
    assert "empty (0 bytes)" in read_error(tmp_path / "empty.parquet")
    assert "key: expected None for a .csv file, got 'X'" in read_error(text_file(tmp_path, "1,2\n"), key="X")


def test_missing_values_are_read_if_allowed(tmp_path: Path) -> None:
    values = read_table(text_file(tmp_path, "a,b\n1,\nNA,inf\n"), allow_missing=True).values
    assert np.array_equal(values, [[1, np.nan], [np.nan, np.inf]], equal_nan=True)
    np.save(tmp_path / "t.npy", np.array([[1, 2], [np.inf, np.nan]]))
    assert "got 2 missing or infinite, the first at row 2, column 'x0': inf" in read_error(tmp_path / "t.npy")


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


def test_bad_arguments_of_write_table_are_rejected(tmp_path: Path) -> None:
    table = np.ones((2, 2))
    with pytest.raises(ValueError, match=r"ends in \.csv, \.tsv, \.parquet, \.npy$"):
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
def test_real_tables_are_read() -> None:
    folder = Path(os.environ.get("ARCSM_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    paths = [*sorted((folder / "uci").glob("*.csv.gz")), *sorted((folder / "adbench").glob("*.npz"))[:3]]
    if not paths:
        pytest.skip(f"no uci/*.csv.gz or adbench/*.npz in {folder}; ARCSM_DATA names another folder")
    for path in paths:
        table = read_table(path)
        assert len(table) > 10
        assert np.isfinite(table.values).all()
