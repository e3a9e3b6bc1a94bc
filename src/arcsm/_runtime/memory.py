"""Free memory under container and process limits, and reuse of memory between operations.

Free memory is computed here because ``psutil.virtual_memory`` reports that of the machine, without the limits of
control groups and of ``ulimit``.
"""

import functools
import math
from pathlib import Path

import torch
from torch import Tensor

from arcsm._runtime.files import FilePath

#: Files of a control group, by version: limit, usage, and the entry of memory.stat for reclaimable file caches.
CGROUP_V2_NAMES = ("memory.max", "memory.current", "inactive_file")
CGROUP_V1_NAMES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_NO_LIMIT = 1 << 60  # bytes; version 1 writes a huge number

_ALWAYS_UNPACKED = 1 << 30  # bytes
_MAX_EXPANSION = 1_000

_LARGE_BLOCK = 31 << 20  # bytes; glibc adapts to blocks of up to 32 MiB


def check_fits(size: int, name: str) -> None:
    """Raise a ``ValueError`` that names the data if ``size`` bytes are known to exceed the free memory."""
    free = free_memory()
    if free is not None and size > free:
        raise ValueError(
            f"{name}: takes {size / 2**30:,.1f} GiB to unpack, but {free / 2**30:,.1f} GiB of memory are free; "
            "make the file smaller, or free memory"
        )


def check_expansion(size: int, compressed: int, name: str) -> None:
    """Raise a ``ValueError`` if ``size`` bytes exceed the free memory, or are far more than a file of data unpacks to.

    That is more than 1 GiB and more than a thousand times the ``compressed`` bytes of the file.
    """
    check_fits(size, name)
    check_ratio(size, compressed, name)


def check_ratio(size: int, compressed: int, name: str) -> None:
    """Raise a ``ValueError`` if ``size`` bytes are more than 1 GiB and a thousand times the ``compressed`` bytes."""
    if size > max(_ALWAYS_UNPACKED, _MAX_EXPANSION * compressed):
        raise ValueError(
            f"{name}: unpacks to {size / 2**30:,.1f} GiB, more than {_MAX_EXPANSION:,} times its size; "
            "it is too repetitive to be data; if you trust it, save the data uncompressed"
        )


def free_memory() -> int | None:
    """Return the bytes that this process may still allocate, by the system, its container and its own limits."""
    sizes = [system_free_memory(), container_free_memory(), *_memory_below_process_limits()]
    return min((size for size in sizes if size is not None), default=None)


def system_free_memory() -> int | None:
    """Return the available bytes of the machine, or ``None`` on systems without ``/proc/meminfo``."""
    kibibytes = _read_sizes("/proc/meminfo").get("MemAvailable:")
    return None if kibibytes is None else kibibytes << 10


def container_free_memory(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Return the bytes below the limits of this process's control groups, which containers and schedulers set."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    sizes = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers in ("", "memory"):
            base = root / controllers
            names = CGROUP_V1_NAMES if controllers else CGROUP_V2_NAMES
            sizes += [_group_free_memory(folder, *names) for folder in (base, base / path.lstrip("/"))]
    return min((size for size in sizes if size is not None), default=None)


def _group_free_memory(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> int | None:
    """Return the bytes below one control group's limit; file caches count as free, as the kernel reclaims them."""
    try:
        limit, usage = ((folder / name).read_text(encoding="ascii").strip() for name in (limit_name, usage_name))
    except OSError:
        return None
    if limit == "max" or int(limit) >= _NO_LIMIT:
        return None
    return max(0, int(limit) - int(usage) + _read_sizes(folder / "memory.stat").get(cache_name, 0))


def _memory_below_process_limits() -> list[int]:
    """Return the bytes below ``ulimit -d`` and ``ulimit -v``, where set."""
    try:
        import resource
    except ImportError:  # not on Windows
        return []
    sizes, usage = [], _read_sizes("/proc/self/status")
    for kind, name in ((resource.RLIMIT_DATA, "VmData:"), (resource.RLIMIT_AS, "VmSize:")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and name in usage:
            sizes.append(max(0, limit - (usage[name] << 10)))
    return sizes


def _read_sizes(path: FilePath) -> dict[str, int]:
    """Read a file of lines with a name and a number; return an empty dictionary if it does not exist."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines)
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}


class Workspace:
    """Named buffers for intermediate results, allocated once and reused.

    Allocating fresh pages for a result of a few megabytes can take longer than computing it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[str, Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return a tensor with the dtype and device of ``like``; overwrite the previous tensor of this name."""
        view = self._views.get(name)
        if view is not None and view.shape == shape and view.dtype == like.dtype and view.device == like.device:
            return view
        buffer, size = self._buffers.get(name), math.prod(shape)
        if buffer is None or buffer.numel() < size or buffer.dtype != like.dtype or buffer.device != like.device:
            buffer = self._buffers[name] = like.new_empty(size)
        self._views[name] = buffer[:size].view(shape)
        return self._views[name]


@functools.cache
def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next operation instead of returning it to the system page by page.

    glibc returns freed blocks above a threshold that grows to the largest block ever freed (``mallopt(3)``,
    ``M_MMAP_THRESHOLD``). Freeing one large, untouched block spares later tensors of a few megabytes the page faults,
    which take longer than the arithmetic. With other allocators this does nothing.
    """
    torch.empty(_LARGE_BLOCK, dtype=torch.uint8)
