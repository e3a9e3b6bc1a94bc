"""Timing and output of the benchmarks."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def median_seconds(function: Callable[[], object], repeats: int = 9, warm_up: int = 2) -> float:
    """Return the median wall-clock seconds of a call."""
    for _ in range(warm_up):
        function()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def interleaved_medians(functions: dict[str, Callable[[], object]], repeats: int = 9) -> dict[str, float]:
    """Return the medians of several calls run in turn, so that a slow moment affects all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            begun = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(name: str, numbers: dict[str, Any]) -> None:
    """Print the numbers of a benchmark and the machine as JSON."""
    machine = {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "simd": torch.backends.cpu.get_cpu_capability(),
    }
    print(json.dumps({"benchmark": name, "machine": machine, **numbers}, indent=2))
