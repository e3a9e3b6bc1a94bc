"""Images: every format is read as uint8 (n, C, H, W), damaged files are rejected in one line, and grids are saved."""

from __future__ import annotations

import os
import pickle
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from arcsm.data import (
    image_grid,
    read_images,
    save_images,
)
from arcsm.errors import SkippedWarning
from rejections import Hostile, error_line

DATA = Path(os.environ.get("ARCSM_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def grey(height: int = 6, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def colour(height: int = 6, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def random_pixels(n: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, channels, 4, 3), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "PNG"])
def test_a_folder_of_grey_images_is_read(tmp_path: Path, suffix: str) -> None:
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
def test_lossy_formats_are_read(tmp_path: Path, suffix: str) -> None:
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


def test_palettes_are_read(tmp_path: Path) -> None:
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


def test_one_bit_images_are_read(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "a.png")
    assert read_images(tmp_path).pixels.flatten().tolist() == [0, 255]


def test_floating_point_pixels_are_rejected(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", np.ones((2, 2), np.float32))
    save(tmp_path / "b" / "a.tif", np.full((2, 2), 70000, np.int32))
    assert "a.tif: expected 8-bit or 16-bit pixels, got floating-point" in error_line(lambda: read_images(tmp_path))
    assert "got values 70000 to 70000" in error_line(lambda: read_images(tmp_path / "b"))


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


def test_bad_folders_are_rejected(tmp_path: Path) -> None:
    assert "none: expected a folder of images" in error_line(lambda: read_images(tmp_path / "none"))
    assert "got a folder without any" in error_line(lambda: read_images(tmp_path))
    (tmp_path / "note.txt").write_text("no image")
    assert "got another file" in error_line(lambda: read_images(tmp_path / "note.txt"))
    save(tmp_path / "a.png", grey(6, 5))
    save(tmp_path / "b.png", grey(6, 4))
    assert "b.png: expected 5 x 6 pixels like a.png, got 4 x 6 (data.size, in Python size=" in error_line(
        lambda: read_images(tmp_path)
    )
    assert error_line(lambda: read_images(tmp_path, channels=4)).startswith("channels: expected 1, 3 or None, got 4")
    assert error_line(lambda: read_images(tmp_path, size=0)).startswith("size: expected a positive integer")
    assert error_line(lambda: read_images(tmp_path, key="X")).startswith("key: expected None for a folder")


def test_damaged_images_are_rejected(tmp_path: Path) -> None:
    save(tmp_path / "good.png", colour(32, 32))
    whole = (tmp_path / "good.png").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (whole[: len(whole) // 2], whole[:20], bytes(flipped), b"plain text", whole[:8]):
        (tmp_path / "bad.png").write_bytes(content)
        assert "bad.png: cannot be read" in error_line(lambda: read_images(tmp_path))
    (tmp_path / "bad.png").write_bytes(b"")
    assert "bad.png: the file is empty" in error_line(lambda: read_images(tmp_path))


def test_postscript_is_never_interpreted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted: list[object] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments: interpreted.append(arguments))
    save(tmp_path / "a.eps", colour(8, 8))
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    assert "a.png: cannot be read" in error_line(lambda: read_images(tmp_path))
    assert not interpreted


@pytest.mark.parametrize("suffix", ["jpg", "bmp", "webp", "tif"])
def test_truncated_images_are_rejected(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bad.{suffix}"
    save(path, colour(32, 32))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"bad.{suffix}: cannot be read" in error_line(lambda: read_images(tmp_path))


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "a.png", grey())
    save(tmp_path / ".cache" / "b.png", grey(3, 3))
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    assert read_images(tmp_path).names == ("a.png",)


def test_arrays_of_images_are_read(tmp_path: Path) -> None:
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


def test_labels_of_an_npz_file_are_read(tmp_path: Path) -> None:
    array = np.zeros((4, 6, 6), np.uint8)
    path = tmp_path / "set.npz"
    np.savez(path, x_train=array, y_train=np.arange(4)[:, None], x_test=array[:2], y_test=np.array([5, 6], np.uint8))
    train, test = read_images(path), read_images(path, key="x_test")
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 2, 3]
    assert test.labels is not None
    assert test.labels.tolist() == [5, 6]
    assert test.labels.dtype == torch.int64
    assert "key: expected one of x_train, y_train" in error_line(lambda: read_images(path, key="z"))
    np.savez(path, X=array, y=np.zeros(3, int))
    assert "set.npz[y]: expected 4 integer labels for X, got int64 of shape (3,)" in error_line(
        lambda: read_images(path)
    )


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 3, 3)), np.zeros((2, 3), np.uint8), np.zeros((2, 3, 3, 4), np.uint8), np.zeros((0, 3, 3), np.uint8)],
)
def test_arrays_that_are_not_images_are_rejected(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    text = error_line(lambda: read_images(tmp_path / "a.npy"))
    assert "a.npy: expected uint8 images" in text
    assert str(array.shape) in text


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    target = tmp_path / "made_by_the_pickle"
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Hostile(target)))
    np.save(tmp_path / "objects.npy", np.array([Hostile(target)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "set.npz", X=np.zeros((1, 2, 2), np.uint8), y=np.array([Hostile(target)], dtype=object))
    assert "raw.npy: cannot be read" in error_line(lambda: read_images(tmp_path / "raw.npy"))
    assert "never loaded" in error_line(lambda: read_images(tmp_path / "objects.npy"))
    assert "set.npz[y]" in error_line(lambda: read_images(tmp_path / "set.npz"))
    assert not target.exists()


@pytest.mark.data
@pytest.mark.parametrize("name", ["cifar10", "svhn", "faces64"])
def test_real_archives_are_read(name: str) -> None:
    path = DATA / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no file {path}; ARCSM_DATA names the folder that holds it")
    images = read_images(path, key="x_test")
    assert images.pixels.shape[1] == 3
    assert (images.labels is None) == (name == "faces64")


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


def test_bad_grid_arguments_are_rejected() -> None:
    pixels = random_pixels(2, 1)
    assert error_line(lambda: image_grid(pixels, columns=0)).startswith("columns: expected an integer of at least 1")
    assert error_line(lambda: image_grid(pixels, padding=-1)).startswith("padding: expected an integer of at least 0")
    assert error_line(lambda: image_grid(pixels, zoom=0)).startswith("zoom: expected an integer of at least 1")
    assert error_line(lambda: image_grid(pixels.float())).startswith("pixels: expected uint8")
    assert error_line(lambda: image_grid(pixels[:0])).startswith("pixels: expected uint8")


def test_saved_grids_come_back(tmp_path: Path) -> None:
    pixels = random_pixels(4, 3)
    save_images(tmp_path / "grid.png", pixels, zoom=2)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    assert np.array_equal(np.array(Image.open(tmp_path / "grid.png")), np.array(image_grid(pixels, zoom=2)))
    assert "grid.gif: expected a file name that ends in" in error_line(
        lambda: save_images(tmp_path / "grid.gif", pixels)
    )
    assert "expected an existing folder" in error_line(lambda: save_images(tmp_path / "no" / "grid.png", pixels))


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


def test_bad_images_are_left_out_and_named_on_request(tmp_path: Path) -> None:
    for name in ("a.png", "c.png", "e.png"):
        save(tmp_path / name, grey(6, 5))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    save(tmp_path / "d.png", grey(6, 4))
    assert "b.png: cannot be read" in error_line(lambda: read_images(tmp_path))
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


def test_a_folder_of_bad_images_only_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    assert "none of its 1 images can be read" in error_line(lambda: read_images(tmp_path, skip_bad=True))
    (tmp_path / "a.png").unlink()
    save(tmp_path / "b.png", grey(6, 4))
    wanted = error_line(lambda: read_images(tmp_path, shape=(5, 5), skip_bad=True))
    assert "expected images of 5 x 5 pixels, got none of that size" in wanted


def picture(seed: int, shape: tuple[int, ...] = (8, 8)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_bytes_in_wide_pixels_are_read(tmp_path: Path) -> None:
    grey = picture(0)
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "a.tif")
    Image.fromarray(grey).save(tmp_path / "b.png")
    pixels = read_images(tmp_path).pixels
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0, 0], torch.from_numpy(grey))


def test_images_behind_links_are_read(tmp_path: Path) -> None:
    for folder in ("own", "other"):
        (tmp_path / folder).mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "own" / "a.gif")
    Image.fromarray(picture(1)).save(tmp_path / "own" / "b.ppm")
    Image.fromarray(picture(2)).save(tmp_path / "other" / "c.png")
    (tmp_path / "own" / "linked").symlink_to(tmp_path / "other", target_is_directory=True)
    (tmp_path / "own" / "round").symlink_to(tmp_path / "own", target_is_directory=True)
    assert read_images(tmp_path / "own").names == ("a.gif", "b.ppm", "linked/c.png")


def test_links_in_hidden_folders_hide_no_images(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name in ("real/a.png", "b.png"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name)
    (tmp_path / ".hidden").symlink_to(tmp_path / "real")
    (tmp_path / "also").symlink_to(tmp_path / "real")
    assert read_images(tmp_path).names == ("b.png", "real/a.png")


def test_every_grey_of_sixteen_bits_is_rounded_in_little_memory(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256).repeat(4, 0).repeat(4, 1)
    Image.fromarray(values).save(tmp_path / "a.png")
    tracemalloc.start()
    found = read_images(tmp_path).pixels[0, 0].numpy()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, np.rint(values / 257.0))
    assert peak < 10 * values.size  # copies in 64 bits took 19 bytes a pixel


def test_dark_pixels_of_sixteen_bits_stay_dark(tmp_path: Path) -> None:
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 2 65535\n" + b"\x00\xc8" * 4)
    assert int(read_images(tmp_path / "dark.pgm").pixels.max()) == 1
