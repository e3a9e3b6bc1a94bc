"""A small fitted table for the tests of the commands and the web page."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from arcsm.cli.fitted_tables import FittedTable
from arcsm.data import FrameFile
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector

NAMES = ["age", "city", "fee"]


def write_rows(path: Path, rows: int = 120) -> None:
    """Write a table whose fee depends on the age, with some missing values."""
    random = np.random.default_rng(0)
    age = random.integers(20, 60, rows)
    city = random.choice(["Bern", "Oslo", "Rome"], rows)
    lines = [
        f"{'' if i % 10 == 3 else a};{c};{10.0 + 0.5 * a + e:.2f}".replace(".", ",")
        for i, (a, c, e) in enumerate(zip(age, city, random.normal(size=rows), strict=True))
    ]
    path.write_text(";".join(NAMES) + "\n" + "\n".join(lines) + "\n", encoding="utf-8")


@lru_cache
def fitted_to(path: Path) -> FittedTable:
    """Return a table in a file that has been fitted for a moment."""
    file = FrameFile(path)
    rows = file.read(set_aside=True)
    estimators = (kind(max_steps=60, random_state=0).fit(rows) for kind in (ScoreDensity, ScoreOutlierDetector))
    return FittedTable.of_file(file, rows, *estimators)


def fitted_table(folder: Path) -> FittedTable:
    """Return the table of :func:`write_rows`, fitted, from a folder."""
    path = folder / "rows.csv"
    if not path.exists():
        write_rows(path)
    return fitted_to(path)
