"""Small autoencoders and images for the tests of their training."""

from __future__ import annotations

import torch
from torch import Tensor

from arcsm.implicit import VAE, VAEConfig, VAETrainConfig

IMAGES = {"image_shape": [1, 4, 4], "levels": 256}
#: An encoder for each training method.
ENCODERS = {
    "elbo": "gaussian",
    "stein": "implicit",
    "spectral": "implicit",
    "ssm": "implicit",
    "ssm-ar": "autoregressive",
    "csm": "autoregressive",
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_rows(count: int, features: int = 16) -> Tensor:
    """Return bright and dark noisy images, in [-1, 1)."""
    generator = seeded(7)
    brightness = torch.randint(2, (count, 1), generator=generator) * 1.6 - 0.8
    return (brightness + 0.1 * torch.randn(count, features, generator=generator)).clamp(-1.0, 0.99)


def small_vae(method: str, networks: str = "dense") -> VAE:
    """Return an autoencoder of 4 x 4 images with the encoder of a training method."""
    torch.manual_seed(0)
    parts = {"encoder": ENCODERS[method], "networks": networks, "latents": 2, "hidden_features": (8,), "channels": (4,)}
    return VAEConfig.model_validate(parts).build(IMAGES)


def vae_config(method: str, **changes: object) -> VAETrainConfig:
    """Return a configuration of six steps with two validations."""
    small = {"steps": 6, "batch_size": 8, "score_hidden": (8,), "head_hidden": (8,), "particles": 4,
             "validate_every": 3, "validation_samples": 4, "device": "cpu"}  # fmt: skip
    return VAETrainConfig.model_validate({"method": method, **small, **changes})
