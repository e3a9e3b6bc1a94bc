"""Several processes that work as one: on several devices of one machine or of many.

Whoever starts them (``arcsm ... --devices N``, ``torchrun``, ``srun``) tells each its number in the environment;
:func:`group` reads that. Alone, a process is a group of one, and nothing here costs anything.
"""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from signal import Signals
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from arcsm.checkpoint import write_text
from arcsm.model import resolve_device

_STARTED = "ARCSM_STARTED_PROCESSES"  # in the environment of the processes that `start` started
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where a process leaves its error to whoever started it
_LAST_STEP = 120  # seconds that processes have to end a step when they are told to stop
_PATIENCE = timedelta(minutes=30)  # with a process that does not answer: as long as reading the data may take


@dataclass(frozen=True)
class Group:
    """The processes that work as one, seen from one of them.

    Attributes:
        rank: The number of this process, from 0.
        size: Their number.
        local_rank: The number of this process on its machine.
        local_size: Their number on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks to people."""
        return self.rank == 0

    def device(self, name: str | torch.device) -> torch.device:
        """The device of this process by a name as for :func:`arcsm.model.resolve_device`.

        Of several GPUs each process of a machine has its own, unless the name says which.
        """
        found = resolve_device(name)
        chosen = name != "auto" and torch.device(name).index is not None
        if self.size == 1 or chosen or found.type == "cpu":
            return found
        return torch.device(found.type, self.local_rank)

    def share(self, count: int) -> slice:
        """What this process does of ``count`` things that lie in a row."""
        return shares(count, self.size)[self.rank]

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes; all get it."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, answer: bool) -> bool:
        """Whether any process says yes; all get to know."""
        return answer if self.size == 1 else bool(self.sum(torch.tensor(float(answer))) > 0.0)

    def collect(self, rows: Tensor) -> Tensor:
        """The rows ``(N_r, ...)`` of all processes one after another, in memory; only the first gets them."""
        if self.size == 1:
            return rows
        found: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(rows.cpu(), found)
        return torch.cat(found).to(rows.device) if found is not None else rows

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.sum(torch.zeros(()))


def shares(count: int, parts: int) -> list[slice]:
    """``count`` things in a row, divided into parts of sizes that differ by at most one."""
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def group() -> Group:
    """The group that this process was started in; the first call waits for the others."""
    started, scheduled = dist.is_torchelastic_launched(), "SLURM_NTASKS" in os.environ
    if not started and not scheduled:
        return Group()
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment  # takes seconds
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    environment: TorchElasticEnvironment | SLURMEnvironment
    if started:
        environment = TorchElasticEnvironment()
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    elif SLURMEnvironment.detect():
        environment = SLURMEnvironment()
        local_size = environment.world_size() // int(os.environ.get("SLURM_NNODES", "1"))
    else:
        return Group()
    found = Group(environment.global_rank(), environment.world_size(), environment.local_rank(), local_size)
    if found.size > 1 and not dist.is_initialized():
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(found.local_rank % torch.cuda.device_count())
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, rank=found.rank, world_size=found.size, timeout=_PATIENCE)
        atexit.register(_part)
    return found


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


# Starting them ------------------------------------------------------------------------------------------------------


class ProcessError(RuntimeError):
    """A process ended before its work was done."""


def is_started() -> bool:
    """Whether somebody has started this process as one of several."""
    return _STARTED in os.environ or group().size > 1


def start(arguments: Sequence[str], devices: int, nodes: int = 1) -> int:
    """Run the command in processes of its own, one for each device, and wait for them.

    Arguments:
        arguments: Of the command ``arcsm``, the same for all.
        devices: Processes on this machine.
        nodes: Machines; the command is to be started on each of them, with the address of one of them, and a free
            port of it, in the environment variables ``MASTER_ADDR`` and ``MASTER_PORT``.

    Returns:
        The exit code.

    Raises:
        ProcessError: in one line, where a process was killed.
        ValueError: for several machines without an address.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="arcsm-") as folder, _as_starter(devices):
        config = LaunchConfig(
            min_nodes=nodes,
            max_nodes=nodes,
            nproc_per_node=devices,
            run_id="arcsm",
            rdzv_backend="c10d",
            rdzv_endpoint=_address() if nodes > 1 else "localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            shutdown_timeout=_LAST_STEP,
            local_addr=None if nodes > 1 else "localhost",
        )
        try:
            elastic_launch(config, sys.executable)("-m", "arcsm.cli", *arguments)
        except SignalException as stop:
            left = sorted(Path(folder).rglob("error.json"))  # the last words of the processes
            raise KeyboardInterrupt(json.loads(left[0].read_text())["message"] if left else "") from stop
        except ChildFailedError as error:
            return _explain(error.failures)
    return 0


def _address() -> str:
    """Where processes of several machines meet."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not host or not port:
        raise ValueError(
            "--nodes: start the command on every machine, with the address and a free port of one of them in the "
            "environment variables MASTER_ADDR and MASTER_PORT"
        )
    return f"{host}:{port}"


@contextmanager
def _as_starter(devices: int) -> Iterator[None]:
    """The environment that processes are started in; what torch says of them is said in one line here."""
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // devices)))
    os.environ[_STARTED] = "1"
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        os.environ.clear()
        os.environ.update(before)


def _explain(failures: dict[int, Any]) -> int:
    """Say why processes ended; the exit code. When one has ended, the others are told to (``SIGTERM``)."""
    told = {rank: one for rank, one in failures.items() if one.exitcode == -Signals.SIGTERM}
    causes = {rank: one for rank, one in failures.items() if rank not in told} or told
    for rank, failure in causes.items():
        if failure.exitcode < 0:  # the others then failed since it did not answer
            raise ProcessError(f"process {rank} of the run was ended by {Signals(-failure.exitcode).name}")
    failure = min(causes.values(), key=lambda one: int(one.timestamp))
    print(failure.message, file=sys.stderr)
    return int(failure.exitcode)


def leave_error(text: str) -> bool:
    """Leave an error to the process that started this one, which says it once; whether there is one to do so."""
    path = os.environ.get(_ERROR_FILE)
    if _STARTED not in os.environ or not path:
        return False
    write_text(Path(path), json.dumps({"message": text, "timestamp": int(time.time())}))
    return True
