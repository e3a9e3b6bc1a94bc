"""Warnings of this package."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

_INSIDE = (str(Path(__file__).parent), str(Path(torch.__file__).parent))


class AccuracyWarning(UserWarning):
    """A result is less accurate than was asked for."""


class TrainingWarning(UserWarning):
    """Training went on to the end, but not well."""


class SkippedWarning(UserWarning):
    """Some of the input was left out, as asked for."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, naming the first line outside this package (and outside torch's decorators) on the way here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
