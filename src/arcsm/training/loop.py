"""The training loop, one for all kinds of models: steps, validation, log, checkpoints and signals."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from arcsm._runtime import launcher, process_group
from arcsm._runtime.progress import track
from arcsm._runtime.signals import stop_requested
from arcsm.errors import NonFiniteError
from arcsm.training.callbacks import Callback, Callbacks
from arcsm.training.checkpoint import read_checkpoint, write_checkpoint
from arcsm.training.log import TrainingLog
from arcsm.training.task import TrainingTask


class TrainingDiverged(RuntimeError):
    """Training cannot continue: a loss or gradient is not finite, or an encoder has collapsed.

    A density model then holds the weights of its best validation, or its initial weights if there was none; an
    autoencoder holds the average of its weights so far.
    """


@dataclass
class FitResult:
    """The result of :func:`arcsm.fit`.

    Attributes:
        steps: Optimizer steps taken.
        seconds: Time spent, earlier parts of a resumed run included.
        best_step: Step of the best validation; the last step without validation data.
        best_loss: Objective of the best validation; the moving average of the training losses without validation data.
        history: One row for each validation: step, loss, valid, learning_rate, seconds.
        stopped_early: Whether patience or a callback ended the training.
    """

    steps: int
    seconds: float
    best_step: int
    best_loss: float
    history: list[dict[str, float]] = field(default_factory=list)
    stopped_early: bool = False


def run_training(
    task: TrainingTask, run: Path | None, resume: bool, progress: bool, callbacks: Sequence[Callback] = ()
) -> FitResult:
    """Train to the last step, or until early stopping; the other arguments and the errors are those of ``fit``."""
    group = process_group.group()
    calls = Callbacks(callbacks, task)
    if resume and run is not None:
        read_checkpoint(task, run)
    written = run if group.first else None  # only the first process writes
    with stop_requested(patient=group.size > 1) as stop:
        task.prepare(stop, progress)
        try:
            _take_steps(task, written, stop, progress and group.first, calls)
        except NonFiniteError as error:
            message = f"step {task.step}: {task.explain(str(error))}"
            _keep_best_weights(task, written)
            raise TrainingDiverged(message) from error
    _keep_best_weights(task, written)
    group.wait()  # from here on, any process may read what the first has written
    task.warn_if_poor()
    best_step, best_loss = task.best
    return FitResult(
        task.step, task.seconds, best_step, best_loss, task.history, task.stopped_early or calls.state.stopped
    )


def _take_steps(
    task: TrainingTask, run: Path | None, stop: Callable[[], bool], progress: bool, callbacks: Callbacks
) -> None:
    with TrainingLog(task, run) as log, track("training", task.steps, progress, done=task.step) as advance_bar:
        record, last_checkpoint = _Record(task, log, callbacks), time.monotonic()
        while task.step < task.steps and not task.stopped_early and not callbacks.stopped:
            record.add(task.advance())
            advance_bar(note=f"{task.loss_name} {task.running_loss:.4g}")
            callbacks.call("step")
            if task.step % task.config.validate_every == 0 or task.step == task.steps:
                record.validate()
            elif task.log_every is not None and task.step % task.log_every == 0:
                record.write({})
            record.take_time()
            stopping = process_group.group().any(stop() or launcher.is_orphaned())
            if stopping or time.monotonic() - last_checkpoint >= task.config.checkpoint_seconds:
                record.checkpoint(run)
                last_checkpoint = time.monotonic()
            if stopping:
                raise KeyboardInterrupt(f"interrupted after step {task.step}")
        is_additional = callbacks.state.stopped and (not task.history or task.history[-1]["step"] != task.step)
        record.checkpoint(run)  # without a validation that an uninterrupted run does not have
        if is_additional:
            record.validate()


class _Record:
    """Keeps the losses, the time, the history and the log of a task."""

    def __init__(self, task: TrainingTask, log: TrainingLog, callbacks: Callbacks) -> None:
        self.task, self.log, self.callbacks = task, log, callbacks
        self.started = time.monotonic() - task.seconds

    def take_time(self) -> None:
        self.task.seconds = time.monotonic() - self.started

    def add(self, loss: float) -> None:
        """Count a step with the loss of its batch."""
        task, weight = self.task, self.task.newest_loss_weight
        task.step += 1
        first = math.isnan(task.running_loss)
        task.running_loss = loss if first else (1.0 - weight) * task.running_loss + weight * loss
        self.callbacks.state.loss = loss

    def write(self, columns: Mapping[str, float]) -> None:
        """Log a row, which a validation also adds to the history."""
        task = self.task
        self.take_time()
        row = {"step": float(task.step), "loss": task.running_loss, "learning_rate": task.learning_rate}
        row |= {**columns, "seconds": task.seconds}
        self.log.write(row)
        self.callbacks.state.metrics = row
        self.callbacks.call("log")

    def checkpoint(self, run: Path | None) -> None:
        if run is not None:
            write_checkpoint(self.task, run)
            self.callbacks.call("checkpoint")

    def validate(self) -> None:
        self.write(self.task.validate())
        self.task.history.append(dict(self.callbacks.state.metrics))
        self.task.assess(self.task.history[-1])
        self.callbacks.call("validation")


def _keep_best_weights(task: TrainingTask, run: Path | None) -> None:
    task.load_best_weights()
    if run is not None:
        task.save(run)
