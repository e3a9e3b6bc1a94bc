"""The log of a training run: ``metrics.csv``, and any Lightning logger."""

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, median
from types import TracebackType
from typing import Any, NamedTuple, Self

from arcsm._runtime import process_group
from arcsm._runtime.files import atomic_path
from arcsm.training.task import TrainingTask
from arcsm.training.tensorboard import EventFile

METRICS_NAME = "metrics.csv"
COLUMNS = ("step", "loss", "valid", "learning_rate", "seconds")
_MIN_STEPS_BETWEEN = 50  # logged losses are moving averages; closer ones are correlated
_MIN_LOSSES = 8
_MIN_STANDARD_ERRORS = 3.0


class TrainingLog:
    """The log of a training task, a context manager; without a folder ``run`` it writes no files.

    It starts with the rows that a resumed run has logged up to its step. Lightning loggers receive the settings at the
    beginning, and at the end whether the training succeeded, failed or was aborted.
    """

    def __init__(self, task: TrainingTask, run: Path | None) -> None:
        self._settings = task.config.model_dump(mode="json")
        self._columns = (*COLUMNS, *task.extra_columns)
        self._path = None if run is None else run / METRICS_NAME
        self._loggers: list[Any] = list(task.loggers) if process_group.group().first else []
        if run is None:
            return
        run.mkdir(parents=True, exist_ok=True)
        rows = _rows_so_far(task, run)
        with atomic_path(run / METRICS_NAME) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        if task.tensorboard:
            self._loggers.append(EventFile(run / "tensorboard", int(task.history[-1]["step"]) if task.history else 0))

    def __enter__(self) -> Self:
        for logger in self._loggers:
            with suppress(NotImplementedError):  # some loggers take numbers only
                logger.log_hyperparams(self._settings)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        aborted = isinstance(error, KeyboardInterrupt)
        for logger in self._loggers:
            logger.finalize("success" if error is None else "aborted" if aborted else "failed")

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row, which has a ``step`` and any of the other columns."""
        if self._path is not None:
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        for logger in self._loggers:
            logger.log_metrics({name: value for name, value in row.items() if name != "step"}, int(row["step"]))


def _rows_so_far(task: TrainingTask, run: Path) -> Sequence[Mapping[str, float]]:
    """Return the history of a task, with the rows between its validations if the log has them."""
    if task.log_every is None:
        return task.history
    validated = {row["step"] for row in task.history}
    between = [row for row in read_metrics(run) if row["step"] <= task.step and row["step"] not in validated]
    known = [{name: value for name, value in row.items() if name in COLUMNS} for row in between if "valid" not in row]
    return sorted([*task.history, *known], key=lambda row: row["step"])


def is_log(run: Path) -> bool:
    """Return whether the ``metrics.csv`` in a folder begins like the log of a training."""
    path, start = run / METRICS_NAME, ",".join(COLUMNS).encode()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(start)) == start


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Return the rows of a run's ``metrics.csv``, without empty cells and without a last row that a crash cut short."""
    path = run / METRICS_NAME
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        texts = list(csv.DictReader(line.replace("\0", "") for line in file))
    rows = []
    for number, text in enumerate(texts, 1):
        try:
            row = {name: float(value) for name, value in text.items() if value}
            rows.append({**row, "step": row["step"], "seconds": row["seconds"]})
        except (TypeError, ValueError, KeyError) as error:
            if number < len(texts):
                raise ValueError(f"{path}: row {number} is not a row of a training log") from error
    return rows


class Breakdown(NamedTuple):
    """A breakdown of the training: step and loss at its best, and the final loss."""

    step: int
    best: float
    last: float


def find_breakdown(history: Sequence[Mapping[str, float]]) -> Breakdown | None:
    """Return whether the training loss ended clearly higher than it had been, as after too large a step.

    The mean over the last quarter is compared with the lowest mean over as many consecutive losses, in standard errors
    that follow from the differences of consecutive losses.
    """
    rows: list[Mapping[str, float]] = []
    for row in history:
        if not rows or row["step"] - rows[-1]["step"] >= _MIN_STEPS_BETWEEN:
            rows.append(row)
    if len(rows) < _MIN_LOSSES:
        return None
    losses, length = [row["loss"] for row in rows], len(rows) // 4
    means = [fmean(losses[start : start + length]) for start in range(len(losses) - length + 1)]
    best = min(range(len(means)), key=means.__getitem__)
    noise = median(abs(second - first) for first, second in itertools.pairwise(losses)) * math.sqrt(2.0 / length)
    if means[-1] - means[best] <= _MIN_STANDARD_ERRORS * noise:
        return None
    return Breakdown(int(rows[best + length - 1]["step"]), means[best], means[-1])
