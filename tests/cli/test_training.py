"""The command train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arcsm.cli import application
from small_runs import call


def test_a_table_is_trained_with_its_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{n % 7 + 0.5},{n / 9.0}\n" for n in range(90)))
    command = ["train", "table", "--set", "train.steps=2", "--out", str(run)]
    (tmp_path / "narrow.csv").write_text("a,b\n" + "".join(f"{n % 7 + 0.5},{1.7e9 + n}\n" for n in range(90)))
    for name, message in (("none", "does not exist"), ("narrow", "column 'b' varies by 26 around 1.7e+09, too")):
        assert application.run([*command, "--set", f"data.path={tmp_path / name}.csv"]) == 1
        assert message in capsys.readouterr().err
        assert not run.exists()
    assert application.run([*command, "--set", f"data.path={tmp_path / 't.csv'}"]) == 0
    assert application.run(["sample", str(run), "-n", "3", "--out", str(tmp_path / "s.csv")]) == 0
    assert (tmp_path / "s.csv").read_text().startswith("a,b\n")


def test_a_run_is_resumed_and_never_overwritten(image_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (image_run / "model.safetensors").read_bytes()
    source = image_run.parent / "tiny.yaml"
    assert call("train", source, "--out", image_run) == 1
    assert "--resume" in capsys.readouterr().err
    assert call("train", source, "--out", image_run, "--resume") == 0
    assert (image_run / "model.safetensors").read_bytes() == before


def test_an_interruption_before_the_run_exists_prints_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("interrupted after step 7")

    monkeypatch.setattr("arcsm.training.runs.load_dataset", stopped)
    assert application.run(["train", "digits", "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "arcsm: interrupted after step 7\n"


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "", "a\\b", "a\nb"])
def test_a_name_that_leads_out_of_the_folder_of_runs_needs_an_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert call("train", "digits", "--set", f"name={json.dumps(name)}", "--set", "train.steps=1") == 1
    message = capsys.readouterr().err
    assert message.startswith("arcsm: digits: name: expected the name of a folder in runs")
    assert message.endswith("give --out\n")
    assert [path.name for path in tmp_path.rglob("*")] == ["work"]


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_unrelated_files_are_not_replaced(
    resume: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.csv").write_text("mine")
    assert call("train", "digits", "--set", "train.steps=1", "--out", tmp_path, *resume) == 1
    assert "metrics.csv: exists, but the folder is not a run" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_lack_of_memory_is_one_line_and_leaves_no_run_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: tried\nmore")

    monkeypatch.setattr("arcsm.training.runs.fit", fail)
    assert call("train", "digits", "--out", tmp_path / "run") == 1
    message = capsys.readouterr().err
    assert message.startswith("arcsm: out of memory")
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_is_distilled_into_a_model_for_all_commands(
    table_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = tmp_path / "fast"
    assert call("distil", table_run, "--steps", 10, "--out", fast) == 0
    printed = capsys.readouterr().out
    assert "nats a row from the trained model" in printed
    assert "nats a row lost on held-out rows" in printed
    before = (fast / "model.safetensors").read_bytes()
    assert call("distil", table_run, "--out", fast) == 1
    assert "already exists; choose a new or an empty folder" in capsys.readouterr().err
    assert (fast / "model.safetensors").read_bytes() == before
    assert call("sample", fast, "-n", 5, "--out", tmp_path / "s.csv") == 0
    assert (tmp_path / "s.csv").read_text().startswith("a,b,c\n")
    assert call("info", fast) == 0
    assert "SplineHead" in capsys.readouterr().out
    file = tmp_path / "fast.safetensors"
    assert call("distil", table_run, "--without-data", "--steps", 5, "--out", file) == 0
    assert "held-out rows" not in capsys.readouterr().out
    assert call("sample", file, "-n", 4, "--out", tmp_path / "s.npy") == 0
    assert call("distil", fast, "--out", tmp_path / "again") == 1
    assert "nothing to distil" in capsys.readouterr().err
