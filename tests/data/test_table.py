"""Tables of any format: written tables come back, and missing values need permission."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arcsm.data import read_table, write_table
from arcsm.data.checks import check_precision
from rejections import read_error
from small_tables import normal


def test_bad_paths_are_rejected(tmp_path: Path) -> None:
    assert "does not exist" in read_error(tmp_path / "no.csv")
    assert "ends in .csv, .csv.gz, .tsv, .tsv.gz, .parquet, .npy, .npz" in read_error(tmp_path / "table.xlsx")
    (tmp_path / "folder.npy").mkdir()
    assert "got a folder" in read_error(tmp_path / "folder.npy")
    (tmp_path / "empty.parquet").touch()
    assert "empty (0 bytes)" in read_error(tmp_path / "empty.parquet")


def test_missing_values_are_read_if_allowed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,\nNA,inf\n")
    values = read_table(tmp_path / "t.csv", allow_missing=True).values
    assert np.array_equal(values, [[1, np.nan], [np.nan, np.inf]], equal_nan=True)
    np.save(tmp_path / "t.npy", np.array([[1, 2], [np.inf, np.nan]]))
    assert "got 2 missing or infinite, the first at row 2, column 'x0': inf" in read_error(tmp_path / "t.npy")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy"])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_bad_arguments_of_write_table_are_rejected(tmp_path: Path) -> None:
    table = np.ones((2, 2))
    with pytest.raises(ValueError, match=r"ends in \.csv, \.tsv, \.parquet, \.npy$"):
        write_table(tmp_path / "t.npz", table)
    with pytest.raises(ValueError, match=r"^values: expected numbers of shape \(n, D\)"):
        write_table(tmp_path / "t.csv", np.ones(3))
    with pytest.raises(ValueError, match=r"^columns: expected different column names, got 'a'"):
        write_table(tmp_path / "t.csv", table, ["a", "a"])
    with pytest.raises(ValueError, match=r"^columns: expected a name that is not a number"):
        write_table(tmp_path / "t.csv", table, ["0", "1"])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1e35, 1e-40])
def test_columns_beyond_single_precision_are_rejected(size: float) -> None:
    with pytest.raises(ValueError, match=r"column 'b' has values as (large|small) as .* out of the range"):
        check_precision(np.c_[normal(9), size * normal(9)], ("a", "b"), "t")
    check_precision(np.c_[normal(9), np.full(9, 1e9), np.full(9, np.nan)], ("a", "b", "c"), "t")  # constant, missing


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
