"""The command that runs the benchmarks."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

_ROOT = Path(__file__).parents[1]


def test_the_page_of_benchmarks_is_that_of_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(_ROOT))
    command = importlib.import_module("benchmarks.__main__")
    assert command.PAGE.read_text(encoding="utf-8") == command.rendered()


@pytest.mark.slow
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
