"""Start a command in several processes, with torch's elastic launcher, and report errors in one line.

torch starts, watches and ends the processes. This module adds what torch leaves out: each error is printed once and
without a traceback, signal handlers and the environment are restored afterwards, and processes notice when their
launcher has been killed.
"""

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
from dataclasses import fields
from pathlib import Path
from signal import Signals
from typing import Any

from arcsm._runtime.files import write_text

LAUNCHER_VARIABLE = "ARCSM_STARTED_PROCESSES"  #: environment variable of launched processes: the launcher's process id
_ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
HANDLED_SIGNALS = (Signals.SIGTERM, Signals.SIGINT, Signals.SIGHUP, Signals.SIGQUIT)  #: signals that torch handles
_STOP_SECONDS = 120  # for processes to end a step after a request to stop
_KILL_SECONDS = 10.0  # after the first failure: a process killed later had not reacted to the request to stop


class ProcessError(RuntimeError):
    """A process ended before its work was done."""


def launch(arguments: Sequence[str], devices: int, nodes: int = 1) -> int:
    """Run the command in one process for each device, wait for all of them, and return the exit code.

    If there are several machines (``nodes``), start the command on each of them, with ``MASTER_ADDR`` and
    ``MASTER_PORT`` in the environment set to the address and a free port of one machine. A :class:`ProcessError` means
    that a process was killed or machines did not find each other.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    timeout: dict[str, Any] = {"shutdown_timeout": _STOP_SECONDS}
    if "shutdown_timeout" not in {field.name for field in fields(LaunchConfig)}:
        timeout = {}  # an older torch waits for 30 seconds
    with tempfile.TemporaryDirectory(prefix="arcsm-") as folder, launcher_environment(devices):
        config = LaunchConfig(
            min_nodes=nodes,
            max_nodes=nodes,
            nproc_per_node=devices,
            run_id="arcsm",
            rdzv_backend="c10d",
            rdzv_endpoint=_main_address() if nodes > 1 else "localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            local_addr=None if nodes > 1 else "localhost",
            **timeout,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "arcsm.cli", *arguments)
        except SignalException as stop:
            errors = sorted(Path(folder).rglob("error.json"))
            raise KeyboardInterrupt(json.loads(errors[0].read_text())["message"] if errors else "") from stop
        except ChildFailedError as error:
            return report_failures(error.failures)
        except RendezvousError as error:
            raise ProcessError(f"--nodes: the other machines were not found at {config.rdzv_endpoint}") from error
    return 0


def _main_address() -> str:
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not host or not port:
        raise ValueError(
            "--nodes: start the command on every machine, with MASTER_ADDR and MASTER_PORT in the environment set to "
            "the address and a free port of one of them"
        )
    return f"{host}:{port}"


@contextmanager
def launcher_environment(devices: int) -> Iterator[None]:
    """Set the environment that processes inherit and silence torch's log; restore both, and signal handlers."""
    environment, handlers = dict(os.environ), {}
    if threading.current_thread() is threading.main_thread():
        installed = {number: signal.getsignal(number) for number in HANDLED_SIGNALS}
        handlers = {number: handler for number, handler in installed.items() if handler is not None}
    import torch  # takes seconds, which a process without others need not wait

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // devices)))
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    disabled_level = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(disabled_level)
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def report_failures(failures: dict[int, Any]) -> int:
    """Print why processes ended, in one message, and return the exit code; if it was a signal, raise `ProcessError`.

    When a process ends, torch stops the others with SIGTERM, and kills those that do not react at least 30 seconds
    later. Both are consequences rather than causes.
    """
    times = [_failure_time(failure) for failure in failures.values() if failure.exitcode > 0]
    kill_time = min(times, default=math.inf) + _KILL_SECONDS
    stopped = {
        rank: failure
        for rank, failure in failures.items()
        if failure.exitcode == -Signals.SIGTERM
        or (failure.exitcode == -Signals.SIGKILL and _failure_time(failure) > kill_time)
    }
    causes = {rank: failure for rank, failure in failures.items() if rank not in stopped} or stopped
    for rank, failure in causes.items():
        if failure.exitcode < 0:  # the others failed because it did not answer
            raise ProcessError(f"process {rank} of the run was ended by {Signals(-failure.exitcode).name}")
    # a user's mistake, in one line, comes before a bug
    cause = min(causes.values(), key=lambda failure: (failure.message.count("\n") > 0, _failure_time(failure)))
    print(cause.message, file=sys.stderr)
    return int(cause.exitcode)


def _failure_time(failure: Any) -> float:
    """Return when a process failed; torch's own time stamp is in whole seconds."""
    return float(failure.error_file_data.get("moment", failure.timestamp))


def was_started() -> bool:
    """Return whether torchrun, srun or ``--devices`` started this process as one of several."""
    tasks, job = int(os.environ.get("SLURM_NTASKS", "1")), os.environ.get("SLURM_JOB_NAME")
    return _by_torch() or (tasks > 1 and job not in ("bash", "interactive"))


def process_count() -> int:
    """Return how many processes torchrun, a step of srun or ``--devices`` started with this command."""
    return int(os.environ.get("WORLD_SIZE" if _by_torch() else "SLURM_STEP_NUM_TASKS", "1"))


def _by_torch() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def report_to_launcher(text: str) -> bool:
    """Leave an error message to the launcher, which prints it once; return whether there is a launcher to do so."""
    path = os.environ.get(_ERROR_FILE_VARIABLE)
    if LAUNCHER_VARIABLE not in os.environ or not path:
        return False
    write_text(Path(path), json.dumps({"message": text, "timestamp": int(time.time()), "moment": time.time()}))
    return True


def is_orphaned() -> bool:
    """Return whether this process was launched as one of several and its launcher is gone."""
    return LAUNCHER_VARIABLE in os.environ and os.environ[LAUNCHER_VARIABLE] != str(os.getppid())
