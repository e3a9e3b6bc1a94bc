"""Helpers for tests that fit estimators to small tables, by command or in Python, within fractions of a second."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from arcsm.cli import application
from arcsm.estimators.ensemble_config import EnsembleConfig

QUICK: dict[str, Any] = {"max_steps": 20, "n_estimators": 1, "hidden_features": (16,), "random_state": 0}


def use_small_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all estimators train one small network for a few steps, whatever the table."""
    config = EnsembleConfig(1, 8, (16,), (16,), 0, 0.3, 4, 5e-2, 30, 64, 5e-3, True)
    monkeypatch.setattr(EnsembleConfig, "for_table", classmethod(lambda cls, *_: config))


def run(*arguments: object) -> int:
    """Run a command in this process and return its exit code."""
    return application.run([str(argument) for argument in arguments])


def normal(count: int, seed: int = 0) -> Any:
    """Draw standard normal numbers, ``(count,)``."""
    return np.random.default_rng(seed).normal(size=count)
