"""Fixtures of all tests: torch is seeded, its global state must not change, and a failure names its seam."""

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch.distributions import Distribution

import small_models
from arcsm import NoiseLadder
from small_models import MakeModel

if "PYTEST_XDIST_WORKER" in os.environ:  # there is a process on each core already
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for commands that tests start

#: The seam that a folder, or a file beside the folders, is about. The rest is about none: files, commands, pages.
SEAMS = {
    "contexts": "context", "heads": "head", "conditionals": "head", "objectives": "objective", "implicit": "objective",
    "training": "objective", "samplers": "sampler", "queries": "sampler", "denoise": "sampler",
    "estimators": "all four, in estimators", "test_model": "all four, in a model", "test_own_heads": "head",
    "test_noise": "objective",
}  # fmt: skip

settings.register_profile("arcsm", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("arcsm")


def _global_state() -> dict[str, Any]:
    """Return torch's global state except the random state, which tests may consume."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "validation of distributions": Distribution._validate_args,
    }


_RESTORE: dict[str, Callable[[Any], Any]] = {
    "default dtype": torch.set_default_dtype,
    "default device": torch.set_default_device,
    "grad mode": torch.set_grad_enabled,
    "inference mode": lambda _: None,
    "anomaly mode": torch.autograd.set_detect_anomaly,
    "threads": torch.set_num_threads,
    "deterministic algorithms": torch.use_deterministic_algorithms,
    "matmul precision": torch.set_float32_matmul_precision,
    "validation of distributions": Distribution.set_default_validate_args,
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Name the seam in the first line of a failure."""
    report = yield
    if report.failed:
        folder = item.path.relative_to(Path(__file__).parent).with_suffix("").parts[0]
        path, line, name = report.location
        report.location = (path, line, f"{name} [seam: {SEAMS.get(folder, 'none, ' + folder)}]")
    return report


@pytest.fixture(autouse=True)
def torch_state() -> Iterator[None]:
    """Seed torch before each test, and fail a test that changes torch's global state."""
    torch.manual_seed(0)
    before = _global_state()
    yield
    after = _global_state()
    changed = [name for name in before if before[name] != after[name]]
    for name in changed:
        _RESTORE[name](before[name])
    if changed:
        pytest.fail(f"the test changed torch's global state: {', '.join(changed)}")


@pytest.fixture
def make_model() -> MakeModel:
    """Return the builder of small models; see :func:`small_models.make_model`."""
    return small_models.make_model


@pytest.fixture
def ladder() -> NoiseLadder:
    """Return a short ladder whose first level is wide."""
    return NoiseLadder(sigma_max=1.5, sigma_min=0.2, levels=8)


@pytest.fixture
def validation_of_distributions() -> Iterator[None]:
    """Restore a global setting that ``torch.compile`` switches off."""
    yield
    Distribution.set_default_validate_args(True)
