"""Images from folders and arrays, and grids of images to files."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from arcsm._runtime.files import FilePath, atomic_path, existing_file, reading
from arcsm.data.numpy_files import npz_key, npz_names, read_array, split_key
from arcsm.data.pixels import ImageSet, check_pixels
from arcsm.errors import SkippedWarning, warn

__all__ = ["IMAGE_SUFFIXES", "image_grid", "read_images", "save_images"]

_WRITABLE = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
IMAGE_SUFFIXES = (*_WRITABLE, ".jfif", ".gif", ".ppm", ".pgm")


def read_images(
    folder: FilePath,
    channels: int | None = None,
    size: int | None = None,
    key: str | None = None,
    shape: tuple[int, int] | None = None,
    skip_bad: bool = False,
) -> ImageSet:
    """Read a folder of images, recursively and sorted by name, or an array file.

    Transparency is laid over white, 16-bit grey is scaled to 8 bits, the EXIF orientation is applied, of several
    frames the first is taken, links are followed, files and folders whose names begin with a dot are left out.

    Args:
        folder: A folder of `IMAGE_SUFFIXES` files, one such file, or a `.npy` or `.npz` of uint8, shape `(n, H, W)` or
            `(n, H, W, C)` with C 1 or 3. Labels of an `.npz` are the integers of length n under the name of the images
            with y for x (`y`, `y_train`, ...), where there are such.
        channels: 1 (grey) or 3 (colour). By default 3 if any image has colour, or else 1.
        size: Side in pixels: the central square is resized to it (bilinear, antialiased). By default all images must
            have one size and keep it.
        key: The array of an `.npz`; by default its only array, or `images`, `X` or `x_train`.
        shape: Height and width that every image of a folder must have; by default those of the first.
        skip_bad: Leave out the images of a folder that cannot be read or have another size (than `shape`, or than most
            of them) with one warning that names them all, rather than stop at the first.

    Raises:
        ValueError: In one line that names the file: nothing there, no image in the folder, a damaged image, images of
            different sizes without `size`, arrays of another type or shape, `channels` or `size` out of range.

    Warns:
        SkippedWarning: once a call, naming the images that were left out.
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
    images, bad = _read_all(source, names, channels, size, skip_bad)
    _check_one_size(source, images, bad, shape, skip_bad)
    if bad:
        _warn_of_skipped(source, bad, len(names))
    return ImageSet(_stack(list(images.values()), channels), names=tuple(images))


def _read_all(
    folder: Path, names: list[str], channels: int | None, size: int | None, skip_bad: bool
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The images that can be read, by name, and what is wrong with the others."""
    images: dict[str, np.ndarray] = {}
    bad: dict[str, str] = {}
    for name in names:
        try:
            images[name] = _read_image(folder / name, channels, size)
        except ValueError as error:
            if not skip_bad:
                raise
            bad[name] = str(error).removeprefix(f"{folder / name}: ")
    return images, bad


def _warn_of_skipped(folder: Path, bad: dict[str, str], count: int) -> None:
    listed = "; ".join(f"{name}: {reason}" for name, reason in sorted(bad.items()))
    warn(f"{folder}: left out {len(bad)} of {count} images ({listed})", SkippedWarning)


def _folder_and_names(path: Path) -> tuple[Path, list[str]]:
    """A folder and the images in it, sorted; of a single image its folder and that one."""
    wanted = f"expected a folder of images, an image ({', '.join(IMAGE_SUFFIXES)}) or a .npy or .npz file"
    if not path.exists():
        raise ValueError(f"{path}: {wanted}, but it does not exist")
    if path.is_dir():
        return path, _image_names(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"{path}: {wanted}, got another file")
    return path.parent, [path.name]


def _image_names(folder: Path) -> list[str]:
    files = (path for path in _files(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
    relative = (path.relative_to(folder) for path in files)
    names = sorted(path.as_posix() for path in relative if not any(part.startswith(".") for part in path.parts))
    if not names:
        raise ValueError(f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), got a folder without any")
    return names


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, behind links too, but for hidden folders; one that is linked to twice comes once."""

    def unreadable(error: OSError) -> None:
        raise ValueError(f"{error.filename}: cannot be read ({error.strerror})") from error

    seen: set[Path] = set()
    for path, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        real = Path(path).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        visible = (name for name in folders if not name.startswith("."))
        folders[:] = sorted(visible, key=lambda name: ((Path(path) / name).is_symlink(), name))
        yield from (file for file in (Path(path) / name for name in names) if file.is_file())


def _read_image(path: Path, channels: int | None, size: int | None) -> np.ndarray:
    """One image as uint8, `(H, W)` when grey and `(H, W, 3)` when it has colour or colour is asked for."""
    existing_file(path)
    with reading(path), Image.open(path) as file:
        file.load()
        image, of_pnm = ImageOps.exif_transpose(file), file.format == "PPM"
    if image.mode == "F":
        raise ValueError(f"{path}: expected 8-bit or 16-bit pixels, got floating-point ones")
    image = _eight_bit(image, path, of_pnm)
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(image if size is None else central_square(image, size))


def _eight_bit(image: Image.Image, path: Path, of_pnm: bool = False) -> Image.Image:
    """The image in mode L or RGB; of PNM files, 16 bits come in 32."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{path}: expected 8-bit or 16-bit pixels, got values {values.min()} to {values.max()}")
        if image.mode == "I" and values.max() <= 255 and not of_pnm:  # 32 bits that hold 8
            return Image.fromarray(values.astype(np.uint8))
        if "transparency" in image.info:  # on white, like all others
            values[values == image.info["transparency"]] = 65535
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 = 255 * 257; rounds to nearest
    mode = "L" if _is_grey(image) else "RGB"
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert(mode)
    return image.convert(mode)


def _is_grey(image: Image.Image) -> bool:
    """Whether an image is of a mode without colour, or of a palette without any."""
    if image.mode not in ("P", "PA"):
        return image.mode in ("1", "L", "LA", "La")
    palette = np.asarray(image.getpalette()).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


def central_square(image: Image.Image, size: int) -> Image.Image:
    """The central square, resized to `size` (Pillow's bilinear filter widens on shrinking, so it is antialiased)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))  # `box` of resize would blend in what lies around
    return square.resize((size, size), Image.Resampling.BILINEAR)


def _check_one_size(
    folder: Path, images: dict[str, np.ndarray], bad: dict[str, str], shape: tuple[int, int] | None, skip_bad: bool
) -> None:
    """Images of another size are an error, or go from the images to the bad ones."""
    sizes = {name: image.shape[:2] for name, image in images.items()}
    if not sizes:
        name, reason = next(iter(bad.items()))
        raise ValueError(f"{folder}: none of its {len(bad)} images can be read ({name}: {reason})")
    like = "" if shape else f" like {next(iter(sizes))}"
    if shape is None:
        shape = Counter(sizes.values()).most_common(1)[0][0] if skip_bad else next(iter(sizes.values()))
        like = " like most" if skip_bad else like
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
    """Images `(H, W)` or `(H, W, 3)` of one size as `(n, C, H, W)`."""
    count = channels or (3 if any(image.ndim == 3 for image in images) else 1)
    pixels = torch.empty((len(images), count, *images[0].shape[:2]), dtype=torch.uint8)
    for row, image in zip(pixels, images, strict=True):
        planes = torch.from_numpy(image.copy())
        row.copy_(planes.permute(2, 0, 1) if planes.ndim == 3 else planes)
    return pixels


def _read_image_array(path: Path, channels: int | None, size: int | None, key: str | None) -> ImageSet:
    archive = path.suffix.lower() == ".npz"
    chosen = npz_key(path, key, ("images", "X", "x_train")) if archive else key
    array = read_array(path, chosen)
    colour = array.ndim == 4 and array.shape[3] in (1, 3)
    if array.dtype != np.uint8 or not (array.ndim == 3 or colour) or array.size == 0:
        raise ValueError(
            f"{path}: expected uint8 images of shape (n, H, W), (n, H, W, 1) or (n, H, W, 3), got {array.dtype} of "
            f"shape {array.shape}"
        )
    pixels = torch.from_numpy(array if array.ndim == 4 else array[..., None]).permute(0, 3, 1, 2).contiguous()
    return ImageSet(
        with_channels_and_size(pixels, channels, size), _npz_labels(path, chosen, len(array)) if chosen else None
    )


def _npz_labels(path: Path, key: str, n: int) -> Tensor | None:
    """The labels that lie beside the images `key`: `y` for `X`, `y_train` for `x_train`, and so on."""
    partner = "y" + key[1:]
    if key[:1] not in ("x", "X") or partner not in npz_names(path):
        return None
    labels = read_array(path, partner)
    if labels.shape not in ((n,), (n, 1)) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path}[{partner}]: expected {n} integer labels for {key}, got {labels.dtype} of shape {labels.shape}"
        )
    return torch.from_numpy(labels.reshape(n).astype(np.int64))


def with_channels_and_size(pixels: Tensor, channels: int | None, size: int | None) -> Tensor:
    """Pixels `(n, C, H, W)` with other channels or another size."""
    if (channels is None or channels == pixels.shape[1]) and size is None:
        return pixels
    mode = {None: None, 1: "L", 3: "RGB"}[channels]
    images = [_to_pil(image) for image in pixels]
    images = images if mode is None else [image.convert(mode) for image in images]
    images = images if size is None else [central_square(image, size) for image in images]
    return _stack([np.asarray(image) for image in images], channels)


def _to_pil(image: Tensor) -> Image.Image:
    """One image `(C, H, W)` in mode L or RGB."""
    array = image.permute(1, 2, 0).cpu().numpy()  # (H, W, C)
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


# --- grids ------------------------------------------------------------------------------------------------------------


def image_grid(pixels: Tensor, columns: int | None = None, padding: int = 2, zoom: int = 1) -> Image.Image:
    """Lay images out row by row on white.

    Args:
        pixels: uint8, `(n, C, H, W)` with C 1 or 3, values 0..255.
        columns: Images a row; by default the square root of n, rounded up.
        padding: White pixels around each image, not zoomed.
        zoom: Each pixel becomes a square of this side.

    Raises:
        ValueError: An argument has another type, shape or range.

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
    large = pixels.detach().cpu().repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    for index, image in enumerate(large):
        top, left = padding + index // columns * step_y, padding + index % columns * step_x
        canvas[:, top : top + height * zoom, left : left + width * zoom] = image
    return _to_pil(canvas)


def save_images(path: FilePath, pixels: Tensor, columns: int | None = None, padding: int = 2, zoom: int = 1) -> None:
    """Save `image_grid` of the other arguments to `path`, in the format of its extension, all of it or nothing.

    Raises:
        ValueError: As `image_grid`; an extension that is not among those to be written; no such folder.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITABLE:
        raise ValueError(f"{path}: expected a file name that ends in {', '.join(_WRITABLE)}")
    grid = image_grid(pixels, columns, padding, zoom)
    with atomic_path(path) as temporary:
        grid.save(temporary)


def check_size(size: int | None) -> None:
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"size: expected a positive integer or None, got {size!r}")
