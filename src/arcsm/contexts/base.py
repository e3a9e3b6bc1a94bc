"""What every context network is: x_<d in, a vector c_d for each dimension out, in parallel or one step at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from arcsm.errors import all_finite
from arcsm.registry import Seam


class Context(nn.Module, ABC):
    """A network :math:`c_d = c(x_{<d})` for all dimensions (paper, Section 4.1, the AR-CN).

    Attributes:
        features: Number of dimensions :math:`D`.
        context_features: Size :math:`C` of each :math:`c_d`.
        order: The order of the chain rule: ``order[i]`` is the feature that comes ``i``-th, so that :math:`x_{<d}`
            means all features before ``d`` in this order.
        data_argument: The argument of the constructor that follows from the data: their number of columns, or the shape
            ``(channels, height, width)`` of images.
        missing: Whether values may be NaN, which means that they are not known.
        condition_features: Size of the vector that each row is conditioned on; 0 for none.
        classes: Number of classes that rows are conditioned on; 0 for none.
    """

    seam: ClassVar[Seam] = "context"
    data_argument: ClassVar[Literal["features", "image_shape"]] = "features"
    missing: bool = False
    condition_features: int = 0
    classes: int = 0

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


def checked_condition(
    condition: Tensor | None, batch_shape: Sequence[int], classes: int, features: int, like: Tensor
) -> Tensor | None:
    """What rows are conditioned on, one for each: labels ``(*)`` or vectors ``(*, F)``; ``None`` for no condition.

    Arguments:
        condition: Of the batch's shape, or one that all rows share.
        batch_shape: Of the rows.
        classes: Number of classes; 0 for none.
        features: Size of a vector; 0 for none.
        like: Of the type and on the device that vectors are to have.

    Raises:
        ValueError: for a condition that is missing, not asked for, of another kind or shape, or not finite.
    """
    if not (classes or features):
        if condition is not None:
            raise ValueError("condition: this model has none (condition_features=0, classes=0), got a tensor")
        return None
    if condition is None:
        wanted = f"labels below {classes}" if classes else f"vectors (*, {features})"
        raise ValueError(f"condition: this model needs {wanted}, got None")
    if not isinstance(condition, Tensor):
        raise ValueError(f"condition: expected a torch.Tensor, got {type(condition).__name__}; use torch.as_tensor")
    own = () if classes else (features,)
    if classes:
        check_labels(condition, classes)
        condition = condition.long()
    else:
        if condition.shape[-1:] != (features,) or not condition.is_floating_point():
            raise ValueError(
                f"condition: expected floats of shape (*, {features}), got {condition.dtype} {tuple(condition.shape)}"
            )
        condition = condition.to(like)
        if not torch.compiler.is_compiling() and not all_finite(condition):
            raise ValueError("condition: holds NaN or infinity")
    wanted_shape = (*batch_shape, *own)
    try:
        return condition.expand(wanted_shape)
    except RuntimeError as error:
        raise ValueError(
            f"condition: expected one for each row {wanted_shape}, or one for all, got {tuple(condition.shape)}"
        ) from error


def check_labels(condition: Tensor, classes: int) -> None:
    """A condition of classes must be labels of them. A program that is being compiled cannot look at their values.

    Raises:
        ValueError: for others.
    """
    whole = condition.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    looked_at = not torch.compiler.is_compiling()
    if not whole or (looked_at and bool(((condition < 0) | (condition >= classes)).any())):
        raise ValueError(f"condition: expected integer labels from 0 to {classes - 1}")
