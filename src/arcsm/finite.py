"""Whether numbers are numbers."""

from __future__ import annotations

from torch import Tensor


class Diverged(ValueError):
    """Numbers that training makes are NaN or infinite, or samples have become a point or run away."""


def all_finite(x: Tensor) -> bool:
    """Whether nothing in a tensor is NaN or infinite.

    A finite sum says so by one pass and without memory, which is what nearly all tensors cost; finite numbers whose
    sum is none, and others, are looked at one by one.

    Example:
        >>> import torch
        >>> all_finite(torch.tensor([3e38, 3e38])), all_finite(torch.tensor([float("inf"), -float("inf")]))
        (True, False)
    """
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())
