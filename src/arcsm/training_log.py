"""What a training run writes down as it goes: a CSV file, and TensorBoard if asked for."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arcsm.files import atomic_path

METRICS_NAME = "metrics.csv"


class TrainingLog:
    """``metrics.csv`` (and TensorBoard), cut back to the step that a resumed run starts from."""

    COLUMNS = ("step", "loss", "valid", "learning_rate", "seconds")

    def __init__(self, run: Path | None, step: int, tensorboard: bool) -> None:
        self.path = None if run is None else run / METRICS_NAME
        self.board: Any = None
        if run is None:
            return
        run.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(run) if row["step"] <= step] if step else []
        with atomic_path(run / METRICS_NAME) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        if tensorboard:
            self.board = _summary_writer(run, step)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self.board is not None:
            self.board.close()

    def write(self, row: Mapping[str, float]) -> None:
        if self.path is not None:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.COLUMNS).writerow(row)
        if self.board is not None:
            for name in row.keys() - {"step"}:
                self.board.add_scalar(name, row[name], int(row["step"]))


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of a run's ``metrics.csv``; empty cells are left out."""
    path = run / METRICS_NAME
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def _summary_writer(run: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError('tensorboard: needs the extra: pip install "arcsm[tensorboard]"') from error
    return SummaryWriter(str(run / "tensorboard"), purge_step=step or None)
