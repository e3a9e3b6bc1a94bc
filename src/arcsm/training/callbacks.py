"""Callbacks: the user's functions and objects, which the training loop calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from arcsm._runtime import process_group

if TYPE_CHECKING:
    from arcsm.training.task import TrainingTask

Event = Literal["step", "log", "validation", "checkpoint"]

#: A function, called after every step, or an object with any of the methods ``on_step``, ``on_log``, ``on_validation``
#: and ``on_checkpoint``. Each gets the :class:`TrainingState`.
Callback = Callable[["TrainingState"], object] | object

_EVENTS: tuple[Event, ...] = ("step", "log", "validation", "checkpoint")


class TrainingState:
    """The state of the training that a callback sees, and the means to end it.

    Attributes:
        loss: Loss of the last batch.
        metrics: The last row that this process has written to ``metrics.csv``; empty before the first.
    """

    def __init__(self, task: TrainingTask) -> None:
        self._task = task
        self.loss = math.nan
        self.metrics: Mapping[str, float] = {}
        self.stopped = False

    @property
    def step(self) -> int:
        """Number of optimizer steps taken."""
        return self._task.step

    @property
    def steps(self) -> int:
        """Number of optimizer steps in all."""
        return self._task.steps

    @property
    def model(self) -> Any:
        """The model in training, with the weights of the last step."""
        return self._task.module

    @property
    def averaged_model(self) -> Any:
        """A copy of the model with the averaged weights, in evaluation mode; validated, and kept at the end."""
        module: nn.Module = self._task.average.module
        return module.eval()

    @property
    def optimizer(self) -> Any:
        """The optimizer. Every step sets its learning rates anew, unless :func:`arcsm.fit` has a ``scheduler``."""
        return self._task.optimizer

    def stop(self) -> None:
        """End the training after this step. A last validation follows, then the model gets the best weights.

        The checkpoint does not contain that validation, so a resumed run ends with the weights of an uninterrupted one.
        """
        self.stopped = True


class Callbacks:
    """The callbacks of a training task.

    Raises:
        TypeError: If one is neither a function nor an object with any of the methods.
    """

    def __init__(self, callbacks: Sequence[Callback], task: TrainingTask) -> None:
        self.state = TrainingState(task)
        if not isinstance(callbacks, Sequence):
            raise TypeError(f"callbacks: expected a sequence of functions or objects, got {type(callbacks).__name__}")
        self._calls: dict[Event, list[Callable[[TrainingState], object]]] = {event: [] for event in _EVENTS}
        for callback in callbacks:
            if isinstance(callback, type):
                raise TypeError(f"callbacks: expected an instance, got the class {callback.__name__}")
            methods = {event: getattr(callback, f"on_{event}", None) for event in _EVENTS}
            found = {event: method for event, method in methods.items() if callable(method)}
            if not found and callable(callback):
                found = {"step": callback}
            if not found:
                expected = "a function or an object with on_step, on_log, on_validation or on_checkpoint"
                raise TypeError(f"callbacks: expected {expected}, got {type(callback).__name__}")
            for event, method in found.items():
                self._calls[event].append(method)

    def call(self, event: Event) -> None:
        """Call the callbacks of an event, and restore the mode of a model that they leave in another."""
        model, training = self.state.model, self.state.model.training
        for call in self._calls[event]:
            call(self.state)
        if model.training != training:
            model.train(training)

    @property
    def stopped(self) -> bool:
        """Whether a callback of any process has stopped the training."""
        if any(self._calls.values()):
            self.state.stopped = process_group.group().any(self.state.stopped)
        return self.state.stopped
