"""What all tests share: a seeded torch whose global state no test may change, and small models."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch.distributions import Distribution

from arcsm import MADE, AutoregressiveModel, GaussianHead, Head, LogisticMixtureHead, NoiseLadder, ScoreHead

if "PYTEST_XDIST_WORKER" in os.environ:  # a process on each core: threads on top would only get in each other's way
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that tests start

settings.register_profile("arcsm", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("arcsm")

MakeModel = Callable[..., AutoregressiveModel]


def _global_state() -> dict[str, Any]:
    """All that a library could change behind its user's back, except the random state, which tests do consume."""
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


@pytest.fixture(autouse=True)
def torch_state() -> Iterator[None]:
    """Seed torch before each test, and fail a test that leaves torch's global state other than it found it."""
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
    """A builder of small models whose conditionals are far from their initial shape and depend on the context.

    Arguments of the builder: ``kind`` ("score", "gaussian" or "mixture"), ``features``, ``noise``, ``dtype``,
    ``seed``, ``strength`` (of the random weights of a score head) and the keywords of the model and of
    the context.
    """

    def make(
        kind: str = "score",
        features: int = 2,
        noise: NoiseLadder | None = None,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        strength: float = 1.0,
        shift: Any = 0.0,
        scale: Any = 1.0,
        metadata: dict[str, Any] | None = None,
        **context: Any,
    ) -> AutoregressiveModel:
        torch.manual_seed(seed)
        made = MADE(features=features, context_features=3, hidden_features=(12,), **context)
        head: Head
        if kind == "score":
            head = ScoreHead(context_features=3, hidden_features=(16, 16), sinusoids=2, max_frequency=3.0)
            with torch.no_grad():
                for parameter in head.parameters():
                    parameter.normal_().mul_(strength / parameter.shape[-1] ** 0.5)
                head.output.bias.zero_()
        elif kind == "gaussian":
            head = GaussianHead(context_features=3)
        else:
            head = LogisticMixtureHead(context_features=3, components=3)
        return AutoregressiveModel(made, head, noise, shift, scale, metadata).to(dtype).eval()

    return make


@pytest.fixture
def ladder() -> NoiseLadder:
    """A short ladder whose first level is wide."""
    return NoiseLadder(sigma_max=1.5, sigma_min=0.2, levels=8)
