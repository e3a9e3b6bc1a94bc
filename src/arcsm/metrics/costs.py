"""What calls cost: memory at their peak beyond what was in use before, and seconds."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def extra_memory_mib(function: Callable[[], object], device: torch.device) -> float:
    """Mebibytes at the peak of a call, less those before it.

    On Linux the kernel's own mark of this process (``VmHWM``), which is reset first: what ``getrusage`` gives is
    inherited from the parent. On a GPU, what torch's allocator handed out.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not _CLEAR.exists():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return grown / (2**20 if sys.platform == "darwin" else 2**10)
    _CLEAR.write_text("5")
    resident = _status_kib("VmRSS")
    function()
    return (_status_kib("VmHWM") - resident) / 2**10


def _status_kib(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def medians_in_turn(functions: list[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each function, run in turn; what takes long is repeated less."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, found in zip(functions, seconds, strict=True):
            begun = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn > 0 or repeats == 1:
                found.append(time.perf_counter() - begun)
        if turn >= 2 and sum(map(sum, seconds)) > 20.0:
            break
    return [statistics.median(found) for found in seconds]
