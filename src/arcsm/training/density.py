"""Training of densities: :func:`arcsm.fit`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from arcsm._runtime import process_group
from arcsm._runtime.files import FilePath
from arcsm._runtime.random import Share, Source, dequantised
from arcsm.data.streams import RowStream
from arcsm.errors import NonFiniteError, TrainingWarning, warn
from arcsm.model import AutoregressiveModel, check_saveable, save, without_compilation
from arcsm.registry import complete_config
from arcsm.training import data
from arcsm.training.checkpoint import check_unused, json_float
from arcsm.training.config import TrainConfig, check_objective, configured_objective
from arcsm.training.log import find_breakdown
from arcsm.training.loop import FitResult, run_training
from arcsm.training.optimization import build_fabric, build_optimizer, local_parts, uses_global_generator
from arcsm.training.task import TrainingTask

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

_VALIDATION_BATCH = 1024
_ORDER, _NOISE, _VALIDATION, _DROPOUT = 1, 2, 3, 4  # purposes of random numbers


def fit(
    model: AutoregressiveModel,
    x_train: Tensor | RowStream,
    x_valid: Tensor | None = None,
    config: TrainConfig | None = None,
    condition_train: Tensor | None = None,
    condition_valid: Tensor | None = None,
    run: FilePath | None = None,
    resume: bool = False,
    progress: bool = False,
    loggers: Sequence[Logger] = (),
    objective: Callable[..., Tensor] | None = None,
) -> FitResult:
    """Train a model in place.

    All randomness is a function of the seed and the step, so a run that is killed and resumed ends with the weights of
    an uninterrupted one. The model's shift and scale become the moments of ``x_train`` (``config.standardise``). The
    model moves to ``config.device`` and ends in evaluation mode, with the averaged weights of the best validation, or
    of the last step without ``x_valid``.

    Arguments:
        model: The model.
        x_train: ``(N, D)`` in data units, or a :class:`~arcsm.data.streams.RowStream`.
        x_valid: Held-out rows, ``(M, D)``. The first ``config.validation_rows`` of them choose the weights and, with
            ``config.patience``, end the training.
        config: How to train.
        condition_train: Conditions of the rows, ``(N, F)`` or labels ``(N,)``.
        condition_valid: Conditions of the held-out rows.
        run: Folder for checkpoints, the model and its log. Default: nothing is written.
        resume: Continue from the checkpoint in ``run``, if there is one.
        progress: Show a progress bar with an estimate of the remaining time; if standard error is not a terminal,
            print a line every 30 seconds.
        loggers: Lightning loggers that receive the rows of ``metrics.csv``, for example
            ``lightning.pytorch.loggers.WandbLogger`` or ``MLFlowLogger``.
        objective: Custom function in place of the objective of ``config``. It is called like the functions in
            :mod:`arcsm.objectives`, ``objective(model, x, condition=..., generator=...)``, and returns the mean loss
            of the rows. If a batch is processed in parts, ``generator`` is a ``Share`` of the batch's randomness,
            which the objectives of this package accept. A checkpoint does not record the function: pass the same one
            when you resume.

    Returns:
        A summary of the training; the weights are in ``model``.

    Raises:
        ValueError: If data or conditions do not fit the model, a column is constant, the checkpoint has another
            configuration or other data, the folder holds a run and ``resume`` is false, or the model could not be
            read back from ``run`` because its context or head is not registered.
        TrainingDiverged: At the first loss or gradient that is not finite.
        KeyboardInterrupt: After SIGINT or SIGTERM, at the end of a step and with a checkpoint in ``run``.

    Warns:
        TrainingWarning: If the loss ended clearly higher than it had been and there is no ``x_valid``; or if the
            objective trains one noise level of several.

    Example:
        >>> from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead
        >>> model = AutoregressiveModel(MADE(2, 4, (16,)), ScoreHead(4, (16,)), NoiseLadder(1.0, 0.1, 5))
        >>> result = fit(model, torch.randn(256, 2), config=TrainConfig(steps=5, device="cpu"))
        >>> result.steps
        5
    """
    check_unused(run, resume)
    if run is not None:
        check_saveable(model)
    task = DensityTask(
        model, x_train, x_valid, config or TrainConfig(), condition_train, condition_valid, objective, loggers
    )
    return run_training(task, None if run is None else Path(run), resume, progress)


class _Loss(nn.Module):
    """The objective as a module, so that wrappers for precision and processes cover the whole loss."""

    def __init__(self, model: AutoregressiveModel, objective: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, condition: Tensor | None, generator: Source) -> Tensor:
        return self.objective(self.model, x, condition=condition, generator=generator)


class DensityTask(TrainingTask):
    """A density in training; see :func:`fit` for the arguments."""

    kind = "training state"
    free_settings: ClassVar[set[str]] = {"accumulate", "checkpoint_seconds", "device", "tensorboard"}
    config: TrainConfig

    def __init__(
        self,
        model: AutoregressiveModel,
        x_train: Tensor | RowStream,
        x_valid: Tensor | None,
        config: TrainConfig,
        condition_train: Tensor | None = None,
        condition_valid: Tensor | None = None,
        objective: Callable[..., Tensor] | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        if objective is None:
            check_objective(model, config)
        self.model, self.objective = model, objective or configured_objective(config)
        self.group = process_group.group()
        device = self.group.device(config.device)
        self.source: data.RowsInMemory | data.RowsOnDisk
        if isinstance(x_train, RowStream):
            if condition_train is not None:
                raise ValueError("condition_train: expected none; streamed rows have no conditions")
            if x_train.shape[1] != model.features:
                raise ValueError(f"x_train: expected rows of {model.features} columns, got {x_train.shape[1]}")
            self.source = data.RowsOnDisk(x_train, model.shift.to(device))
        else:
            rows = data.check_rows(model, x_train, "x_train")
            data.check_resolution(model, x_train)
            self.source = data.RowsInMemory(*data.to_device(device, rows, condition_train, model.context))
        self.held_out: tuple[Tensor, Tensor | None] | None = None
        if x_valid is not None:
            rows = data.check_rows(model, x_valid, "x_valid").detach()
            self.held_out = data.to_device(device, rows, condition_valid, model.context, config.validation_rows)
        self.data = data.fingerprint(x_train, condition_train)
        if x_valid is not None:
            self.data["held_out"] = data.fingerprint(x_valid, condition_valid)["checksum"]
        self.dequantise = data.dequantisation_widths(config, model.features).to(device)
        data.standardise(model, x_train, config)

        self.batch = min(config.batch_size, len(self.source))
        self.parts = local_parts(self.group, self.batch, config.accumulate)
        self.steps_per_epoch = len(self.source) // self.batch
        steps = config.steps if config.epochs is None else max(1, math.ceil(config.epochs * self.steps_per_epoch))
        model.train()
        loss = _Loss(model.to(device), self.objective)
        uncompiled = without_compilation(model)  # has the weights under the names that files use
        uncompiled.shift, uncompiled.scale = model.shift, model.scale
        super().__init__(uncompiled, config, steps, device, loggers)
        self.tensorboard = config.tensorboard
        self.fabric = build_fabric(self.group, device, config.precision)
        self.optimizer = build_optimizer(model, config)
        self.loss, self.wrapped_optimizer = self.fabric.setup(loss, self.optimizer)
        self.uses_global_generator = any(uses_global_generator(layer) for layer in model.modules())
        self.best_validation = {"step": 0, "loss": math.inf, "missed": 0}
        self._best_weights = _detached_copy(uncompiled.state_dict())
        self.epoch: tuple[int, data.Epoch] | None = None

    def prepare(self, stop: Callable[[], bool], progress: bool) -> None:
        """Check that all processes start at the same step, with as many rows and the same weights."""
        if self.group.size > 1:
            weights = sum(float(p.detach().double().sum()) for p in self.model.parameters())
            self.group.check_same([self.step, self.steps, len(self.source), weights], "steps, data or weights")

    def advance(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        losses = [self._backward(number, part) for number, part in self.parts.items()]
        loss = float(self.group.sum(torch.stack(losses).sum()))
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss}")
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if not math.isfinite(float(norm)):
            raise NonFiniteError(f"the norm of the gradient is {float(norm)}")
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.clip_norm, norm)
        self.wrapped_optimizer.step()
        self.average.update_parameters(self.model)
        return loss

    def _backward(self, number: int, part: slice) -> Tensor:
        """Add the gradient of the part of the batch with this number and return its share of the loss."""
        rows, condition = self._rows(part)
        generator = self.generator(_NOISE, self.step)
        source = generator if len(rows) == self.batch else Share(generator, self.batch, part.start)
        x = dequantised(rows, self.dequantise, source)
        share = len(rows) / self.batch
        last = self.group.size == 1 or number == max(self.parts)  # processes exchange gradients once a step
        with nullcontext() if last else self.fabric.no_backward_sync(self.loss), self.seeded_dropout(number):
            loss: Tensor = self.loss(x, condition, source)
            self.fabric.backward(loss * (share * self.group.size))  # processes average their gradients
        return loss.detach() * share

    def _rows(self, part: slice) -> tuple[Tensor, Tensor | None]:
        """Return rows of this step's batch, and their conditions; each epoch has a new order."""
        number, place = divmod(self.step, self.steps_per_epoch)
        if self.epoch is None or self.epoch[0] != number:
            self.epoch = (number, self.source.epoch(self.seed(_ORDER, number)))
        first = place * self.batch
        return self.epoch[1](slice(first + part.start, first + part.stop))

    def seeded_dropout(self, part: int) -> AbstractContextManager[None]:
        """Seed the noise of dropout for a part of this step."""
        return self.global_generator(_DROPOUT + 4 * part, self.uses_global_generator)

    def _learning_rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        if self.config.schedule == "constant":
            return self.config.learning_rate * warm
        return self.config.learning_rate * warm * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))

    @property
    def learning_rate(self) -> float:
        return self._learning_rate(self.step - 1)

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
            generator = self.generator(_VALIDATION, start)
            part = dequantised(x[rows], self.dequantise, generator)
            value = self.objective(
                averaged, part, condition=None if condition is None else condition[rows], generator=generator
            )
            total += float(value) * len(part)
        return {"valid": float(self.group.sum(total)) / len(x)}

    def assess(self, row: Mapping[str, float]) -> None:
        loss = row["loss"] if self.held_out is None else row["valid"]
        if not math.isfinite(loss) and not math.isfinite(self.best_validation["loss"]):
            raise NonFiniteError(f"the objective on held-out rows is {loss}; one of them may be far from all others")
        if self.held_out is None or loss < self.best_validation["loss"]:
            self.best_validation = {"step": self.step, "loss": loss, "missed": 0}
            self._best_weights = _detached_copy(self.average.module.state_dict())
        else:
            self.best_validation["missed"] += 1

    @property
    def stopped_early(self) -> bool:
        return self.config.patience is not None and self.best_validation["missed"] >= self.config.patience

    @property
    def best(self) -> tuple[int, float]:
        return int(self.best_validation["step"]), self.best_validation["loss"]

    @property
    def best_weights(self) -> Mapping[str, Tensor]:
        return self._best_weights

    def load_best_weights(self) -> None:
        super().load_best_weights()
        self.model.eval()

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
        """Warn if training broke down. With held-out rows, the best weights predate the breakdown."""
        breakdown = find_breakdown(self.history) if self.held_out is None and self.group.first else None
        if breakdown is not None:
            warn(
                f"training broke down after step {breakdown.step}: its loss rose from {breakdown.best:.4g} to "
                f"{breakdown.last:.4g} and the model holds the last weights; lower learning_rate "
                f"({self.config.learning_rate:g}), or provide validation rows",
                TrainingWarning,
            )

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        return {**super().tensors(), "best": self._best_weights}

    def header(self) -> dict[str, Any]:
        best = {**self.best_validation, "loss": json_float(self.best_validation["loss"])}
        return {**super().header(), "best": best}

    @property
    def completions(self) -> Mapping[str, Callable[[Any], Any]]:
        return {**super().completions, "model": complete_config}

    def load_state(self, tensors: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, Any], path: Path) -> None:
        super().load_state(tensors, header, path)
        self._best_weights = dict(tensors.get("best", {}))
        self.best_validation = {**header["best"], "loss": float(header["best"]["loss"])}


def _detached_copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in state.items()}
