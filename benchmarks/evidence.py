"""The time until annealed bounds of a likelihood agree, from a fitted proposal and from the prior.

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
from arcsm.metrics import mean_and_standard_error
from benchmarks.timing import show

LATENTS, IMAGES, STEPS = 16, 256, 8_000
APART, MOST = 0.1, 2_560  # nats; temperatures
WAYS: dict[str, dict[str, object]] = {
    "csm": {},
    "csm, standardised": {"whitened": "conditionals", "score_learning_rate": 1e-3},
}


def autoencoder(settings: dict[str, object]) -> tuple[VAE, float]:
    """Return an autoencoder of scikit-learn's 8 x 8 digits, and the recovered fraction of its entropy gradient."""
    rows = torch.as_tensor(load_digits().data, dtype=torch.float32) / 8.5 - 1.0
    parts = VAEConfig(encoder="autoregressive", latents=LATENTS, hidden_features=(128, 128))
    torch.manual_seed(0)
    vae = parts.build({"image_shape": [1, 8, 8], "levels": 17})
    config = {"method": "csm", "steps": STEPS, "validate_every": STEPS, "device": "cpu"}
    fitted = fit_vae(vae, rows[256:], rows[:256], VAETrainConfig.model_validate(config | settings))
    return vae.requires_grad_(False), fitted.history[-1]["pressure"]


def effort(vae: VAE, x: torch.Tensor, z: torch.Tensor, begin: Callable[[], Proposal]) -> dict[str, object]:
    """Return the fewest temperatures with which the bounds are close, and the seconds of one such lower bound."""
    generator = torch.Generator().manual_seed(2)
    begun = time.perf_counter()
    proposal = begin()
    fitting = time.perf_counter() - begun
    temperatures, apart, error, seconds = 5, float("inf"), 0.0, 0.0
    while abs(apart) + error > APART and temperatures < MOST:
        temperatures *= 2
        annealing = Annealing(temperatures, chains=8, leapfrog=5)
        begun = time.perf_counter()
        lower = annealed_bound(vae, x, annealing, proposal, generator)
        seconds = time.perf_counter() - begun
        upper = annealed_upper_bound(vae, x, z, annealing, proposal, generator)
        apart, error = mean_and_standard_error(upper - lower)
    important = importance_bound(vae, x, 2_000, proposal, generator)
    return {
        "reached": abs(apart) + error <= APART,
        "temperatures": temperatures,
        "seconds_annealing": round(seconds, 2),
        "seconds_fitting": round(fitting, 2),
        "bounds_apart": [round(apart, 3), round(error, 3)],
        "importance_weighted_below_upper": round(float((upper - important).mean()), 3),
    }


def main() -> None:
    torch.set_num_threads(1)
    numbers = {}
    for way, settings in WAYS.items():
        vae, pressure = autoencoder(settings)
        generator = torch.Generator().manual_seed(1)
        z = vae.sample_prior(IMAGES, generator)
        x = vae.decoder.sample(z, generator)
        beginnings: dict[str, Callable[[], Proposal]] = {
            "from_fitted": lambda vae=vae, x=x, generator=generator: fit_proposal(vae, x, generator=generator),
            "from_prior": lambda x=x: Proposal.prior(IMAGES, LATENTS, x),
        }
        found = {name: effort(vae, x, z, begin) for name, begin in beginnings.items()}
        whole = {
            name: sum(float(one[f"seconds_{part}"]) for part in ("annealing", "fitting")) for name, one in found.items()
        }
        faster = round(whole["from_prior"] / whole["from_fitted"], 1)
        numbers[way] = {"pressure": round(pressure, 3), **found, "times_faster": faster}
    show("evidence", {"images": IMAGES, "latents": LATENTS, "nats_apart_at_most": APART, **numbers})


if __name__ == "__main__":
    main()
