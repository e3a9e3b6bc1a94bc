"""What the training loop drives: the interface of a model in training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger


class LoopSettings(Protocol):
    """The part of a training configuration that the loop itself reads."""

    @property
    def validate_every(self) -> int: ...

    @property
    def checkpoint_seconds(self) -> float: ...

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


class TrainingTask(ABC):
    """A model in training, as :func:`~arcsm.training.loop.run_training` drives it.

    A subclass defines an optimizer step, a validation, and the state that a checkpoint holds. All randomness must be a
    function of the seed and of :attr:`step`, so that a resumed run ends with the weights of an uninterrupted one.

    Attributes:
        config: The training configuration.
        steps: Number of optimizer steps in all.
        step: Number of optimizer steps taken.
        device: Where the weights are.
        seconds: Time spent, earlier parts of a resumed run included.
        running_loss: Exponential moving average of the training losses.
        history: One row for each validation.
        tensorboard: Whether to log to TensorBoard too.
        loggers: Lightning loggers that receive the rows of the log.
    """

    kind: ClassVar[str]  #: Name of the kind of checkpoint, in its header.
    loss_name: ClassVar[str] = "loss"
    newest_loss_weight: ClassVar[float] = 0.02  #: Weight of the newest loss in :attr:`running_loss`.
    extra_columns: ClassVar[tuple[str, ...]] = ()  #: Columns of the log beside the common ones.

    def __init__(self, config: LoopSettings, steps: int, device: torch.device, loggers: Sequence[Logger] = ()) -> None:
        self.config, self.steps, self.device, self.loggers = config, steps, device, loggers
        self.tensorboard = False
        self.step, self.seconds = 0, 0.0
        self.running_loss = math.nan
        self.history: list[dict[str, float]] = []

    def prepare(self, stop: Callable[[], bool], progress: bool) -> None:  # noqa: B027
        """Do what precedes the first step of this process; ``stop()`` tells whether the user wants to stop."""

    @abstractmethod
    def advance(self) -> float:
        """Take one optimizer step and return the loss of its batch.

        Raises:
            NonFiniteError: If a loss or gradient is not finite.
        """

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """Learning rate of the last step."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Return the columns that a validation adds to the log, such as ``valid``.

        Raises:
            NonFiniteError: If the model is broken.
        """

    @abstractmethod
    def assess(self, row: Mapping[str, float]) -> None:
        """React to a row of the log: keep the weights if they are the best so far, or warn.

        Raises:
            NonFiniteError: If the model is broken.
        """

    @property
    def stopped_early(self) -> bool:
        """Whether the validations so far end the training before its last step."""
        return False

    @property
    @abstractmethod
    def best(self) -> tuple[int, float]:
        """Step and loss of the weights that :meth:`load_best_weights` puts into the model."""

    @abstractmethod
    def load_best_weights(self) -> None:
        """Put the weights worth keeping into the model, and switch it to evaluation mode."""

    @abstractmethod
    def save(self, run: Path) -> None:
        """Write the model."""

    @abstractmethod
    def explain(self, cause: str) -> str:
        """Return the error message for a model that broke at this step: the cause, and what may help."""

    @abstractmethod
    def warn_if_poor(self) -> None:
        """Warn if the finished model is worse than it could be."""

    @abstractmethod
    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the tensors that the next step depends on, by part."""

    @abstractmethod
    def header(self) -> dict[str, Any]:
        """Return all else that the next step depends on, and what identifies the run: ``data`` and :attr:`identity`."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Callable[[Any], Any]]:
        """The entries of :meth:`header` that a run must share with its checkpoint.

        Each comes with a function that adds the defaults of settings which the version that wrote it did not have.
        """

    @abstractmethod
    def load_state(self, tensors: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, Any], path: Path) -> None:
        """Restore what :meth:`tensors` and :meth:`header` returned; ``path`` is for error messages."""
