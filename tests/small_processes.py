"""Commands in two processes that are forked from the tests, which saves each the seconds of its imports."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from arcsm._runtime import process_group
from arcsm.cli import application
from small_runs import PATIENCE, environment

#: Exit code, output and errors.
Outcome = tuple[int | None, str, str]


def command_in_fork(folder: Path, variables: dict[str, str], arguments: Sequence[str], output: Path) -> None:
    """Run a command in a child of this process as if it had just been started, with its output in two files."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment(**variables))
    sys.argv = ["arcsm", *arguments]
    torch.set_num_threads(1)
    try:
        application.main()
    finally:
        process_group._leave()


def run_in_forks(folders: list[Path], variables: list[dict[str, str]], *arguments: object) -> list[Outcome]:
    """Run a command in a process for each folder, with its own variables in the environment."""
    fork, texts = multiprocessing.get_context("fork"), [str(argument) for argument in arguments]
    with ExitStack() as stack:
        outputs = [Path(stack.enter_context(TemporaryDirectory())) for _ in folders]
        processes = [
            fork.Process(target=command_in_fork, args=(folder, own, texts, output))
            for folder, own, output in zip(folders, variables, outputs, strict=True)
        ]
        for process in processes:
            process.start()
            stack.callback(process.kill)
        for process in processes:
            process.join(PATIENCE)
        return [
            (process.exitcode, *((output / name).read_text() for name in ("out", "err")))
            for process, output in zip(processes, outputs, strict=True)
        ]


def main_address() -> dict[str, str]:
    """Return an address with a free port that no system hands out by itself, as to another test."""
    first = 10_000 + 7 * os.getpid() % 20_000
    for port in range(first, first + 1_000):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    raise OSError(f"no free port from {first}")


def run_as_srun(folders: list[Path], *arguments: str) -> list[Outcome]:
    """Run two processes with their ranks in the environment, each in a folder."""
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "x", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    slurm |= {"SLURM_NNODES": "1", "SLURM_NODEID": "0", **main_address()}
    ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    return run_in_forks(folders, [slurm | rank for rank in ranks], *arguments)


def run_as_torchrun(*arguments: object) -> None:
    """Run a command in two processes as torchrun starts them."""
    common = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **main_address()}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    results = run_in_forks([Path.cwd()] * 2, [common | rank for rank in ranks], *arguments)
    assert [code for code, _, _ in results] == [0, 0], results
    printed = [line for line in results[1][1].splitlines() if not line.startswith("[Gloo]")]  # version 2.8 of torch
    assert printed == []  # only the first prints
