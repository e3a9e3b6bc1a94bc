"""Decoders: from latents to a distribution of the input."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._runtime.random import normal_like
from arcsm._runtime.sizes import whole_numbers
from arcsm.implicit.networks.trunks import KERNEL, PADDING, STRIDE, downscaled

_FIXED_LOG_STD = -0.602  # of pixels in [-1, 1); from the code of Sliced Score Matching, which the paper builds on


class Decoder(nn.Module, ABC):
    """The likelihood :math:`p_\\theta(x \\mid z)`.

    The attributes ``features`` and ``latents`` are the sizes :math:`F` and :math:`D`; ``largest_layer`` counts the
    numbers in the largest layer for one latent vector, which limits how many are decoded at a time.
    """

    features: int
    latents: int
    largest_layer: int

    @abstractmethod
    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the log likelihood in nats, ``(B, K)``, of inputs ``(B, F)`` given latents ``(B, K, D)``."""

    @abstractmethod
    def mean(self, z: Tensor) -> Tensor:
        """Return expected inputs ``(*, F)`` given latents ``(*, D)``."""

    @abstractmethod
    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw inputs ``(*, F)`` given latents ``(*, D)``."""


class BernoulliDecoder(Decoder):
    """A perceptron with tanh from latents to the logits of binary inputs.

    Example:
        >>> BernoulliDecoder(2, 5, (8,)).log_prob(torch.ones(3, 5), torch.zeros(3, 4, 2)).shape
        torch.Size([3, 4])
    """

    def __init__(self, latents: int, features: int, hidden_features: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        self.latents, self.features, self.largest_layer = latents, features, max(features, *hidden_features, 1)
        sizes = (latents, *hidden_features, features)
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
        self.logits = nn.Sequential(*layers[:-1])

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        # log sigmoid of +-logit, as x * logit - softplus(logit): one pass over the (B, K, F) logits each
        logits = self.logits(z)
        return torch.einsum("bf,bkf->bk", x, logits) - F.softplus(logits).sum(-1)

    def mean(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(z))

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(self.mean(z), generator=generator)


class GaussianImageDecoder(Decoder):
    """Transposed convolutions to the mean of an image in [-1, 1], with Gaussian noise of fixed width.

    Arguments:
        image_shape: Channels, height and width; every layer must be able to halve the latter two.
        channels: Channels of the mirrored :class:`~arcsm.implicit.ConvolutionalTrunk`.
        log_std: Log standard deviation of the noise.

    Example:
        >>> GaussianImageDecoder(2, (3, 16, 16), (4, 8)).mean(torch.zeros(5, 2)).shape
        torch.Size([5, 768])
    """

    def __init__(
        self,
        latents: int,
        image_shape: Sequence[int],
        channels: Sequence[int] = (64, 128, 256, 512),
        log_std: float = _FIXED_LOG_STD,
    ) -> None:
        super().__init__()
        shape = whole_numbers("image_shape", image_shape)
        self.latents, self.features, self.log_std = latents, math.prod(shape), log_std
        self.start = (channels[-1], *downscaled(shape, len(channels)))
        self.dense = nn.Linear(latents, math.prod(self.start))
        sizes = [*reversed(channels), shape[0]]
        areas = [self.start[1] * self.start[2] * 4**layer for layer in range(len(sizes))]
        self.largest_layer = max(size * area for size, area in zip(sizes, areas, strict=True))
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(a, b, KERNEL, STRIDE, PADDING, output_padding=1) for a, b in itertools.pairwise(sizes)
        )

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        residual = (x.unsqueeze(1) - self.mean(z)) * math.exp(-self.log_std)
        constant = self.features * (self.log_std + 0.5 * math.log(2.0 * math.pi))
        return -0.5 * residual.square().sum(-1) - constant

    def mean(self, z: Tensor) -> Tensor:
        hidden = F.relu(self.dense(z.reshape(-1, z.shape[-1]))).unflatten(-1, self.start)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden)
            hidden = F.relu(hidden) if index < len(self.layers) - 1 else torch.tanh(hidden)
        return hidden.reshape(*z.shape[:-1], self.features)

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = self.mean(z)
        return mean + math.exp(self.log_std) * normal_like(mean, generator)
