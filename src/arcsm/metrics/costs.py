"""Cost of function calls: peak memory and seconds."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MAX_SECONDS = 20.0  # after which repeats stop


def extra_memory_mib(function: Callable[[], object], device: torch.device) -> float:
    """Return the peak memory of a call beyond the memory in use before it, in MiB.

    On Linux it is the kernel's high-water mark of this process (``VmHWM``), which is reset first: ``getrusage``
    inherits its mark from the parent. On a GPU it is the memory from torch's allocator.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not _CLEAR_REFS.exists():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return growth / (2**20 if sys.platform == "darwin" else 2**10)
    _CLEAR_REFS.write_text("5")
    resident = _status_kib("VmRSS")
    function()
    return (_status_kib("VmHWM") - resident) / 2**10


def _status_kib(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def interleaved_medians(functions: list[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Return the median seconds of each function, called in turn.

    The first round is a warm-up unless ``repeats`` is 1. Slow functions are repeated less often.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, measured in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn > 0 or repeats == 1:
                measured.append(time.perf_counter() - start)
        if turn >= 2 and sum(map(sum, seconds)) > _MAX_SECONDS:
            break
    return [statistics.median(measured) for measured in seconds]
