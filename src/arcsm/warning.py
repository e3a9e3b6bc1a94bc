"""Warnings of this package."""

from __future__ import annotations

import warnings


class AccuracyWarning(UserWarning):
    """A result is less accurate than was asked for."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, naming the caller of the public method that found the reason."""
    warnings.warn(message, category, stacklevel=4)
