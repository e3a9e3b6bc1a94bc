"""Shares and devices of cooperating processes, and the environment that starts them."""

from __future__ import annotations

import os

import pytest
import torch

from arcsm._runtime import process_group
from arcsm._runtime.launcher import process_count
from arcsm._runtime.process_group import Group, even_slices
from arcsm.cli import application


def test_shares_are_even_and_ordered() -> None:
    assert [range(11)[part] for part in even_slices(11, 4)] == [range(2), range(2, 5), range(5, 8), range(8, 11)]
    assert Group(1, 3).share(10) == slice(3, 6)
    assert Group().share(10) == slice(0, 10)


def test_each_process_has_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_machine_with_gpus(name: str | torch.device) -> torch.device:
        """Resolve a name as torch would; without a number it is the first GPU."""
        device = torch.device("cuda" if name == "auto" else name)
        return torch.device("cuda", device.index or 0) if device.type == "cuda" else device

    monkeypatch.setattr(process_group, "resolve_device", on_a_machine_with_gpus)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    second = Group(rank=5, size=8, local_rank=1, local_size=4)
    for name, expected in (("auto", "cuda:1"), ("cuda", "cuda:1"), ("cpu", "cpu")):
        assert second.device(name) == torch.device(expected)
    assert Group().device("auto") == torch.device("cuda:0")
    assert Group().device("cuda:3") == torch.device("cuda:3")
    with pytest.raises(ValueError, match="8 processes cannot share cuda:3"):
        second.device("cuda:3")
    with pytest.raises(ValueError, match="5 processes on this machine, which has 4 GPUs"):
        Group(rank=4, size=5, local_rank=4, local_size=5).device("cuda")


def test_script_started_several_times_is_alone_unless_it_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert process_group.was_started()
    assert process_group.group() == Group()
    with pytest.raises(ValueError, match="--ntasks-per-node is needed"):
        process_group.join()
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert not process_group.was_started()


@pytest.mark.parametrize(
    "started",
    [{"SLURM_STEP_NUM_TASKS": "3"}, {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "3"}],
    ids=["srun", "torchrun"],
)
def test_single_process_commands_refuse_several_processes(
    started: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert process_count() == 3
    assert application.run(["report", "nowhere"]) == 1
    assert "report: runs in one process, but 3 were started" in capsys.readouterr().err
