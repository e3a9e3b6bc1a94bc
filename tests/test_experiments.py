"""Experiments at smoke size, through the command, on small files in the real formats."""

from __future__ import annotations

import gzip
import json
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from arcsm.cli import application
from arcsm.experiments import EXPERIMENTS, adbench, base
from arcsm.experiments.base import Settings, Study
from arcsm.experiments.toys import toy_rows


@pytest.fixture(scope="module")
def small_mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred random images and ten test images in MNIST's file format."""
    folder = tmp_path_factory.mktemp("mnist")
    rng = np.random.default_rng(0)
    for part, count in (("train", 200), ("t10k", 10)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images = struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
        labels = struct.pack(">II", 2049, count) + rng.integers(0, 10, count, dtype=np.uint8).tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return folder


def test_mnist_made_writes_record_and_pictures_and_never_overwrites(
    small_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "mnist-made", "--preset", "smoke", "--out", str(tmp_path), "--work", str(tmp_path / "runs")]
    command += ["--set", f"data.path={small_mnist}", "--set", "train.batch_size=32", "--device", "cpu"]
    assert application.run(command) == 0
    record = json.loads((tmp_path / "mnist-made" / "smoke.json").read_text())
    assert {"metrics", "config", "seed", "seconds", "versions", "machine"} <= record.keys()
    assert str(small_mnist) not in json.dumps(record)
    for sampler in record["metrics"]["samplers"].values():
        assert (tmp_path / "mnist-made" / sampler["picture"]).stat().st_size > 1000
    flow, quadrature = (record["metrics"][f"nll_at_sigma_min_{m}"]["nats"] for m in ("flow", "quadrature"))
    assert np.isfinite([flow, quadrature]).all()
    capsys.readouterr()
    assert application.run(command) == 1
    assert "--force" in capsys.readouterr().err
    assert application.run([*command, "--force"]) == 0


def test_the_list_and_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert application.run(["reproduce"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)
    assert application.run(["reproduce", "mnist-mad"]) == 1
    assert "did you mean mnist-made" in capsys.readouterr().err
    assert application.run(["reproduce", "mnist-made", "--preset", "huge"]) == 2


PARTS = (
    "fig4-mnist",
    "fig4-cifar",
    "fig4-faces",
    "table2-mnist",
    "table2-mnist-8",
    "table2-mnist-16",
    "table2-faces",
    "table2-ablation",
)  # of fig4 and table2, which are quick


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in PARTS else name
        for name in EXPERIMENTS
        if name != "mnist-made"
    ],
)
def test_every_experiment_runs_at_smoke_size_and_goes_on_where_it_stopped(
    name: str, small_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mnist").symlink_to(small_mnist)
    _small_tables(tmp_path / "data")
    monkeypatch.setenv("ARCSM_DATA", str(tmp_path / "data"))
    work = tmp_path / "runs"
    command = ["reproduce", name, "--preset", "smoke", "--out", str(tmp_path / "results"), "--work", str(work)]
    assert application.run([*command, "--device", "cpu"]) == 0
    record = json.loads((tmp_path / "results" / name / "smoke.json").read_text())
    assert record["metrics"]
    assert "NaN" not in json.dumps(record)
    pictures = list((tmp_path / "results" / name).glob("*.png"))
    assert all(picture.stat().st_size > 100 for picture in pictures)
    figure = tmp_path / "results" / name / record["metrics"]["figure"]
    assert figure in pictures
    assert figure.with_suffix(".svg").stat().st_size > 1000
    cells = {path: path.stat().st_mtime_ns for path in work.rglob("*.json")}
    assert cells
    assert application.run([*command, "--device", "cpu", "--force"]) == 0
    assert cells == {path: path.stat().st_mtime_ns for path in work.rglob("*.json")}


def _small_tables(folder: Path) -> None:
    """A table of ADBench's format with outliers, and one of UCI's."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(120, 3))
    rows[:10] += 6.0
    (folder / "adbench").mkdir()
    np.savez(folder / "adbench" / "1_small.npz", X=rows, y=(np.arange(120) < 10).astype(int))
    (folder / "uci").mkdir()
    pd.DataFrame(rows).to_csv(folder / "uci" / "wine.csv.gz", index=False, header=False)


def test_every_peer_of_the_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyod", reason="needs the extra bench")
    _small_tables(tmp_path)
    monkeypatch.setenv("ARCSM_DATA", str(tmp_path))
    command = ["reproduce", "adbench", "--preset", "smoke", "--out", str(tmp_path / "r"), "--work", str(tmp_path / "w")]
    methods = [name for name in adbench.PEERS if name not in ("AutoEncoder", "DeepSVDD")]  # which take their time
    assert application.run([*command, "--set", f"methods={json.dumps(methods)}", "--device", "cpu"]) == 0
    record = json.loads((tmp_path / "r" / "adbench" / "smoke.json").read_text())
    found = record["metrics"]["tables"]["1_small"]["methods"]
    assert set(found) == set(methods)
    assert min(found[name]["auroc"] for name in ("KNN", "IForest", "GMM", "ECOD")) > 0.95


def test_a_cell_is_done_once_for_the_same_settings(tmp_path: Path) -> None:
    calls = []

    def study_of(first_seed: int) -> Study[Settings]:
        settings = Settings(first_seed=first_seed)
        return Study("name", "smoke", settings, torch.device("cpu"), tmp_path, tmp_path / "work")

    def compute() -> dict[str, int]:
        calls.append(1)
        return {"value": len(calls)}

    assert study_of(0).once("a cell", compute) == study_of(0).once("a cell", compute) == {"value": 1}
    assert study_of(1).once("a cell", compute) == {"value": 2}
    assert study_of(0).once("another", compute) == {"value": 3}
    first = study_of(0).each({"of a model": compute}, {"of a model": "preset"})
    assert study_of(0).each({"of a model": compute}, {"of a model": "preset"}) == first == {"of a model": {"value": 4}}
    assert study_of(0).each({"of a model": compute}, {"of a model": "changed"}) == {"of a model": {"value": 5}}


def test_the_time_of_a_cell_has_that_of_runs_that_were_stopped(tmp_path: Path) -> None:
    study = Study("name", "smoke", Settings(), torch.device("cpu"), tmp_path, tmp_path / "work")

    def goes_on() -> dict[str, int]:
        study.earlier += 1000.0
        return {}

    study.once("goes on", goes_on)
    assert 1000.0 <= study.seconds < 1900.0
    study.once("begins", dict)
    assert study.seconds < 1900.0


def test_a_record_says_what_code_its_cells_are_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def codes() -> set[str]:
        study = Study("name", "smoke", Settings(), torch.device("cpu"), tmp_path, tmp_path / "work")
        study.once("a", dict)
        return study.codes

    first = codes()
    assert first == {base.code_fingerprint()}
    monkeypatch.setattr(base, "code_fingerprint", lambda: "later")
    assert codes() == first


@pytest.mark.parametrize("text", ["{", "null", "[1]", '{"a": 1}', '{"a": {"seconds": 1.0}}'])
def test_what_is_no_file_of_cells_is_said(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    assert base.read_cells(path) == {}
    path.write_text('{"a-0.json": {"result": {}, "seconds": 1.0}}')
    assert base.read_cells(path) == {"a-0.json": {"result": {}, "seconds": 1.0}}
    path.write_text(text)
    with pytest.raises(ValueError, match=r"cells\.json: these are not"):
        base.read_cells(path)


def test_a_record_names_the_other_machines(tmp_path: Path) -> None:
    class Keeping(Settings):
        keeps_cells: ClassVar[bool] = True

    cpu = torch.device("cpu")
    here, other = base.machine(cpu), base.machine(cpu) | {"cores": 4096}
    for work, others in (("one", None), ("two", [other])):
        study = Study("name", "smoke", Keeping(), cpu, tmp_path / "out", tmp_path / work)
        study.each({"a": dict, "b": dict})
        path = base.cells_path(study.out, "name", "smoke")
        record = study.record({})
        assert record["machine"] == here
        assert record.get("also_computed_on") == others
        cells = base.read_cells(path)
        cells[min(cells)]["machine"] = other
        path.write_text(json.dumps(cells))


def test_no_rate_is_chosen_where_all_broke(tmp_path: Path) -> None:
    study = Study("name", "smoke", Settings(), torch.device("cpu"), tmp_path, tmp_path / "work")
    losses = {("a", 0.1): None, ("a", 0.2): 3.0, ("b", 0.1): None, ("b", 0.2): None}

    def tune(name: str) -> dict[str, dict[str, Any]]:
        return study.tune([name], (0.1, 0.2), lambda *key: {"loss": losses[key]}, lambda cell: cell["loss"])

    assert tune("a") == {"a": {"learning_rate": 0.2, "tried": {"0.1": None, "0.2": 3.0}}}
    with pytest.raises(ValueError, match=r"b broke at all of 0\.1, 0\.2"):
        tune("b")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("fig1b", "batch=0"),
        ("fig1b", "sigmas=[0.1, -0.1]"),
        ("modes", "learning_rate=0"),
        ("modes", "left=1"),
        ("toys-nll", "hidden=[8, 0]"),
        ("toys-nll", "sigma_min=.inf"),
        ("toys-nll", "ema=1"),
        ("fig4", "langevin_steps=[20, 0]"),
        ("table2-mnist-8", "chains=0"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    name: str, change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", name, "--preset", "smoke", "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    assert application.run([*command, "--set", change]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"arcsm: --set {change.partition('=')[0]}")
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fig1a", "fig4", "fig7"])
def test_seeds_are_refused_by_experiments_of_one(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reproduce", name, "--preset", "smoke", "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    assert application.run([*command, "--set", "seeds=2"]) == 1
    assert "of one seed" in capsys.readouterr().err


def test_other_settings_of_fig4_leave_its_samples_alone(
    small_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mnist").symlink_to(small_mnist)
    monkeypatch.setenv("ARCSM_DATA", str(tmp_path))
    work = tmp_path / "runs"
    command = ["reproduce", "fig4", "--preset", "smoke", "--out", str(tmp_path / "results"), "--work", str(work)]
    command += ["--device", "cpu", "--force", "--set", "models=[mnist-made-mle]"]
    assert application.run(command) == 0
    (samples,) = work.rglob("*.npy")
    before = samples.read_bytes()
    assert application.run([*command, "--set", "samples=2", "--set", "grid=2"]) == 0
    assert application.run([*command, "--seed", "1"]) == 0
    assert samples.read_bytes() == before
    assert len(list(work.rglob("*.npy"))) == 3


def test_runs_that_share_a_work_folder_share_the_work(tmp_path: Path) -> None:
    begun, done = threading.Event(), []

    def cell(run: str, name: str) -> Callable[[], dict[str, Any]]:
        def compute() -> dict[str, Any]:
            if run == "first" and name == "a":
                begun.set()
                assert all_but_a.wait(120.0)
            done.append((run, name))
            return {"by": run}

        return compute

    def run_of(run: str) -> dict[str, dict[str, Any]]:
        study = Study("name", "smoke", Settings(), torch.device("cpu"), tmp_path, tmp_path / "work")
        return study.each({name: cell(run, name) for name in ("a", "b", "c")})

    all_but_a = threading.Event()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(run_of, "first")
        try:
            assert begun.wait(120.0)
            second = pool.submit(run_of, "second")
            while len(done) < 2 and not second.done():  # it does b and c, leaves a to the first, and waits for it
                time.sleep(0.01)
        finally:
            all_but_a.set()
        assert first.result() == second.result() == {"a": {"by": "first"}, "b": {"by": "second"}, "c": {"by": "second"}}
    assert sorted(done) == [("first", "a"), ("second", "b"), ("second", "c")]


@pytest.mark.parametrize(
    ("change", "message"), [("featurs=3", "did you mean features"), ("features=many", "features"), ("features", "KEY=")]
)
def test_a_wrong_setting_is_a_one_line_error(
    change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert application.run(["reproduce", "fig1b", "--preset", "smoke", "--out", str(tmp_path), "--set", change]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["checkerboard", "rings", "eight_gaussians"])
def test_the_true_density_with_noise_integrates_to_one_and_is_that_of_its_rows(name: str) -> None:
    rows = toy_rows(name, 5_000, 4_000, sigma=0.1, seed=0)
    axis = torch.linspace(-4.0, 4.0, 100)
    density = rows.true_log_prob(torch.cartesian_prod(axis, axis))
    assert density is not None
    assert float(density.exp().sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1.0, abs=1e-3)
    # the entropy over the grid is what the rows have on average
    entropy = -float((density.exp() * density).sum() * (axis[1] - axis[0]) ** 2)
    at_rows = rows.true_log_prob(rows.test[:1000])
    assert at_rows is not None
    assert float(-at_rows.mean()) == pytest.approx(entropy, abs=0.08)
