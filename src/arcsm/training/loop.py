"""The training loop behind ``arcsm.fit``, the commands and the estimators."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from arcsm import serialization
from arcsm._runtime import launcher, process_group
from arcsm._runtime.progress import track
from arcsm._runtime.random import Share, Source, dequantised, fold_in
from arcsm._runtime.signals import stop_requested
from arcsm.data.streams import RowStream
from arcsm.errors import TrainingWarning, warn
from arcsm.model import AutoregressiveModel, save
from arcsm.registry import complete_config
from arcsm.serialization import WEIGHTS_NAME
from arcsm.training.config import TrainConfig, check_objective, objective_of
from arcsm.training.data import (
    Epoch,
    InMemory,
    OnDisk,
    Rows,
    check_told_apart,
    checked,
    checked_stream,
    fingerprint,
    on_device,
    standardise,
    widths,
)
from arcsm.training.log import TrainingLog, ended_worse
from arcsm.training.optimization import averaging, fabric_of, is_random, optimizer_of, own_parts

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

STATE_NAME = "state.safetensors"

_VALIDATION_BATCH = 1024


class TrainingDiverged(RuntimeError):
    """Training cannot go on: a loss or gradient is not finite, or an encoder has collapsed.

    A density model holds the weights of the best validation so far, before the first one those that it began with; an
    autoencoder the average of its weights so far.
    """


@dataclass
class FitResult:
    """What :func:`fit` found.

    Attributes:
        steps: Optimiser steps done.
        seconds: Time spent, earlier parts of a resumed run included.
        best_step: Step of the best validation (the last step without validation data).
        best_loss: Its objective, or the running mean of the last training losses.
        history: One row for each validation: step, loss, valid, learning_rate, seconds.
        stopped_early: Whether patience ran out.
    """

    steps: int
    seconds: float
    best_step: int
    best_loss: float
    history: list[dict[str, float]] = field(default_factory=list)
    stopped_early: bool = False


def fit(
    model: AutoregressiveModel,
    x_train: Tensor | RowStream,
    x_valid: Tensor | None = None,
    config: TrainConfig | None = None,
    condition_train: Tensor | None = None,
    condition_valid: Tensor | None = None,
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
    loggers: Sequence[Logger] = (),
    objective: Callable[..., Tensor] | None = None,
) -> FitResult:
    """Train a model in place.

    All randomness is a function of the seed and the step, so a run that is killed and resumed ends with the same
    weights as one that was not. The model's shift and scale become those of ``x_train`` (``config.standardise``), it
    moves to ``config.device`` and ends in evaluation mode, with the averaged weights of the best validation, or of the
    last step without ``x_valid``.

    Arguments:
        model: The model.
        x_train: ``(N, D)`` in data units, or a :class:`~arcsm.data.streams.RowStream` of them.
        x_valid: Held-out rows, ``(M, D)``, of which the first ``config.validation_rows`` choose the weights and, with
            ``config.patience``, end the training.
        config: How to train.
        condition_train: Conditions of the rows, ``(N, F)`` or labels ``(N,)``.
        condition_valid: Conditions of the held-out rows.
        run: Folder for checkpoints, the model and its log; ``None`` to keep nothing on disk.
        resume: Go on from the checkpoint in ``run``, if there is one.
        progress: Show a progress bar (on a terminal).
        loggers: Those of Lightning, which get what ``metrics.csv`` gets: for example
            ``lightning.pytorch.loggers.WandbLogger`` or ``MLFlowLogger``.
        objective: A function of your own in place of the objective of ``config``. It is called as those of
            :mod:`arcsm.objectives` are, ``objective(model, x, condition=..., generator=...)``, and returns the mean
            loss of the rows. If a batch is processed in parts, ``generator`` is a ``Share`` of the batch's randomness,
            which the objectives of this package accept. A checkpoint does not record the function: pass the same one
            when you resume.

    Returns:
        What came out; the weights are in ``model``.

    Raises:
        ValueError: for data or conditions that do not fit the model, constant columns that cannot be standardised, a
            checkpoint of another configuration or other data, or a folder that holds a run and no ``resume``.
        TrainingDiverged: at the first loss or gradient that is not finite.
        KeyboardInterrupt: after Ctrl-C (or the signal TERM), at the end of a step and with a checkpoint in ``run``.

    Warns:
        TrainingWarning: without ``x_valid``, if the loss clearly ended higher than it had been; for an objective that
            trains one noise level of several.

    Example:
        >>> from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead
        >>> model = AutoregressiveModel(MADE(2, 4, (16,)), ScoreHead(4, (16,)), NoiseLadder(1.0, 0.1, 5))
        >>> result = fit(model, torch.randn(256, 2), config=TrainConfig(steps=5, device="cpu"))
        >>> result.steps
        5
    """
    config = config or TrainConfig()
    check_unused(run, resume)
    trainer = _Trainer(model, x_train, x_valid, config, condition_train, condition_valid, run, loggers, objective)
    if resume:
        trainer.restore()
    trainer.agree()
    return trainer.train(progress)


def check_unused(run: str | os.PathLike[str] | None, resume: bool) -> None:
    """A folder that holds a run is gone on with, or left alone.

    Raises:
        ValueError: for one that is not to be gone on with.
    """
    if run is not None and not resume and any((Path(run) / name).exists() for name in (STATE_NAME, WEIGHTS_NAME)):
        raise ValueError(f"{run}: holds a run already; give resume=True to go on with it, or another folder")


def check_same_data(path: Path, header: Mapping[str, Any], data: Mapping[str, int]) -> None:
    """A checkpoint must be of the same rows; of older ones nothing is known.

    Raises:
        ValueError: for one of others.
    """
    began = header.get("data", {})
    if any(data.get(name) != value for name, value in began.items()):
        counts = f"{began.get('rows')} rows then, {data['rows']} now"
        raise ValueError(f"{path}: the run began with other data ({counts}); begin again in another folder")


class _Loss(nn.Module):
    """The objective as a module, so that wrappers of modules (precision, processes) cover the whole loss."""

    def __init__(self, model: AutoregressiveModel, objective: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, condition: Tensor | None, generator: Source) -> Tensor:
        return self.objective(self.model, x, condition=condition, generator=generator)


class _Trainer:
    def __init__(
        self,
        model: AutoregressiveModel,
        x_train: Tensor | RowStream,
        x_valid: Tensor | None,
        config: TrainConfig,
        condition_train: Tensor | None,
        condition_valid: Tensor | None,
        run: str | os.PathLike[str] | None,
        loggers: Sequence[Logger] = (),
        objective: Callable[..., Tensor] | None = None,
    ) -> None:
        self.config, self.model = config, model
        if objective is None:
            check_objective(model, config)
        self.objective = objective or objective_of(config)
        self.run = None if run is None else Path(run)
        self.group = process_group.group()
        device = self.group.device(config.device)
        self.device = device
        self.source: Rows
        if isinstance(x_train, RowStream):
            self.source = OnDisk(checked_stream(model, x_train, condition_train), model.shift.to(device))
        else:
            rows = checked(model, x_train, "x_train")
            check_told_apart(model, x_train)
            self.source = InMemory(*on_device(device, rows, condition_train, model.context))
        self.held_out: tuple[Tensor, Tensor | None] | None = None
        if x_valid is not None:
            rows = checked(model, x_valid, "x_valid").detach()
            self.held_out = on_device(device, rows, condition_valid, model.context, config.validation_rows)
        self.data = fingerprint(x_train, condition_train)
        if x_valid is not None:
            self.data["held_out"] = fingerprint(x_valid, condition_valid)["checksum"]
        self.dequantise = widths(config, model.features).to(device)
        standardise(model, x_train, config)

        self.batch = min(config.batch_size, len(self.source))
        self.parts = own_parts(self.group, self.batch, config.accumulate)
        self.steps_per_epoch = len(self.source) // self.batch
        self.total = config.steps
        if config.epochs is not None:
            self.total = max(1, math.ceil(config.epochs * self.steps_per_epoch))

        self.fabric = fabric_of(self.group, device, config.precision, loggers)
        model.train()
        self.loss = _Loss(model.to(device), self.objective)
        self.optimizer = optimizer_of(model, config)
        self.average = AveragedModel(model, multi_avg_fn=averaging(config.ema))
        self.wrapped, self.wrapped_optimizer = self.fabric.setup(self.loss, self.optimizer)
        self.has_dropout = any(is_random(layer) for layer in model.modules())
        self.step = 0
        self.seconds = 0.0
        self.best = {"step": 0, "loss": math.inf, "missed": 0}
        self.running = math.nan  # mean of the last training losses
        self.best_weights = _copies(model.state_dict())  # until there are better ones
        self.history: list[dict[str, float]] = []
        self.epoch: tuple[int, Epoch] | None = None

    def agree(self) -> None:
        """Processes that work as one begin at the same step, with as many rows and the same weights."""
        if self.group.size == 1:
            return
        weights = sum(float(p.detach().double().sum()) for p in self.model.parameters())
        self.group.check_same([self.step, self.total, len(self.source), weights], "steps, data or weights")

    # One step ---------------------------------------------------------------------------------------------------

    def generator(self, purpose: int, step: int) -> torch.Generator:
        """Randomness of a step: a function of the seed, the purpose and the step alone."""
        return torch.Generator(self.device).manual_seed(self.seed(purpose, step))

    def seed(self, purpose: int, step: int) -> int:
        return fold_in(self.config.seed, purpose, step)

    @contextmanager
    def seeded_dropout(self, part: int) -> Iterator[None]:
        """Dropout takes its noise from torch's own generator, which is seeded for the step and put back after it."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=self.has_dropout):
            if self.has_dropout:
                torch.manual_seed(self.seed(4 + 4 * part, self.step))
            yield

    def rows(self, step: int, part: slice) -> tuple[Tensor, Tensor | None]:
        """A part of the rows of a step, which are the next in an order that is new for each epoch; and conditions."""
        number, place = divmod(step, self.steps_per_epoch)
        if self.epoch is None or self.epoch[0] != number:
            self.epoch = (number, self.source.epoch(self.seed(1, number)))
        first = place * self.batch
        return self.epoch[1].rows(slice(first + part.start, first + part.stop))

    def learning_rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        if self.config.schedule == "constant":
            return self.config.learning_rate * warm
        return self.config.learning_rate * warm * 0.5 * (1.0 + math.cos(math.pi * step / self.total))

    def advance(self) -> float:
        """One optimizer step; returns the loss of the whole batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        losses = [self.backward(number, part) for number, part in self.parts.items()]
        loss = float(self.group.sum(torch.stack(losses).sum()))
        if not math.isfinite(loss):
            self.diverged(f"the loss is {loss}")
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if not math.isfinite(float(norm)):
            self.diverged(f"the norm of the gradient is {float(norm)}")
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.clip_norm, norm)
        self.wrapped_optimizer.step()
        self.average.update_parameters(self.model)
        self.step += 1
        return loss

    def backward(self, number: int, part: slice) -> Tensor:
        """Add the gradient of a part of the batch; returns its share of the loss.

        Arguments:
            number: Its number among the parts of all processes.
            part: Its place within the batch.
        """
        rows, condition = self.rows(self.step, part)
        generator = self.generator(2, self.step)
        source = generator if len(rows) == self.batch else Share(generator, self.batch, part.start)
        x = dequantised(rows, self.dequantise, source)
        share = len(rows) / self.batch
        with self.unsynchronised(number), self.seeded_dropout(number):
            loss = self.wrapped(x, condition, source)
            self.fabric.backward(loss * (share * self.group.size))  # as processes average their gradients
        return loss.detach() * share

    def unsynchronised(self, number: int) -> AbstractContextManager[Any]:
        """Gradients of all parts but the last stay within the process."""
        if self.group.size == 1 or number == max(self.parts):
            return nullcontext()
        return self.fabric.no_backward_sync(self.wrapped)

    def diverged(self, cause: str) -> None:
        """Put the last good weights into the model, and stop."""
        bad = [name for name, p in self.model.named_parameters() if not bool(torch.isfinite(p).all())]
        self.model.load_state_dict(self.best_weights)
        self.model.eval()
        if self.run is not None and self.group.first:
            save(self.model, self.run)
        where = f"; {bad[0]} is not finite" if bad else ""
        raise TrainingDiverged(
            f"step {self.step}: {cause}{where}. The model holds the weights of step {self.best['step']}; lower "
            f"learning_rate ({self.config.learning_rate:g}) or clip_norm, or check the data for extreme values"
        )

    @torch.no_grad()
    def validate(self) -> float:
        """The objective on held-out rows, with the averaged weights and always the same noise.

        Batches are shared among the processes.
        """
        assert self.held_out is not None
        averaged = self.average.module
        averaged.eval()
        x, condition = self.held_out
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(x), _VALIDATION_BATCH)[self.group.rank :: self.group.size]:
            rows = slice(start, start + _VALIDATION_BATCH)
            generator = self.generator(3, start)
            part = dequantised(x[rows], self.dequantise, generator)
            value = self.objective(
                averaged, part, condition=None if condition is None else condition[rows], generator=generator
            )
            total += float(value) * len(part)
        return float(self.group.sum(total)) / len(x)

    # The loop ---------------------------------------------------------------------------------------------------

    def train(self, progress: bool) -> FitResult:
        log = TrainingLog(self.run if self.group.first else None, self.history, self.config.tensorboard)
        begun, last_saved = time.monotonic() - self.seconds, time.monotonic()
        stopped = self.has_stopped()
        shown, patient = progress and self.group.first, self.group.size > 1
        with self.logged(), track("training", self.total, shown) as bar, log, stop_requested(patient) as asked:
            bar(self.step)
            while self.step < self.total and not stopped:
                value = self.advance()
                self.running = value if math.isnan(self.running) else 0.98 * self.running + 0.02 * value
                bar(note=f"loss {self.running:.4g}")
                self.seconds = time.monotonic() - begun
                if self.step % self.config.validate_every == 0 or self.step == self.total:
                    stopped = self.assess(self.running, log)
                asked_any = self.group.any(asked() or launcher.is_orphaned())
                due = time.monotonic() - last_saved >= self.config.checkpoint_seconds or asked_any
                if self.run is not None and due:
                    self.save_state()
                    last_saved = time.monotonic()
                if asked_any:
                    raise KeyboardInterrupt(f"interrupted after step {self.step}")
        self.finish()
        self.warn_if_it_broke_down()
        return FitResult(self.step, self.seconds, int(self.best["step"]), self.best["loss"], self.history, stopped)

    def assess(self, running: float, log: TrainingLog) -> bool:
        """Validate, keep the weights if they are the best so far, and say whether to stop."""
        row = {"step": float(self.step), "loss": running, "learning_rate": self.learning_rate(self.step - 1)}
        judged = running
        if self.held_out is not None:
            judged = row["valid"] = self.validate()
        row["seconds"] = self.seconds
        self.history.append(row)
        log.write(row)
        self.fabric.log_dict({name: value for name, value in row.items() if name != "step"}, self.step)
        if not math.isfinite(judged) and not math.isfinite(self.best["loss"]):
            self.diverged(f"the objective of held-out rows is {judged}; one of them may be far from all others")
        if self.held_out is None or judged < self.best["loss"]:
            self.best = {"step": self.step, "loss": judged, "missed": 0}
            self.best_weights = _copies(self.average.module.state_dict())
        else:
            self.best["missed"] += 1
        return self.has_stopped()

    def has_stopped(self) -> bool:
        """Whether validations have not improved for as long as patience lasts."""
        return self.config.patience is not None and self.best["missed"] >= self.config.patience

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Loggers learn how the run was meant and how it ended."""
        for logger in self.fabric.loggers:
            with suppress(NotImplementedError):  # of those that keep numbers alone
                logger.log_hyperparams(self.config.model_dump(mode="json"))
        status = "failed"
        try:
            yield
            status = "success"
        except KeyboardInterrupt:
            status = "aborted"
            raise
        finally:
            for logger in self.fabric.loggers:
                logger.finalize(status)

    def finish(self) -> None:
        if self.run is not None:
            self.save_state()
        self.model.load_state_dict(self.best_weights)
        self.model.eval()
        if self.run is not None and self.group.first:
            save(self.model, self.run)
        self.group.wait()  # all may read what the first has written

    def warn_if_it_broke_down(self) -> None:
        """Say if training broke down on the way. With held-out rows the weights are from before that anyway."""
        worse = ended_worse(self.history) if self.held_out is None and self.group.first else None
        if worse is not None:
            warn(
                f"training broke down after step {worse.step}: its loss rose from {worse.best:.4g} to {worse.last:.4g} "
                f"and the model holds the last weights; lower learning_rate ({self.config.learning_rate:g}), or give "
                "rows for validation",
                TrainingWarning,
            )

    # Checkpoints ------------------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Everything that the next step depends on, in one file; it is the same in all processes."""
        assert self.run is not None
        if not self.group.first:
            return
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"average.{name}": t for name, t in self.average.state_dict().items()}
        tensors |= {f"best.{name}": t for name, t in self.best_weights.items()}
        tensors |= {f"optimizer.{name}": t for name, t in serialization.optimizer_tensors(self.optimizer).items()}
        tensors = {name: t.clone() for name, t in tensors.items()}  # no tensor may share memory with another
        header = {
            "kind": "training state",
            "step": self.step,
            "seconds": self.seconds,
            "best": {**self.best, "loss": _json_float(self.best["loss"])},
            "running": _json_float(self.running),
            "history": self.history,
            "data": self.data,
            "train": _comparable(self.config),
            "model": self.model.config(),
        }
        serialization.write_tensors(self.run / STATE_NAME, tensors, header)

    def restore(self) -> None:
        """Go on from the checkpoint in the run folder, if there is one."""
        path = None if self.run is None else self.run / STATE_NAME
        if path is None or not path.exists():
            return
        expected = {"train": _comparable(self.config), "model": self.model.config()}
        completed = {"train": lambda train: _comparable(TrainConfig(**train)), "model": complete_config}
        parts, header = serialization.read_state(path, self.device, expected, completed)
        check_same_data(path, header, self.data)
        serialization.load_state(self.model, parts.get("model", {}), path)
        serialization.load_state(self.average, parts.get("average", {}), path)
        self.best_weights = parts.get("best", {})
        serialization.load_optimizer(self.optimizer, parts.get("optimizer", {}))
        self.step, self.seconds = int(header["step"]), float(header["seconds"])
        self.best = {**header["best"], "loss": float(header["best"]["loss"])}
        self.running = float(header.get("running", math.nan))
        self.history = list(header["history"])


def _copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in state.items()}


def _comparable(config: TrainConfig) -> dict[str, Any]:
    """What must agree for a run to be resumed: all that decides the weights."""
    return config.model_dump(mode="json", exclude={"accumulate", "checkpoint_seconds", "device", "tensorboard"})


def _json_float(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
