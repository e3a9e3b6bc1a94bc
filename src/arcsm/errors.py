"""Errors and warnings of this package, and checks of the values of tensors."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor

_INTERNAL_FOLDERS = (str(Path(__file__).parent), str(Path(torch.__file__).parent))


class NonFiniteError(ValueError):
    """Training produced NaN or infinity, or samples that collapsed to a point or ran away."""


class PartError(ValueError):
    """A context, head, objective or sampler breaks its contract (:func:`arcsm.check`)."""


class NoDensityError(TypeError):
    """A head has scores and no density."""


class AccuracyWarning(UserWarning):
    """A result is less accurate than the requested tolerance."""


class TrainingWarning(UserWarning):
    """Training finished, but not well."""


class SkippedWarning(UserWarning):
    """Part of the input was skipped."""


def is_no_number(error: ValueError) -> bool:
    """Return whether NumPy raised an error because a value, such as text, is no number."""
    return "could not convert" in str(error)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the first stack frame outside this package and torch."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INTERNAL_FOLDERS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


_may_wait = ContextVar("may_wait", default=True)


@contextmanager
def without_waiting() -> Iterator[None]:
    """Within the block, the host waits for no values on an accelerator: neither checks nor shapes depend on them."""
    token = _may_wait.set(False)
    try:
        yield
    finally:
        _may_wait.reset(token)


def readable(x: Tensor) -> Tensor | None:
    """Return the tensor whose values a check may read.

    That is ``None`` for a meta tensor, within :func:`without_waiting` for one on an accelerator, and while
    ``torch.compile`` or ``torch.export`` trace a program, which cannot branch on values. In ``torch.func.vmap`` and
    ``grad``, it is the tensor inside the wrappers, with all rows.
    """
    if torch.compiler.is_compiling() or x.is_meta or not (x.device.type == "cpu" or _may_wait.get()):
        return None
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        x = functorch.get_unwrapped(x)
    return x


def is_mapped(x: Tensor) -> bool:
    """Return whether a tensor stands for those of many rows in ``torch.func.vmap``."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


def all_finite(x: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity, as far as it is :func:`readable`.

    One sum decides nearly always, without extra memory. Elements are checked one by one only if the sum overflows.

    Example:
        >>> all_finite(torch.tensor([3e38, 3e38])), all_finite(torch.tensor([float("inf"), -float("inf")]))
        (True, False)
    """
    values = readable(x)
    return values is None or bool(values.sum().isfinite()) or bool(values.isfinite().all())


def any_infinite(x: Tensor) -> bool:
    """Return whether a tensor holds infinity, as far as it is :func:`readable`."""
    values = readable(x)
    return values is not None and bool(values.isinf().any())
