"""Images: every format is read as uint8 (n, C, H, W), damaged files are rejected in one line, and grids are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from arcsm.data import image_grid, read_images, save_images
from arcsm.errors import SkippedWarning
from rejections import error_line


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


def test_a_folder_of_grey_images_is_read(tmp_path: Path) -> None:
    for index, name in enumerate(("b.TIF", "a.png", "sub/c.png")):
        save(tmp_path / name, grey(seed=index))
    images = read_images(tmp_path)
    assert images.names == ("a.png", "b.TIF", "sub/c.png")
    assert images.pixels.shape == (3, 1, 6, 5)
    assert images.levels == 256
    assert np.array_equal(images.pixels[1, 0], grey(seed=0))
    assert read_images(tmp_path, channels=3).pixels.shape == (3, 3, 6, 5)


def test_grey_becomes_colour_in_a_colour_folder(tmp_path: Path) -> None:
    save(tmp_path / "a.png", grey())
    save(tmp_path / "b.png", colour())
    pixels = read_images(tmp_path).pixels
    assert np.array_equal(pixels[0], np.stack([grey()] * 3))
    assert np.array_equal(pixels[1].permute(1, 2, 0), colour())


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    alpha = np.broadcast_to(np.array([0, 128, 255], np.uint8), (2, 3))
    rgba = np.concatenate([np.broadcast_to(np.array([10, 20, 30], np.uint8), (2, 3, 3)), alpha[..., None]], axis=-1)
    save(tmp_path / "a.png", rgba)
    pixels = read_images(tmp_path).pixels[0, :, 0].double()  # (3, 3)
    share = torch.tensor([0, 128, 255]) / 255
    expected = 255 + share * (torch.tensor([[10.0], [20], [30]]) - 255)
    assert (pixels - expected).abs().max() <= 1


def test_floating_point_pixels_are_rejected(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", np.ones((2, 2), np.float32))
    assert "a.tif: expected 8-bit or 16-bit pixels, got floating-point" in error_line(lambda: read_images(tmp_path))


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
    assert error_line(lambda: read_images(tmp_path, size=0)).startswith("size: expected a positive integer")


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


def test_arrays_of_images_are_read(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "rgb.npy", array)
    np.save(tmp_path / "grey.npy", array[..., 0])
    images = read_images(tmp_path / "rgb.npy")
    assert np.array_equal(images.pixels, array.transpose(0, 3, 1, 2))
    assert np.array_equal(read_images(tmp_path / "grey.npy").pixels[:, 0], array[..., 0])
    assert read_images(tmp_path / "rgb.npy", channels=1, size=3).pixels.shape == (4, 1, 3, 3)
    np.save(tmp_path / "float.npy", array / 255.0)
    assert "float.npy: expected uint8 images" in error_line(lambda: read_images(tmp_path / "float.npy"))


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
    np.savez(path, X=array, y=np.zeros(3, int))
    assert "set.npz[y]: expected 4 integer labels for X, got int64 of shape (3,)" in error_line(
        lambda: read_images(path)
    )


@pytest.mark.parametrize(("channels", "padding", "zoom"), [(1, 0, 3), (3, 1, 2)])
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


def test_saved_grids_come_back(tmp_path: Path) -> None:
    pixels = random_pixels(4, 3)
    save_images(tmp_path / "grid.png", pixels, zoom=2)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    assert np.array_equal(np.array(Image.open(tmp_path / "grid.png")), np.array(image_grid(pixels, zoom=2)))
    assert "ends in" in error_line(lambda: save_images(tmp_path / "grid.gif", pixels))
    assert "expected an existing folder" in error_line(lambda: save_images(tmp_path / "no" / "grid.png", pixels))


def test_bad_images_are_left_out_and_named_on_request(tmp_path: Path) -> None:
    for name in ("a.png", "c.png", "e.png"):
        save(tmp_path / name, grey(6, 5))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    save(tmp_path / "d.png", grey(6, 4))
    with pytest.warns(SkippedWarning, match=r"left out 2 of 5 images \(b\.png: cannot.*; d\.png: expected 5 x 6"):
        images = read_images(tmp_path, skip_bad=True)
    assert images.names == ("a.png", "c.png", "e.png")
    with pytest.warns(SkippedWarning, match="left out 1 of 5 images"):
        assert len(read_images(tmp_path, size=3, skip_bad=True)) == 4  # resized, the odd one is no longer odd
    wanted = error_line(lambda: read_images(tmp_path, shape=(5, 5), skip_bad=True))
    assert "expected images of 5 x 5 pixels, got none of that size" in wanted


def test_a_folder_of_bad_images_only_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    assert "none of its 1 images can be read" in error_line(lambda: read_images(tmp_path, skip_bad=True))
    (tmp_path / "a.png").unlink()
    save(tmp_path / "b.png", grey(6, 4))
    wanted = error_line(lambda: read_images(tmp_path, shape=(5, 5), skip_bad=True))
    assert "expected images of 5 x 5 pixels, got none of that size" in wanted


def test_images_behind_links_are_read(tmp_path: Path) -> None:
    for name in ("own/a.gif", "own/b.ppm", "other/c.png"):
        save(tmp_path / name, grey())
    (tmp_path / "own" / "linked").symlink_to(tmp_path / "other", target_is_directory=True)
    (tmp_path / "own" / "round").symlink_to(tmp_path / "own", target_is_directory=True)
    assert read_images(tmp_path / "own").names == ("a.gif", "b.ppm", "linked/c.png")


def test_every_grey_of_sixteen_bits_is_rounded(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    save(tmp_path / "a.png", values)
    np.testing.assert_array_equal(read_images(tmp_path).pixels[0, 0], np.rint(values / 257.0))
