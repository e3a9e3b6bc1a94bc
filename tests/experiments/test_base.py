"""Cells of experiments: computed once, shared between processes, and recorded with their origin."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

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


def test_a_key_may_have_fewer_seeds_than_the_others(tmp_path: Path) -> None:
    run = study(tmp_path, Settings(seeds=3, first_seed=5))
    cells: dict[str, Callable[[int], dict[str, int]]] = {key: lambda seed: {"seed": seed} for key in ("a", "b", "c")}
    found = run.compute_seeds(cells, most_seeds=lambda key: {"a": 9, "b": 1, "c": 2}[key])
    assert {key: [cell["seed"] for cell in each] for key, each in found.items()} == {
        "a": [5, 6, 7],
        "b": [5],
        "c": [5, 6],
    }


def test_the_time_of_a_cell_includes_interrupted_runs(tmp_path: Path) -> None:
    current = study(tmp_path)

    def resume() -> dict[str, int]:
        current.earlier_seconds += 1000.0
        return {}

    current.compute_all({"resumed": resume})
    assert 1000.0 <= current.seconds < 1900.0
    current.compute_all({"new": dict})
    assert current.seconds < 1900.0


def test_a_cell_keeps_the_fingerprint_of_the_code_that_computed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fingerprints() -> set[str]:
        current = study(tmp_path)
        current.compute_all({"a": dict})
        return current.fingerprints

    first = fingerprints()
    assert first == {records.code_fingerprint()}
    monkeypatch.setattr(records, "code_fingerprint", lambda: "later")
    assert fingerprints() == first


@pytest.mark.parametrize("text", ["{", "null", "[1]", '{"a": 1}', '{"a": {"seconds": 1.0}}'])
def test_a_damaged_file_of_cells_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    assert records.read_cells(path) == {}
    path.write_text('{"a-0.json": {"result": {}, "seconds": 1.0}}')
    assert records.read_cells(path) == {"a-0.json": {"result": {}, "seconds": 1.0}}
    path.write_text(text)
    with pytest.raises(ValueError, match=r"cells\.json: not the cells"):
        records.read_cells(path)


def test_a_record_names_other_machines(tmp_path: Path) -> None:
    class Recording(Settings):
        records_cells: ClassVar[bool] = True

    here = records.describe_machine(CPU)
    other = here | {"cores": 4096}
    for work, others in (("one", None), ("two", [other])):
        current = study(tmp_path, Recording(), work)
        current.compute_all({"a": dict, "b": dict})
        path = records.cells_path(current.out, "name", "smoke")
        record = current.record({})
        assert record["machine"] == here
        assert record.get("also_computed_on") == others
        cells = records.read_cells(path)
        cells[min(cells)]["machine"] = other
        path.write_text(json.dumps(cells))


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
