"""Images: every format comes in as uint8 (n, C, H, W), every damaged file is refused in one line that names it."""

import gzip
import math
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from arcsm.data import (
    ImageSet,
    digits,
    image_grid,
    mnist,
    read_idx,
    read_images,
    save_images,
    scale_images,
    stretch_images,
    torchvision_images,
    unscale_images,
)
from arcsm.data.datasets import NamedImageData, load_dataset
from arcsm.errors import SkippedWarning

DATA = Path(os.environ.get("ARCSM_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def message(call: Callable[[], object]) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def grey(height: int = 6, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def colour(height: int = 6, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


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


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "PNG"])
def test_grey_folder(tmp_path: Path, suffix: str) -> None:
    for index, name in enumerate(("b", "a", "sub/c")):
        save(tmp_path / f"{name}.{suffix}", grey(seed=index))
    images = read_images(tmp_path)
    assert images.names == (f"a.{suffix}", f"b.{suffix}", f"sub/c.{suffix}")
    assert images.pixels.shape == (3, 1, 6, 5)
    assert images.pixels.dtype == torch.uint8
    assert images.levels == 256
    assert len(images) == 3
    assert np.array_equal(images.pixels[1, 0], grey(seed=0))
    assert read_images(tmp_path, channels=3).pixels.shape == (3, 3, 6, 5)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp"])
def test_lossy_formats(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"a.{suffix}", np.full((8, 8, 3), (200, 100, 50), np.uint8), quality=95)
    pixels = read_images(tmp_path).pixels.float()
    assert (pixels - torch.tensor([200.0, 100, 50])[:, None, None]).abs().max() < 6


def test_grey_becomes_colour_in_a_colour_folder(tmp_path: Path) -> None:
    save(tmp_path / "a.png", grey())
    save(tmp_path / "b.png", colour())
    pixels = read_images(tmp_path).pixels
    assert pixels.shape == (2, 3, 6, 5)
    assert np.array_equal(pixels[0], np.stack([grey()] * 3))
    assert np.array_equal(pixels[1].permute(1, 2, 0), colour())
    luma = read_images(tmp_path, channels=1).pixels[1, 0].double().numpy()
    assert np.abs(luma - colour() @ np.array([0.299, 0.587, 0.114])).max() <= 1


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    alpha = np.broadcast_to(np.array([0, 128, 255], np.uint8), (2, 3))
    rgba = np.concatenate([np.broadcast_to(np.array([10, 20, 30], np.uint8), (2, 3, 3)), alpha[..., None]], axis=-1)
    save(tmp_path / "rgba" / "a.png", rgba)
    save(tmp_path / "la" / "a.png", np.stack([np.full((2, 3), 10, np.uint8), alpha], axis=-1))
    pixels = read_images(tmp_path / "rgba").pixels[0, :, 0].double()  # (3, 3)
    share = torch.tensor([0, 128, 255]) / 255
    expected = 255 + share * (torch.tensor([[10.0], [20], [30]]) - 255)
    assert (pixels - expected).abs().max() <= 1
    laid = read_images(tmp_path / "la").pixels
    assert laid.shape == (1, 1, 2, 3)
    assert (laid[0, 0, 0] - expected[0]).abs().max() <= 1


def test_a_transparent_grey_of_16_bits_is_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 25700, 65535]], np.uint16))
    image.save(tmp_path / "a.png")
    chunk = b"tRNS" + (25700).to_bytes(2, "big")
    before, end, after = (tmp_path / "a.png").read_bytes().partition(b"IDAT")
    chunk = (2).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(before[:-4] + chunk + before[-4:] + end + after)
    assert read_images(tmp_path).pixels.flatten().tolist() == [0, 255, 255]


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_of_greys_is_grey(tmp_path: Path, transparent: bool) -> None:
    grey = Image.fromarray(np.arange(0, 60, 10, dtype=np.uint8).reshape(2, 3))
    grey.convert("P").save(tmp_path / "a.png", **({"transparency": 255} if transparent else {}))
    assert Image.open(tmp_path / "a.png").mode == "P"
    images = read_images(tmp_path)
    assert images.pixels.shape == (1, 1, 2, 3)
    assert images.pixels.flatten().tolist() == [0, 10, 20, 30, 40, 50]


def test_palettes(tmp_path: Path) -> None:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    (tmp_path / "solid").mkdir()
    (tmp_path / "clear").mkdir()
    image.save(tmp_path / "solid" / "a.png")
    image.save(tmp_path / "clear" / "a.png", transparency=1)
    assert read_images(tmp_path / "solid").pixels[0, :, 0, 0].tolist() == [10, 20, 30]
    assert read_images(tmp_path / "clear").pixels[0, :, 0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 25700, 65535]], np.uint16)
    save(tmp_path / f"a.{suffix}", values)
    assert read_images(tmp_path).pixels.flatten().tolist() == [0, 0, 1, 1, 100, 255]


def test_one_bit_images(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "a.png")
    assert read_images(tmp_path).pixels.flatten().tolist() == [0, 255]


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", np.ones((2, 2), np.float32))
    save(tmp_path / "b" / "a.tif", np.full((2, 2), 70000, np.int32))
    assert "a.tif: expected 8-bit or 16-bit pixels, got floating-point" in message(lambda: read_images(tmp_path))
    assert "got values 70000 to 70000" in message(lambda: read_images(tmp_path / "b"))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    save(tmp_path / "a.png", grey(4, 2), exif=exif)
    assert np.array_equal(read_images(tmp_path).pixels[0, 0], np.rot90(grey(4, 2), -1))


def test_size_takes_the_central_square(tmp_path: Path) -> None:
    wide = np.zeros((4, 10), np.uint8)
    wide[:, 3:7] = 200
    save(tmp_path / "wide.png", wide)
    save(tmp_path / "tall.png", wide.T.copy())
    pixels = read_images(tmp_path, size=2).pixels
    assert pixels.shape == (2, 1, 2, 2)
    assert (pixels == 200).all()
    assert read_images(tmp_path, size=9).pixels.shape == (2, 1, 9, 9)


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    save(tmp_path / "a.png", stripes)
    pixels = read_images(tmp_path, size=8).pixels.float()
    assert (pixels - 127.5).abs().max() < 12


def test_folders_refused(tmp_path: Path) -> None:
    assert "none: expected a folder of images" in message(lambda: read_images(tmp_path / "none"))
    assert "got a folder without any" in message(lambda: read_images(tmp_path))
    (tmp_path / "note.txt").write_text("no image")
    assert "got another file" in message(lambda: read_images(tmp_path / "note.txt"))
    save(tmp_path / "a.png", grey(6, 5))
    save(tmp_path / "b.png", grey(6, 4))
    assert "b.png: expected 5 x 6 pixels like a.png, got 4 x 6 (data.size, in Python size=" in message(
        lambda: read_images(tmp_path)
    )
    assert message(lambda: read_images(tmp_path, channels=4)).startswith("channels: expected 1, 3 or None, got 4")
    assert message(lambda: read_images(tmp_path, size=0)).startswith("size: expected a positive integer")
    assert message(lambda: read_images(tmp_path, key="X")).startswith("key: expected None for a folder")


def test_damaged_images(tmp_path: Path) -> None:
    save(tmp_path / "good.png", colour(32, 32))
    whole = (tmp_path / "good.png").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (whole[: len(whole) // 2], whole[:20], bytes(flipped), b"plain text", whole[:8]):
        (tmp_path / "bad.png").write_bytes(content)
        assert "bad.png: cannot be read" in message(lambda: read_images(tmp_path))
    (tmp_path / "bad.png").write_bytes(b"")
    assert "bad.png: the file is empty" in message(lambda: read_images(tmp_path))


@pytest.mark.parametrize("suffix", ["jpg", "bmp", "webp", "tif"])
def test_truncated_images(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bad.{suffix}"
    save(path, colour(32, 32))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"bad.{suffix}: cannot be read" in message(lambda: read_images(tmp_path))


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "a.png", grey())
    save(tmp_path / ".cache" / "b.png", grey(3, 3))
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    assert read_images(tmp_path).names == ("a.png",)


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_image_arrays(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "rgb.npy", array)
    np.save(tmp_path / "grey.npy", array[..., 0])
    np.save(tmp_path / "one.npy", array[..., :1])
    images = read_images(tmp_path / "rgb.npy")
    assert np.array_equal(images.pixels, array.transpose(0, 3, 1, 2))
    assert images.labels is None
    assert np.array_equal(read_images(tmp_path / "grey.npy").pixels[:, 0], array[..., 0])
    assert read_images(tmp_path / "one.npy").pixels.shape == (4, 1, 6, 5)
    assert read_images(tmp_path / "grey.npy", channels=3).pixels.shape == (4, 3, 6, 5)
    assert read_images(tmp_path / "rgb.npy", channels=1, size=3).pixels.shape == (4, 1, 3, 3)


def test_image_archives_bring_their_labels(tmp_path: Path) -> None:
    array = np.zeros((4, 6, 6), np.uint8)
    path = tmp_path / "set.npz"
    np.savez(path, x_train=array, y_train=np.arange(4)[:, None], x_test=array[:2], y_test=np.array([5, 6], np.uint8))
    train, test = read_images(path), read_images(path, key="x_test")
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 2, 3]
    assert test.labels is not None
    assert test.labels.tolist() == [5, 6]
    assert test.labels.dtype == torch.int64
    assert "key: expected one of x_train, y_train" in message(lambda: read_images(path, key="z"))
    np.savez(path, X=array, y=np.zeros(3, int))
    assert "set.npz[y]: expected 4 integer labels for X, got int64 of shape (3,)" in message(lambda: read_images(path))


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 3, 3)), np.zeros((2, 3), np.uint8), np.zeros((2, 3, 3, 4), np.uint8), np.zeros((0, 3, 3), np.uint8)],
)
def test_image_arrays_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    text = message(lambda: read_images(tmp_path / "a.npy"))
    assert "a.npy: expected uint8 images" in text
    assert str(array.shape) in text


class Hostile:
    """Unpickling makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    target = tmp_path / "made_by_the_pickle"
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Hostile(target)))
    np.save(tmp_path / "objects.npy", np.array([Hostile(target)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "set.npz", X=np.zeros((1, 2, 2), np.uint8), y=np.array([Hostile(target)], dtype=object))
    assert "raw.npy: cannot be read" in message(lambda: read_images(tmp_path / "raw.npy"))
    assert "never loaded" in message(lambda: read_images(tmp_path / "objects.npy"))
    assert "set.npz[y]" in message(lambda: read_images(tmp_path / "set.npz"))
    assert not target.exists()


# --- idx --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("compress", [False, True])
def test_idx(tmp_path: Path, dtype: str, compress: bool) -> None:
    array = np.arange(-3, 21).astype(dtype).reshape(2, 3, 4)
    content = idx_bytes(array)
    (tmp_path / "file").write_bytes(gzip.compress(content) if compress else content)
    tensor = read_idx(tmp_path / "file")
    assert tensor.numpy().dtype == array.dtype
    assert np.array_equal(tensor, array)


def test_idx_refused(tmp_path: Path) -> None:
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
        text = message(lambda: read_idx(path))
        assert expected in text
        assert path.name in text
    assert "does not exist" in message(lambda: read_idx(tmp_path / "no"))


# --- MNIST ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "MNIST/raw"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_files(tmp_path: Path, place: str, compress: bool, split: str) -> None:
    images, labels = write_mnist(tmp_path / place, compress)
    data = mnist(tmp_path, split)
    assert np.array_equal(data.pixels[:, 0], images)
    assert data.labels is not None
    assert np.array_equal(data.labels, labels)
    assert data.labels.dtype == torch.int64


def test_mnist_of_another_size(tmp_path: Path) -> None:
    write_mnist(tmp_path, False, 40)
    small = mnist(tmp_path, size=8)
    assert small.pixels.shape[1:] == (1, 8, 8)
    assert small.labels is not None
    assert len(small.labels) == len(small.pixels)
    config = NamedImageData(kind="mnist", path=str(tmp_path), size=8)
    assert load_dataset(config).train_rows().shape[1] == 64
    assert "size" in message(lambda: mnist(tmp_path, size=0))


def test_mnist_missing_files(tmp_path: Path) -> None:
    text = message(lambda: mnist(tmp_path))
    assert "train-images-idx3-ubyte and train-labels-idx1-ubyte (or .gz), which are missing" in text
    assert "download=True (command: --set data.download=true)" in text
    write_mnist(tmp_path, compress=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    text = message(lambda: mnist(tmp_path, "test"))
    assert "MNIST files t10k-labels-idx1-ubyte (or .gz)" in text
    assert message(lambda: mnist(tmp_path, "valid")).startswith("split: expected one of train, test, got 'valid'")


def test_mnist_damaged_files(tmp_path: Path) -> None:
    write_mnist(tmp_path, compress=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    assert "train-labels-idx1-ubyte: expected 5 labels, got shape (4,)" in message(lambda: mnist(tmp_path))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((4, 28, 28), np.int32)))
    assert "train-images-idx3-ubyte: expected bytes of shape (n, H, W)" in message(lambda: mnist(tmp_path))


def test_mnist_downloads_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[bool, bool]] = []

    def fetch(root: str, train: bool, download: bool) -> None:
        calls.append((train, download))
        write_mnist(Path(root) / "MNIST" / "raw", compress=True)

    monkeypatch.setattr(torchvision.datasets, "MNIST", fetch)
    message(lambda: mnist(tmp_path))
    assert calls == []
    assert len(mnist(tmp_path, "test", download=True)) == 5
    assert len(mnist(tmp_path, "test", download=True)) == 5  # there now: not fetched again
    assert calls == [(False, True)]


def test_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    assert message(lambda: mnist(tmp_path, download=True)).endswith("(no route); the download failed")


@pytest.mark.data
def test_real_mnist() -> None:
    folder = DATA / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; ARCSM_DATA names the folder that holds mnist/")
    train, test = mnist(folder), mnist(folder, "test")
    assert train.pixels.shape == (60000, 1, 28, 28)
    assert test.pixels.shape == (10000, 1, 28, 28)
    assert train.labels is not None
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert scale_images(train.pixels).mean().item() == pytest.approx(-1 + 2 * 0.1307 * 255 / 256, abs=1e-3)


@pytest.mark.data
@pytest.mark.parametrize("name", ["cifar10", "svhn", "faces64"])
def test_real_archives(name: str) -> None:
    path = DATA / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no file {path}; ARCSM_DATA names the folder that holds it")
    images = read_images(path, key="x_test")
    assert images.pixels.shape[1] == 3
    assert (images.labels is None) == (name == "faces64")


# --- torchvision and scikit-learn -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "svhn", "celeba"])
def test_missing_torchvision_sets(tmp_path: Path, name: str) -> None:
    text = message(lambda: torchvision_images(name, tmp_path))
    assert f"expected the files of {name}" in text
    assert "--set data.download=true" in text


def test_torchvision_arguments(tmp_path: Path) -> None:
    text = message(lambda: torchvision_images("imagenet", tmp_path))
    assert text == "name: expected one of cifar10, svhn, celeba, got 'imagenet'"
    text = message(lambda: torchvision_images("cifar10", tmp_path, "valid"))
    assert text == "split: expected one of train, test, got 'valid'"
    assert message(lambda: torchvision_images("svhn", tmp_path, size=-1)).startswith("size: expected")


def test_cifar10_and_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

        def __init__(self, root: str, split: str, download: bool) -> None:
            assert (split, download) == ("valid", False)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.fromarray(array), 0

    monkeypatch.setattr(torchvision.datasets, "CelebA", Faces)
    images = torchvision_images("celeba", tmp_path, "valid")
    assert np.array_equal(images.pixels[1].permute(1, 2, 0), array[39:179, 19:159])
    assert images.names == ("a.jpg", "b.jpg")
    assert torchvision_images("celeba", tmp_path, "valid", size=32).pixels.shape == (2, 3, 32, 32)


def test_digits() -> None:
    images = digits()
    assert images.pixels.shape == (1797, 1, 8, 8)
    assert images.levels == 17
    assert images.pixels.max() == 16
    assert images.labels is not None
    assert images.labels.unique().tolist() == list(range(10))


def test_image_set_checks_its_fields() -> None:
    pixels = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    assert message(lambda: ImageSet(pixels.float())).startswith("pixels: expected uint8")
    assert message(lambda: ImageSet(pixels[0])).startswith("pixels: expected uint8")
    assert message(lambda: ImageSet(pixels, labels=torch.zeros(3, dtype=torch.long))).startswith("labels: expected")
    assert message(lambda: ImageSet(pixels, names=("a",))) == "names: expected 2 names, got 1"
    assert message(lambda: ImageSet(pixels, levels=1)).startswith("levels: expected")
    assert message(lambda: ImageSet(pixels + 200, levels=17)).startswith("pixels: expected values below levels=17")


# --- values -----------------------------------------------------------------------------------------------------------


@given(st.integers(2, 256))
def test_scaling_is_undone(levels: int) -> None:
    pixels = torch.arange(levels).to(torch.uint8)
    x = scale_images(pixels, levels)
    assert x.dtype == torch.float32
    assert x.min() == -1
    assert x.max() < 1
    assert torch.allclose(x.double().diff(), torch.tensor(2 / levels).double(), atol=1e-6)
    assert torch.equal(unscale_images(x, levels), pixels)
    assert torch.equal(unscale_images(x + 0.999 * 2 / levels, levels), pixels)
    assert torch.equal(unscale_images(x.double(), levels), pixels)


def test_dequantised_values_are_uniform_on_the_range() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(17, (20000,), generator=generator).to(torch.uint8)
    x = scale_images(pixels, 17) + torch.rand(20000, generator=generator) * 2 / 17
    assert x.mean().item() == pytest.approx(0, abs=0.02)
    assert x.var().item() == pytest.approx(1 / 3, abs=0.01)
    assert torch.equal(unscale_images(x, 17), pixels)


def test_unscale_clamps_and_stretches() -> None:
    x = torch.tensor([-math.inf, -1.5, -1.0, 0.0, 0.999, 1.0, 7.0])
    assert unscale_images(x, 256).tolist() == [0, 0, 0, 128, 255, 255, 255]
    assert unscale_images(x, 17).tolist() == [0, 0, 0, 8, 16, 16, 16]
    assert unscale_images(x, 17, stretch=True).tolist() == [0, 0, 0, 128, 255, 255, 255]
    full = torch.arange(256).to(torch.uint8)
    assert torch.equal(stretch_images(full, 256), full)


def test_values_refused() -> None:
    nan = torch.tensor([0.0, math.nan])
    assert message(lambda: unscale_images(nan, 256)) == "x: expected numbers, got 1 NaN"
    assert message(lambda: unscale_images(torch.tensor([1]), 256)).startswith("x: expected floating-point")
    assert message(lambda: scale_images(nan, 256)).startswith("pixels: expected uint8, got torch.float32")
    high = torch.tensor([17], dtype=torch.uint8)
    assert message(lambda: scale_images(high, 17)) == "pixels: expected values below levels=17, got 17"
    assert message(lambda: stretch_images(high, 17)).startswith("pixels: expected values below")
    assert message(lambda: scale_images(high, 257)).startswith("levels: expected an integer from 2 to 256, got 257")


# --- grids ------------------------------------------------------------------------------------------------------------


def random_pixels(n: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, channels, 4, 3), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("padding", "zoom"), [(2, 1), (0, 3), (1, 2)])
def test_grid_holds_every_image_in_place(channels: int, padding: int, zoom: int) -> None:
    pixels = random_pixels(5, channels)
    grid = image_grid(pixels, columns=2, padding=padding, zoom=zoom)
    assert grid.mode == ("L" if channels == 1 else "RGB")
    array = torch.from_numpy(np.array(grid)).reshape(grid.height, grid.width, channels)
    assert array.shape[:2] == (3 * (4 * zoom + padding) + padding, 2 * (3 * zoom + padding) + padding)
    for index, image in enumerate(pixels):
        top = padding + index // 2 * (4 * zoom + padding)
        left = padding + index % 2 * (3 * zoom + padding)
        block = array[top : top + 4 * zoom, left : left + 3 * zoom]
        assert torch.equal(block, image.permute(1, 2, 0).repeat_interleave(zoom, 0).repeat_interleave(zoom, 1))
        array[top : top + 4 * zoom, left : left + 3 * zoom] = 255
    assert (array == 255).all()


def test_grid_is_square_by_default() -> None:
    assert image_grid(random_pixels(9, 1), padding=0).size == (9, 12)
    assert image_grid(random_pixels(2, 1), columns=7, padding=0).size == (6, 4)


def test_grid_arguments() -> None:
    pixels = random_pixels(2, 1)
    assert message(lambda: image_grid(pixels, columns=0)).startswith("columns: expected an integer of at least 1")
    assert message(lambda: image_grid(pixels, padding=-1)).startswith("padding: expected an integer of at least 0")
    assert message(lambda: image_grid(pixels, zoom=0)).startswith("zoom: expected an integer of at least 1")
    assert message(lambda: image_grid(pixels.float())).startswith("pixels: expected uint8")
    assert message(lambda: image_grid(pixels[:0])).startswith("pixels: expected uint8")


def test_saved_grids_come_back(tmp_path: Path) -> None:
    pixels = random_pixels(4, 3)
    save_images(tmp_path / "grid.png", pixels, zoom=2)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    assert np.array_equal(np.array(Image.open(tmp_path / "grid.png")), np.array(image_grid(pixels, zoom=2)))
    assert "grid.gif: expected a file name that ends in" in message(lambda: save_images(tmp_path / "grid.gif", pixels))
    assert "expected an existing folder" in message(lambda: save_images(tmp_path / "no" / "grid.png", pixels))


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "grid.png"
    save_images(path, random_pixels(4, 3))
    before = path.read_bytes()

    def fail(image: Image.Image, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_images(path, random_pixels(2, 1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_bad_images_are_left_out_and_named_if_asked(tmp_path: Path) -> None:
    for name in ("a.png", "c.png", "e.png"):
        save(tmp_path / name, grey(6, 5))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    save(tmp_path / "d.png", grey(6, 4))
    assert "b.png: cannot be read" in message(lambda: read_images(tmp_path))
    with pytest.warns(
        SkippedWarning, match=r"left out 2 of 5 images \(b\.png: cannot.*; d\.png: expected 5 x 6"
    ) as found:
        images = read_images(tmp_path, skip_bad=True)
    assert len(found) == 1
    assert images.names == ("a.png", "c.png", "e.png")
    with pytest.warns(SkippedWarning, match="left out 4 of 5 images"):
        assert read_images(tmp_path, shape=(6, 4), skip_bad=True).names == ("d.png",)
    with pytest.warns(SkippedWarning, match="left out 1 of 5 images"):
        assert len(read_images(tmp_path, size=3, skip_bad=True)) == 4  # resized, the odd one is no longer odd


def test_a_folder_of_bad_images_alone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    assert "none of its 1 images can be read" in message(lambda: read_images(tmp_path, skip_bad=True))
    (tmp_path / "a.png").unlink()
    save(tmp_path / "b.png", grey(6, 4))
    wanted = message(lambda: read_images(tmp_path, shape=(5, 5), skip_bad=True))
    assert "expected images of 5 x 5 pixels, got none of that size" in wanted
