"""The commands that show a run: report and info."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from small_reports import use_small_reports
from small_runs import call


def test_a_report_is_one_self_contained_page(
    image_run: Path, table_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_info_prints_the_parts_of_a_model(image_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("info", image_run) == 0
    out = capsys.readouterr().out
    assert "features    64" in out
    assert "ScoreHead" in out
