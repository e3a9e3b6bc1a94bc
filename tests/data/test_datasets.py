"""Data sets by configuration: training and test images must match, and large tables are streamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcsm.data import RowStream, datasets, streams
from arcsm.data.datasets import ImageData, TableData, load_dataset
from arcsm.data.streams import is_large


def test_test_images_of_another_shape_are_rejected(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x_train=np.zeros((20, 4, 4), np.uint8), x_test=np.zeros((5, 5, 5), np.uint8))
    data = ImageData(kind="images", path=str(tmp_path / "t.npz"), key="x_train", test_key="x_test")
    with pytest.raises(ValueError, match=r"training images are \[1, 4, 4\], but test images are \[1, 5, 5\]"):
        load_dataset(data, 0)


def table(rows: int = 1000, columns: int = 3) -> np.ndarray:
    """Rows in a telling order: the first column counts."""
    values = np.random.default_rng(0).normal(5.0, 2.0, (rows, columns))
    values[:, 0] = np.arange(rows)
    return values


def write(path: Path, values: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        pd.DataFrame(values, columns=[f"c{d}" for d in range(values.shape[1])]).to_parquet(path, row_group_size=70)
    return path


def test_large_tables_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".npy", ".parquet"):
        path = write(tmp_path / f"t{suffix}", table())
        assert not is_large(path)
        monkeypatch.setattr(streams, "MIN_STREAMED_BYTES", 20_000)
        assert is_large(path)
        assert isinstance(load_dataset(TableData(kind="table", path=str(path))).train, RowStream)
        assert not isinstance(load_dataset(TableData(kind="table", path=str(path), stream=False)).train, RowStream)
        monkeypatch.undo()
    assert not is_large(tmp_path / "none.npy")
    assert not is_large(tmp_path / "t.csv")
    monkeypatch.setattr(streams, "MIN_STREAMED_BYTES", 20_000)
    pd.DataFrame(table()).rename(columns=str).to_parquet(tmp_path / "one.parquet")  # one group: nothing to stream
    assert not is_large(tmp_path / "one.parquet")


def test_train_rows_of_a_stream_are_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.npy", table())
    dataset = load_dataset(TableData(kind="table", path=str(path), stream=True))
    monkeypatch.setattr(datasets, "_MAX_SAMPLE_ROWS", 50)
    assert dataset.train_rows().shape == (50, 3)
    assert dataset.train_rows(7).shape == (7, 3)
