"""The optimizers of the configuration are torch's, and do not load torch's compiler."""

import subprocess
import sys

import pytest
import torch

from arcsm.training import optimization


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_steps_are_those_of_torch(name: str) -> None:
    torch.manual_seed(0)
    start, results = torch.randn(7, 3), []
    for module in (optimization, torch.optim):
        weight = torch.nn.Parameter(start.clone())
        optimizer = getattr(module, name)([weight], lr=0.1, weight_decay=0.1, fused=True)
        assert isinstance(optimizer, getattr(torch.optim, name))
        for step in range(5):
            optimizer.zero_grad()
            (weight.square() * (step + 1.0)).sum().backward()
            optimizer.step()
        results.append((weight.detach(), optimizer.state_dict()["state"][0]["exp_avg_sq"]))
        assert weight.grad is not None
        optimizer.zero_grad(set_to_none=True)
        assert weight.grad is None
    for ours, its in zip(*results, strict=True):
        assert torch.equal(ours, its)


def test_a_training_does_not_load_the_compiler_of_torch() -> None:
    script = """
import sys, torch
from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, TrainConfig, fit
model = AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4, (8,)), NoiseLadder(2.0, 0.1, 5))
fit(model, torch.randn(30, 2), config=TrainConfig(steps=3, device="cpu"))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "False\n"
