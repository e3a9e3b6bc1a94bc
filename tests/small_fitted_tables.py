"""A small fitted table for the tests of the commands and the web page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from arcsm.cli.fitted_tables import FittedTable
from arcsm.data import FrameFile
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from small_tables import QUICK

NAMES = ["age", "city", "fee <i>"]


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


def fitted_table(path: Path) -> FittedTable:
    """Write the table, and fit it for a moment."""
    write_rows(path)
    file = FrameFile(path)
    rows = file.read(set_aside=True)
    return FittedTable.of_file(file, rows, *(kind(**QUICK).fit(rows) for kind in (ScoreDensity, ScoreOutlierDetector)))
