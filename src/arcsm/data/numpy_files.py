"""Arrays of numbers in NPY and NPZ files, read without unpickling."""

import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from arcsm._runtime.files import FilePath, existing_file, reading
from arcsm._runtime.memory import check_expansion

_NPZ_KEYS = ("X", "x_train")  # names of the main array, by preference
_MAX_LISTED = 20  # names in an error
_MAX_HEADER = 10_000  # bytes, as for numpy
_MAX_EMPTY = 1_000_000  # rows or columns of an array without any value


def read_array(path: FilePath, key: str | None = None, *, preferred: Sequence[str] = _NPZ_KEYS) -> np.ndarray:
    """Read one array of numbers, with its shape and dtype, from an NPY or NPZ file.

    Arguments:
        path: The file. ``tables.npz:left`` also names an array.
        key: The array of an NPZ file. Default: its only array, or the first of ``preferred`` that it holds.
        preferred: Names of the main array.

    Raises:
        ValueError: If the file does not exist or is damaged, if the array is missing, ambiguous, too large for the
            free memory or, above 1 GiB, a thousand times as large as the file, or if it holds objects or text.
    """
    path, key = split_key(path, key)
    if path.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(f"{path}: expected a file name that ends in .npy, .npz")
    path = existing_file(path)
    if path.suffix.lower() == ".npy":
        if key is not None:
            raise ValueError(f"key: expected None for a .npy file, got {key!r} ({path})")
        with path.open("rb") as file:
            size = path.stat().st_size
            return _read_npy(file, str(path), size, size)
    chosen = npz_key(path, key, preferred)
    with reading(path):
        archive = zipfile.ZipFile(path)
    with archive:
        with reading(path):
            member = archive.open(f"{chosen}.npy")
        with member:
            size = archive.getinfo(f"{chosen}.npy").file_size
            return _read_npy(member, f"{path}[{chosen}]", size, path.stat().st_size)


def split_key(path: FilePath, key: str | None = None) -> tuple[Path, str | None]:
    """Split a path like ``tables.npz:left`` into the file and the name of the array, here ``left``."""
    archive, separator, name = os.fspath(path).rpartition(".npz:")
    if not separator or not name or Path(path).exists():
        return Path(path), key
    if key is not None:
        raise ValueError(f"key: expected none, since {path} names an array already, got {key!r}")
    return Path(f"{archive}.npz"), name


def npz_names(path: FilePath) -> list[str]:
    """Return the names of the arrays in an NPZ file, in file order."""
    path = existing_file(path)
    with reading(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if not names:
        raise ValueError(f"{path}: expected an archive of arrays, got one without any")
    return names


def npz_key(path: FilePath, key: str | None, preferred: Sequence[str] = _NPZ_KEYS) -> str:
    """Return ``key``, or the only array of an NPZ file, or the first of ``preferred`` that it holds."""
    names = npz_names(path)
    listing = ", ".join(names[:_MAX_LISTED]) + ", ..." * (len(names) > _MAX_LISTED)
    if key is not None:
        if key not in names:
            raise ValueError(f"key: expected one of {listing}, got {key!r} ({path})")
        return key
    chosen = names[0] if len(names) == 1 else next((name for name in preferred if name in names), None)
    if chosen is None:
        raise ValueError(
            f"{path}: expected one array or one named {' or '.join(preferred)}, got {listing}; name one as in "
            f"{path}:{names[0]}"
        )
    return chosen


def npy_header(file: IO[bytes], source: str, size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and dtype of the array in an NPY file of ``size`` bytes, which must be able to hold it."""
    with reading(source):
        version = np.lib.format.read_magic(file)
        _check_header_size(file, 2 if version == (1, 0) else 4)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
    if dtype.hasobject:
        raise ValueError(f"{source}: expected numbers, got pickled Python objects, which are never loaded")
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise ValueError(f"{source}: expected real numbers, got dtype {dtype}")
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{source}: cannot be read, damaged: too short for an array of shape {shape}")
    if max(shape, default=0) > max(size, _MAX_EMPTY):
        raise ValueError(f"{source}: expected numbers, got an empty array of shape {shape}")
    return shape, dtype


def _check_header_size(file: IO[bytes], count: int) -> None:
    """Check the size of a header, a number of ``count`` bytes; numpy reads all of a header before it checks it."""
    place = file.tell()
    size = int.from_bytes(file.read(count), "little")
    file.seek(place)
    if size > _MAX_HEADER:
        raise ValueError(f"a header of {size:,} bytes")


def _read_npy(file: IO[bytes], source: str, size: int, compressed: int) -> np.ndarray:
    """Read an array from a file, or from the member of an archive, which is read in pieces as it may be longer.

    ``size`` and ``compressed`` are the bytes of the member and of the archive.
    """
    check_expansion(2 * size, compressed, source)  # the array, and its copy as floats
    npy_header(file, source, size)  # rejects objects, text and absurd shapes before any data are read
    with reading(source):
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
