"""What a training run writes down as it goes: a CSV file, and TensorBoard if asked for."""

from __future__ import annotations

import csv
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from arcsm._runtime.files import atomic_path

METRICS_NAME = "metrics.csv"
_APART = 50  # steps from one loss to the next that is looked at: averages of fewer hang together
_FEWEST = 8  # losses that say anything
_CLEARLY = 3.0  # standard errors


class Worse(NamedTuple):
    """How a run ended that had been better: the step and the loss where it was best, and the loss at the end."""

    step: int
    best: float
    last: float


def ended_worse(history: Sequence[Mapping[str, float]]) -> Worse | None:
    """Whether the training loss clearly ended higher than it had been, as after too large a step; ``None`` if not.

    The mean over the last quarter is held against the lowest of as many losses in a row, and the difference against
    the size of steps from one loss to the next.
    """
    rows: list[Mapping[str, float]] = []
    for row in history:
        if not rows or row["step"] - rows[-1]["step"] >= _APART:
            rows.append(row)
    if len(rows) < _FEWEST:
        return None
    losses, length = [row["loss"] for row in rows], len(rows) // 4
    means = [fmean(losses[start : start + length]) for start in range(len(losses) - length + 1)]
    best = min(range(len(means)), key=means.__getitem__)
    noise = median(abs(second - first) for first, second in itertools.pairwise(losses)) * math.sqrt(2.0 / length)
    if means[-1] - means[best] <= _CLEARLY * noise:
        return None
    return Worse(int(rows[best + length - 1]["step"]), means[best], means[-1])


class TrainingLog:
    """``metrics.csv`` (and TensorBoard), begun with what a resumed run has behind it."""

    COLUMNS = ("step", "loss", "valid", "learning_rate", "seconds")

    def __init__(
        self, run: Path | None, history: Sequence[Mapping[str, float]], tensorboard: bool, extra: Sequence[str] = ()
    ) -> None:
        self.columns = (*self.COLUMNS, *extra)
        self.path = None if run is None else run / METRICS_NAME
        self.board: _Board | None = None
        if run is None:
            return
        run.mkdir(parents=True, exist_ok=True)
        with atomic_path(run / METRICS_NAME) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(history)
        if tensorboard:
            self.board = _Board(run / "tensorboard", int(history[-1]["step"]) if history else 0)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self.board is not None:
            self.board.close()

    def write(self, row: Mapping[str, float]) -> None:
        if self.path is not None:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        if self.board is not None:
            self.board.write(row)


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of a run's ``metrics.csv``; empty cells are left out, as is what a crash has left of a row.

    Raises:
        ValueError: for a file that holds something else.
    """
    path = run / METRICS_NAME
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(line.replace("\0", "") for line in file))
    found = []
    for number, row in enumerate(rows, 1):
        try:
            numbers = {name: float(value) for name, value in row.items() if value}
            found.append({**numbers, "step": numbers["step"], "seconds": numbers["seconds"]})
        except (TypeError, ValueError, KeyError) as error:
            if number < len(rows):
                raise ValueError(f"{path}: row {number} is not one of a training log") from error
    return found


class _Board:
    """A folder for TensorBoard, written to at once.

    The usual writer has a thread of its own, which a full disk ends; what then waits for it to take more waits for
    ever.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from tensorboardX import summary
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
        except ImportError as error:
            raise ValueError('tensorboard: needs the extra: pip install "arcsm[tensorboard]"') from error
        self.folder, self.event, self.scalar = folder, Event, summary.scalar
        folder.mkdir(exist_ok=True)
        self.events = EventsWriter(str(folder / "events"))
        # what an earlier process has written of later steps is void
        self.events.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, row: Mapping[str, float]) -> None:
        try:
            for name in row.keys() - {"step"}:
                value, now = self.scalar(name, row[name]), time.time()
                self.events.write_event(self.event(wall_time=now, step=int(row["step"]), summary=value))
            self.events.flush()
        except OSError as error:
            raise OSError(error.errno, f"cannot be written ({error.strerror})", str(self.folder)) from error

    def close(self) -> None:
        with suppress(OSError):  # was raised by `write`
            self.events.close()
