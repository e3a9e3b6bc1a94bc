"""Atomic replacement of files, and what killed processes leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from arcsm._runtime import files
from arcsm._runtime.files import write_text
from small_runs import PATIENCE

_KILLED = """
import os, signal, sys
from pathlib import Path
from arcsm._runtime.files import atomic_path

with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "scores.csv")], check=False, timeout=PATIENCE)
    assert done.returncode < 0
    (left,) = tmp_path.iterdir()
    elsewhere = left.with_name(left.name.replace(files._process_space(), "0" * 8))
    running = left.with_name(left.name.replace(f"-{left.name.split('-')[1]}-", f"-{os.getpid()}-"))
    kept = elsewhere, running, tmp_path / ".mine.tmp.csv"
    for path in kept:
        path.write_text("kept")
    write_text(tmp_path / "other.txt", "text")
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "other.txt"])


def test_a_replacement_is_synced_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino) or fsync(descriptor))
    write_text(tmp_path / "file", "text")
    assert synced == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]
