"""How much memory a call needs at its peak beyond what was in use before."""

from __future__ import annotations

import resource
import sys
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
