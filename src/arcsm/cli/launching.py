"""Commands that several processes share."""

import warnings

from arcsm._runtime.launcher import was_started


class SeveralProcesses(Exception):
    """The command must be started again in several processes."""

    def __init__(self, devices: int, nodes: int, hint: str) -> None:
        super().__init__(devices, nodes)
        self.devices, self.nodes, self.hint = devices, nodes, hint


def join_processes(devices: int, nodes: int, hint: str = "") -> None:
    """Join the other processes of the command, or raise :class:`SeveralProcesses` to have it started again in several.

    There are ``devices`` processes on each of ``nodes`` machines; the hint is for the case that one ends early.
    """
    if devices * nodes > 1 and not was_started():
        raise SeveralProcesses(devices, nodes, hint)
    from arcsm._runtime.process_group import join  # takes seconds

    if not join().first:
        warnings.simplefilter("ignore")  # the first process warns
