"""What every experiment shares: presets, a record of where a result comes from, and files written in one step."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import torch

import arcsm
from arcsm.checkpoint import write_text
from arcsm.config import RunConfig

Preset = Literal["smoke", "cpu", "paper"]
PRESETS: Sequence[Preset] = ("smoke", "cpu", "paper")


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Attributes:
        name: What ``arcsm reproduce`` calls it.
        about: One line.
        run: ``run(preset, out, work, changes, device)``: writes its results into ``out`` and keeps what it trains
            in ``work``.
    """

    name: str
    about: str
    run: Callable[[Preset, Path, Path, Sequence[str], str], dict[str, Any]]


def result_path(out: Path, name: str, preset: Preset) -> Path:
    """Where the record of an experiment goes."""
    return out / name / f"{preset}.json"


def write_record(path: Path, config: RunConfig, metrics: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Write metrics with all that is needed to get them again.

    The configuration leaves out where the data lie: that belongs to a machine, not to a result.
    """
    described = config.model_dump(mode="json")
    described["data"].pop("path", None)
    record = {
        "metrics": metrics,
        "config": described,
        "seed": config.train.seed,
        "seconds": round(seconds, 1),
        "versions": {
            "arcsm": arcsm.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "simd": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }
    write_text(path, json.dumps(record, indent=2) + "\n")
    return record
