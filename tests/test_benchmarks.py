"""The command that runs the benchmarks."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path

import pytest
import torch

from arcsm import ScoreHead
from arcsm.conditionals.conditionals import Accuracy, Conditionals

_ROOT = Path(__file__).parents[1]


def test_benchmarks_that_lack_a_run_or_a_gpu_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(_ROOT))
    command = importlib.import_module("benchmarks.__main__")
    ran: list[str] = []

    def run(arguments: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(arguments[2].removeprefix("benchmarks."))
        return subprocess.CompletedProcess(arguments, 0, "{}")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(command, "PAGE", tmp_path / "README.md")
    monkeypatch.setattr(command, "rendered", str)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "README.md").write_text("")
    monkeypatch.setattr("sys.argv", ["benchmarks"])
    command.main()
    assert ran == [name for name in command.ABOUT if name not in ("quadrature", "gpu")]
    monkeypatch.setattr("sys.argv", ["benchmarks", "quadrature"])
    with pytest.raises(SystemExit):
        command.main()
    assert "quadrature needs --runs RUN" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["benchmarks", "quadrature", "--runs", "run"])
    command.main()
    assert ran[-1] == "quadrature"


def test_the_naive_grid_of_the_benchmarks_agrees_with_the_quadrature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(_ROOT))
    benchmark = importlib.import_module("benchmarks.log_prob")
    torch.manual_seed(0)
    head, x = ScoreHead(3, (8,)).double(), torch.randn(5, dtype=torch.float64)
    projection = head.project(torch.randn(5, 3, dtype=torch.float64))
    conditionals = Conditionals(head, projection, (0.1,), "quadrature", Accuracy(1e-6))
    torch.testing.assert_close(benchmark.uniform_grid(conditionals, x, 20_001), benchmark.adaptive(conditionals, x))


def test_the_page_of_benchmarks_is_that_of_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(_ROOT))
    command = importlib.import_module("benchmarks.__main__")
    assert command.PAGE.read_text(encoding="utf-8") == command.rendered()


@pytest.mark.usefixtures("validation_of_distributions")
def test_the_benchmark_of_a_gpu_can_be_tried_out_on_a_processor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("zuko", reason="needs the extra bench")
    monkeypatch.syspath_prepend(str(_ROOT))
    benchmark = importlib.import_module("benchmarks.gpu")
    monkeypatch.setattr("sys.argv", ["gpu", "--device", "cpu", "--small"])
    benchmark.main()
    found = json.loads(capsys.readouterr().out)
    assert all(one["bf16"]["milliseconds"] > 0.0 for one in found["training"].values())
    for methods in found["evaluation"]["8 rows of 21 columns"].values():
        assert methods["arcsm: flow"]["times_ours"] == 1.0
        assert methods["zuko: NSF"]["milliseconds"] > 0.0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "needs a CUDA device; try it out with --device cpu --small" in capsys.readouterr().err
