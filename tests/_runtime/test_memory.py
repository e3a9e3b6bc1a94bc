"""Free memory: limits of the system, the container and the process."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from arcsm._runtime import memory


def test_free_memory_respects_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, (own, folder, names) in {
        "new": ("0::/job\n", "job", memory.CGROUP_V2_NAMES),
        "old": ("5:memory:/\n2:cpu:/x\n", "memory", memory.CGROUP_V1_NAMES),
    }.items():
        root = tmp_path / version
        (root / folder).mkdir(parents=True)
        (root / "own").write_text(own)
        for name, text in zip((*names[:2], "memory.stat"), ("5000", "3000", f"x 1\n{names[2]} 700"), strict=True):
            (root / folder / name).write_text(f"{text}\n")
        assert memory.container_free_memory(root, root / "own") == 2700
        (root / folder / names[0]).write_text("max\n" if version == "new" else f"{2**63 - 4096}\n")
        assert memory.container_free_memory(root, root / "own") is None
    assert memory.container_free_memory(tmp_path, tmp_path / "none") is None
    system = memory.system_free_memory()
    assert system is not None
    assert system > 0
    monkeypatch.setattr(memory, "container_free_memory", lambda: 1)
    assert memory.free_memory() in (0, 1)


@pytest.mark.parametrize("limited", [resource.RLIMIT_DATA, resource.RLIMIT_AS])
def test_free_memory_respects_ulimit(limited: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_DATA: resource.RLIM_INFINITY, resource.RLIMIT_AS: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], resource.RLIM_INFINITY))
    for name in ("system_free_memory", "container_free_memory"):  # the true values change all the time
        monkeypatch.setattr(memory, name, lambda: 1 << 50)
    assert memory.free_memory() == 1 << 50
    for limit, expected in ((1 << 60, [1 << 50]), (1 << 45, range(1, 1 << 45)), (1 << 20, [0])):
        limits[limited] = limit
        assert memory.free_memory() in expected
