"""Small autoencoders, some with known evidence and posterior, and images to train them on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arcsm.implicit import (
    VAE,
    AutoregressiveEncoder,
    Decoder,
    DenseTrunk,
    Encoder,
    GaussianEncoder,
    VAEConfig,
    VAETrainConfig,
)

FLOAT64 = torch.float64
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


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=FLOAT64)


def image_rows(count: int, features: int = 16) -> Tensor:
    """Return bright and dark noisy images, in [-1, 1)."""
    generator = seeded(7)
    bright = torch.randint(2, (count, 1), generator=generator) * 1.6 - 0.8
    return (bright + 0.1 * torch.randn(count, features, generator=generator)).clamp(-1.0, 0.99)


def small_vae(encoder: str = "autoregressive", networks: str = "dense") -> VAE:
    torch.manual_seed(0)
    parts = {"encoder": encoder, "networks": networks, "latents": 2, "hidden_features": (8,), "channels": (4,)}
    return VAEConfig.model_validate(parts).build(IMAGES)


def vae_for(method: str, networks: str = "dense") -> VAE:
    """Return an autoencoder of 4 x 4 images with the encoder of a training method."""
    return small_vae(ENCODERS[method], networks)


def vae_config(method: str, **changes: object) -> VAETrainConfig:
    """Return a configuration of six steps with two validations."""
    small = {"steps": 6, "batch_size": 8, "score_hidden": (8,), "head_hidden": (8,), "particles": 4,
             "validate_every": 3, "validation_samples": 4, "device": "cpu"}  # fmt: skip
    return VAETrainConfig.model_validate({"method": method, **small, **changes})


class LinearDecoder(Decoder):
    """x = W z + s e, so that evidence and posterior are Gaussian."""

    def __init__(self, latents: int, features: int) -> None:
        super().__init__()
        self.latents, self.features, self.largest_layer = latents, features, features
        self.weight = nn.Parameter(normal(features, latents, seed=3))
        self.std = 0.5

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.distributions.Normal(self.mean(z), self.std).log_prob(x.unsqueeze(1)).sum(-1)

    def mean(self, z: Tensor) -> Tensor:
        return z @ self.weight.T

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = self.mean(z)
        return mean + self.std * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)


def linear_vae(latents: int = 3, features: int = 5, encoder: Encoder | None = None) -> VAE:
    torch.manual_seed(0)
    if encoder is None:
        encoder = AutoregressiveEncoder(DenseTrunk(features, (16,)), latents)
    parts = VAEConfig(latents=latents, hidden_features=(16,))
    metadata = {"image_shape": [1, 1, features], "levels": 256}
    return VAE(encoder.double(), LinearDecoder(latents, features), parts, metadata).double()


@torch.no_grad()
def simulate(vae: VAE, count: int) -> tuple[Tensor, Tensor]:
    """Draw latents and inputs from the model."""
    z = torch.randn(count, vae.latents, generator=seeded(11), dtype=FLOAT64)
    return z, vae.decoder.sample(z, seeded(12))


def exact_evidence(vae: VAE, x: Tensor) -> Tensor:
    """Return log p(x) of a linear model."""
    weight = vae.decoder.weight.detach()  # type: ignore[union-attr]
    covariance = weight @ weight.T + 0.25 * torch.eye(len(weight), dtype=FLOAT64)
    zero = torch.zeros(len(weight), dtype=FLOAT64)
    return torch.distributions.MultivariateNormal(zero, covariance).log_prob(x)


def exact_posterior(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and the covariance of the latents of a linear model given inputs."""
    weight = vae.decoder.weight.detach()  # type: ignore[union-attr]
    precision = torch.eye(vae.latents, dtype=FLOAT64) + weight.T @ weight / 0.25
    covariance = torch.linalg.inv(precision)
    return x @ weight @ covariance / 0.25, covariance


class NarrowEncoder(Encoder):
    """Nearly a point, four standard deviations from the posterior mean in every direction."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.latents, self.model = vae.latents, [vae]  # in a list, so that it is not a submodule

    def features(self, x: Tensor) -> Tensor:
        mean, covariance = exact_posterior(self.model[0], x)
        return mean + 4.0 * torch.linalg.cholesky(covariance) @ torch.ones(self.latents, dtype=FLOAT64)

    def draw(self, precomputed: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return precomputed[0].unsqueeze(1) + 1e-3 * noise


def autoregressive_encoder(units: int = 6, fold: float = 1.0) -> AutoregressiveEncoder:
    """Build an encoder of three dependent latents; with a large ``fold`` its maps of the noise are not monotone."""
    torch.manual_seed(2)
    encoder = AutoregressiveEncoder(DenseTrunk(5, (16,)), 3, units).double()
    with torch.no_grad():
        encoder.output.mul_(units * fold)
        encoder.of_noise.mul_(fold)
    return encoder


def linear_autoregressive_encoder() -> AutoregressiveEncoder:
    """Build an autoregressive encoder whose maps are the identity, so that it is Gaussian."""
    encoder = autoregressive_encoder()
    nn.init.zeros_(encoder.output)
    return encoder


def gaussian_encoder() -> GaussianEncoder:
    torch.manual_seed(2)
    return GaussianEncoder(DenseTrunk(5, (16,)), 3)
