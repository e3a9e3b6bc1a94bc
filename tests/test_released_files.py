"""Files that releases wrote: this version reads them, and they say the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import arcsm
from arcsm.data import read_frame
from released_files import ANSWERS, FOLDER, write_files

FILES = [
    (answers.parent.name, name)
    for answers in sorted(FOLDER.glob("*/answers.json"))
    for name in json.loads(answers.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("version", "name"), FILES)
def test_files_of_releases_say_the_same(version: str, name: str) -> None:
    folder = FOLDER / version
    rows = read_frame(folder / "table.csv")
    expected = json.loads((folder / "answers.json").read_text(encoding="utf-8"))[name]
    found = ANSWERS[name](folder / f"{name}.safetensors", rows)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)  # of integrals


def test_every_kind_of_file_of_this_version_is_kept() -> None:
    """If this fails, ``python tests/released_files.py`` writes them, before a release."""
    folder = FOLDER / arcsm.__version__
    assert {path.stem for path in folder.glob("*.safetensors")} == ANSWERS.keys()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1 << 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # about few rows
def test_files_can_be_written_anew(tmp_path: Path) -> None:
    write_files(tmp_path)
    found = json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))
    assert found.keys() == ANSWERS.keys()
    assert all(np.isfinite(numbers).all() for numbers in found.values())
