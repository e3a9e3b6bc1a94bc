"""Image archives as data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arcsm.data.datasets import ImageData, NamedImageData, load_dataset


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


def test_an_image_file_may_have_its_own_test_set(archive: Path) -> None:
    own = load_dataset(ImageData(kind="images", path=str(archive), key="x_train", test_key="x_test"))
    assert (len(own.train), len(own.valid), len(own.test)) == (18, 2, 6)
    named = load_dataset(ImageData(kind="images", path=f"{archive}:x_test"))
    assert len(named.train) + len(named.valid) + len(named.test) == 6
    assert load_dataset(ImageData(kind="images", path=str(archive), key="x_train")).labels["test"].shape == (2,)


def test_labels_stay_with_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    pixels = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    np.savez(path, x_train=pixels, y_train=np.arange(40))
    dataset = load_dataset(ImageData(kind="images", path=str(path), key="x_train"), seed=3)
    for part, rows in (("train", dataset.train), ("valid", dataset.valid), ("test", dataset.test)):
        assert ((rows[:, 0] + 1.0) * 128.0).round().long().tolist() == dataset.labels[part].tolist()
