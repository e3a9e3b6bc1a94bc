"""Networks from an input, and extra features of each of its samples, to hidden features.

Encoders and score networks of latents take one input ``x`` together with ``K`` vectors (noise, or latents). The share
of the first layer that depends on the input alone is computed once for all ``K``.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._runtime.sizes import whole_numbers

#: Convolutions as in the code of Sliced Score Matching, which the paper builds on.
KERNEL, STRIDE, PADDING = 5, 2, 2
_DENSE_FEATURES = 512  # after the convolutions


class Trunk(nn.Module, ABC):
    """Map inputs ``(B, F)``, and extra features ``(B, K, E)`` if any, to features ``(B, H)`` or ``(B, K, H)``.

    :math:`H` is the attribute ``out_features``, and :math:`E` is ``extra_features``, 0 for a trunk of the inputs alone.
    """

    out_features: int
    extra_features: int

    @abstractmethod
    def project_input(self, x: Tensor) -> Tensor:
        """Return the inputs' share of the first layer's pre-activations, ``(B, ...)``."""

    @abstractmethod
    def finish(self, projected: Tensor, extra: Tensor | None = None) -> Tensor:
        """Add the extra features' share to the projected inputs and apply all other layers."""

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return features ``(B, H)``, or ``(B, K, H)`` with extra features."""
        return self.finish(self.project_input(x), extra)


class DenseTrunk(Trunk):
    """A perceptron on the input and the extra features, concatenated.

    Arguments:
        features: Size :math:`F` of the input; 0 for none.
        hidden_features: Units of each layer, at least one, with tanh.
        extra_features: Size :math:`E` of the extra features.

    Example:
        >>> DenseTrunk(5, (16, 8), extra_features=2)(torch.zeros(3, 5), torch.zeros(3, 4, 2)).shape
        torch.Size([3, 4, 8])
    """

    def __init__(self, features: int, hidden_features: Sequence[int] = (256, 256), extra_features: int = 0) -> None:
        super().__init__()
        if not hidden_features:
            raise ValueError("hidden_features: expected at least one layer, got none")
        self.features, self.out_features, self.extra_features = features, int(hidden_features[-1]), extra_features
        self.first = nn.Linear(features + extra_features, hidden_features[0])
        self.rest = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(hidden_features))

    def project_input(self, x: Tensor) -> Tensor:
        return F.linear(x, self.first.weight[:, : self.features], self.first.bias)  # (B, H)

    def finish(self, projected: Tensor, extra: Tensor | None = None) -> Tensor:
        hidden = projected
        if extra is not None:
            hidden = hidden.unsqueeze(1) + F.linear(extra, self.first.weight[:, self.features :])  # (B, K, H)
        hidden = torch.tanh(hidden)
        for layer in self.rest:
            hidden = torch.tanh(layer(hidden))
        return hidden


class ConvolutionalTrunk(Trunk):
    """Convolutions of stride two on an image; the extra features enter as one more channel.

    Arguments:
        image_shape: Channels, height and width of the image; every layer must be able to halve height and width.
        channels: Channels of each layer.
        smooth: Whether activations are softplus in place of ReLU, as in score networks, whose derivatives enter their
            loss.

    Example:
        >>> ConvolutionalTrunk((3, 16, 16), (4, 8), extra_features=2)(torch.zeros(3, 768), torch.zeros(3, 5, 2)).shape
        torch.Size([3, 5, 512])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int] = (64, 128, 256, 512),
        extra_features: int = 0,
        smooth: bool = False,
    ) -> None:
        super().__init__()
        self.activation = F.softplus if smooth else F.relu
        self.image_shape = whole_numbers("image_shape", image_shape)
        self.out_features, self.extra_features = _DENSE_FEATURES, extra_features
        height, width = downscaled(self.image_shape, len(channels))
        self.first = nn.Conv2d(self.image_shape[0], channels[0], KERNEL, STRIDE, PADDING)
        self.rest = nn.ModuleList(nn.Conv2d(a, b, KERNEL, STRIDE, PADDING) for a, b in itertools.pairwise(channels))
        self.dense = nn.Linear(channels[-1] * height * width, _DENSE_FEATURES)
        if extra_features:
            self.to_channel = nn.Linear(extra_features, math.prod(self.image_shape[1:]))
            self.of_channel = nn.Conv2d(1, channels[0], KERNEL, STRIDE, PADDING, bias=False)

    def project_input(self, x: Tensor) -> Tensor:
        return self.first(x.reshape(-1, *self.image_shape))  # type: ignore[no-any-return]  # (B, C, h, w)

    def finish(self, projected: Tensor, extra: Tensor | None = None) -> Tensor:
        hidden, rows = projected, projected.shape[:1]
        if extra is not None:
            channel = self.to_channel(extra).reshape(-1, 1, *self.image_shape[1:])  # (B * K, 1, H, W)
            from_extra = self.of_channel(channel).unflatten(0, extra.shape[:2])
            hidden, rows = (hidden.unsqueeze(1) + from_extra).flatten(0, 1), extra.shape[:2]
        hidden = self.activation(hidden)
        for layer in self.rest:
            hidden = self.activation(layer(hidden))
        return self.activation(self.dense(hidden.flatten(1))).unflatten(0, rows)


def downscaled(image_shape: Sequence[int], layers: int) -> tuple[int, int]:
    """Return height and width after layers of stride two; every layer must be able to halve both."""
    height, width = image_shape[1:]
    factor = 2**layers
    if height % factor or width % factor:
        raise ValueError(f"image_shape: {height} x {width} is not divisible by {factor}, which {layers} layers need")
    return height // factor, width // factor
