"""Processes that work as one, on several devices of one machine or of many.

A launcher (``arcsm ... --devices N``, ``torchrun``, ``srun``) tells each process its rank in the environment. The
processes cooperate once they call :func:`join`, as the commands that can share their work do. A script that does not
call it runs independently in each process. A single process is a group of one, and nothing here costs anything.
"""

import atexit
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from arcsm._runtime.devices import resolve_device
from arcsm._runtime.launcher import was_started

LOST_CONTACT = "another process of the run has ended; see its message"
_TIMEOUT = timedelta(minutes=30)  # for a process that does not answer: reading the data may take that long


@dataclass(frozen=True)
class Group:
    """The processes that work as one, seen by one of them; ``local_rank`` and ``local_size`` are within its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files and messages."""
        return self.rank == 0

    def device(self, name: str | torch.device) -> torch.device:
        """Return the device of this process by a name as for :func:`resolve_device`; no two processes share a GPU."""
        device = resolve_device(name)
        if self.size == 1 or device.type == "cpu":
            return device
        if name != "auto" and torch.device(name).index is not None:
            raise ValueError(f"device: {self.size} processes cannot share {name}; leave the number out")
        if torch.cuda.device_count() < self.local_size:
            raise ValueError(
                f"--devices: {self.local_size} processes on this machine, which has {torch.cuda.device_count()} GPUs"
            )
        return torch.device(device.type, self.local_rank)

    def share(self, count: int) -> slice:
        """Return this process's share of ``count`` consecutive items."""
        return even_slices(count, self.size)[self.rank]

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, in each of them."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, answer: bool) -> bool:
        """Return whether the answer of any process is true, in each of them."""
        return answer if self.size == 1 else bool(self.sum(torch.tensor(float(answer))) > 0.0)

    def check_same(self, values: Sequence[float], what: str) -> None:
        """Raise a ``ValueError`` in all processes unless they pass the same values."""
        signed = torch.tensor([*values, *(-value for value in values)], dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(signed, dist.ReduceOp.MAX)
        largest, smallest = signed[: len(values)], -signed[len(values) :]
        if bool((largest != smallest).any()):
            raise ValueError(f"{what} of the processes differ; do all of them see the same files?")

    def collect(self, rows: Tensor) -> Tensor:
        """Concatenate the rows ``(N_r, ...)`` of all processes in the first; the others get their own back."""
        if self.size == 1:
            return rows
        parts: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(rows.cpu(), parts)
        return torch.cat(parts).to(rows.device) if parts is not None else rows

    def wait(self) -> None:
        """Wait until all processes have arrived."""
        self.sum(torch.zeros(()))


def even_slices(count: int, parts: int) -> list[slice]:
    """Divide ``count`` consecutive items into slices whose sizes differ by at most one."""
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


_joined = Group()


def group() -> Group:
    """Return the group that this process has joined; a group of one before :func:`join`."""
    return _joined


def join() -> Group:
    """Join the processes that were started together; wait for all of them."""
    global _joined
    if not was_started() or _joined.size > 1:
        return _joined
    joined = _torchrun_group() if dist.is_torchelastic_launched() else _slurm_group()
    if joined.size > 1:
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(joined.local_rank % torch.cuda.device_count())
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, rank=joined.rank, world_size=joined.size, timeout=_TIMEOUT)
        atexit.register(_leave)
    _joined = joined
    return joined


def _torchrun_group() -> Group:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Group(*(int(os.environ[name]) for name in names))


def _slurm_group() -> Group:
    """Return the group of a step of srun, and set the address of its first process in the environment."""
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ValueError("srun: --ntasks-per-node is needed, so that each process knows its device")
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment  # takes seconds to import

    slurm = SLURMEnvironment()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = slurm.main_address, str(slurm.main_port)
    size = slurm.world_size()
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    return Group(slurm.global_rank(), size, slurm.local_rank(), size // nodes)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def is_lost_contact(error: BaseException) -> bool:
    """Return whether an error only means that another process does not answer."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
