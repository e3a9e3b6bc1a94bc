"""What the training loop drives: the interface of a model in training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from arcsm import serialization
from arcsm._runtime.random import fold_in
from arcsm.training.optimization import averaging

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger


class TrainingTask(ABC):
    """A model in training, as :func:`~arcsm.training.loop.run_training` drives it.

    A subclass defines an optimizer step and a validation, and sets ``data`` (a fingerprint) and ``optimizer``. All
    randomness must be a function of the seed and of ``step``, so that a resumed run ends with the weights of an
    uninterrupted one. A loss, gradient or model that is not finite raises ``NonFiniteError``.

    Arguments:
        module: What is trained, on its device.
        config: Training settings, with at least ``seed``, ``ema``, ``validate_every`` and ``checkpoint_seconds``.
        steps: Number of optimizer steps in all.
        loggers: Lightning loggers that receive the rows of the log.
    """

    kind: ClassVar[str]  #: Kind of the checkpoints, in their headers.
    loss_name: ClassVar[str] = "loss"
    newest_loss_weight: ClassVar[float] = 0.02  #: Weight of the newest loss in ``running_loss``.
    extra_columns: ClassVar[tuple[str, ...]] = ()  #: Columns of the log beside the common ones.
    free_settings: ClassVar[set[str]] = {"checkpoint_seconds", "device"}  #: Settings that a resumed run may change.

    config: Any
    data: dict[str, int]
    optimizer: torch.optim.Optimizer

    def __init__(
        self, module: nn.Module, config: BaseModel, steps: int, device: torch.device, loggers: Sequence[Logger] = ()
    ) -> None:
        self.module, self.config, self.steps, self.device, self.loggers = module, config, steps, device, loggers
        self._move = averaging(self.config.ema)
        self.average = AveragedModel(module, multi_avg_fn=self._move)
        both = module, self.average.module
        self._current, self._averaged = ((list[Tensor](one.parameters()), list(one.buffers())) for one in both)
        self.tensorboard = False  # whether to log to TensorBoard too
        self.log_every: int | None = None  # steps between rows of the log without a validation
        self.step, self.seconds = 0, 0.0  # taken and spent, earlier parts of a resumed run included
        self.running_loss = math.nan  # moving average of the training losses
        self.history: list[dict[str, float]] = []  # a row for each validation

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averaged weights towards the current ones, and copy the buffers: ``update_parameters``, sooner."""
        average, count = self.average, int(self.average.n_averaged)
        if count == 0:
            torch._foreach_copy_(self._averaged[0], self._current[0])
        else:
            self._move(self._averaged[0], self._current[0], count)
        if self._current[1]:
            torch._foreach_copy_(self._averaged[1], self._current[1])
        average.n_averaged += 1

    def seed(self, purpose: int, step: int) -> int:
        """Return the seed of a purpose at a step."""
        return fold_in(self.config.seed, purpose, step)

    def generator(self, purpose: int, step: int) -> torch.Generator:
        """Return a generator for a purpose at a step."""
        return torch.Generator(self.device).manual_seed(self.seed(purpose, step))

    @contextmanager
    def global_generator(self, purpose: int, enabled: bool = True) -> Iterator[None]:
        """Seed torch's global generator for this step, if enabled; restore it afterwards."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else [], enabled=enabled):
            if enabled:
                seed = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
                seed(self.seed(purpose, self.step))
            yield

    def prepare(self, stop: Callable[[], bool], progress: bool) -> None:  # noqa: B027
        """Do what precedes the first step of this process; ``stop()`` tells whether the user wants to stop."""

    @abstractmethod
    def advance(self) -> float:
        """Take an optimizer step and return the loss of its batch."""

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Return the columns that a validation adds to the log, such as ``valid``."""

    @abstractmethod
    def assess(self, row: Mapping[str, float]) -> None:
        """Draw conclusions from a row of the log."""

    @property
    def stopped_early(self) -> bool:
        """Whether patience has run out."""
        return False

    @property
    @abstractmethod
    def best(self) -> tuple[int, float]:
        """Step and loss of the best weights."""

    def load_best_weights(self) -> None:
        """Put the best weights into the model, by default their average, and switch it to evaluation mode."""
        self.module.load_state_dict(self.average.module.state_dict())
        self.module.eval()

    @abstractmethod
    def save(self, run: Path) -> None:
        """Write the model."""

    @abstractmethod
    def explain(self, cause: str) -> str:
        """Return the message of a divergence: the cause, and what may help."""

    @abstractmethod
    def warn_if_poor(self) -> None:
        """Warn if the finished model is worse than it could be."""

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the tensors of a checkpoint, by part."""
        optimizer = serialization.optimizer_tensors(self.optimizer)
        return {"model": self.module.state_dict(), "average": self.average.state_dict(), "optimizer": optimizer}

    def header(self) -> dict[str, Any]:
        """Return the header of a checkpoint, without the attributes that all tasks have."""
        model: dict[str, Any] = self.module.config()  # type: ignore[operator]
        return {"data": self.data, "train": self._fixed(self.config), "model": model}

    @property
    def completions(self) -> Mapping[str, Callable[[Any], Any]]:
        """Functions that add later settings to the entries of the header that a resumed run must share."""
        return {"train": lambda train: self._fixed(type(self.config)(**train))}

    def _fixed(self, config: BaseModel) -> dict[str, Any]:
        return config.model_dump(mode="json", exclude=self.free_settings)

    def load_state(self, tensors: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, Any], path: Path) -> None:
        """Restore what :meth:`tensors` and :meth:`header` returned; ``path`` is for error messages."""
        serialization.load_state(self.module, tensors.get("model", {}), path)
        serialization.load_state(self.average, tensors.get("average", {}), path)
        serialization.load_optimizer(self.optimizer, tensors.get("optimizer", {}))
