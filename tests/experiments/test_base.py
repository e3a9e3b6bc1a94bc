"""Cells of experiments: computed once, shared between processes, and recorded with their origin."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from arcsm.experiments import records
from arcsm.experiments.base import Settings, Study

CPU = torch.device("cpu")


def study(folder: Path, settings: Settings | None = None, work: str = "work") -> Study[Settings]:
    return Study("name", "smoke", settings or Settings(), CPU, folder / "out", folder / work)


def test_a_cell_is_computed_once_for_the_same_settings(tmp_path: Path) -> None:
    calls = []

    def with_seed(first_seed: int) -> Study[Settings]:
        return study(tmp_path, Settings(first_seed=first_seed))

    def compute() -> dict[str, int]:
        calls.append(1)
        return {"value": len(calls)}

    for seed, name, value in ((0, "a cell", 1), (0, "a cell", 1), (1, "a cell", 2), (0, "another", 3)):
        assert with_seed(seed).compute_all({name: compute}) == {name: {"value": value}}
    cells = {"of a model": compute}
    first = with_seed(0).compute_all(cells, {"of a model": "preset"})
    assert with_seed(0).compute_all(cells, {"of a model": "preset"}) == first == {"of a model": {"value": 4}}
    assert with_seed(0).compute_all(cells, {"of a model": "changed"}) == {"of a model": {"value": 5}}


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": {"seconds": 1.0}}'])
def test_a_damaged_file_of_cells_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    assert records.read_cells(path) == {}
    path.write_text('{"a-0.json": {"result": {}, "seconds": 1.0}}')
    assert records.read_cells(path) == {"a-0.json": {"result": {}, "seconds": 1.0}}
    path.write_text(text)
    with pytest.raises(ValueError, match=r"cells\.json: not the cells"):
        records.read_cells(path)


def test_tuning_fails_if_a_method_diverges_at_every_rate(tmp_path: Path) -> None:
    losses = {("a", 0.1): None, ("a", 0.2): 3.0, ("b", 0.1): None, ("b", 0.2): None}

    def tune(name: str) -> dict[str, dict[str, Any]]:
        return study(tmp_path).tune([name], (0.1, 0.2), lambda *key: {"loss": losses[key]}, lambda cell: cell["loss"])

    assert tune("a") == {"a": {"learning_rate": 0.2, "tried": {"0.1": None, "0.2": 3.0}}}
    with pytest.raises(ValueError, match=r"b diverged at all of 0\.1, 0\.2"):
        tune("b")


def test_runs_that_share_a_work_folder_share_the_work(tmp_path: Path) -> None:
    started, finish, computed = threading.Event(), threading.Event(), []

    def cell(run: str, name: str) -> Callable[[], dict[str, Any]]:
        def compute() -> dict[str, Any]:
            if run == "first" and name == "a":
                started.set()
                assert finish.wait(120.0)
            computed.append((run, name))
            return {"by": run}

        return compute

    def compute_all(run: str) -> dict[str, dict[str, Any]]:
        return study(tmp_path).compute_all({name: cell(run, name) for name in ("a", "b", "c")})

    with ThreadPoolExecutor() as pool:
        first = pool.submit(compute_all, "first")
        try:
            assert started.wait(120.0)
            second = pool.submit(compute_all, "second")
            while len(computed) < 2 and not second.done():  # it computes b and c, then waits for a
                time.sleep(0.01)
        finally:
            finish.set()
        assert first.result() == second.result() == {"a": {"by": "first"}, "b": {"by": "second"}, "c": {"by": "second"}}
    assert sorted(computed) == [("first", "a"), ("second", "b"), ("second", "c")]
