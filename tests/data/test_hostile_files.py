"""Hostile and enormous files: rejected before they fill the memory."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arcsm.data import read_array, read_frame, read_images, read_table
from small_runs import environment


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


def huge_header(path: Path) -> Path:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 10)})
    path.write_bytes(content.getvalue() + bytes(100))
    return path


def wide_csv(path: Path) -> Path:
    path.write_text("\n".join([",".join(f"c{i}" for i in range(10**6)), ",".join(["1"] * 10**6)]) + "\n")
    return path


def huge_image(folder: Path) -> Path:
    folder.mkdir()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return folder


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "zip bomb": (lambda p: read_array(zip_bomb(p / "a.npz"), "x"), r"a\.npz\[x\]: takes 8\.0 GiB to unpack, but"),
    "header of 73 TiB": (lambda p: read_array(huge_header(p / "a.npy")), r"a\.npy: cannot be read"),
    "a million columns": (
        lambda p: read_table(wide_csv(p / "a.csv")),
        "expected at most 100,000 columns, got 1,000,000",
    ),
    "the same with names": (lambda p: read_frame(wide_csv(p / "a.csv")), "expected at most 100,000 columns"),
    "900 megapixels": (lambda p: read_images(huge_image(p / "a")), r"huge\.png: cannot be read"),
}


@pytest.mark.parametrize("name", CASES)
def test_enormous_files_are_rejected_before_they_fill_the_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcsm._runtime.memory.free_memory", lambda: 4 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, complaint = CASES[name]
    with pytest.raises(ValueError, match=complaint):
        read(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB


@pytest.mark.slow
@pytest.mark.parametrize("target", ["config", "table", "images", "model"])
def test_a_minute_of_fuzzing_finds_nothing(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="needs the extra fuzz")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "fuzz", target, "60"]
    more = {**environment(), "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=more, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done " in done.stderr
