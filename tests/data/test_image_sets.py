"""Image data sets by name: IDX files, torchvision's files and scikit-learn's digits."""

import gzip
import os
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from arcsm.data import (
    digits,
    mnist,
    read_idx,
    scale_images,
    torchvision_images,
)
from arcsm.data.datasets import NamedImageData, load_dataset
from rejections import error_line

DATA = Path(os.environ.get("ARCSM_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def idx_bytes(array: np.ndarray) -> bytes:
    code = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}[array.dtype.str[1:]]
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(folder: Path, compress: bool, n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    labels = np.arange(n, dtype=np.uint8)
    for prefix in ("train", "t10k"):
        for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            content = idx_bytes(array)
            path = folder / f"{prefix}-{name}{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(content) if compress else content)
    return images, labels


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("compress", [False, True])
def test_idx_files_are_read(tmp_path: Path, dtype: str, compress: bool) -> None:
    array = np.arange(-3, 21).astype(dtype).reshape(2, 3, 4)
    content = idx_bytes(array)
    (tmp_path / "file").write_bytes(gzip.compress(content) if compress else content)
    tensor = read_idx(tmp_path / "file")
    assert tensor.numpy().dtype == array.dtype
    assert np.array_equal(tensor, array)


def test_damaged_idx_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "images-idx3-ubyte.gz"
    content = idx_bytes(np.zeros((10, 28, 28), np.uint8))
    noise = idx_bytes(np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8))
    whole = gzip.compress(noise)
    cases = {
        content[:-1]: "expected 7856 bytes for shape (10, 28, 28), got 7855",
        content + b"\0": "got 7857",
        content[:7]: "bytes for shape",
        gzip.compress(content[:100]): "got 100",
        b"\x00\x01\x08\x03" + content[4:]: "expected an idx file (magic 0000, type, dimensions), got 0x00010803",
        b"\x00\x00\x07\x03" + content[4:]: "got 0x00000703",
        b"\0": "got 0x00",
        whole[: len(whole) // 2]: "cannot be read",
        whole[:12]: "cannot be read",
        whole[:200] + b"\xff" * 50 + whole[250:]: "cannot be read",
        b"\0\0\x08\xff" + b"\xff" * 1020: "bytes for shape",
    }
    for bad, expected in cases.items():
        path.write_bytes(bad)
        text = error_line(lambda: read_idx(path))
        assert expected in text
        assert path.name in text
    assert "does not exist" in error_line(lambda: read_idx(tmp_path / "no"))


@pytest.mark.parametrize("place", [".", "MNIST/raw"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_files_are_read(tmp_path: Path, place: str, compress: bool, split: str) -> None:
    images, labels = write_mnist(tmp_path / place, compress)
    data = mnist(tmp_path, split)
    assert np.array_equal(data.pixels[:, 0], images)
    assert data.labels is not None
    assert np.array_equal(data.labels, labels)
    assert data.labels.dtype == torch.int64


def test_mnist_is_resized(tmp_path: Path) -> None:
    write_mnist(tmp_path, False, 40)
    small = mnist(tmp_path, size=8)
    assert small.pixels.shape[1:] == (1, 8, 8)
    assert small.labels is not None
    assert len(small.labels) == len(small.pixels)
    config = NamedImageData(kind="mnist", path=str(tmp_path), size=8)
    assert load_dataset(config).train_rows().shape[1] == 64
    assert "size" in error_line(lambda: mnist(tmp_path, size=0))


def test_missing_mnist_files_are_named(tmp_path: Path) -> None:
    text = error_line(lambda: mnist(tmp_path))
    assert "train-images-idx3-ubyte and train-labels-idx1-ubyte (or .gz), which are missing" in text
    assert "download=True (command: --set data.download=true)" in text
    write_mnist(tmp_path, compress=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    text = error_line(lambda: mnist(tmp_path, "test"))
    assert "MNIST files t10k-labels-idx1-ubyte (or .gz)" in text
    assert error_line(lambda: mnist(tmp_path, "valid")).startswith("split: expected one of train, test, got 'valid'")


def test_damaged_mnist_files_are_rejected(tmp_path: Path) -> None:
    write_mnist(tmp_path, compress=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    assert "train-labels-idx1-ubyte: expected 5 labels, got shape (4,)" in error_line(lambda: mnist(tmp_path))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((4, 28, 28), np.int32)))
    assert "train-images-idx3-ubyte: expected bytes of shape (n, H, W)" in error_line(lambda: mnist(tmp_path))


def test_mnist_downloads_only_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[bool, bool]] = []

    def fetch(root: str, train: bool, download: bool) -> None:
        calls.append((train, download))
        write_mnist(Path(root) / "MNIST" / "raw", compress=True)

    monkeypatch.setattr(torchvision.datasets, "MNIST", fetch)
    error_line(lambda: mnist(tmp_path))
    assert calls == []
    assert len(mnist(tmp_path, "test", download=True)) == 5
    assert len(mnist(tmp_path, "test", download=True)) == 5  # there now: not fetched again
    assert calls == [(False, True)]


def test_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    assert error_line(lambda: mnist(tmp_path, download=True)).endswith("(no route); the download failed")


@pytest.mark.data
def test_real_mnist_is_read() -> None:
    folder = DATA / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; ARCSM_DATA names the folder that holds mnist/")
    train, test = mnist(folder), mnist(folder, "test")
    assert train.pixels.shape == (60000, 1, 28, 28)
    assert test.pixels.shape == (10000, 1, 28, 28)
    assert train.labels is not None
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert scale_images(train.pixels).mean().item() == pytest.approx(-1 + 2 * 0.1307 * 255 / 256, abs=1e-3)


@pytest.mark.parametrize("name", ["cifar10", "svhn", "celeba"])
def test_missing_torchvision_sets_are_named(tmp_path: Path, name: str) -> None:
    text = error_line(lambda: torchvision_images(name, tmp_path))
    assert f"expected the files of {name}" in text
    assert "--set data.download=true" in text


def test_bad_torchvision_arguments_are_rejected(tmp_path: Path) -> None:
    text = error_line(lambda: torchvision_images("imagenet", tmp_path))
    assert text == "name: expected one of cifar10, svhn, celeba, got 'imagenet'"
    text = error_line(lambda: torchvision_images("cifar10", tmp_path, "valid"))
    assert text == "split: expected one of train, test, got 'valid'"
    assert error_line(lambda: torchvision_images("svhn", tmp_path, size=-1)).startswith("size: expected")


def test_cifar10_and_svhn_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    planes = array.transpose(0, 3, 1, 2)
    cifar = SimpleNamespace(data=array, targets=[3, 2, 1, 0])
    svhn = SimpleNamespace(data=planes, labels=np.array([3, 2, 1, 0]))
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda root, train, download: cifar)
    monkeypatch.setattr(torchvision.datasets, "SVHN", lambda root, split, download: svhn)
    for name in ("cifar10", "svhn"):
        images = torchvision_images(name, tmp_path, "test")
        assert np.array_equal(images.pixels, planes)
        assert images.labels is not None
        assert images.labels.tolist() == [3, 2, 1, 0]
        assert torchvision_images(name, tmp_path, size=16).pixels.shape == (4, 3, 16, 16)


def test_celeba_takes_the_central_140(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)

    class Faces:
        filename = ("a.jpg", "b.jpg")
        base_folder = "celeba"

        def __init__(self, root: str, split: str, download: bool) -> None:
            assert (split, download) == ("valid", False)
            self.root = root

        def __len__(self) -> int:
            return 2

    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for name in Faces.filename:
        Image.fromarray(array).save(folder / name, "PNG")

    monkeypatch.setattr(torchvision.datasets, "CelebA", Faces)
    images = torchvision_images("celeba", tmp_path, "valid")
    assert np.array_equal(images.pixels[1].permute(1, 2, 0), array[39:179, 19:159])
    assert images.names == ("a.jpg", "b.jpg")
    assert torchvision_images("celeba", tmp_path, "valid", size=32).pixels.shape == (2, 3, 32, 32)


def test_digits_are_read() -> None:
    images = digits()
    assert images.pixels.shape == (1797, 1, 8, 8)
    assert images.levels == 17
    assert images.pixels.max() == 16
    assert images.labels is not None
    assert images.labels.unique().tolist() == list(range(10))
