"""Image data sets by name: MNIST and its like, CIFAR-10, SVHN, CelebA and scikit-learn's digits."""

import gzip
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from arcsm._runtime.files import FilePath, existing_file, reading
from arcsm._runtime.memory import check_expansion
from arcsm.data.images import central_square, check_size, open_image, with_channels_and_size
from arcsm.data.pixels import ImageSet

_DOWNLOAD = "download=True (command: --set data.download=true) fetches it"
_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"
_MOST_PER_BYTE = 1_100  # bytes that one byte can unpack to; gzip reaches 1,032
_TORCHVISION_SPLITS = {
    "cifar10": ("train", "test"),
    "svhn": ("train", "test", "extra"),
    "celeba": ("train", "valid", "test"),
}
_CELEBA_CROP = 140  # pixels; the side of the central square that holds the face, of 178 x 218


def read_idx(path: FilePath) -> Tensor:
    """Read an IDX file, gzipped or not, as a tensor of its shape and type.

    The file holds two zero bytes, a type code, the number of dimensions, each dimension as a big-endian 32-bit
    integer, and the numbers, big-endian (LeCun, Cortes and Burges, The MNIST database).

    Raises:
        ValueError: If the file does not exist, is damaged or not in this format, or unpacks to more than the free
            memory or, above 1 GiB, to more than a thousand times its size.
    """
    path = existing_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        is_gzipped = file.read(2) == _GZIP
    with cast(IO[bytes], gzip.open(path) if is_gzipped else path.open("rb")) as file:
        magic = _read(file, 4, path)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_DTYPES:
            raise ValueError(f"{path}: expected an idx file (magic 0000, type, dimensions), got 0x{magic.hex()}")
        dtype, sizes = np.dtype(_IDX_DTYPES[magic[2]]), _read(file, 4 * magic[3], path)
        shape = tuple(int.from_bytes(sizes[at : at + 4], "big") for at in range(0, 4 * magic[3], 4))
        count = math.prod(shape) * dtype.itemsize
        most = min(count + 1, size * (_MOST_PER_BYTE if is_gzipped else 1))  # bytes that the file can hold
        check_expansion(2 * most, size, str(path))  # the numbers, and their copy
        content = _read(file, most, path)
    expected, found = 4 + 4 * magic[3] + count, 4 + len(sizes) + len(content)
    if found != expected:
        raise ValueError(f"{path}: expected {expected} bytes for shape {shape}, got {found}")
    array = np.frombuffer(content, dtype).astype(dtype.newbyteorder("="))
    return torch.from_numpy(array).reshape(shape)


def _read(file: IO[bytes], count: int, path: Path) -> bytes:
    with reading(path):
        return file.read(count)


def mnist(folder: FilePath, split: str = "train", download: bool = False, size: int | None = None) -> ImageSet:
    """Read MNIST, or a set in its format (Fashion-MNIST, KMNIST): 28 x 28 pixels, one channel, labels 0..9.

    Arguments:
        folder: Holds ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte`` (or ``t10k-...``), gzipped as ``.gz``
            or not, directly or in ``MNIST/raw``.
        split: "train" or "test".
        download: Fetch missing files into ``MNIST/raw`` through torchvision.
        size: Resize to this side in pixels (bilinear, antialiased). Default: do not resize.

    Raises:
        ValueError: If the split or the size is unknown, files are missing or damaged, the download fails, or the
            numbers of images and labels differ.
    """
    _check_split(split, ("train", "test"))
    check_size(size)
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
    images, labels = read_idx(paths[0]), read_idx(paths[1])  # (n, H, W), (n,)
    if images.ndim != 3 or images.dtype != torch.uint8:
        raise ValueError(f"{paths[0]}: expected bytes of shape (n, H, W), got {images.dtype} {tuple(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{paths[1]}: expected {len(images)} labels, got shape {tuple(labels.shape)}")
    return ImageSet(with_channels_and_size(images[:, None], None, size), labels.long())


def _find_idx(folder: Path, name: str) -> Path | None:
    places = (place / f"{name}{suffix}" for place in (folder, folder / "MNIST" / "raw") for suffix in ("", ".gz"))
    return next((path for path in places if path.is_file()), None)


def torchvision_images(
    name: str, folder: FilePath, split: str = "train", download: bool = False, size: int | None = None
) -> ImageSet:
    """Read CIFAR-10, SVHN or CelebA in colour from the files of torchvision.

    Arguments:
        name: "cifar10" (32 x 32, labels), "svhn" (32 x 32, labels) or "celeba" (the central 140 x 140, no labels).
        folder: torchvision's root folder of the set.
        split: "train" or "test"; for "svhn" also "extra", for "celeba" also "valid".
        download: Fetch missing files, which the owners of the sets may not always allow.
        size: Resize to this side in pixels (bilinear, antialiased). Default: do not resize.

    Raises:
        ValueError: If the name, split or size is unknown, files are missing or damaged, or the download fails.
    """
    if name not in _TORCHVISION_SPLITS:
        raise ValueError(f"name: expected one of {', '.join(_TORCHVISION_SPLITS)}, got {name!r}")
    _check_split(split, _TORCHVISION_SPLITS[name])
    check_size(size)
    from torchvision import datasets

    if name == "celeba":
        return _celeba(_torchvision(datasets.CelebA, name, folder, download, split=split), size)
    if name == "cifar10":
        data = _torchvision(datasets.CIFAR10, name, folder, download, train=split == "train")
        pixels, labels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)
    else:
        data = _torchvision(datasets.SVHN, name, folder, download, split=split)
        pixels, labels = torch.from_numpy(data.data), torch.from_numpy(data.labels)
    return ImageSet(with_channels_and_size(pixels, None, size), labels.long())


def _torchvision(dataset: Any, name: str, folder: FilePath, download: bool, **options: Any) -> Any:
    """Build a torchvision data set, and turn any of its errors into one line."""
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
    folder = Path(data.root) / data.base_folder / "img_align_celeba"
    for row, name in zip(pixels, data.filename, strict=True):
        with reading(f"celeba image {name}"), open_image(folder / name) as file:
            image = file.convert("RGB")
        left, top = (image.width - _CELEBA_CROP) // 2, (image.height - _CELEBA_CROP) // 2
        crop = image.crop((left, top, left + _CELEBA_CROP, top + _CELEBA_CROP))
        row.copy_(torch.from_numpy(np.array(central_square(crop, side))).permute(2, 0, 1))
    return ImageSet(pixels, names=tuple(data.filename))


def digits() -> ImageSet:
    """Return scikit-learn's 1,797 handwritten digits: 8 x 8 pixels, one channel, 17 levels, labels 0..9.

    Example:
        >>> digits().pixels.shape
        torch.Size([1797, 1, 8, 8])
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.from_numpy(data.images.astype(np.uint8))[:, None]  # (n, 1, 8, 8)
    return ImageSet(pixels, torch.from_numpy(data.target.astype(np.int64)), levels=17)


def _check_split(split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise ValueError(f"split: expected one of {', '.join(known)}, got {split!r}")
