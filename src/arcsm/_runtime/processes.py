"""Several processes that work as one: on several devices of one machine or of many.

Whoever starts them (``arcsm ... --devices N``, ``torchrun``, ``srun``) tells each its number in the environment. They
work as one from :func:`join` on, which the commands that can share their work call; a script that does not call it runs
as often as it was started. Alone, a process is a group of one, and nothing here costs anything.
"""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from signal import Signals
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from arcsm._runtime.devices import resolve_device
from arcsm._runtime.files import write_text

LOST_CONTACT = "another process of the run has ended; see what it said"
_STARTED = "ARCSM_STARTED_PROCESSES"  # in the environment of the processes that `start` started
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where a process leaves its error to whoever started it
_HANDLED = (Signals.SIGTERM, Signals.SIGINT, Signals.SIGHUP, Signals.SIGQUIT)  # by torch
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
        """The device of this process by a name as for :func:`arcsm._runtime.devices.resolve_device`.

        Of several GPUs each process of a machine has its own.

        Raises:
            ValueError: for one GPU of several processes, and for fewer GPUs than processes.
        """
        found = resolve_device(name)
        if self.size == 1 or found.type == "cpu":
            return found
        if name != "auto" and torch.device(name).index is not None:
            raise ValueError(f"device: {self.size} processes cannot share {name}; leave the number out")
        if torch.cuda.device_count() < self.local_size:
            raise ValueError(
                f"--devices: {self.local_size} processes on this machine, which has {torch.cuda.device_count()} GPUs"
            )
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

    def check_same(self, values: Sequence[float], what: str) -> None:
        """All processes must be about to do the same.

        Raises:
            ValueError: in all of them, where their numbers differ.
        """
        own = torch.tensor([*values, *(-value for value in values)], dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(own, dist.ReduceOp.MAX)
        largest, smallest = own[: len(values)], -own[len(values) :]
        if bool((largest != smallest).any()):
            raise ValueError(f"{what} of the processes differ; do all of them see the same files?")

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


_joined = Group()


def group() -> Group:
    """The group that this process has joined; without :func:`join`, it is alone."""
    return _joined


def join() -> Group:
    """Work as one with the processes that were started together; waits for the others.

    Raises:
        ValueError: where the environment does not say how many processes each machine has.
    """
    global _joined
    if not was_started() or _joined.size > 1:
        return _joined
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment  # takes seconds
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    environment: TorchElasticEnvironment | SLURMEnvironment
    if dist.is_torchelastic_launched():
        environment = TorchElasticEnvironment()
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    else:
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise ValueError("srun: --ntasks-per-node is needed, so that each process knows its device")
        environment = SLURMEnvironment()
        local_size = environment.world_size() // int(os.environ.get("SLURM_NNODES", "1"))
    found = Group(environment.global_rank(), environment.world_size(), environment.local_rank(), local_size)
    if found.size > 1:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(found.local_rank % torch.cuda.device_count())
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, rank=found.rank, world_size=found.size, timeout=_PATIENCE)
        atexit.register(_part)
    _joined = found
    return found


def was_started() -> bool:
    """Whether torchrun, srun or :func:`start` has started this process as one of some, and said so."""
    tasks, job = int(os.environ.get("SLURM_NTASKS", "1")), os.environ.get("SLURM_JOB_NAME")
    return dist.is_torchelastic_launched() or (tasks > 1 and job not in ("bash", "interactive"))


def process_count() -> int:
    """How many processes torchrun, a step of srun, or :func:`start` has started with the command of this one."""
    said = "WORLD_SIZE" if dist.is_torchelastic_launched() else "SLURM_STEP_NUM_TASKS"
    return int(os.environ.get(said, "1"))


def is_orphaned() -> bool:
    """Whether the process that started this one, to work as one of several, is gone."""
    return _STARTED in os.environ and os.environ[_STARTED] != str(os.getppid())


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error says no more than that another process does not answer."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


# Starting them ------------------------------------------------------------------------------------------------------


class ProcessError(RuntimeError):
    """A process ended before its work was done."""


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
        ProcessError: in one line, where a process was killed or machines did not find each other.
        ValueError: for several machines without an address.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    patience: dict[str, Any] = {"shutdown_timeout": _LAST_STEP}
    if "shutdown_timeout" not in {field.name for field in fields(LaunchConfig)}:
        patience = {}  # an older torch has 30 seconds of its own
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
            local_addr=None if nodes > 1 else "localhost",
            **patience,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "arcsm.cli", *arguments)
        except SignalException as stop:
            left = sorted(Path(folder).rglob("error.json"))  # the last words of the processes
            raise KeyboardInterrupt(json.loads(left[0].read_text())["message"] if left else "") from stop
        except ChildFailedError as error:
            return _explain(error.failures)
        except RendezvousError as error:
            raise ProcessError(f"--nodes: the others were not found at {config.rdzv_endpoint}") from error
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
    """The environment that processes are started in; what torch says of them is said in one line here, and what it
    does with signals ends with them."""
    before, handlers = dict(os.environ), {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in _HANDLED}
        handlers = {number: handler for number, handler in found.items() if handler is not None}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // devices)))
    os.environ[_STARTED] = str(os.getpid())
    quiet = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(quiet)
        os.environ.clear()
        os.environ.update(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _explain(failures: dict[int, Any]) -> int:
    """Say why processes ended; the exit code.

    When one has ended, the others are told to (``SIGTERM``), and killed where they do not, 30 seconds later at least.
    """
    first = min((_moment(one) for one in failures.values() if one.exitcode > 0), default=math.inf)
    told = {
        rank: one
        for rank, one in failures.items()
        if one.exitcode == -Signals.SIGTERM or (one.exitcode == -Signals.SIGKILL and _moment(one) > first + 10.0)
    }
    causes = {rank: one for rank, one in failures.items() if rank not in told} or told
    for rank, failure in causes.items():
        if failure.exitcode < 0:  # the others then failed since it did not answer
            raise ProcessError(f"process {rank} of the run was ended by {Signals(-failure.exitcode).name}")
    failure = min(
        causes.values(), key=lambda one: (one.message.count("\n") > 0, _moment(one))
    )  # a mistake before a bug
    print(failure.message, file=sys.stderr)
    return int(failure.exitcode)


def _moment(failure: Any) -> float:
    """When a process failed; torch's own time is in whole seconds."""
    return float(failure.error_file_data.get("moment", failure.timestamp))


def report_to_launcher(text: str) -> bool:
    """Leave an error to the process that started this one, which says it once; whether there is one to do so."""
    path = os.environ.get(_ERROR_FILE)
    if _STARTED not in os.environ or not path:
        return False
    write_text(Path(path), json.dumps({"message": text, "timestamp": int(time.time()), "moment": time.time()}))
    return True
