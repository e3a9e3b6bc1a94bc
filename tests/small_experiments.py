"""Run an experiment at smoke size through the command, and small data in the formats of the real files."""

from __future__ import annotations

import gzip
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from arcsm.cli import application


def command(name: str, folder: Path, *changes: str, work: str = "work") -> list[str]:
    """Return the arguments of the command, with results and work in subfolders."""
    settings = [part for change in changes for part in ("--set", change)]
    out = ["--out", str(folder / "results"), "--work", str(folder / work)]
    return ["reproduce", name, "--preset", "smoke", "--device", "cpu", "--force", *out, *settings]


def reproduce(name: str, folder: Path, *changes: str, work: str = "work") -> dict[str, Any]:
    """Run an experiment at smoke size; return its record."""
    assert application.run(command(name, folder, *changes, work=work)) == 0
    return dict(json.loads((folder / "results" / name / "smoke.json").read_text()))


def write_mnist(folder: Path) -> None:
    """Write two hundred random images of 8 x 8 pixels and ten test images in MNIST's file format."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 200), ("t10k", 10)):
        pixels = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        images = struct.pack(">IIII", 2051, count, 8, 8) + pixels.tobytes()
        labels = struct.pack(">II", 2049, count) + rng.integers(0, 10, count, dtype=np.uint8).tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def write_tables(folder: Path) -> None:
    """Write a table with outliers in ADBench's format, and one in UCI's."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(120, 3))
    rows[:10] += 6.0
    (folder / "adbench").mkdir()
    np.savez(folder / "adbench" / "1_small.npz", X=rows, y=(np.arange(120) < 10).astype(int))
    (folder / "uci").mkdir()
    pd.DataFrame(rows).to_csv(folder / "uci" / "wine.csv.gz", index=False, header=False)


def stand_in_for_peer(name: str, script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an environment whose interpreter runs this script in place of a peer's; return its path."""
    monkeypatch.setenv("ARCSM_PEERS", str(folder))
    python, path = folder / name / "bin" / "python", folder / "script.py"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{path}" "$3" "$4" "$5"\n')
    python.chmod(0o755)
    path.write_text(script)
    return path
