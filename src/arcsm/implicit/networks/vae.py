"""Variational autoencoders of images, with explicit and implicit encoders (paper, Section 6 and Appendix D)."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from arcsm import serialization
from arcsm._runtime.devices import resolve_device
from arcsm._runtime.files import FilePath
from arcsm._runtime.random import normal_like, uniform_like
from arcsm._runtime.sizes import check_size
from arcsm.data.metadata import check_metadata, grey_levels
from arcsm.implicit.networks.decoders import BernoulliDecoder, Decoder, GaussianImageDecoder
from arcsm.implicit.networks.encoders import (
    AutoregressiveEncoder,
    Encoder,
    GaussianEncoder,
    ImplicitEncoder,
    MaskedEncoder,
)
from arcsm.implicit.networks.trunks import ConvolutionalTrunk, DenseTrunk, Trunk
from arcsm.registry import configuration_errors
from arcsm.training.run_config import first_error

KIND = "vae"  #: kind of model in the headers of files and in run configurations

Width = Annotated[int, Field(ge=1, le=65_536)]  #: units or channels of a layer
_MAX_LATENT_WEIGHTS = 1 << 28  # of an autoregressive encoder
_IMAGES_AT_ONCE = 256


class VAEConfig(BaseModel):
    """The architecture of an autoencoder.

    Attributes:
        encoder: ``"gaussian"`` (explicit), ``"implicit"`` (a network of input and noise), ``"autoregressive"`` or
            ``"masked"`` (autoregressive, too: a masked perceptron of input and noise).
        networks: ``"dense"`` with a Bernoulli decoder, for images that are binarised anew in every batch; or
            ``"convolutional"`` with a Gaussian decoder.
        latents: Size of the latents.
        hidden_features: Units of the hidden layers of dense networks.
        channels: Channels of the layers of convolutional networks.
        units: Hidden units of each latent of an autoregressive or masked encoder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: Literal["gaussian", "implicit", "autoregressive", "masked"] = "autoregressive"
    networks: Literal["dense", "convolutional"] = "dense"
    latents: int = Field(8, ge=1, le=4096)
    hidden_features: tuple[Width, ...] = Field((256, 256), min_length=1, max_length=64)
    channels: tuple[Width, ...] = Field((64, 128, 256, 512), min_length=1, max_length=10)
    units: int = Field(32, ge=1, le=4096)

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.encoder == "autoregressive" and self.latents**2 * self.units > _MAX_LATENT_WEIGHTS:
            raise ValueError(f"latents: {self.latents} with {self.units} units each are too many")
        return self

    def trunk(self, image_shape: Sequence[int], extra_features: int = 0, smooth: bool = False) -> Trunk:
        """Build a network of images and extra features: of the encoder or, if ``smooth``, of the scores of latents."""
        if self.networks == "dense":
            return DenseTrunk(math.prod(image_shape), self.hidden_features, extra_features)
        return ConvolutionalTrunk(image_shape, self.channels, extra_features, smooth)

    def build(self, metadata: Mapping[str, Any]) -> "VAE":
        """Build an autoencoder with fresh weights for images with the metadata's ``image_shape`` and ``levels``."""
        shape = metadata.get("image_shape")
        if shape is None or not metadata.get("levels"):
            raise ValueError("data: an autoencoder needs images, but the data are not images")
        check_metadata(metadata)
        shape = tuple(shape)
        encoder: Encoder
        if self.encoder == "implicit":
            encoder = ImplicitEncoder(self.trunk(shape, self.latents), self.latents)
        elif self.encoder == "gaussian":
            encoder = GaussianEncoder(self.trunk(shape), self.latents)
        elif self.encoder == "masked":
            encoder = MaskedEncoder(self.trunk(shape), self.latents, self.units)
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

    Inputs ``x`` are in the decoder's space: zeros and ones, or pixels in [-1, 1]. :meth:`prepare` makes them from
    image rows in [-1, 1); samples and reconstructions are image rows in [-1, 1]. The attributes ``latents`` and
    ``features`` are the sizes :math:`D` of the latents and :math:`F` of the inputs.

    Arguments:
        encoder: :math:`q_\\phi(z \\mid x)`.
        decoder: :math:`p_\\theta(x \\mid z)`, of as many latents.
        parts: The architecture that the two were built from.
        metadata: ``image_shape`` and ``levels`` of the images, and anything else that JSON can hold.

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
        self.latents, self.features = decoder.latents, decoder.features
        check_metadata(metadata, self.features)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def prepare(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Binarise image rows in [-1, 1) at random, or dequantise them by one grey level; return inputs ``(N, F)``."""
        levels = grey_levels(self.metadata)
        if bool(rows.isnan().any()):
            raise ValueError("rows: hold NaN")
        if rows.numel() and bool((rows.amin() < -1.0) | (rows.amax() > 1.0)):
            low, high = float(rows.amin()), float(rows.amax())
            raise ValueError(f"rows: expected images in [-1, 1], got values from {low:g} to {high:g}")
        uniform = uniform_like(rows, generator)
        if isinstance(self.decoder, BernoulliDecoder):
            return (uniform < 0.5 * (rows + 1.0) * levels / (levels - 1)).to(rows.dtype)
        return rows + 2.0 / levels * uniform

    def encode(self, x: Tensor, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draw reparameterised latents ``(B, K, D)`` for inputs ``(B, F)``."""
        return self.draw(self.encoder.precompute(self.encoder.features(x)), samples, generator)

    def draw(
        self, precomputed: tuple[Tensor, ...], samples: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw latents ``(B, K, D)`` from the result of :meth:`Encoder.precompute`."""
        return self.encoder.draw(precomputed, self.noise(precomputed[0], samples, generator))

    def noise(self, like: Tensor, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draw standard normal noise for an encoder, ``(B, K, D)``, for as many inputs as ``like`` has rows."""
        check_size("encode", samples=samples)
        return normal_like(like.new_empty(len(like), samples, self.latents), generator)

    def sample_prior(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents from the prior, ``(n, D)``."""
        check_size("sample", n=n)
        return normal_like(next(self.parameters()).new_empty(n, self.latents), generator)

    def log_prior(self, z: Tensor) -> Tensor:
        """Return :math:`\\log p(z)` in nats, ``(B, K)``."""
        return -0.5 * (z.square().sum(-1) + self.latents * math.log(2.0 * math.pi))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Return :math:`\\log p_\\theta(x, z)` in nats, ``(B, K)``."""
        return self.decoder.log_prob(x, z) + self.log_prior(z)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return the expected images of ``n`` latents from the prior, rows in [-1, 1]."""
        z = self.sample_prior(n, generator)
        return self.as_rows(torch.cat([self.decoder.mean(part) for part in z.split(_IMAGES_AT_ONCE)]))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the expected image of one latent vector for each input ``(B, F)``, rows in [-1, 1]."""
        return self.as_rows(self.decoder.mean(self.encode(x, 1, generator).squeeze(1)))

    def as_rows(self, mean: Tensor) -> Tensor:
        """Map expected inputs to image rows in [-1, 1]."""
        return 2.0 * mean - 1.0 if isinstance(self.decoder, BernoulliDecoder) else mean

    def config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the autoencoder except its weights, JSON-ready."""
        return {"kind": KIND, "parts": self.parts.model_dump(mode="json"), "metadata": self.metadata}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build an autoencoder with fresh weights from the result of :meth:`config`."""
        metadata = config.get("metadata")
        if config.get("kind") != KIND or not isinstance(metadata, Mapping):
            raise ValueError("model configuration: does not describe an autoencoder")
        with configuration_errors():
            try:
                parts = VAEConfig.model_validate(config.get("parts"))
            except ValidationError as error:
                raise ValueError(f"model configuration: {first_error(error, VAEConfig)}") from error
            return parts.build(metadata)  # type: ignore[return-value]


def save_vae(vae: VAE, path: FilePath) -> None:
    """Write an autoencoder in the format of :func:`arcsm.save`.

    Raises:
        ValueError: If its architecture rebuilds other parts: encoders and decoders of your own, or with arguments that
            :class:`VAEConfig` does not have, cannot be saved.
    """
    check_saveable(vae)
    serialization.save_module(vae, vae.config(), path)


def check_saveable(vae: VAE) -> None:
    """Check that the file of an autoencoder can be loaded; see :func:`save_vae`."""
    tensors = vae.state_dict()
    serialization.check_types(tensors)
    rebuilt = dict(_without_weights(vae).named_modules())
    for name, own in vae.named_modules():
        other = rebuilt.get(name, own)
        if type(own) is not type(other):
            raise ValueError(
                f"model: {name} is a {type(own).__name__}, but parts.build() makes a {type(other).__name__}, which is "
                "what a file would hold; keep the weights of encoders and decoders of your own with state_dict()"
            )
        known = _settings(other)
        for key, value in _settings(own).items():
            if key in known and known[key] != value:
                raise ValueError(
                    f"model: {name}.{key} is {value!r:.40}, but {known[key]!r:.40} in what parts.build() makes, which "
                    "is what a file would hold; keep such weights with state_dict()"
                )
    serialization.check_rebuilds(VAE.from_config, vae.config(), tensors)


def _without_weights(vae: VAE) -> VAE:
    with torch.device("meta"):
        return VAE.from_config(vae.config())


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return the numbers, texts and tuples among the attributes of a module, except whether it is in training."""
    found = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str | tuple)}
    return {key: value for key, value in found.items() if key != "training" and not key.startswith("_")}


def load_vae(path: FilePath, device: str | torch.device = "cpu") -> VAE:
    """Read an autoencoder that :func:`save_vae` wrote; any other file is a ``ValueError``."""
    file = serialization.weights_path(path)
    tensors, config = serialization.read_module(path)
    if config.get("kind") != KIND:
        raise ValueError(f"{file}: not an autoencoder; read it with arcsm.load")

    def build() -> VAE:
        try:
            return VAE.from_config(config)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    serialization.check_fits(build, tensors, file)
    vae = build()
    vae.to(next(iter(tensors.values())).dtype if tensors else torch.get_default_dtype())
    serialization.load_state(vae, tensors, file)
    return vae.to(resolve_device(device)).eval()


def completed_vae_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return an autoencoder's configuration with defaults for entries that an older version did not write."""
    return {**config, "parts": VAEConfig.model_validate(config["parts"]).model_dump(mode="json")}
