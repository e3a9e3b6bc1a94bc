"""Hostile and enormous files: rejected before they fill the memory."""

from __future__ import annotations

import gzip
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from arcsm.data import read_array, read_frame, read_idx, read_images, read_table
from arcsm.data.streams import blocks_of
from arcsm.data.table import TableFile


def zip_bomb(path: Path) -> Path:
    """Write an archive of a few kilobytes whose directory claims a tebibyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        content = io.BytesIO()
        np.save(content, np.zeros((1000, 10)))
        archive.writestr("x.npy", content.getvalue())
    raw = bytearray(path.read_bytes())
    size = struct.pack("<I", 0xFFFFFFFE)
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):  # of the directory, and of the member
        place = raw.find(signature) + offset
        raw[place : place + 4] = size
    path.write_bytes(bytes(raw))
    return path


def member_beyond_its_size(path: Path) -> Path:
    """Write an archive whose member unpacks to 200 MB, although its directory claims 928 bytes."""
    content = io.BytesIO()
    np.save(content, np.zeros((10, 10)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("x.npy", "w") as f:
        f.write(content.getvalue())
        for _ in range(200):
            f.write(bytes(10**6))
    raw, size = bytearray(path.read_bytes()), len(content.getvalue())
    place = raw.rfind(b"PK\x01\x02") + 24
    raw[place : place + 4] = struct.pack("<I", size)
    path.write_bytes(bytes(raw))
    return path


def gzipped(path: Path, start: bytes, repeated: bytes, times: int) -> Path:
    """Write a gzipped file of parts, which is as quick to write as it is small."""
    path.write_bytes(gzip.compress(start) + times * gzip.compress(repeated))
    return path


def empty_header(path: Path) -> Path:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f8", "fortran_order": False, "shape": (0, 10**9)})
    path.write_bytes(content.getvalue())
    return path


def truncated_header(path: Path) -> Path:
    path.write_bytes(b"\x93NUMPY\x02\0" + b"\xff" * 4 + bytes(100))
    return path


def long_text(path: Path) -> Path:
    """Write a Parquet file of a few kilobytes whose million cells hold one text of 6,400 characters."""
    codes = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int32)), pa.array(["x" * 6400]))
    parquet.write_table(pa.table({"a": codes}), path, store_schema=False)
    return path


def wide_csv(path: Path) -> Path:
    path.write_text("\n".join([",".join(f"c{i}" for i in range(200_000)), ",".join(["1"] * 200_000)]) + "\n")
    return path


def huge_image(folder: Path, side: int = 30_000) -> Path:
    folder.mkdir()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return folder


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "zip bomb": (lambda p: read_array(zip_bomb(p / "a.npz"), "x"), r"a\.npz\[x\]: takes 8\.0 GiB to unpack, but"),
    "header of 4 GiB": (
        lambda p: read_array(truncated_header(p / "a.npy")),
        r"a\.npy: cannot be read, .* \(ValueError: a header of 4,294,967,295 bytes\)",
    ),
    "gzipped images": (
        lambda p: read_idx(gzipped(p / "a", b"\0\0\x08\x02" + struct.pack(">2I", 1200, 10**6), bytes(10**6), 1200)),
        "a: unpacks to 2.2 GiB, more than 1,000 times its size; it is too repetitive to be data; if you trust it, save",
    ),
    "a gzipped line": (
        lambda p: read_table(gzipped(p / "a.csv.gz", b"a\n", b"0" * 10**6, 700)),
        r"a\.csv\.gz: expected lines of at most 64 MiB",
    ),
    "longer than it claims": (
        lambda p: read_array(member_beyond_its_size(p / "a.npz")),
        r"a\.npz\[x\]: cannot be read",
    ),
    "a billion empty columns": (
        lambda p: read_array(empty_header(p / "a.npy")),
        r"got an empty array of shape \(0, 1",
    ),
    "a text in a million cells": (
        lambda p: read_frame(long_text(p / "a.parquet")),
        r"a\.parquet: unpacks to 1\.\d GiB, more than 1,000 times its size",
    ),
    "a streamed text": (lambda p: blocks_of(long_text(p / "a.parquet")).read(0), "a.parquet: takes 6.0 GiB to unpack"),
    "many columns": (lambda p: read_frame(wide_csv(p / "a.csv")), "expected at most 100,000 columns"),
    "900 megapixels": (lambda p: read_images(huge_image(p / "a")), r"huge\.png: cannot be read"),
}


def peak_kib() -> int:
    """Return the largest memory of this process since the peak was reset."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("name", CASES)
def test_enormous_files_are_rejected_before_they_fill_the_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcsm._runtime.memory.free_memory", lambda: 4 << 30)
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of the memory can be reset on Linux only")
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kib()
    read, complaint = CASES[name]
    with pytest.raises(ValueError, match=complaint):
        read(tmp_path)
    assert peak_kib() - before < 150_000


def test_repetitive_gzipped_tables_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gzipped(tmp_path / "a.csv.gz", b"a\n", b"0.00000000\n" * 20_000, 3)
    assert sum(len(part) for part in TableFile(path).parts(20_000)) == 60_000
    monkeypatch.setattr("arcsm._runtime.memory.free_memory", lambda: 1 << 20)
    with pytest.raises(
        ValueError, match=r"a\.csv\.gz: takes 0\.0 GiB to unpack, .* make the file smaller, or free memory"
    ):
        next(TableFile(path).parts())
    assert len(next(TableFile(path).parts(1000))) == 1000
    monkeypatch.setattr("arcsm._runtime.memory._ALWAYS_UNPACKED", 1 << 16)
    monkeypatch.setattr("arcsm._runtime.memory._MAX_EXPANSION", 100)
    for rows in (None, 1000):
        with pytest.raises(ValueError, match=r"a\.csv\.gz: unpacks to .* more than 100 times its size"):
            next(TableFile(path).parts(rows))


def test_repetitive_parquet_files_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcsm._runtime.memory._ALWAYS_UNPACKED", 1 << 20)
    path, rows = tmp_path / "a.parquet", 300_000
    columns = {
        "numbers": pa.array(np.zeros(rows)),
        "lists": pa.array([["x" * 10, "y" * 10]] * rows),
        "front coded": pa.array(["x" * 20] * rows),
    }
    for name, column in columns.items():
        coding: dict[str, Any] = {"use_dictionary": False, "column_encoding": {"a": "DELTA_BYTE_ARRAY"}}
        parquet.write_table(
            pa.table({"a": column}), path, compression="zstd", **(coding if name == "front coded" else {})
        )
        with pytest.raises(ValueError, match=r"a\.parquet: unpacks to .* more than 1,000 times its size"):
            next(TableFile(path).parts())
        assert len(next(TableFile(path).parts(1000))) == 1000  # in parts, they take little memory


def with_lower_counts(path: Path, column: pa.Array, counts: dict[int, int]) -> Path:
    """Write a Parquet file of a few kilobytes whose footer claims fewer rows or values than its pages hold."""
    parquet.write_table(pa.table({"a": column}), path, compression="zstd")
    content = path.read_bytes()
    size = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - size : -8]
    for true, claimed in counts.items():
        assert varint(2 * true) in footer
        footer = footer.replace(varint(2 * true), varint(2 * claimed), 1)  # signed: the last bit is the sign
    path.write_bytes(content[: -8 - size] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return path


def varint(number: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first."""
    groups = [number >> shift & 0x7F for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


@pytest.mark.parametrize("kind", ["lists", "rows"])
def test_parquet_files_that_claim_less_than_they_hold_are_rejected(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcsm._runtime.memory._ALWAYS_UNPACKED", 1 << 20)
    many, column = 400_003, pa.array(np.zeros(400_003))
    if kind == "lists":
        column = pa.ListArray.from_arrays(pa.array([0, many - 1, many], pa.int32()), column)
    path = with_lower_counts(tmp_path / "a.parquet", column, {many: 2})
    metadata = parquet.read_metadata(path)
    assert metadata.num_rows == 2  # of rows, the second count, of the row group, is true
    with pytest.raises(ValueError, match=r"a\.parquet: unpacks to .* more than 1,000 times its size"):
        next(TableFile(path).parts(10 if kind == "lists" else None))
