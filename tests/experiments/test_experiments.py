"""Every experiment at smoke size, through the command."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from arcsm.cli import application
from arcsm.estimators import ScoreOutlierDetector
from arcsm.experiments import EXPERIMENTS, adbench, base, fig1a
from small_experiments import command, reproduce

#: Parts of other experiments; test_table1 looks at all of Table 1.
SLOW = ("fig4-mnist", "fig4-cifar", "fig4-faces", "fig4-celeba", "table1", "table2-mnist", "table2-mnist-8",
        "table2-mnist-16", "table2-faces", "table2-ablation")  # fmt: skip


def in_this_process(arguments: list[str], **options: object) -> SimpleNamespace:
    """Run the code of ``python -c`` without another interpreter."""
    with redirect_stdout(io.StringIO()) as out:
        exec(arguments[-1], {})
    return SimpleNamespace(returncode=0, stdout=out.getvalue())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in EXPERIMENTS
        if name != "mnist-made"
    ],
)
@pytest.mark.usefixtures("small_data", "plain_features")
def test_every_experiment_runs_and_reuses_its_cells(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fig1a.subprocess, "run", in_this_process)
    monkeypatch.setattr(adbench, "ScoreOutlierDetector", partial(ScoreOutlierDetector, max_steps=3))
    changes = ['outliers=["1_small"]'] if name == "distillation" else []
    record = reproduce(name, tmp_path, *changes)
    assert record["metrics"]
    assert "NaN" not in json.dumps(record)
    pictures = list((tmp_path / "results" / name).iterdir())
    assert {picture.suffix for picture in pictures} <= {".json", ".png"}
    assert all(picture.stat().st_size > 100 for picture in pictures)
    assert tmp_path / "results" / name / record["metrics"]["figure"] in pictures
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}
    assert cells
    monkeypatch.setattr(base, "as_png", lambda figure, dpi: b"")  # drawing was tested above
    assert reproduce(name, tmp_path, *changes)["metrics"] == record["metrics"]
    assert cells == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}


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
        ("fig1b", "features", "KEY="),
        ("fig1b", "sigmas=[0.1, -0.1]", "--set sigmas"),
        ("orders", "mixtures=[32]", "mixtures: expected sizes up to random_orders=4"),
        ("fig1a", "seeds=2", "uses one seed"),
        ("table1", "models=[Glow]", "Glow"),
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
