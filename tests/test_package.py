"""The names of the package itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

import arcsm
from small_runs import PATIENCE

_SCRIPT = """
import sys, arcsm
assert "torch" not in sys.modules
from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, TrainConfig, fit
import torch
model = AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4, (8,)), NoiseLadder(2.0, 0.1, 5))
fit(model, torch.randn(30, 2), config=TrainConfig(steps=3, device="cpu"))
assert "torch._dynamo" not in sys.modules  # the compiler, which takes seconds to load
for name in ("anomaly", "denoise", "estimators", "implicit", "interop", "metrics", "queries"):
    assert name in dir(arcsm) and f"arcsm.{name}" not in sys.modules
assert arcsm.queries.__name__ == "arcsm.queries"
"""


def test_packages_torch_and_its_compiler_are_loaded_when_used() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_name_leads_to_its_part() -> None:
    for name in set(arcsm.__all__) - {"__version__", "data", "objectives"}:
        assert getattr(arcsm, name).__name__ == name
    assert set(arcsm.__all__) <= set(dir(arcsm))


def test_other_names_are_errors() -> None:
    with pytest.raises(AttributeError, match=r"^module 'arcsm' has no attribute 'densities'$"):
        arcsm.densities  # noqa: B018
