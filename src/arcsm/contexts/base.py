"""What every context network is: x_<d in, a vector c_d for each dimension out, in parallel or one step at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn


class Context(nn.Module, ABC):
    """A network :math:`c_d = c(x_{<d})` for all dimensions (paper, Section 4.1, the AR-CN).

    Attributes:
        features: Number of dimensions :math:`D`.
        context_features: Size :math:`C` of each :math:`c_d`.
        order: The order of the chain rule: ``order[i]`` is the feature that comes ``i``-th, so that :math:`x_{<d}`
            means all features before ``d`` in this order.
        of_data: The argument of the constructor that follows from the data: their number of columns, or the shape
            ``(channels, height, width)`` of images.
        missing: Whether values may be NaN, which means that they are not known.
    """

    of_data: ClassVar[Literal["features", "image_shape"]] = "features"
    missing: bool = False

    features: int
    context_features: int
    order: tuple[int, ...]

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Contexts of every dimension in one pass: ``(*, D)`` to ``(*, D, C)``, by feature, not by order."""

    @abstractmethod
    def begin(self, batch_shape: Sequence[int], condition: Tensor | None = None) -> Any:
        """The state before anything is known of a batch of rows."""

    @abstractmethod
    def step(self, state: Any, x_previous: Tensor | None) -> Tensor:
        """The context of the next feature in order, ``(*, C)``.

        Arguments:
            state: What :meth:`begin` returned; it is advanced in place.
            x_previous: Value of the feature before, ``(*,)``; ``None`` at the first step.
        """

    def select(self, state: Any, rows: Tensor) -> None:
        """Keep the given rows of a batch, in this order; a row may come several times. Only particle filters ask.

        Arguments:
            state: What :meth:`begin` returned for a batch of shape ``(B,)``; it is changed in place.
            rows: Numbers from 0 to ``B - 1``, ``(M,)``. The batch has shape ``(M,)`` from here on.

        Raises:
            NotImplementedError: for a context that does not offer it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not select rows of a state")

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""


def check_labels(condition: Tensor, classes: int) -> None:
    """A condition of classes must be labels of them. A program that is being compiled cannot look at their values.

    Raises:
        ValueError: for others.
    """
    whole = condition.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    looked_at = not torch.compiler.is_compiling()
    if not whole or (looked_at and bool(((condition < 0) | (condition >= classes)).any())):
        raise ValueError(f"condition: expected integer labels from 0 to {classes - 1}")
