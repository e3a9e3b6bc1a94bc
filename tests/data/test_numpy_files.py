"""NPY and NPZ files: arrays come back, and damaged files and pickles are rejected in one line."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from arcsm.data import read_array, read_table
from rejections import Hostile, read_error


def test_npy_files_need_two_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "table.npy"
    np.save(path, np.arange(24.0).reshape(2, 3, 4))
    assert "expected an array of shape (n, D), got (2, 3, 4) (in Python, flatten=True)" in read_error(path)
    assert read_table(path, flatten=True).values.shape == (2, 12)
    np.save(path, np.arange(3.0))
    assert read_table(path).values.tolist() == [[0], [1], [2]]
    np.save(path, np.float64(3))
    assert "got a single number" in read_error(path)


def test_npy_files_without_numbers_are_rejected(tmp_path: Path) -> None:
    np.save(tmp_path / "table.npy", np.zeros(2, "f4,f4"))
    assert "expected real numbers, got dtype" in read_error(tmp_path / "table.npy")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    target = tmp_path / "made_by_the_pickle"
    hostile = Hostile(target)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(hostile))
    np.save(tmp_path / "objects.npy", np.array([hostile], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", X=np.array([hostile], dtype=object))
    assert "cannot be read" in read_error(tmp_path / "raw.npy")
    assert "pickled Python objects, which are never loaded" in read_error(tmp_path / "objects.npy")
    assert "[X]: expected numbers, got pickled Python objects" in read_error(tmp_path / "objects.npz")
    assert not target.exists()


def test_damaged_npy_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "table.npy"
    np.save(path, np.arange(100.0))
    whole = path.read_bytes()
    huge = whole.replace(b"(100,), ", b"(9" + b"9" * 20 + b",), ")[: len(whole)]
    for content in (whole[:300], whole[:90], whole[:4], b"hello", huge, b"PK\x03\x04" + whole):
        path.write_bytes(content)
        assert "cannot be read" in read_error(path)


def test_the_array_of_an_npz_file_is_chosen_by_key(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    np.savez(path, only=np.ones((2, 2)))
    assert read_table(path).values.shape == (2, 2)
    np.savez_compressed(path, y=np.zeros(3), X=np.ones((3, 1)), x_train=np.ones((4, 1)))
    assert read_table(path).values.shape == (3, 1)
    assert read_table(path, key="x_train").values.shape == (4, 1)
    assert "key: expected one of y, X, x_train, got 'z'" in read_error(path, key="z")
    np.savez(path, a=np.ones((2, 2)), b=np.ones((5, 2)))
    assert f"expected one array or one named X or x_train, got a, b; name one as in {path}:a" in read_error(path)
    assert len(read_table(f"{path}:b")) == len(read_table(path, "b")) == 5


def test_read_array_keeps_shape_and_dtype(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.savez(tmp_path / "a.npz", images=array, other=array[0])
    read = read_array(tmp_path / "a.npz", preferred=("images",))
    assert read.dtype == np.uint8
    assert np.array_equal(read, array)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=r"^key: expected None for a \.npy file, got 'X'"):
        read_array(tmp_path / "a.npy", key="X")
