"""Training steps of an autoencoder of digits by each estimator of the entropy gradient, against the latents.

python -m benchmarks.autoencoder
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from arcsm.experiments.table2 import ENCODERS
from arcsm.implicit import VAEConfig, VAETrainConfig
from arcsm.implicit.training import _Trainer
from benchmarks.timing import interleaved_medians, show

BATCH, LATENTS = 128, (8, 16, 64, 128)
WAYS = {
    "elbo": {},
    "stein": {},
    "spectral": {},
    "ssm": {},
    "ssm-ar": {},
    "csm": {},
    "csm, whitened": {"whitened": True},
}


def trainer(way: str, latents: int, rows: torch.Tensor) -> _Trainer:
    torch.manual_seed(0)
    method = way.split(",")[0]
    parts = VAEConfig.model_validate({"encoder": ENCODERS[method], "latents": latents})
    vae = parts.build({"image_shape": [1, 28, 28], "levels": 256})
    config = VAETrainConfig.model_validate({"method": method, "batch_size": BATCH, "device": "cpu", **WAYS[way]})
    return _Trainer(vae, rows, rows[:256], config, None)


def main() -> None:
    torch.set_num_threads(1)
    rows = torch.rand(2_000, 784, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    numbers = {}
    for latents in LATENTS:
        trainers = {way: trainer(way, latents, rows) for way in WAYS}
        steps: dict[str, Callable[[], object]] = {way: each.advance for way, each in trainers.items()}
        seconds = interleaved_medians(steps, repeats=9)
        numbers[f"{latents}_latents"] = {
            "milliseconds_a_step": {way: round(1e3 * value, 2) for way, value in seconds.items()},
            "in_steps_of_ssm": {way: round(value / seconds["ssm"], 2) for way, value in seconds.items()},
        }
    show("autoencoder", {"batch": BATCH, **numbers})


if __name__ == "__main__":
    main()
