"""Memory: what is free, and what is used again."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from arcsm._runtime.files import FilePath

_OF_GROUPS = ("memory.max", "memory.current", "inactive_file")


_OF_OLD_GROUPS = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")

_KEPT = 31 << 20  # bytes; glibc learns from blocks of up to 32 MiB


def check_fits(size: int, what: str) -> None:
    """What is about to be unpacked must fit into the memory that is free.

    Arguments:
        size: In bytes.
        what: Its name in the message.

    Raises:
        ValueError: where it does not; nothing is known of systems without ``/proc/meminfo``.
    """
    free = free_memory()
    if free is not None and size > free:
        raise ValueError(
            f"{what}: takes {size / 2**30:,.1f} GiB to unpack, but {free / 2**30:,.1f} GiB of memory are free"
        )


def free_memory() -> int | None:
    """Bytes that this process may still take: what the system has left, its container and its own limit allow."""
    found = [_left_of_system(), _left_of_container(), *_left_of_limits()]
    return min((size for size in found if size is not None), default=None)


def _left_of_system() -> int | None:
    sizes = _sizes("/proc/meminfo")
    return sizes["MemAvailable:"] << 10 if "MemAvailable:" in sizes else None


def _left_of_container(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """By the control groups that this process is in (both versions), as a container or a scheduler sets them."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    found = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers in ("", "memory"):
            base = root / controllers
            names = _OF_OLD_GROUPS if controllers else _OF_GROUPS
            found += [_left_of_group(folder, *names) for folder in (base, base / path.lstrip("/"))]
    return min((size for size in found if size is not None), default=None)


def _left_of_group(folder: Path, most: str, taken: str, kept: str) -> int | None:
    """By one control group; kept copies of files are given up before memory is short."""
    try:
        limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in (most, taken))
    except OSError:
        return None
    if limit == "max" or int(limit) >= 1 << 60:
        return None
    return max(0, int(limit) - int(used) + _sizes(folder / "memory.stat").get(kept, 0))


def _left_of_limits() -> list[int]:
    """By ``ulimit -d`` and ``ulimit -v``."""
    try:
        import resource
    except ImportError:  # not on Windows
        return []
    found, taken = [], _sizes("/proc/self/status")
    for limit, name in ((resource.RLIMIT_DATA, "VmData:"), (resource.RLIMIT_AS, "VmSize:")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and name in taken:
            found.append(max(0, most - (taken[name] << 10)))
    return found


def _sizes(path: FilePath) -> dict[str, int]:
    """Numbers of a file of names and numbers, by name; without any where there is no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines)
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}


class Workspace:
    """Memory for intermediate results that is taken once and used again and again, by name.

    Fetching fresh pages for a result of a few megabytes may take longer than computing it.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def empty(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """A tensor of the shape, with the type and device of another one. What ``name`` gave before is overwritten."""
        kept, size = self._kept.get(name), math.prod(shape)
        if kept is None or kept.numel() < size or kept.dtype != like.dtype or kept.device != like.device:
            kept = self._kept[name] = like.new_empty(size)
        return kept[:size].view(tuple(shape))


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next operation, rather than return it and fetch it again page by page.

    It returns blocks of more than a threshold that grows to the largest block that was ever freed (``mallopt(3)``,
    ``M_MMAP_THRESHOLD``). One large block, freed untouched, spares all tensors of a few megabytes that come after it
    the page faults, which would take longer than the arithmetic. Elsewhere this does nothing.
    """
    torch.empty(_KEPT, dtype=torch.uint8)
