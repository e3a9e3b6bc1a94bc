"""Training of densities: :func:`arcsm.fit`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from arcsm._native import start_compiling
from arcsm._runtime import process_group
from arcsm._runtime.conditions import Condition, map_condition
from arcsm._runtime.files import FilePath
from arcsm._runtime.modes import deterministic_operations
from arcsm._runtime.random import Share, Source, dequantised
from arcsm.errors import NonFiniteError, TrainingWarning, warn, without_waiting
from arcsm.model import AutoregressiveModel, save, without_compilation
from arcsm.registry import complete_config
from arcsm.serialization import packed, unpacked
from arcsm.training import data
from arcsm.training.batches import Batch, Rows
from arcsm.training.callbacks import Callback
from arcsm.training.checkpoint import check_unused, json_float
from arcsm.training.config import TrainConfig, check_model_and_config, check_objective, configured_objective
from arcsm.training.log import find_breakdown
from arcsm.training.loop import FitResult, run_training
from arcsm.training.optimization import (
    MakeOptimizer,
    MakeScheduler,
    build_fabric,
    build_optimizer,
    build_scheduler,
    gradient_scaler,
    local_parts,
)
from arcsm.training.purposes import Purpose
from arcsm.training.sources import ShuffledRows, held_out_rows, number_of_steps, training_data
from arcsm.training.task import TrainingTask

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

_VALIDATION_BATCH = 1024
_MOST_SKIPPED = 30  # steps in a row without a finite gradient in half precision, each of which halves a scale


def fit(
    model: AutoregressiveModel,
    x_train: Rows,
    x_valid: Rows | None = None,
    config: TrainConfig | None = None,
    condition_train: Condition | None = None,
    condition_valid: Condition | None = None,
    run: FilePath | None = None,
    resume: bool = False,
    progress: bool = False,
    loggers: Sequence[Logger] = (),
    objective: Callable[..., Tensor] | None = None,
    callbacks: Sequence[Callback] = (),
    optimizer: MakeOptimizer | None = None,
    scheduler: MakeScheduler | None = None,
) -> FitResult:
    """Train a model in place and return a summary.

    All randomness is a function of the seed and the step, so a run that is killed and resumed ends with the weights of
    an uninterrupted one. The model's shift and scale become the moments of ``x_train``, and those for condition vectors
    become the moments of ``condition_train`` (``config.standardise``). Data and conditions may be on any device. The
    model moves to ``config.device`` and ends in evaluation mode, with the averaged weights of the best validation, or
    of the last step without ``x_valid``.

    ``x_train`` and ``x_valid`` may each be

    - a tensor or an array ``(N, D)`` in data units;
    - a map-style ``torch.utils.data.Dataset`` whose items are rows ``x`` or pairs ``(x, condition)``; images are
      flattened;
    - a ``DataLoader``, a list or another iterable of batches ``x`` or ``(x, condition)``, which then sets the batch
      size; an iterator, such as a generator, has one pass, and the training ends with it;
    - a :class:`~arcsm.data.streams.RowStream`, for ``x_train`` alone.

    From a data set or loader, the moments are those of 10,000 rows, or fewer if they are wide. Torch's global generator
    and that of a loader are seeded for each batch; transforms that draw from another are not reproducible. Several
    processes cannot share a loader.

    Arguments:
        x_train: Training rows.
        x_valid: Held-out rows. The first ``config.validation_rows`` of them choose the weights and, with
            ``config.patience``, end the training.
        condition_train: Conditions of the rows of a tensor or array: vectors ``(N, F)``, labels ``(N,)`` or, for a
            model with both, a mapping ``{"classes": labels, "vector": vectors}``.
        condition_valid: Conditions of the held-out rows.
        run: Folder for checkpoints, the model and its log. Default: nothing is written.
        resume: Continue from the checkpoint in ``run``, if there is one. A loader is read past the batches that were
            used in its current pass.
        progress: Show a progress bar with an estimate of the remaining time; if standard error is not a terminal,
            print a line every 30 seconds.
        loggers: Lightning loggers that receive the rows of ``metrics.csv``, for example
            ``lightning.pytorch.loggers.WandbLogger`` or ``MLFlowLogger``.
        objective: Custom function in place of the objective of ``config``. It is called like the functions in
            :mod:`arcsm.objectives`, ``objective(model, x, condition=..., generator=...)``, and returns the mean loss
            of the rows. If a batch is processed in parts, ``generator`` is a ``Share`` of the batch's randomness,
            which the objectives of this package accept. A checkpoint does not record the function: pass the same one
            when you resume.
        callbacks: Functions, which are called after every step, and objects with any of the methods ``on_step``,
            ``on_log``, ``on_validation`` and ``on_checkpoint``. Each gets a
            :class:`~arcsm.training.callbacks.TrainingState`, in every process; ``state.stop()`` ends the training.
        optimizer: Makes a custom optimizer of the model's parameters, in place of the one of ``config``, for example
            ``functools.partial(torch.optim.SGD, lr=0.1)``. ``config.schedule`` and ``config.warmup_steps`` scale its
            learning rates, unless there is a ``scheduler``.
        scheduler: Makes a scheduler of the optimizer, in place of ``config.schedule`` and ``config.warmup_steps``, for
            example ``functools.partial(torch.optim.lr_scheduler.StepLR, step_size=100)``. It advances after every
            step; a ``ReduceLROnPlateau`` after every validation. Checkpoints keep the state of both.

    Raises:
        ValueError: If data or conditions do not fit the model, a column is constant, the checkpoint has another
            configuration, other data or another kind of optimizer, the folder holds a run and ``resume`` is false, the
            folder is not a run but holds a ``metrics.csv`` or ``config.json``, or the model could not be read back from
            ``run`` (:func:`arcsm.save`).
        TypeError: If the model, the configuration, a callback, an optimizer or a scheduler is of another type.
        TrainingDiverged: At the first loss or gradient that is not finite.
        KeyboardInterrupt: After SIGINT, SIGTERM or SIGHUP, at the end of a step and with a checkpoint in ``run``.

    Warns:
        TrainingWarning: If the loss ended clearly higher than it had been and there is no ``x_valid``; if an iterator
            ended before the last step; if a run resumes with persistent workers, whose random numbers go on
            differently; or if the objective trains one noise level of several.

    Example:
        >>> from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead
        >>> model = AutoregressiveModel(MADE(2, 4, (16,)), ScoreHead(4, (16,)), NoiseLadder(1.0, 0.1, 5))
        >>> result = fit(model, torch.randn(256, 2), config=TrainConfig(steps=5, device="cpu"))
        >>> result.steps
        5
    """
    config = TrainConfig() if config is None else config
    check_model_and_config(model, config)
    check_unused(run, resume)
    if run is not None:
        without_compilation(model).check_saveable()
    elif config.tensorboard:
        raise ValueError("tensorboard: expected a folder for the event files; give fit a run, or set tensorboard=False")
    with deterministic_operations(config.deterministic):
        task = DensityTask(
            model, x_train, x_valid, config, condition_train, condition_valid, objective, loggers, optimizer, scheduler
        )
        return run_training(task, None if run is None else Path(run), resume, progress, callbacks)


class _Loss(nn.Module):
    """The objective as a module, so that wrappers for precision and processes cover the whole loss."""

    def __init__(self, model: AutoregressiveModel, objective: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, condition: Condition | None, generator: Source) -> Tensor:
        with without_waiting():  # rows have been checked
            loss = self.objective(self.model, x, condition=condition, generator=generator)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"objective: expected to return a scalar tensor, the mean loss of the rows, got {got}")
        return loss


class DensityTask(TrainingTask):
    """A density in training; see :func:`fit` for the arguments."""

    kind = "training state"
    free_settings: ClassVar[set[str]] = {"accumulate", "checkpoint_seconds", "device", "log_every", "tensorboard"}
    config: TrainConfig

    def __init__(
        self,
        model: AutoregressiveModel,
        x_train: Rows,
        x_valid: Rows | None,
        config: TrainConfig,
        condition_train: Condition | None = None,
        condition_valid: Condition | None = None,
        objective: Callable[..., Tensor] | None = None,
        loggers: Sequence[Logger] = (),
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        if objective is None:
            check_objective(model, config)
        self.model, self.objective = model, objective or configured_objective(config)
        self.group = process_group.group()
        device = self.group.device(config.device)
        if device.type == "cpu":
            start_compiling()
        training = training_data(x_train, condition_train, model, device, config, self.group.size)
        self.source, self.data = training.source, dict(training.source.data)
        self.held_out: Batch | None = None
        if x_valid is not None:
            held_out = held_out_rows(x_valid, condition_valid, model, config.validation_rows)
            self.held_out = data.moved(device, held_out.rows, held_out.condition, config.validation_rows)
            if held_out.checksum is not None:
                self.data["held_out"] = held_out.checksum
        widths = data.dequantisation_widths(config, model)
        self.dequantise = widths.to(device, model.shift.dtype) if bool((widths > 0.0).any()) else widths
        data.set_moments(model, training.rows, training.condition, config)
        data.check_grey_levels(model, training.rows, self.dequantise)

        if isinstance(self.source, ShuffledRows):
            local_parts(self.group, self.source.batch, config.accumulate)  # raises if they are too few
        model.train()
        loss = _Loss(model.to(device), self.objective)
        uncompiled = without_compilation(model)  # has the weights under the names that files use
        super().__init__(uncompiled, config, number_of_steps(config, self.source), device, loggers)
        self.planned_steps = self.steps
        self.tensorboard, self.log_every = config.tensorboard, config.log_every
        self.fabric = build_fabric(self.group, device, config.precision)
        self.optimizer = build_optimizer(model, config, optimizer)
        self.last_rate = float(self.optimizer.param_groups[0]["lr"])
        self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.scheduler = build_scheduler(self.optimizer, config, scheduler)
        self.is_custom = optimizer is not None or scheduler is not None
        self.loss, self.wrapped_optimizer = self.fabric.setup(loss, self.optimizer)
        self.scaler, self.skipped = gradient_scaler(self.fabric), 0
        self.best_validation = {"step": 0, "loss": math.inf, "missed": 0}
        self.best_weights: Mapping[str, Tensor] = copy.deepcopy(uncompiled.state_dict())

    def prepare(self, stop: Callable[[], bool], progress: bool) -> None:
        """Check that all processes start at the same step, with as many rows and the same weights."""
        if self.group.size > 1:
            weights = sum(float(p.detach().double().sum()) for p in self.model.parameters())
            same = [self.step, self.steps, self.data.get("rows", 0), weights]
            self.group.check_same(same, "steps, data or weights")

    def advance(self) -> float:
        if self.scheduler is None:
            for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = self._scheduled(rate)
        self.last_rate = float(self.optimizer.param_groups[0]["lr"])
        rows = self.source.load(self.step)
        if self.source.ended:
            self.steps = self.step + 1
        self.optimizer.zero_grad(set_to_none=True)
        parts = local_parts(self.group, rows, min(rows, self.config.accumulate))
        losses = [self._backward(rows, parts, number) for number in parts]
        total = self.group.sum(torch.stack(losses).sum())
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norms = torch.nn.utils.get_total_norm([p.grad for p in self._current[0] if p.grad is not None])
        dtype = torch.promote_types(total.dtype, norms.dtype)
        loss, norm = torch.stack([total.to(dtype), norms.to(dtype)]).tolist()  # the host waits here alone
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss}")
        is_finite = math.isfinite(norm)
        self.skipped = 0 if is_finite else self.skipped + 1
        if not is_finite and (self.scaler is None or self.skipped > _MOST_SKIPPED):
            raise NonFiniteError(f"the norm of the gradient is {norm}")
        if is_finite and self.config.clip_norm is not None and norm > self.config.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self._current[0], self.config.clip_norm, torch.tensor(norm))
        self.wrapped_optimizer.step()  # in half precision, an infinite gradient changes the scale of losses alone
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        self.update_average()
        return loss

    def _backward(self, batch: int, parts: Mapping[int, slice], number: int) -> Tensor:
        """Add the gradient of the part of a batch with this number and return its share of the loss."""
        part = parts[number]
        rows, condition = self.source.part(part)
        generator = self.generator(Purpose.NOISE, self.step)
        source = generator if len(rows) == batch else Share(generator, batch, part.start)
        x = dequantised(rows, self.dequantise, source)
        share = len(rows) / batch
        last = self.group.size == 1 or number == max(parts)  # processes exchange gradients once a step
        with nullcontext() if last else self.fabric.no_backward_sync(self.loss), self.seeded_dropout(number):
            loss: Tensor = self.loss(x, condition, source)
            self.fabric.backward(loss * (share * self.group.size))  # processes average their gradients
        return loss.detach() * share

    def seeded_dropout(self, part: int) -> AbstractContextManager[None]:
        """Seed torch's global generator, from which dropout in any form draws, for a part of this step."""
        return self.global_generator(Purpose.DROPOUT + 4 * part)

    def _scheduled(self, rate: float) -> float:
        """Return the learning rate of this step by the schedule of the configuration, from its peak."""
        warm = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        if self.config.schedule == "constant":
            return rate * warm
        return rate * warm * 0.5 * (1.0 + math.cos(math.pi * self.step / self.planned_steps))

    @property
    def learning_rate(self) -> float:
        return self.last_rate

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the objective on held-out rows, with the averaged weights and the same noise each time.

        Processes share the batches.
        """
        if self.held_out is None:
            return {}
        averaged = self.average.module
        averaged.eval()
        x, condition = self.held_out
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(x), _VALIDATION_BATCH)[self.group.rank :: self.group.size]:
            rows = slice(start, start + _VALIDATION_BATCH)
            generator = self.generator(Purpose.VALIDATION, start)
            part = dequantised(x[rows], self.dequantise, generator)
            its = map_condition(lambda c, rows=rows: c[rows], condition)
            with without_waiting():
                value = self.objective(averaged, part, condition=its, generator=generator)
            total += float(value) * len(part)
        return {"valid": float(self.group.sum(total)) / len(x)}

    def assess(self, row: Mapping[str, float]) -> None:
        loss = row["loss"] if self.held_out is None else row["valid"]
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss)
        if not math.isfinite(loss) and not math.isfinite(self.best_validation["loss"]):
            raise NonFiniteError(f"the objective on held-out rows is {loss}; one of them may be far from all others")
        if self.held_out is None or loss < self.best_validation["loss"]:
            self.best_validation = {"step": self.step, "loss": loss, "missed": 0}
            self.best_weights = copy.deepcopy(self.average.module.state_dict())
        else:
            self.best_validation["missed"] += 1

    @property
    def stopped_early(self) -> bool:
        return self.config.patience is not None and self.best_validation["missed"] >= self.config.patience

    @property
    def best(self) -> tuple[int, float]:
        return int(self.best_validation["step"]), self.best_validation["loss"]

    def load_best_weights(self) -> None:
        self.module.load_state_dict(self.best_weights)
        self.model.eval()
        self.module.eval()

    def save(self, run: Path) -> None:
        save(self.model, run)

    def explain(self, cause: str) -> str:
        broken = [name for name, p in self.module.named_parameters() if not bool(torch.isfinite(p).all())]
        where = f"; {broken[0]} is not finite" if broken else ""
        return (
            f"{cause}{where}. The model holds the weights of step {self.best_validation['step']}; lower learning_rate "
            f"({self.config.learning_rate:g}) or clip_norm, or check the data for extreme values"
        )

    def warn_if_poor(self) -> None:
        """Warn if the data ended early, or if training broke down.

        With held-out rows, the best weights predate the breakdown.
        """
        if self.source.ended and self.step < self.planned_steps:
            warn(
                f"x_train ended after {self.step} of {self.planned_steps} steps; give something that can be iterated "
                "again, such as a DataLoader, or fewer steps",
                TrainingWarning,
            )
        breakdown = find_breakdown(self.history) if self.held_out is None and self.group.first else None
        if breakdown is not None:
            warn(
                f"training broke down after step {breakdown.step}: its loss rose from {breakdown.best:.4g} to "
                f"{breakdown.last:.4g} and the model holds the last weights; lower learning_rate "
                f"({self.config.learning_rate:g}), or provide validation rows",
                TrainingWarning,
            )

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        tensors = {**super().tensors(), "best": self.best_weights}
        if self.is_custom:
            states = {"optimizer": self.optimizer.state_dict()}
            if self.scheduler is not None:
                states["scheduler"] = self.scheduler.state_dict()
            tensors |= {"optimizer": {}, "custom": {name: packed(state) for name, state in states.items()}}
        if self.scaler is not None:
            tensors["custom"] = {**tensors.get("custom", {}), "scaler": packed(self.scaler.state_dict())}
        return tensors

    def header(self) -> dict[str, Any]:
        best = {**self.best_validation, "loss": json_float(self.best_validation["loss"])}
        return {**super().header(), "best": best, "position": self.source.position, "kinds": self._kinds()}

    def _kinds(self) -> dict[str, str | None]:
        """Return the classes of the optimizer and of a custom scheduler."""
        scheduler = None if self.scheduler is None else type(self.scheduler).__qualname__
        custom = "custom " if self.is_custom else ""
        return {"optimizer": custom + type(self.optimizer).__qualname__, "scheduler": scheduler}

    @property
    def completions(self) -> Mapping[str, Callable[[Any], Any]]:
        return {**super().completions, "model": complete_config}

    def load_state(self, tensors: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, Any], path: Path) -> None:
        for name, now in self._kinds().items():
            before = header.get("kinds", {}).get(name, now)
            if before != now:
                raise ValueError(
                    f"{path}: the run was trained with another {name} ({before or 'that of the configuration'} then, "
                    f"{now or 'that of the configuration'} now); pass the same {name}, or use another run folder"
                )
        super().load_state(tensors, header, path)
        targets: dict[str, Any] = {"optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        for name, state in tensors.get("custom", {}).items():
            targets[name].load_state_dict(unpacked(state, path))
        self.best_weights = dict(tensors.get("best", {}))
        self.best_validation = {**header["best"], "loss": float(header["best"]["loss"])}
        self.source.resume(int(header["step"]), int(header.get("position", 0)))
        if self.source.ended:
            self.steps = int(header["step"])
