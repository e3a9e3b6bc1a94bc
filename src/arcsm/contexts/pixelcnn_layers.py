"""The layers of PixelCNN++."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from arcsm._runtime.conditions import Condition


def concat_elu(x: Tensor, dim: int = 1) -> Tensor:
    """Apply ELU to the features and to their negatives, which doubles the size of ``dim``."""
    return F.elu(torch.cat([x, -x], dim))


class ShiftedConv(nn.Module):
    """A convolution that sees no pixel below, and with ``right`` none to the right.

    Without ``right``, the kernel ``(height, width)`` is centred horizontally. Strides start at the first row and pixel.
    """

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], right: bool, stride: int = 1) -> None:
        super().__init__()
        height, width = kernel
        self.stride = stride
        left = width - 1 if right else (width - 1) // 2
        self.padding = (left, width - 1 - left, height - 1, 0)
        self.conv = weight_norm(nn.Conv2d(inputs, outputs, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.pad(x, self.padding)))


class ShiftedDeconv(nn.Module):
    """A transposed convolution that doubles height and width, after a :class:`ShiftedConv` of stride 2."""

    def __init__(self, filters: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        side = (kernel[1] - 1) // 2
        options = {"stride": 2, "padding": (0, side), "output_padding": (0, side)}
        self.conv = weight_norm(nn.ConvTranspose2d(filters, filters, kernel, **options), dim=1)  # type: ignore[arg-type]

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Map ``(B, F, h, w)`` to ``(B, F, *size)``, with ``size`` at most twice the height and width."""
        return cast(Tensor, self.conv(x))[..., : size[0], : size[1]]


class GatedResidual(nn.Module):
    """A gated residual block: two causal convolutions, with concat-ELU and dropout in between.

    After the first convolution, ``skips`` other feature maps are added. ``condition_layer`` makes a map of the
    condition to a number of features.
    """

    def __init__(
        self,
        filters: int,
        right: bool,
        skips: int,
        dropout: float,
        condition_layer: Callable[[int], nn.Module] | None,
    ) -> None:
        super().__init__()
        kernel = (2, 2) if right else (2, 3)
        self.first = ShiftedConv(2 * filters, filters, kernel, right)
        self.skips = nn.ModuleList(weight_norm(nn.Conv2d(2 * filters, filters, 1)) for _ in range(skips))
        self.dropout = nn.Dropout(dropout)
        self.second = ShiftedConv(2 * filters, 2 * filters, kernel, right)
        with torch.no_grad():  # so that a deep stack starts near the identity
            self.second.conv.parametrizations.weight.original0.mul_(0.1)  # type: ignore[union-attr, operator]
        self.condition = None if condition_layer is None else condition_layer(2 * filters)

    def forward(self, x: Tensor, skips: Sequence[Tensor], condition: Condition | None) -> Tensor:
        z = self.first(concat_elu(x))
        for layer, skip in zip(self.skips, skips, strict=True):
            z = z + layer(concat_elu(skip))
        z = self.second(self.dropout(concat_elu(z)))
        if self.condition is not None:
            z = z + self.condition(condition)[..., None, None]
        value, gate = z.chunk(2, 1)
        return x + value * torch.sigmoid(gate)


class Channels(nn.Module):
    """The contexts of all channels of a pixel, from its features and the channels before.

    .. math:: c_k = O_k\\, \\mathrm{silu}\\big(A_k\\, \\mathrm{celu}(f) + \\textstyle\\sum_{j<k} B_{kj} x_j\\big)
    """

    causal_mask: Tensor

    def __init__(self, filters: int, channels: int, context_features: int) -> None:
        super().__init__()
        self.channels = channels
        self.of_pixel = nn.Conv2d(2 * filters, channels * filters, 1)
        self.of_earlier = nn.Conv2d(channels, channels * filters, 1, bias=False) if channels > 1 else None
        self.output = nn.Conv2d(channels * filters, channels * context_features, 1, groups=channels)
        earlier = torch.arange(channels)[None, :] < torch.arange(channels)[:, None]
        self.register_buffer("causal_mask", earlier.repeat_interleave(filters, 0)[..., None, None], persistent=False)

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        """Map features ``(B, F, H, W)`` and values ``(B, K, H, W)`` to contexts ``(B, K * C, H, W)``."""
        hidden = self.of_pixel(concat_elu(features))
        if self.of_earlier is not None:
            hidden = hidden + F.conv2d(x, self.of_earlier.weight * self.causal_mask)
        return cast(Tensor, self.output(F.silu(hidden)))
