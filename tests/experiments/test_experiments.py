"""Every experiment at smoke size, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from arcsm import objectives
from arcsm.cli import application
from arcsm.experiments import EXPERIMENTS, adbench, base, fig1a
from small_experiments import command, reproduce

#: Parts of fig4 and table2, which are tested as a whole.
PARTS = ("fig4-mnist", "fig4-cifar", "fig4-faces", "fig4-celeba", "table2-mnist", "table2-mnist-8", "table2-mnist-16",
         "table2-faces", "table2-ablation")  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in PARTS else name
        for name in EXPERIMENTS
        if name != "mnist-made"
    ],
)
def test_every_experiment_runs_and_reuses_its_cells(
    name: str, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fig1a, "METHODS", ("CSM",))  # each starts a process; all are tested below
    record = reproduce(name, tmp_path)
    assert record["metrics"]
    assert "NaN" not in json.dumps(record)
    pictures = list((tmp_path / "results" / name).iterdir())
    assert {picture.suffix for picture in pictures} <= {".json", ".png"}
    assert all(picture.stat().st_size > 100 for picture in pictures)
    assert tmp_path / "results" / name / record["metrics"]["figure"] in pictures
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}
    assert cells
    monkeypatch.setattr(base, "as_png", lambda figure, dpi: b"")  # drawing was tested above
    assert reproduce(name, tmp_path)["metrics"] == record["metrics"]
    assert cells == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}


@pytest.mark.parametrize("method", fig1a.METHODS)
def test_a_step_of_every_method_is_measured(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = fig1a.PRESETS["smoke"].model_dump(mode="json")
    fig1a.measure(json.dumps([settings, method, 4, "cpu"]), torch.get_num_threads())
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["by_plain_step"] == pytest.approx(numbers["milliseconds"] / numbers["plain_step_milliseconds"])
    assert numbers["milliseconds"] > 0.0
    assert numbers["parameters"] > 0


def test_csm_by_autograd_is_csm() -> None:
    torch.manual_seed(0)
    model = fig1a.PRESETS["smoke"].build(5).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    loss = fig1a._csm_by_autograd(model, x, x.clone().requires_grad_())
    torch.testing.assert_close(loss, objectives.csm(model, x), rtol=1e-12, atol=1e-12)
    weights = list(model.parameters())
    by_autograd = torch.autograd.grad(loss, weights)
    torch.testing.assert_close(by_autograd, torch.autograd.grad(objectives.csm(model, x), weights))


def test_mnist_made_writes_record_and_pictures_and_does_not_overwrite_by_default(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = (f"data.path={small_data / 'mnist'}", "train.batch_size=32", "model.noise.levels=3")
    record = reproduce("mnist-made", tmp_path, *changes)
    assert {"metrics", "config", "seed", "seconds", "versions", "machine"} <= record.keys()
    assert str(small_data) not in json.dumps(record)
    for sampler in record["metrics"]["samplers"].values():
        assert (tmp_path / "results" / "mnist-made" / sampler["picture"]).stat().st_size > 1000
    assert np.isfinite([record["metrics"][f"nll_at_sigma_min_{m}"]["nats"] for m in ("flow", "quadrature")]).all()
    arguments = command("mnist-made", tmp_path, *changes)
    arguments.remove("--force")
    capsys.readouterr()
    assert application.run(arguments) == 1
    assert "--force" in capsys.readouterr().err


def test_the_command_lists_experiments_and_rejects_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert application.run(["reproduce"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)
    assert application.run(["reproduce", "mnist-mad"]) == 1
    assert "did you mean mnist-made" in capsys.readouterr().err
    assert application.run(["reproduce", "mnist-made", "--preset", "huge"]) == 2


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fig1b", "featurs=3", "did you mean features"),
        ("fig1b", "features=many", "features"),
        ("fig1b", "features", "KEY="),
        ("fig1b", "batch=0", "--set batch"),
        ("fig1b", "sigmas=[0.1, -0.1]", "--set sigmas"),
        ("modes", "learning_rate=0", "--set learning_rate"),
        ("modes", "left=1", "--set left"),
        ("toys-nll", "hidden=[8, 0]", "--set hidden"),
        ("toys-nll", "sigma_min=.inf", "--set sigma_min"),
        ("toys-nll", "ema=1", "--set ema"),
        ("fig4", "langevin_steps=[20, 0]", "--set langevin_steps"),
        ("table2-mnist-8", "chains=0", "--set chains"),
        ("orders", "mixtures=[32]", "mixtures: expected sizes up to random_orders=4"),
        ("fig1a", "seeds=2", "uses one seed"),
        ("fig4", "seeds=2", "uses one seed"),
        ("fig7", "seeds=2", "uses one seed"),
    ],
)
def test_an_invalid_setting_is_a_one_line_error(
    name: str, change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert application.run(command(name, tmp_path, change)) == 1
    error = capsys.readouterr().err
    assert error.startswith("arcsm: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_detector_of_the_benchmark_runs(small_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyod", reason="needs the extra bench")
    methods = [name for name in adbench.PEERS if name not in ("AutoEncoder", "DeepSVDD")]  # these are slow
    record = reproduce("adbench", tmp_path, f"methods={json.dumps(methods)}")
    results = record["metrics"]["tables"]["1_small"]["methods"]
    assert set(results) == set(methods)
    assert min(results[name]["auroc"] for name in ("KNN", "IForest", "GMM", "ECOD")) > 0.95


def test_samples_of_fig4_depend_on_their_settings_and_seed(small_data: Path, tmp_path: Path) -> None:
    model = "models=[mnist-made-mle]"
    reproduce("fig4", tmp_path, model)
    (samples,) = tmp_path.rglob("*.npy")
    before = samples.read_bytes()
    reproduce("fig4", tmp_path, model, "samples=2", "grid=2")
    reproduce("fig4", tmp_path, model, "first_seed=1")
    assert samples.read_bytes() == before
    assert len(list(tmp_path.rglob("*.npy"))) == 3
