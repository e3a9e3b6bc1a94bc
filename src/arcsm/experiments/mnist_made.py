"""AR-CSM on MNIST with a MADE context network: samples by both samplers and exact likelihoods (paper, Section 5.3)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from arcsm._runtime.files import atomic_path
from arcsm.data.datasets import Dataset, load_dataset
from arcsm.experiments.base import Experiment, Preset, write_record
from arcsm.experiments.records import result_path
from arcsm.metrics import add_smallest_noise, mean_and_standard_error, pit_uniformity
from arcsm.model import AutoregressiveModel
from arcsm.reports.run import sample_picture
from arcsm.training.run_config import load_config
from arcsm.training.runs import load_run, train_run

_CHANGES: dict[Preset, list[str]] = {
    "smoke": [
        "model.context.hidden_features=[32, 32]",
        "model.context.context_features=4",
        "model.head.hidden_features=[16, 16]",
        "train.epochs=null",
        "train.steps=10",
        "train.validate_every=5",
        "train.validation_rows=32",
    ],
    "cpu": [],
    "paper": ["train.epochs=200", "train.learning_rate=0.0002", "train.mix=1.0", "train.schedule=constant"],
}
_TEST_ROWS: dict[Preset, int] = {"smoke": 8, "cpu": 500, "paper": 10_000}
_GRID = 64
_PIT_ROWS = 50


def run(
    preset: Preset, out: Path, work: Path, changes: Sequence[str], device: str, seed: int | None = None
) -> dict[str, Any]:
    """Train (or finish) the model, draw 64 digits by each sampler, and measure likelihoods on test digits."""
    seeded = [] if seed is None else [f"train.seed={seed}"]
    config = load_config("mnist-made", [*_CHANGES[preset], f"train.device={device}", *changes, *seeded])
    folder = work / f"{config.name}-{preset}"
    trained = train_run(config, folder, resume=True, progress=True)
    model = load_run(folder, device).model
    dataset = load_dataset(config.data, config.train.seed)
    path = result_path(out, MNIST_MADE.name, preset)
    metrics: dict[str, Any] = {
        "training_steps": trained.steps,
        "training_seconds": round(trained.seconds),
        "validation_objective": trained.best_loss,
        "parameters": sum(p.numel() for p in model.parameters()),
        **_likelihoods(model, dataset, preset, config.train.seed),
        "samplers": _grids(model, path, config.train.seed),
    }
    real = sample_picture(dataset.dequantised(dataset.test[:_GRID], config.train.seed), dataset.metadata)
    _write(path.with_name(f"{preset}-test-digits.png"), real)
    described = config.model_dump(mode="json")
    described["data"].pop("path", None)  # that belongs to a machine, not to a result
    return write_record(path, described, config.train.seed, metrics, trained.seconds, model.shift.device)


@torch.no_grad()
def _likelihoods(model: AutoregressiveModel, dataset: Dataset, preset: Preset, seed: int) -> dict[str, Any]:
    rows = dataset.dequantised(dataset.test[: _TEST_ROWS[preset]], seed + 1)
    noisy = add_smallest_noise(model, rows, seed + 2).to(model.shift.device)
    found: dict[str, Any] = {"test_rows": len(rows)}
    for method in ("flow", "quadrature"):
        begun = time.monotonic()
        mean, error = mean_and_standard_error(
            torch.cat([model.log_prob(part, method=method) for part in noisy.split(50)])
        )
        found[f"nll_at_sigma_min_{method}"] = {"nats": -mean, "standard_error": error}
        found[f"rows_per_second_{method}"] = round(len(rows) / (time.monotonic() - begun), 1)
    uniformity = pit_uniformity(model.cdf(noisy[:_PIT_ROWS]))
    return {**found, "pit_ks_distance": uniformity.statistic, "pit_values": uniformity.count}


def _grids(model: AutoregressiveModel, path: Path, seed: int) -> dict[str, Any]:
    """Sixty-four samples by each sampler, with the last noise removed, and the seconds they took."""
    found: dict[str, Any] = {}
    for sampler in ("langevin", "probability_flow"):
        generator = torch.Generator(model.shift.device).manual_seed(seed)
        begun = time.monotonic()
        rows = model.sample(_GRID, sampler, generator, progress=True, denoise=True)
        seconds = time.monotonic() - begun
        picture = path.with_name(f"{path.stem}-{sampler.replace('_', '-')}.png")
        _write(picture, sample_picture(rows.cpu(), model.metadata))
        found[sampler] = {"seconds_for_64": round(seconds, 1), "picture": picture.name}
    return found


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


MNIST_MADE = Experiment("mnist-made", "AR-CSM on MNIST with MADE: digits by two samplers, exact likelihoods", run)
