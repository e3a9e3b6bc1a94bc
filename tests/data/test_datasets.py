"""Data sets by configuration: images of archives, and large tables that are streamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcsm.data import RowStream, datasets, streams
from arcsm.data.datasets import ImageData, NamedImageData, TableData, load_dataset
from arcsm.data.streams import is_large
from stored_rows import counted_rows, write_rows


def test_test_images_of_another_shape_are_rejected(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x_train=np.zeros((20, 4, 4), np.uint8), x_test=np.zeros((5, 5, 5), np.uint8))
    data = ImageData(kind="images", path=str(tmp_path / "t.npz"), key="x_train", test_key="x_test")
    with pytest.raises(ValueError, match=r"training images are \[1, 4, 4\], but test images are \[1, 5, 5\]"):
        load_dataset(data, 0)


def test_large_tables_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".npy", ".parquet"):
        path = write_rows(tmp_path / f"t{suffix}", counted_rows())
        assert not is_large(path)
        monkeypatch.setattr(streams, "MIN_STREAMED_BYTES", 20_000)
        assert is_large(path)
        assert isinstance(load_dataset(TableData(kind="table", path=str(path))).train, RowStream)
        assert not isinstance(load_dataset(TableData(kind="table", path=str(path), stream=False)).train, RowStream)
        monkeypatch.undo()
    assert not is_large(tmp_path / "none.npy")
    assert not is_large(tmp_path / "t.csv")
    monkeypatch.setattr(streams, "MIN_STREAMED_BYTES", 20_000)
    pd.DataFrame(counted_rows()).rename(columns=str).to_parquet(
        tmp_path / "one.parquet"
    )  # one group: nothing to stream
    assert not is_large(tmp_path / "one.parquet")


def test_train_rows_of_a_stream_are_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "t.npy", counted_rows())
    dataset = load_dataset(TableData(kind="table", path=str(path), stream=True))
    monkeypatch.setattr(datasets, "_MAX_SAMPLE_ROWS", 50)
    assert dataset.train_rows().shape == (50, 3)
    assert dataset.train_rows(7).shape == (7, 3)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path / "cifar10.npz"
    np.savez(
        path,
        x_train=random.integers(0, 256, (20, 4, 4, 3), np.uint8),
        y_train=np.arange(20) % 10,
        x_test=random.integers(0, 256, (6, 4, 4, 3), np.uint8),
        y_test=np.arange(6),
    )
    return path


def test_an_archive_replaces_a_named_set(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCSM_DATA", str(archive.parent))
    for config in (NamedImageData(kind="cifar10"), NamedImageData(kind="cifar10", path=str(archive))):
        dataset = load_dataset(config)
        assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (18, 2, 6)
        assert dataset.metadata["image_shape"] == [3, 4, 4]
        assert dataset.labels["test"].tolist() == list(range(6))
        both = sorted([*dataset.labels["train"].tolist(), *dataset.labels["valid"].tolist()])
        assert both == sorted(np.arange(20) % 10)


def test_labels_stay_with_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    pixels = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    np.savez(path, x_train=pixels, y_train=np.arange(40))
    dataset = load_dataset(ImageData(kind="images", path=str(path), key="x_train"), seed=3)
    for part, rows in (("train", dataset.train), ("valid", dataset.valid), ("test", dataset.test)):
        assert ((rows[:, 0] + 1.0) * 128.0).round().long().tolist() == dataset.labels[part].tolist()
