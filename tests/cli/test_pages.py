"""The commands that show a run: report and info."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from small_reports import use_small_reports
from small_runs import call


def test_a_report_is_one_self_contained_page(
    image_run: Path,
    table_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_small_reports(monkeypatch)
    for run in (image_run, table_run):
        page = tmp_path / f"{run.parent.name}.html"
        assert call("report", run, "--out", page, "--samples", 4) == 0
        text = page.read_text()
        assert text.count("data:image/png;base64,") >= 3
        assert not re.search(r"(src|href)=[\"']?(http|//)", text)
        assert "Gaussian mixture" in text
        assert "kind: MADE" in text
    assert call("report", table_run / "model.safetensors") == 1
    assert "expected the folder of a run, whose data the page needs, got a file" in capsys.readouterr().err


def test_info_prints_the_parts_of_a_model(image_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("info", image_run) == 0
    out = capsys.readouterr().out
    assert "features    64" in out
    assert "ScoreHead" in out


def test_a_model_without_a_density_is_reported_and_sampled_and_not_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_small_reports(monkeypatch)
    run, sizes = tmp_path / "run", ("model.context.hidden_features=[8, 8]", "model.head.hidden_features=[8]")
    changes = (*sizes, "data.rows=200", "train.epochs=null", "train.steps=2", "train.batch_size=8")
    assert call("train", "toy-paper", "--out", run, *(part for change in changes for part in ("--set", change))) == 0
    assert call("report", run, "--out", tmp_path / "page.html", "--samples", 4) == 0
    text = (tmp_path / "page.html").read_text()
    assert "has scores and no density" in text
    assert "Histogram of PIT values" not in text
    assert text.count("data:image/png;base64,") >= 3  # samples beside data, and the curve
    assert call("sample", run, "-n", 4, "--out", tmp_path / "drawn.npy") == 0
    capsys.readouterr()
    assert call("score", run, tmp_path / "drawn.npy", "--out", tmp_path / "scores.csv") == 1
    assert re.fullmatch(r"arcsm: PlainScoreHead: has scores and no density; use .*", capsys.readouterr().err.strip())
