"""Training steps of an autoencoder of digits by each estimator of the entropy gradient, and its latents alone.

python -m benchmarks.autoencoder
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from arcsm.experiments.autoencoders import ENCODERS
from arcsm.implicit import AutoregressiveEncoder, VAEConfig, VAETrainConfig
from arcsm.implicit.networks.autoregressive_map import TorchMap, autoregressive_map
from arcsm.implicit.vae.training import VAETask
from benchmarks.timing import interleaved_medians, show

BATCH, LATENTS = 128, (8, 16, 64, 128)
NARROW_ENCODER, NARROW_SCORES = {"units": 8}, {"context_features": 4}  # for each latent; defaults 32 and 8
WAYS: Mapping[str, Mapping[str, Any]] = {
    "elbo": {},
    "stein": {},
    "spectral": {},
    "ssm": {},
    "ssm-ar": {},
    "csm": {},
    "csm, narrow": NARROW_SCORES,
    "csm, whitened": {"whitened": True},
    "csm, whitened, narrow": {"whitened": True, **NARROW_SCORES},
    "csm, standardised": {"whitened": "conditionals"},
    "csm, standardised, narrow": {"whitened": "conditionals", **NARROW_SCORES},
}


def trainer(way: str, latents: int, rows: torch.Tensor) -> VAETask:
    torch.manual_seed(0)
    method = way.split(",")[0]
    encoder = NARROW_ENCODER if way.endswith("narrow") else {}
    parts = VAEConfig.model_validate({"encoder": ENCODERS[method], "latents": latents, **encoder})
    vae = parts.build({"image_shape": [1, 28, 28], "levels": 256})
    config = VAETrainConfig.model_validate({"method": method, "batch_size": BATCH, "device": "cpu", **WAYS[way]})
    return VAETask(vae, rows, rows[:256], config, None)


def latents_alone(count: int) -> dict[str, float]:
    """Return the milliseconds of one draw of a batch and its gradient."""
    encoder = trainer("csm", count, torch.rand(BATCH, 784)).vae.encoder
    assert isinstance(encoder, AutoregressiveEncoder)
    weights = [encoder.of_noise, encoder.of_latents, encoder.output]
    fixed, noise = torch.randn(BATCH, count, encoder.units), torch.randn(BATCH, count)

    def in_torch() -> None:
        rows = (fixed + noise.unsqueeze(-1) * encoder.of_noise).transpose(0, 1)
        torch.autograd.grad(TorchMap.apply(rows, noise, *weights[1:]).sum(), weights)

    def in_c() -> None:
        torch.autograd.grad(autoregressive_map(fixed, noise, *weights).sum(), weights)

    seconds = interleaved_medians({"in_c": in_c, "in_torch": in_torch}, repeats=25)
    found = {f"milliseconds_{way}": round(1e3 * value, 3) for way, value in seconds.items()}
    return found | {"times_faster": round(seconds["in_torch"] / seconds["in_c"], 2)}


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
            "latents_alone": latents_alone(latents),
        }
    show("autoencoder", {"batch": BATCH, **numbers})


if __name__ == "__main__":
    main()
