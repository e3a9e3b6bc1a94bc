"""Variational autoencoders of images, with explicit and implicit encoders (paper, Section 6 and Appendix D)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from arcsm import serialization
from arcsm._runtime.devices import resolve_device
from arcsm.implicit.networks.decoders import BernoulliDecoder, Decoder, GaussianImageDecoder
from arcsm.implicit.networks.encoders import AutoregressiveEncoder, Encoder, GaussianEncoder, ImplicitEncoder
from arcsm.implicit.networks.trunks import ConvolutionalTrunk, DenseTrunk, Trunk
from arcsm.registry import configuration_errors
from arcsm.training.run_config import first_error

KIND = "vae"  #: what the headers of files and configurations of runs call it


Width = Annotated[int, Field(ge=1, le=65_536)]  #: of a layer
_LARGEST = 1 << 28  # weights of an autoregressive encoder's latents


class VAEConfig(BaseModel):
    """The parts of an autoencoder.

    Attributes:
        encoder: ``"gaussian"`` (explicit), ``"implicit"`` (a network of input and noise) or ``"autoregressive"``.
        networks: ``"dense"`` with a Bernoulli decoder, for images that are made binary anew in every batch; or
            ``"convolutional"`` with a Gaussian decoder.
        latents: Size of the latents.
        hidden_features: Units of the hidden layers of dense networks.
        channels: Channels of the layers of convolutional ones.
        units: Hidden units of each latent of an autoregressive encoder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: Literal["gaussian", "implicit", "autoregressive"] = "autoregressive"
    networks: Literal["dense", "convolutional"] = "dense"
    latents: int = Field(8, ge=1, le=4096)
    hidden_features: tuple[Width, ...] = Field((256, 256), min_length=1, max_length=64)
    channels: tuple[Width, ...] = Field((64, 128, 256, 512), min_length=1, max_length=10)
    units: int = Field(32, ge=1, le=4096)

    @model_validator(mode="after")
    def _check_size(self) -> VAEConfig:
        if self.encoder == "autoregressive" and self.latents**2 * self.units > _LARGEST:
            raise ValueError(f"latents: {self.latents} with {self.units} units each are too many")
        return self

    def trunk(self, image_shape: tuple[int, ...], extra_features: int = 0) -> Trunk:
        """A network of images (and extras), as the encoder and the scores of latents have it."""
        if self.networks == "dense":
            return DenseTrunk(math.prod(image_shape), self.hidden_features, extra_features)
        return ConvolutionalTrunk(image_shape, self.channels, extra_features)

    def build(self, metadata: Mapping[str, Any]) -> VAE:
        """The autoencoder of images whose ``image_shape`` and ``levels`` the metadata tell, with fresh weights.

        Raises:
            ValueError: for data that are no images, or images that the convolutions do not divide.
        """
        shape = metadata.get("image_shape")
        if shape is None or not metadata.get("levels"):
            raise ValueError("data: an autoencoder needs images, and these data are none")
        shape = tuple(int(size) for size in shape)
        encoder: Encoder
        if self.encoder == "implicit":
            encoder = ImplicitEncoder(self.trunk(shape, self.latents), self.latents)
        elif self.encoder == "gaussian":
            encoder = GaussianEncoder(self.trunk(shape), self.latents)
        else:
            encoder = AutoregressiveEncoder(self.trunk(shape), self.latents, self.units)
        decoder: Decoder
        if self.networks == "dense":
            decoder = BernoulliDecoder(self.latents, math.prod(shape), tuple(reversed(self.hidden_features)))
        else:
            decoder = GaussianImageDecoder(self.latents, shape, self.channels)
        return VAE(encoder, decoder, self, metadata)


class VAE(nn.Module):
    """A latent variable model :math:`p_\\theta(x, z) = p_\\theta(x \\mid z)\\, N(z; 0, I)` and its encoder.

    Inputs ``x`` are what the decoder is a distribution of: zeros and ones, or pixels in [-1, 1]; :meth:`prepare`
    makes them of rows of images. Samples and reconstructions are such rows.

    Arguments:
        encoder: :math:`q_\\phi(z \\mid x)`.
        decoder: :math:`p_\\theta(x \\mid z)`.
        parts: What the two were built from.
        metadata: ``image_shape`` and ``levels`` of the images, and anything else JSON-ready.

    Raises:
        ValueError: for an encoder and a decoder of different sizes.

    Example:
        >>> vae = VAEConfig(latents=2, hidden_features=(8,)).build({"image_shape": [1, 2, 2], "levels": 256})
        >>> x = torch.ones(5, 4)
        >>> z = vae.encode(x, samples=3)
        >>> vae.log_joint(x, z).shape, vae.sample(6).shape
        (torch.Size([5, 3]), torch.Size([6, 4]))
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, parts: VAEConfig, metadata: Mapping[str, Any]) -> None:
        super().__init__()
        if encoder.latents != decoder.latents:
            raise ValueError(f"latents: the encoder gives {encoder.latents}, the decoder takes {decoder.latents}")
        self.encoder, self.decoder, self.parts, self.metadata = encoder, decoder, parts, dict(metadata)

    @property
    def latents(self) -> int:
        """Size :math:`D` of the latents."""
        return self.decoder.latents

    @property
    def features(self) -> int:
        """Size :math:`F` of the inputs."""
        return self.decoder.features

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def prepare(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Inputs ``(N, F)`` of rows of images in [-1, 1): made binary at random, or with noise of one grey level.

        Raises:
            ValueError: for NaN, or numbers outside of [-1, 1].
        """
        levels = int(self.metadata["levels"])
        if bool(rows.isnan().any()):
            raise ValueError("rows: hold NaN")
        if rows.numel() and bool((rows.amin() < -1.0) | (rows.amax() > 1.0)):
            low, high = float(rows.amin()), float(rows.amax())
            raise ValueError(f"rows: expected images in [-1, 1], got values from {low:g} to {high:g}")
        draw = torch.rand(rows.shape, generator=generator, device=rows.device, dtype=rows.dtype)
        if isinstance(self.decoder, BernoulliDecoder):
            return (draw < 0.5 * (rows + 1.0) * levels / (levels - 1)).to(rows.dtype)
        return rows + 2.0 / levels * draw

    def encode(self, x: Tensor, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Latents ``(B, K, D)`` of inputs ``(B, F)``, reparameterised."""
        return self.draw(self.encoder.begin(self.encoder.features(x)), samples, generator)

    def draw(self, begun: tuple[Tensor, ...], samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Latents ``(B, K, D)`` of inputs that the encoder has begun with (:meth:`Encoder.begin`)."""
        return self.encoder.draw(begun, self.noise(begun[0], samples, generator))

    def noise(self, like: Tensor, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """What an encoder makes latents of, standard normal, ``(B, K, D)``, for as many inputs as ``like`` has."""
        shape = (len(like), samples, self.latents)
        return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)

    def draw_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents from the prior, ``(n, D)``."""
        weight = next(self.parameters())
        return torch.randn(n, self.latents, generator=generator, device=weight.device, dtype=weight.dtype)

    def log_prior(self, z: Tensor) -> Tensor:
        """:math:`\\log N(z; 0, I)` in nats, ``(*, D)`` to ``(*,)``."""
        return -0.5 * (z.square().sum(-1) + self.latents * math.log(2.0 * math.pi))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """:math:`\\log p_\\theta(x, z)` in nats, ``(B, K)``."""
        return self.decoder.log_prob(x, z) + self.log_prior(z)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Expected images of ``n`` latents from the prior, rows in [-1, 1]."""
        z = self.draw_latents(n, generator)
        return self.as_rows(torch.cat([self.decoder.mean(part) for part in z.split(256)]))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Expected images of one latent for each input ``(B, F)``, rows in [-1, 1]."""
        return self.as_rows(self.decoder.mean(self.encode(x, 1, generator).squeeze(1)))

    def as_rows(self, mean: Tensor) -> Tensor:
        """Expected inputs as rows of images in [-1, 1]."""
        return 2.0 * mean - 1.0 if isinstance(self.decoder, BernoulliDecoder) else mean

    def config(self) -> dict[str, Any]:
        """All that is needed to build it without its weights, JSON-ready."""
        return {"kind": KIND, "parts": self.parts.model_dump(mode="json"), "metadata": self.metadata}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the autoencoder of a configuration, with fresh weights.

        Raises:
            ValueError: for a configuration of something else.
        """
        metadata = config.get("metadata")
        if config.get("kind") != KIND or not isinstance(metadata, Mapping):
            raise ValueError("model configuration: not one of an autoencoder")
        with configuration_errors():
            try:
                parts = VAEConfig.model_validate(config.get("parts"))
            except ValidationError as error:
                raise ValueError(f"model configuration: {first_error(error, VAEConfig)}") from error
            return parts.build(metadata)  # type: ignore[return-value]


def save_vae(vae: VAE, path: str | os.PathLike[str]) -> None:
    """Write an autoencoder as :func:`arcsm.save` writes a model."""
    serialization.save_module(vae, vae.config(), path)


def load_vae(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> VAE:
    """Read what :func:`save_vae` wrote.

    Raises:
        ValueError: for a file that is missing, truncated, of something else, or whose tensors do not fit.
    """
    file = serialization.weights_path(path)
    tensors, config = serialization.read_module(path)
    if config.get("kind") != KIND:
        raise ValueError(f"{file}: not an autoencoder; read it with arcsm.load")
    vae = VAE.from_config(config)
    vae.to(next(iter(tensors.values())).dtype if tensors else torch.get_default_dtype())
    serialization.load_state(vae, tensors, file)
    return vae.to(resolve_device(device)).eval()


def completed_vae_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """An autoencoder's configuration with what an older version did not write, each entry with its default."""
    return {**config, "parts": VAEConfig.model_validate(config["parts"]).model_dump(mode="json")}
