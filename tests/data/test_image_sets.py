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

from arcsm.data import digits, mnist, read_idx, scale_images, torchvision_images
from rejections import error_line

DATA = Path(os.environ.get("ARCSM_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def idx_bytes(array: np.ndarray) -> bytes:
    code = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}[array.dtype.str[1:]]
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(folder: Path, compress: bool) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.arange(5, dtype=np.uint8)
    for prefix in ("train", "t10k"):
        for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            content = idx_bytes(array)
            path = folder / f"{prefix}-{name}{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(content) if compress else content)
    return images, labels


@pytest.mark.parametrize(("dtype", "compress"), [("i1", False), ("i2", True), ("f8", False)])
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
        b"\x00\x01\x08\x03" + content[4:]: "expected an idx file (magic 0000, type, dimensions), got 0x00010803",
        whole[: len(whole) // 2]: "cannot be read",
        b"\0\0\x08\xff" + b"\xff" * 1020: "bytes for shape",
    }
    for bad, expected in cases.items():
        path.write_bytes(bad)
        text = error_line(lambda: read_idx(path))
        assert expected in text
        assert path.name in text
    assert "does not exist" in error_line(lambda: read_idx(tmp_path / "no"))


@pytest.mark.parametrize(("place", "compress", "split"), [(".", False, "train"), ("MNIST/raw", True, "test")])
def test_mnist_files_are_read(tmp_path: Path, place: str, compress: bool, split: str) -> None:
    images, labels = write_mnist(tmp_path / place, compress)
    data = mnist(tmp_path, split)
    assert np.array_equal(data.pixels[:, 0], images)
    assert data.labels is not None
    assert np.array_equal(data.labels, labels)
    assert data.labels.dtype == torch.int64


def test_missing_mnist_files_are_named(tmp_path: Path) -> None:
    text = error_line(lambda: mnist(tmp_path))
    assert "train-images-idx3-ubyte and train-labels-idx1-ubyte (or .gz), which are missing" in text
    assert "download=True (command: --set data.download=true)" in text


def test_damaged_mnist_files_are_rejected(tmp_path: Path) -> None:
    write_mnist(tmp_path, compress=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    assert "train-labels-idx1-ubyte: expected 5 labels, got shape (4,)" in error_line(lambda: mnist(tmp_path))


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


@pytest.mark.data
def test_real_mnist_is_read() -> None:
    folder = DATA / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; ARCSM_DATA names the folder that holds mnist/")
    train = mnist(folder)
    assert train.pixels.shape == (60000, 1, 28, 28)
    assert train.labels is not None
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert scale_images(train.pixels).mean().item() == pytest.approx(-1 + 2 * 0.1307 * 255 / 256, abs=1e-3)


def test_missing_torchvision_sets_and_bad_arguments_are_named(tmp_path: Path) -> None:
    text = error_line(lambda: torchvision_images("svhn", tmp_path))
    assert "expected the files of svhn" in text
    assert "--set data.download=true" in text
    text = error_line(lambda: torchvision_images("imagenet", tmp_path))
    assert text == "name: expected one of cifar10, svhn, celeba, got 'imagenet'"
    text = error_line(lambda: torchvision_images("cifar10", tmp_path, "valid"))
    assert text == "split: expected one of train, test, got 'valid'"


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

    names, folder = ("a.jpg", "b.jpg"), tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for name in names:
        Image.fromarray(array).save(folder / name, "PNG")

    class Faces(SimpleNamespace):
        def __len__(self) -> int:
            return len(names)

    faces = Faces(filename=names, base_folder="celeba", root=str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "CelebA", lambda root, split, download: faces)
    images = torchvision_images("celeba", tmp_path, "valid")
    assert np.array_equal(images.pixels[1].permute(1, 2, 0), array[39:179, 19:159])
    assert images.names == names
    assert torchvision_images("celeba", tmp_path, "valid", size=32).pixels.shape == (2, 3, 32, 32)


def test_digits_are_read() -> None:
    images = digits()
    assert images.pixels.shape == (1797, 1, 8, 8)
    assert images.levels == 1 + images.pixels.max() == 17
