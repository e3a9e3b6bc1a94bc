"""AR-CSM on MNIST with a MADE context network: samples by both samplers and exact likelihoods (paper, Section 5.3)."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from arcsm._runtime.files import write_bytes
from arcsm.data.datasets import Dataset, load_dataset
from arcsm.experiments.base import Experiment, Preset, Result, parameter_count
from arcsm.experiments.records import result_path, write_record
from arcsm.metrics import add_smallest_noise, mean_and_standard_error, pit_uniformity
from arcsm.model import AutoregressiveModel
from arcsm.reports.pictures import sample_picture
from arcsm.training.run_config import load_config
from arcsm.training.runs import load_run, train_run

_CHANGES: dict[Preset, list[str]] = {
    "smoke": [
        "model.context.hidden_features=[32, 32]", "model.context.context_features=4",
        "model.head.hidden_features=[16, 16]", "train.epochs=null", "train.steps=10", "train.validate_every=5",
        "train.validation_rows=32",
    ],
    "cpu": [],
    "paper": ["train.epochs=200", "train.learning_rate=0.0002", "train.mix=1.0", "train.schedule=constant"],
}  # fmt: skip
_TEST_ROWS: dict[Preset, int] = {"smoke": 8, "cpu": 500, "paper": 10_000}
_GRID = 64
_PIT_ROWS = 50


def run(preset: Preset, out: Path, work: Path, changes: Sequence[str], device: str, seed: int | None = None) -> Result:
    """Train or resume the model, draw 64 digits by each sampler, and measure likelihoods on test digits."""
    seed_change = [] if seed is None else [f"train.seed={seed}"]
    config = load_config("mnist-made", [*_CHANGES[preset], f"train.device={device}", *changes, *seed_change])
    folder = work / f"{config.name}-{preset}"
    training = train_run(config, folder, resume=True, progress=True)
    model = load_run(folder, device).model
    dataset = load_dataset(config.data, config.train.seed)
    path = result_path(out, MNIST_MADE.name, preset)
    metrics: Result = {
        "training_steps": training.steps,
        "training_seconds": round(training.seconds),
        "validation_objective": training.best_loss,
        "parameters": parameter_count(model),
        **_likelihoods(model, dataset, preset, config.train.seed),
        "samplers": _sample_grids(model, path, config.train.seed),
    }
    real = sample_picture(dataset.dequantised(dataset.test[:_GRID], config.train.seed), dataset.metadata)
    write_bytes(path.with_name(f"{preset}-test-digits.png"), real)
    settings = config.model_dump(mode="json")
    settings["data"].pop("path", None)  # specific to this machine
    return write_record(path, settings, config.train.seed, metrics, training.seconds, model.shift.device)


@torch.no_grad()
def _likelihoods(model: AutoregressiveModel, dataset: Dataset, preset: Preset, seed: int) -> Result:
    rows = dataset.dequantised(dataset.test[: _TEST_ROWS[preset]], seed + 1)
    noisy = add_smallest_noise(model, rows, seed + 2).to(model.shift.device)
    found: Result = {"test_rows": len(rows)}
    for method in ("flow", "quadrature"):
        start = time.monotonic()
        log_prob = torch.cat([model.log_prob(part, method=method) for part in noisy.split(50)])
        mean, error = mean_and_standard_error(log_prob)
        found[f"nll_at_sigma_min_{method}"] = {"nats": -mean, "standard_error": error}
        found[f"rows_per_second_{method}"] = round(len(rows) / (time.monotonic() - start), 1)
    uniformity = pit_uniformity(model.cdf(noisy[:_PIT_ROWS]))
    return {**found, "pit_ks_distance": uniformity.statistic, "pit_values": uniformity.count}


def _sample_grids(model: AutoregressiveModel, path: Path, seed: int) -> Result:
    samplers: Result = {}
    for sampler in ("langevin", "probability_flow"):
        generator = torch.Generator(model.shift.device).manual_seed(seed)
        start = time.monotonic()
        rows = model.sample(_GRID, sampler, generator, progress=True, denoise=True)
        seconds = time.monotonic() - start
        picture = path.with_name(f"{path.stem}-{sampler.replace('_', '-')}.png")
        write_bytes(picture, sample_picture(rows.cpu(), model.metadata))
        samplers[sampler] = {"seconds_for_64": round(seconds, 1), "picture": picture.name}
    return samplers


MNIST_MADE = Experiment("mnist-made", "AR-CSM on MNIST with MADE: digits by two samplers, exact likelihoods", run)
