"""Images from folders, arrays, idx files and torchvision, and grids of images to files."""

import gzip
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from arcsm.data.arrays import npz_key, npz_names, read_array
from arcsm.files import FilePath, atomic_path, existing_file, reading
from arcsm.warning import SkippedWarning, warn

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageSet",
    "digits",
    "image_grid",
    "mnist",
    "read_idx",
    "read_images",
    "save_images",
    "scale_images",
    "stretch_images",
    "torchvision_images",
    "unscale_images",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_DOWNLOAD = "download=True (command: --set data.download=true) fetches it"


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size.

    Attributes:
        pixels: uint8, shape `(n, C, H, W)`, values in 0..levels-1.
        labels: int64, shape `(n,)`, or None.
        names: One name an image (its file, relative to the folder), or None.
        levels: Number of grey values a channel can take.

    Raises:
        ValueError: A field has another type, shape or range.
    """

    pixels: Tensor
    labels: Tensor | None = None
    names: tuple[str, ...] | None = None
    levels: int = 256

    def __post_init__(self) -> None:
        _check_pixels(self.pixels)
        _check_levels(self.levels)
        _check_range(self.pixels, self.levels)
        n = len(self.pixels)
        if self.labels is not None and (self.labels.shape != (n,) or self.labels.dtype != torch.int64):
            raise ValueError(
                f"labels: expected int64 of shape ({n},), got {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        if self.names is not None and len(self.names) != n:
            raise ValueError(f"names: expected {n} names, got {len(self.names)}")

    def __len__(self) -> int:
        return len(self.pixels)


# --- folders and arrays -----------------------------------------------------------------------------------------------


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
    frames the first is taken, files and folders whose names begin with a dot are left out.

    Args:
        folder: A folder of `IMAGE_SUFFIXES` files, or a `.npy` or `.npz` of uint8, shape `(n, H, W)` or `(n, H, W, C)`
            with C 1 or 3. Labels of an `.npz` are the integers of length n under the name of the images with y for x
            (`y`, `y_train`, ...), where there are such.
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
    _check_size(size)
    source = Path(folder)
    if source.suffix.lower() in (".npy", ".npz") and not source.is_dir():
        return _read_image_array(source, channels, size, key)
    if key is not None:
        raise ValueError(f"key: expected None for a folder of images, got {key!r} ({source})")
    names = _image_names(source)
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


def _image_names(folder: Path) -> list[str]:
    if not folder.exists():
        raise ValueError(f"{folder}: expected a folder of images or a .npy or .npz file, but it does not exist")
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of images or a .npy or .npz file, got another file")
    files = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    relative = (path.relative_to(folder) for path in files)
    names = sorted(path.as_posix() for path in relative if not any(part.startswith(".") for part in path.parts))
    if not names:
        raise ValueError(f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), got a folder without any")
    return names


def _read_image(path: Path, channels: int | None, size: int | None) -> np.ndarray:
    """One image as uint8, `(H, W)` when grey and `(H, W, 3)` when it has colour or colour is asked for."""
    existing_file(path)
    with reading(path), Image.open(path) as file:
        file.load()
        image = ImageOps.exif_transpose(file)
    if image.mode == "F":
        raise ValueError(f"{path}: expected 8-bit or 16-bit pixels, got floating-point ones")
    image = _eight_bit(image, path)
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(image if size is None else _square(image, size))


def _eight_bit(image: Image.Image, path: Path) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{path}: expected 8-bit or 16-bit pixels, got values {values.min()} to {values.max()}")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 = 255 * 257; rounds to nearest
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        grey = image.mode in ("1", "L", "LA", "La")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("L" if grey else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
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
            raise ValueError(f"{folder / name}: {reason}; size=... resizes all")
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
    return ImageSet(_convert(pixels, channels, size), _npz_labels(path, chosen, len(array)) if chosen else None)


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


def _convert(pixels: Tensor, channels: int | None, size: int | None) -> Tensor:
    """Pixels `(n, C, H, W)` with other channels or another size."""
    if (channels is None or channels == pixels.shape[1]) and size is None:
        return pixels
    mode = {None: None, 1: "L", 3: "RGB"}[channels]
    images = [_to_pil(image) for image in pixels]
    images = images if mode is None else [image.convert(mode) for image in images]
    images = images if size is None else [_square(image, size) for image in images]
    return _stack([np.asarray(image) for image in images], channels)


def _to_pil(image: Tensor) -> Image.Image:
    """One image `(C, H, W)` in mode L or RGB."""
    array = image.permute(1, 2, 0).cpu().numpy()  # (H, W, C)
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


# --- idx files and MNIST ----------------------------------------------------------------------------------------------

_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: FilePath) -> Tensor:
    """Read an idx file (LeCun, Cortes and Burges, The MNIST database), gzipped or not.

    The file is two zero bytes, a type code, the number of dimensions, each dimension as a big-endian 32-bit integer,
    and the numbers, big-endian. The tensor has the file's shape and type.

    Raises:
        ValueError: In one line: no such file, damaged gzip, another magic number, more or fewer bytes than announced.
    """
    path = existing_file(path)
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        with reading(path):
            content = gzip.decompress(content)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_DTYPES:
        raise ValueError(f"{path}: expected an idx file (magic 0000, type, dimensions), got 0x{content[:4].hex()}")
    dtype, start = np.dtype(_IDX_DTYPES[content[2]]), 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(f"{path}: expected {expected} bytes for shape {tuple(shape)}, got {len(content)}")
    array = np.frombuffer(content, dtype, offset=start).astype(dtype.newbyteorder("="))
    return torch.from_numpy(array).reshape(shape)


def mnist(folder: FilePath, split: str = "train", download: bool = False) -> ImageSet:
    """MNIST, or a set in its format (Fashion-MNIST, KMNIST), from its idx files: 28 x 28, one channel, labels 0..9.

    Args:
        folder: Holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` (or `t10k-...`), gzipped as `.gz` or not,
            itself or in `MNIST/raw`.
        split: "train" or "test".
        download: Fetch missing files into `MNIST/raw` through torchvision.

    Raises:
        ValueError: In one line: another split, files that are missing (and `download` is False) or damaged, a failed
            download, images and labels of different numbers.
    """
    _check_split(split, ("train", "test"))
    folder = Path(folder)
    prefix = "train" if split == "train" else "t10k"
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    if download and any(_find_idx(folder, name) is None for name in names):
        from torchvision.datasets import MNIST

        _torchvision(MNIST, "mnist", folder, True, train=split == "train")
    paths = [path for name in names if (path := _find_idx(folder, name)) is not None]
    if len(paths) < len(names):
        missing = " and ".join(name for name in names if _find_idx(folder, name) is None)
        raise ValueError(f"{folder}: expected the MNIST files {missing} (or .gz), which are missing; {_DOWNLOAD}")
    images, labels = read_idx(paths[0]), read_idx(paths[1])
    if images.ndim != 3 or images.dtype != torch.uint8:
        raise ValueError(f"{paths[0]}: expected bytes of shape (n, H, W), got {images.dtype} {tuple(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{paths[1]}: expected {len(images)} labels, got shape {tuple(labels.shape)}")
    return ImageSet(images[:, None], labels.long())


def _find_idx(folder: Path, name: str) -> Path | None:
    places = (place / f"{name}{suffix}" for place in (folder, folder / "MNIST" / "raw") for suffix in ("", ".gz"))
    return next((path for path in places if path.is_file()), None)


# --- torchvision and scikit-learn -------------------------------------------------------------------------------------

_TORCHVISION_SPLITS = {
    "cifar10": ("train", "test"),
    "svhn": ("train", "test", "extra"),
    "celeba": ("train", "valid", "test"),
}
_CELEBA_CROP = 140  # side of the central square that holds the face, of 178 x 218


def torchvision_images(
    name: str, folder: FilePath, split: str = "train", download: bool = False, size: int | None = None
) -> ImageSet:
    """CIFAR-10, SVHN or CelebA in colour, from the files that torchvision keeps in `folder`.

    Args:
        name: "cifar10" (32 x 32, labels), "svhn" (32 x 32, labels) or "celeba" (the central 140 x 140, no labels).
        folder: torchvision's root folder of the set.
        split: "train" or "test"; "svhn" has also "extra", "celeba" also "valid".
        download: Fetch missing files, which the sets' owners may not always allow.
        size: Side in pixels to resize to (bilinear, antialiased); by default as above.

    Raises:
        ValueError: In one line: another name or split, files missing or damaged, a failed download, a bad `size`.
    """
    if name not in _TORCHVISION_SPLITS:
        raise ValueError(f"name: expected one of {', '.join(_TORCHVISION_SPLITS)}, got {name!r}")
    _check_split(split, _TORCHVISION_SPLITS[name])
    _check_size(size)
    from torchvision import datasets

    if name == "celeba":
        return _celeba(_torchvision(datasets.CelebA, name, folder, download, split=split), size)
    if name == "cifar10":
        data = _torchvision(datasets.CIFAR10, name, folder, download, train=split == "train")
        pixels, labels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)
    else:
        data = _torchvision(datasets.SVHN, name, folder, download, split=split)
        pixels, labels = torch.from_numpy(data.data), torch.from_numpy(data.labels)
    return ImageSet(_convert(pixels, None, size), labels.long())


def _torchvision(dataset: Any, name: str, folder: FilePath, download: bool, **options: Any) -> Any:
    """Build a torchvision data set; its many errors (missing, checksum, network, format) become one line."""
    try:
        return dataset(root=os.fspath(folder), download=download, **options)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "the download failed" if download else _DOWNLOAD
        raise ValueError(
            f"{folder}: expected the files of {name}, which torchvision cannot read ({reason}); {hint}"
        ) from error


def _celeba(data: Any, size: int | None) -> ImageSet:
    side = size or _CELEBA_CROP
    pixels = torch.empty((len(data), 3, side, side), dtype=torch.uint8)
    for row, index in zip(pixels, range(len(data)), strict=True):
        with reading(f"celeba image {data.filename[index]}"):
            image, _ = data[index]
        left, top = (image.width - _CELEBA_CROP) // 2, (image.height - _CELEBA_CROP) // 2
        crop = image.convert("RGB").crop((left, top, left + _CELEBA_CROP, top + _CELEBA_CROP))
        row.copy_(torch.from_numpy(np.array(_square(crop, side))).permute(2, 0, 1))
    return ImageSet(pixels, names=tuple(data.filename))


def digits() -> ImageSet:
    """scikit-learn's 1797 handwritten digits, 8 x 8, one channel, 17 levels (0..16), labels 0..9; no download.

    Example:
        >>> digits().pixels.shape
        torch.Size([1797, 1, 8, 8])
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.from_numpy(data.images.astype(np.uint8))[:, None]  # (n, 1, 8, 8)
    return ImageSet(pixels, torch.from_numpy(data.target.astype(np.int64)), levels=17)


# --- values -----------------------------------------------------------------------------------------------------------


def scale_images(pixels: Tensor, levels: int = 256) -> Tensor:
    """Grey values 0..levels-1 as float32 in [-1, 1): `2 pixels / levels - 1`, the lower edge of each value's cell.

    Adding noise uniform on `[0, 2 / levels)` fills the cells: uniform dequantisation (Theis et al., A note on the
    evaluation of generative models, 2016, section 3.1). `unscale_images` undoes both.

    Raises:
        ValueError: `pixels` is not uint8 or holds a value of `levels` or more; `levels` is not in 2..256.

    Example:
        >>> scale_images(torch.tensor([0, 128, 255], dtype=torch.uint8)).tolist()
        [-1.0, 0.0, 0.9921875]
    """
    _check_levels(levels)
    _check_range(pixels, levels)
    return (2 * pixels.double() / levels - 1).to(torch.float32)


def unscale_images(x: Tensor, levels: int = 256, stretch: bool = False) -> Tensor:
    """The grey values, uint8, of the cells that hold `x`: `floor((x + 1) levels / 2)`, clamped to 0..levels-1.

    A value within float32's rounding (2^-24) below an edge counts as on it, so that the result of `scale_images`
    comes back for all `levels`.

    Args:
        x: Any shape; values outside [-1, 1) are clamped.
        levels: Number of grey values, 2..256.
        stretch: Spread 0..levels-1 over 0..255, to be shown or saved.

    Raises:
        ValueError: `x` is not of floating point or holds NaN; `levels` is not in 2..256.
    """
    _check_levels(levels)
    if not x.is_floating_point():
        raise ValueError(f"x: expected floating-point values, got {x.dtype}")
    if bool(x.isnan().any()):
        raise ValueError(f"x: expected numbers, got {int(x.isnan().sum())} NaN")
    cells = torch.floor((x.double() + 1 + 2.0**-24) * (levels / 2)).clamp(0, levels - 1).to(torch.uint8)
    return stretch_images(cells, levels) if stretch else cells


def stretch_images(pixels: Tensor, levels: int) -> Tensor:
    """Spread grey values 0..levels-1 over 0..255, rounded, uint8.

    Raises:
        ValueError: As `scale_images`.
    """
    _check_levels(levels)
    _check_range(pixels, levels)
    return (pixels.double() * (255 / (levels - 1))).round().to(torch.uint8)


def unstretch_images(pixels: Tensor, levels: int) -> Tensor:
    """The nearest of 0..levels-1 for grey values 0..255: the inverse of `stretch_images`.

    Raises:
        ValueError: As `scale_images`.
    """
    _check_levels(levels)
    _check_range(pixels, 256)
    return (pixels.double() * ((levels - 1) / 255)).round().to(torch.uint8)


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
    _check_pixels(pixels)
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
        ValueError: As `image_grid`; an extension that is not in `IMAGE_SUFFIXES`; no such folder.
    """
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"{path}: expected a file name that ends in {', '.join(IMAGE_SUFFIXES)}")
    grid = image_grid(pixels, columns, padding, zoom)
    with atomic_path(path) as temporary:
        grid.save(temporary)


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_pixels(pixels: Tensor) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or pixels.numel() == 0:
        raise ValueError(
            f"pixels: expected uint8 of shape (n, C, H, W) with C 1 or 3, got {pixels.dtype} of shape "
            f"{tuple(pixels.shape)}"
        )


def _check_range(pixels: Tensor, levels: int) -> None:
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels: expected uint8, got {pixels.dtype}")
    if pixels.numel() and int(pixels.max()) >= levels:
        raise ValueError(f"pixels: expected values below levels={levels}, got {int(pixels.max())}")


def _check_levels(levels: int) -> None:
    if not isinstance(levels, int) or not 2 <= levels <= 256:
        raise ValueError(f"levels: expected an integer from 2 to 256, got {levels!r}")


def _check_size(size: int | None) -> None:
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"size: expected a positive integer or None, got {size!r}")


def _check_split(split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise ValueError(f"split: expected one of {', '.join(known)}, got {split!r}")
