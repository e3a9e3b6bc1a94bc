"""The training loop, one for all kinds of models: steps, validation, log, checkpoints and signals."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from arcsm._runtime import launcher, process_group
from arcsm._runtime.progress import track
from arcsm._runtime.signals import stop_requested
from arcsm.errors import NonFiniteError
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
        stopped_early: Whether patience ended the training.
    """

    steps: int
    seconds: float
    best_step: int
    best_loss: float
    history: list[dict[str, float]] = field(default_factory=list)
    stopped_early: bool = False


def run_training(task: TrainingTask, run: Path | None, resume: bool, progress: bool) -> FitResult:
    """Train to the last step, or until early stopping.

    Arguments:
        task: What to train.
        run: Folder for the checkpoint, the model and the log; ``None`` to write nothing.
        resume: Continue from the checkpoint in ``run``, if there is one.
        progress: Show progress; see :func:`arcsm.fit`.

    Raises:
        ValueError: If the checkpoint does not belong to this task.
        TrainingDiverged: If the model breaks.
        KeyboardInterrupt: After SIGINT or SIGTERM, at the end of a step and with a checkpoint in ``run``.
    """
    group = process_group.group()
    if resume and run is not None:
        read_checkpoint(task, run)
    written = run if group.first else None  # only the first process writes
    with stop_requested(patient=group.size > 1) as stop:
        task.prepare(stop, progress)
        try:
            _take_steps(task, written, stop, progress and group.first)
        except NonFiniteError as error:
            message = f"step {task.step}: {task.explain(str(error))}"
            _keep_best_weights(task, written)
            raise TrainingDiverged(message) from error
    if written is not None:
        write_checkpoint(task, written)
    _keep_best_weights(task, written)
    group.wait()  # from here on, any process may read what the first has written
    task.warn_if_poor()
    best_step, best_loss = task.best
    return FitResult(task.step, task.seconds, best_step, best_loss, task.history, task.stopped_early)


def _take_steps(task: TrainingTask, run: Path | None, stop: Callable[[], bool], progress: bool) -> None:
    group = process_group.group()
    with TrainingLog(task, run) as log, track("training", task.steps, progress, done=task.step) as advance_bar:
        started, last_checkpoint = time.monotonic() - task.seconds, time.monotonic()
        while task.step < task.steps and not task.stopped_early:
            loss, weight = task.advance(), task.newest_loss_weight
            task.step += 1
            first = math.isnan(task.running_loss)
            task.running_loss = loss if first else (1.0 - weight) * task.running_loss + weight * loss
            advance_bar(note=f"{task.loss_name} {task.running_loss:.4g}")
            if task.step % task.config.validate_every == 0 or task.step == task.steps:
                columns = task.validate()
                task.seconds = time.monotonic() - started
                row = {"step": float(task.step), "loss": task.running_loss, "learning_rate": task.learning_rate}
                row |= {**columns, "seconds": task.seconds}
                task.history.append(row)
                log.write(row)
                task.assess(row)
            task.seconds = time.monotonic() - started
            stopping = group.any(stop() or launcher.is_orphaned())
            if stopping or time.monotonic() - last_checkpoint >= task.config.checkpoint_seconds:
                if run is not None:
                    write_checkpoint(task, run)
                last_checkpoint = time.monotonic()
            if stopping:
                raise KeyboardInterrupt(f"interrupted after step {task.step}")


def _keep_best_weights(task: TrainingTask, run: Path | None) -> None:
    task.load_best_weights()
    if run is not None:
        task.save(run)
