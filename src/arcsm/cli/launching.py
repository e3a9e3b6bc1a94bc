"""Commands that several processes run together."""

from __future__ import annotations

import warnings

from arcsm._runtime.process_group import join, was_started


class SeveralProcesses(Exception):
    """The command is to run in processes of its own."""

    def __init__(self, devices: int, nodes: int, again: str) -> None:
        super().__init__(devices, nodes)
        self.devices, self.nodes, self.again = devices, nodes, again


def in_processes(devices: int, nodes: int, again: str = "") -> None:
    """Where several processes are asked for, and this is none of them: have the command start again in each."""
    if devices * nodes > 1 and not was_started():
        raise SeveralProcesses(devices, nodes, again)
    if not join().first:
        warnings.simplefilter("ignore")  # the first one says it
