"""How long annealing takes until its bounds of a likelihood agree, from a fitted proposal and from the prior.

python -m benchmarks.evidence
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits

from arcsm.implicit import (
    VAE,
    Annealing,
    Proposal,
    VAEConfig,
    VAETrainConfig,
    annealed_bound,
    annealed_upper_bound,
    fit_proposal,
    fit_vae,
    importance_bound,
)
from benchmarks.timing import show

LATENTS, IMAGES, STEPS = 16, 64, 8_000
APART, MOST = 0.1, 2_560  # nats; temperatures
WAYS = {"csm": {}, "csm, standardised": {"whitened": "conditionals"}}


def autoencoder(settings: dict[str, str]) -> VAE:
    """Of the 8 x 8 digits of scikit-learn."""
    rows = torch.as_tensor(load_digits().data, dtype=torch.float32) / 8.5 - 1.0
    parts = VAEConfig(encoder="autoregressive", latents=LATENTS, hidden_features=(128, 128))
    torch.manual_seed(0)
    vae = parts.build({"image_shape": [1, 8, 8], "levels": 17})
    config = {"method": "csm", "steps": STEPS, "validate_every": STEPS, "score_learning_rate": 1e-3, "device": "cpu"}
    fit_vae(vae, rows[256:], rows[:256], VAETrainConfig.model_validate(config | settings))
    return vae.requires_grad_(False)


def effort(vae: VAE, x: torch.Tensor, z: torch.Tensor, begin: Callable[[], Proposal]) -> dict[str, float]:
    """Temperatures and seconds, with those of the proposal, until lower and upper bound are close."""
    generator = torch.Generator().manual_seed(2)
    begun = time.perf_counter()
    proposal = begin()
    fitting = time.perf_counter() - begun
    temperatures, apart, seconds = 5, float("inf"), 0.0
    while abs(apart) > APART and temperatures < MOST:
        temperatures *= 2
        annealing = Annealing(temperatures, chains=8, leapfrog=5)
        begun = time.perf_counter()
        lower = annealed_bound(vae, x, annealing, proposal, generator)
        seconds = time.perf_counter() - begun
        upper = annealed_upper_bound(vae, x, z, annealing, proposal, generator)
        apart = float((upper - lower).mean())
    important = importance_bound(vae, x, 2_000, proposal, generator)
    return {
        "temperatures": temperatures,
        "seconds_annealing": round(seconds, 2),
        "seconds_fitting": round(fitting, 2),
        "bounds_apart": round(apart, 3),
        "importance_weighted_below_upper": round(float((upper - important).mean()), 3),
    }


def main() -> None:
    torch.set_num_threads(1)
    numbers = {}
    for way, settings in WAYS.items():
        vae = autoencoder(settings)
        generator = torch.Generator().manual_seed(1)
        z = vae.draw_latents(IMAGES, generator)
        x = vae.decoder.sample(z, generator)
        beginnings: dict[str, Callable[[], Proposal]] = {
            "from_fitted": lambda vae=vae, x=x, generator=generator: fit_proposal(vae, x, generator=generator),
            "from_prior": lambda x=x: Proposal.prior(IMAGES, LATENTS, x),
        }
        found = {name: effort(vae, x, z, begin) for name, begin in beginnings.items()}
        whole = {name: one["seconds_annealing"] + one["seconds_fitting"] for name, one in found.items()}
        numbers[way] = found | {"times_faster": round(whole["from_prior"] / whole["from_fitted"], 1)}
    show("evidence", {"images": IMAGES, "latents": LATENTS, "nats_apart_at_most": APART, **numbers})


if __name__ == "__main__":
    main()
