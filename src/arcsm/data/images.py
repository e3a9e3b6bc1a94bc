"""Images read from folders and arrays, and grids of images written to files."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from arcsm._runtime.files import FilePath, atomic_path, existing_file, reading
from arcsm._runtime.memory import check_fits
from arcsm.data.numpy_files import npz_key, npz_names, read_array, split_key
from arcsm.data.pixels import ImageSet, check_pixels
from arcsm.errors import SkippedWarning, warn

_PIXEL_BYTES = 16  # while an image is decoded and converted
_WRITABLE = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
IMAGE_SUFFIXES = (*_WRITABLE, ".jfif", ".gif", ".ppm", ".pgm")
#: Pillow chooses a decoder by the content of a file, and some of its decoders start other programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def read_images(
    folder: FilePath,
    channels: int | None = None,
    size: int | None = None,
    key: str | None = None,
    shape: tuple[int, int] | None = None,
    skip_bad: bool = False,
) -> ImageSet:
    """Read a folder of images, with its subfolders and sorted by name, or an array of images.

    Transparent pixels are blended with white, 16-bit grey values are scaled to 8 bits, the EXIF orientation is
    applied, and only the first frame is read. Links are followed. Files and folders whose names begin with a dot are
    left out.

    Arguments:
        folder: A folder of :data:`IMAGE_SUFFIXES` files, one such file, or a ``.npy`` or ``.npz`` of uint8, shape
            ``(n, H, W)`` or ``(n, H, W, C)`` with C 1 or 3. In an ``.npz``, an array of n integers whose name is that
            of the images with y for x (``y``, ``y_train``, ...) holds the labels.
        channels: 1 (grey) or 3 (colour). Default: 3 if any image has colour, else 1.
        size: Crop to the central square and resize it to this side in pixels (bilinear, antialiased). Default: all
            images must have one size, and keep it.
        key: The array of an ``.npz``. Default: its only array, ``images``, ``X`` or ``x_train``.
        shape: Height and width that every image of a folder must have. Default: those of the first.
        skip_bad: Leave out images that cannot be read or have another size than ``shape`` or, by default, than most.

    Raises:
        ValueError: If there are no images, an image is damaged, images differ in size, an array has another type or
            shape, or ``channels`` or ``size`` is out of range.

    Warns:
        SkippedWarning: If images are left out; once, with the names of all.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels: expected 1, 3 or None, got {channels!r}")
    check_size(size)
    source, key = split_key(folder, key)
    if source.suffix.lower() in (".npy", ".npz") and not source.is_dir():
        return _read_image_array(source, channels, size, key)
    if key is not None:
        raise ValueError(f"key: expected None for a folder of images, got {key!r} ({source})")
    source, names = _folder_and_names(source)
    images: dict[str, np.ndarray] = {}
    bad: dict[str, str] = {}  # reasons, by name
    for name in names:
        try:
            images[name] = _read_image(source / name, channels, size)
        except ValueError as error:
            if not skip_bad:
                raise
            bad[name] = str(error).removeprefix(f"{source / name}: ")
    _check_one_size(source, images, bad, shape, skip_bad)
    if bad:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(bad.items()))
        warn(f"{source}: left out {len(bad)} of {len(names)} images ({reasons})", SkippedWarning)
    return ImageSet(_stack(list(images.values()), channels), names=tuple(images))


def _folder_and_names(path: Path) -> tuple[Path, list[str]]:
    """Return a folder and the sorted names of its images; for a single image, its folder and its name."""
    expected = f"expected a folder of images, an image ({', '.join(IMAGE_SUFFIXES)}) or a .npy or .npz file"
    if not path.exists():
        raise ValueError(f"{path}: {expected}, but it does not exist")
    if not path.is_dir():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(f"{path}: {expected}, got another file")
        return path.parent, [path.name]
    files = (file.relative_to(path) for file in _files(path) if file.suffix.lower() in IMAGE_SUFFIXES)
    names = sorted(file.as_posix() for file in files if not file.name.startswith("."))
    if not names:
        raise ValueError(f"{path}: expected images ({', '.join(IMAGE_SUFFIXES)}), got a folder without any")
    return path, names


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, also behind links, but each folder once and no hidden folder."""

    def raise_unreadable(error: OSError) -> None:
        raise ValueError(f"{error.filename}: cannot be read ({error.strerror})") from error

    seen: set[Path] = set()
    for path, folders, names in os.walk(folder, followlinks=True, onerror=raise_unreadable):
        target = Path(path).resolve()
        if target in seen:
            folders.clear()
            continue
        seen.add(target)
        visible = (name for name in folders if not name.startswith("."))
        folders[:] = sorted(visible, key=lambda name: ((Path(path) / name).is_symlink(), name))
        yield from (file for file in (Path(path) / name for name in names) if file.is_file())


def open_image(file: FilePath | IO[bytes]) -> Image.Image:
    """Open an image in the format of one of :data:`IMAGE_SUFFIXES`, whatever its name; pixels are decoded later.

    Raises:
        PIL.UnidentifiedImageError: If the content has another format.
    """
    return Image.open(file, formats=_FORMATS)


def _read_image(path: Path, channels: int | None, size: int | None) -> np.ndarray:
    """Return one image as uint8, ``(H, W)`` in grey or ``(H, W, 3)`` in colour."""
    existing_file(path)
    with reading(path):
        opened = open_image(path)  # reads the size alone
    with opened as file:
        check_fits(_PIXEL_BYTES * file.width * file.height, str(path))
        with reading(path):
            file.load()
            image, is_pnm = ImageOps.exif_transpose(file), file.format == "PPM"
    if image.mode == "F":
        raise ValueError(f"{path}: expected 8-bit or 16-bit pixels, got floating-point ones")
    image = _eight_bit(image, path, is_pnm)
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(image if size is None else central_square(image, size))


def _eight_bit(image: Image.Image, path: Path, is_pnm: bool = False) -> Image.Image:
    """Convert an image to mode L or RGB. Pillow opens 16-bit PNM files in 32 bits."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ValueError(f"{path}: expected 8-bit or 16-bit pixels, got values {low} to {high}")
        if image.mode == "I" and high <= 255 and not is_pnm:  # 8-bit values in 32 bits
            return Image.fromarray(values.astype(np.uint8))
        grey = ((np.arange(65536) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257; rounds to nearest
        transparent = image.info.get("transparency")
        if isinstance(transparent, int) and 0 <= transparent <= 65535:
            grey[transparent] = 255  # white
        return Image.fromarray(grey[values])
    mode = "L" if _is_grey(image) else "RGB"
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert(mode)
    return image.convert(mode)


def _is_grey(image: Image.Image) -> bool:
    """Return whether the mode or the palette of an image has no colour."""
    if image.mode not in ("P", "PA"):
        return image.mode in ("1", "L", "LA", "La")
    palette = np.asarray(image.getpalette()).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


def central_square(image: Image.Image, size: int) -> Image.Image:
    """Crop an image to its central square and resize it. Pillow's bilinear filter is antialiased when it shrinks."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))  # `box` of resize would blend in the surroundings
    return square.resize((size, size), Image.Resampling.BILINEAR)


def _check_one_size(
    folder: Path, images: dict[str, np.ndarray], bad: dict[str, str], shape: tuple[int, int] | None, skip_bad: bool
) -> None:
    """Check that all images have one size; with ``skip_bad``, move the others from ``images`` to ``bad``."""
    sizes = {name: image.shape[:2] for name, image in images.items()}
    if not sizes:
        name, reason = next(iter(bad.items()))
        raise ValueError(f"{folder}: none of its {len(bad)} images can be read ({name}: {reason})")
    like = "" if shape else " like most" if skip_bad else f" like {next(iter(sizes))}"
    if shape is None:
        shape = Counter(sizes.values()).most_common(1)[0][0] if skip_bad else next(iter(sizes.values()))
    for name, (height, width) in sizes.items():
        if (height, width) == shape:
            continue
        reason = f"expected {shape[1]} x {shape[0]} pixels{like}, got {width} x {height}"
        if not skip_bad:
            raise ValueError(f"{folder / name}: {reason} (data.size, in Python size=..., resizes all)")
        bad[name] = reason
        del images[name]
    if not images:
        raise ValueError(f"{folder}: expected images of {shape[1]} x {shape[0]} pixels, got none of that size")


def _stack(images: list[np.ndarray], channels: int | None) -> Tensor:
    """Stack images ``(H, W)`` or ``(H, W, 3)`` of one size to ``(n, C, H, W)``."""
    count = channels or (3 if any(image.ndim == 3 for image in images) else 1)
    pixels = torch.empty((len(images), count, *images[0].shape[:2]), dtype=torch.uint8)
    for row, image in zip(pixels, images, strict=True):
        planes = torch.from_numpy(image.copy())
        row.copy_(planes.permute(2, 0, 1) if planes.ndim == 3 else planes)  # (C, H, W)
    return pixels


def _read_image_array(path: Path, channels: int | None, size: int | None, key: str | None) -> ImageSet:
    if path.suffix.lower() == ".npz":
        key = npz_key(path, key, ("images", "X", "x_train"))
    array = read_array(path, key)
    has_channels = array.ndim == 4 and array.shape[3] in (1, 3)
    if array.dtype != np.uint8 or not (array.ndim == 3 or has_channels) or array.size == 0:
        raise ValueError(
            f"{path}: expected uint8 images of shape (n, H, W), (n, H, W, 1) or (n, H, W, 3), got {array.dtype} of "
            f"shape {array.shape}"
        )
    pixels = torch.from_numpy(array if has_channels else array[..., None]).permute(0, 3, 1, 2).contiguous()
    labels = None if key is None else _npz_labels(path, key, len(array))
    return ImageSet(with_channels_and_size(pixels, channels, size), labels)


def _npz_labels(path: Path, key: str, n: int) -> Tensor | None:
    """Return the labels of the images ``key``: ``y`` for ``X``, ``y_train`` for ``x_train``, and so on."""
    name = "y" + key[1:]
    if key[:1] not in ("x", "X") or name not in npz_names(path):
        return None
    labels = read_array(path, name)
    if labels.shape not in ((n,), (n, 1)) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path}[{name}]: expected {n} integer labels for {key}, got {labels.dtype} of shape {labels.shape}"
        )
    return torch.from_numpy(labels.reshape(n).astype(np.int64))


def with_channels_and_size(pixels: Tensor, channels: int | None, size: int | None) -> Tensor:
    """Return pixels ``(n, C, H, W)`` with the given channels and size; ``None`` keeps them."""
    if channels in (None, pixels.shape[1]) and size is None:
        return pixels
    images = [_to_pil(image) for image in pixels]
    if channels is not None:
        images = [image.convert("L" if channels == 1 else "RGB") for image in images]
    if size is not None:
        images = [central_square(image, size) for image in images]
    return _stack([np.asarray(image) for image in images], channels)


def _to_pil(image: Tensor) -> Image.Image:
    """Convert an image ``(C, H, W)`` to mode L or RGB."""
    array = image.permute(1, 2, 0).cpu().numpy()  # (H, W, C)
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def check_size(size: int | None) -> None:
    """Check that a size is a positive integer or None."""
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"size: expected a positive integer or None, got {size!r}")


def image_grid(pixels: Tensor, columns: int | None = None, padding: int = 2, zoom: int = 1) -> Image.Image:
    """Lay images out row by row on white.

    Arguments:
        pixels: uint8, ``(n, C, H, W)`` with C 1 or 3, values 0..255.
        columns: Images in each row. Default: the square root of n, rounded up.
        padding: White pixels around each image, not zoomed.
        zoom: Side of the square that each pixel becomes.

    Example:
        >>> image_grid(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), columns=3).size
        (32, 22)
    """
    check_pixels(pixels)
    columns = math.ceil(math.sqrt(len(pixels))) if columns is None else columns
    for name, value, least in (("columns", columns, 1), ("padding", padding, 0), ("zoom", zoom, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    n, channels, height, width = pixels.shape
    step_y, step_x = height * zoom + padding, width * zoom + padding
    shape = (channels, math.ceil(n / columns) * step_y + padding, min(n, columns) * step_x + padding)
    canvas = torch.full(shape, 255, dtype=torch.uint8)
    zoomed = pixels.detach().cpu().repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    for index, image in enumerate(zoomed):
        top, left = padding + index // columns * step_y, padding + index % columns * step_x
        canvas[:, top : top + height * zoom, left : left + width * zoom] = image
    return _to_pil(canvas)


def save_images(path: FilePath, pixels: Tensor, columns: int | None = None, padding: int = 2, zoom: int = 1) -> None:
    """Save the grid of :func:`image_grid` in the format of the extension, all of it or nothing.

    Raises:
        ValueError: As :func:`image_grid`, or if the extension is unknown or the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITABLE:
        raise ValueError(f"{path}: expected a file name that ends in {', '.join(_WRITABLE)}")
    grid = image_grid(pixels, columns, padding, zoom)
    with atomic_path(path) as temporary:
        grid.save(temporary)
