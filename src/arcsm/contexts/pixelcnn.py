"""PixelCNN++: a causal convolutional network, evaluated on whole images or one value at a time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._runtime.conditions import Condition, flatten_rows
from arcsm._runtime.sizes import check_layers, check_size, whole_numbers
from arcsm.contexts.base import Context
from arcsm.contexts.pixelcnn_incremental import PixelCNNState
from arcsm.contexts.pixelcnn_layers import Channels, GatedResidual, ShiftedConv, ShiftedDeconv

_SCALES = 3
_MAX_SIZE = 1 << 14  # a mistyped or hostile size fails before memory is allocated
_MAX_VALUES = 1 << 21  # channels times height times width
_MAX_BLOCKS = 64  # residual blocks at each scale


class PixelCNNPP(Context):
    """The network of PixelCNN++, with ``C`` context features for each channel of each pixel.

    The columns of the data are an image ``(K, H, W)``, flattened. The order of the chain rule is by row, within a row
    by pixel and within a pixel by channel. Two feature maps, one of all rows above and one of the row up to the pixel
    before, pass through gated residual blocks at three scales, down and up again, with skip connections. In place of
    mixtures of logistics whose means are linear in the channels before, every channel gets a context, which a small
    network computes from the features of the pixel and those channels. There is no data-dependent initialisation.
    Conditions are as for :class:`MADE`.

    References:
        PixelCNN++ (Salimans, Karpathy, Chen and Kingma, 2017), https://arxiv.org/abs/1701.05517
        Fast Generation for Convolutional Autoregressive Models (Ramachandran et al., 2017), for the incremental pass,
        https://arxiv.org/abs/1704.06001

    Arguments:
        image_shape: Channels, height and width.
        context_features: Size :math:`C` of the context of each value.
        nr_filters: Channels of the feature maps (paper scale: 160).
        nr_resnet: Residual blocks at each scale (paper scale: 5).
        dropout: Probability, in training, below one.

    Example:
        >>> network = PixelCNNPP((3, 8, 8), context_features=4, nr_filters=8, nr_resnet=1)
        >>> network(torch.zeros(2, 192)).shape
        torch.Size([2, 192, 4])
    """

    data_argument: ClassVar[Literal["features", "image_shape"]] = "image_shape"

    def __init__(
        self,
        image_shape: Sequence[int],
        context_features: int = 16,
        nr_filters: int = 64,
        nr_resnet: int = 2,
        dropout: float = 0.0,
        condition_features: int = 0,
        classes: int = 0,
        condition_net: nn.Module | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        shape = whole_numbers("image_shape", image_shape)
        fits = all(1 <= size <= _MAX_SIZE for size in shape) and math.prod(shape) <= _MAX_VALUES
        if len(shape) != 3 or not fits:
            raise ValueError(
                "PixelCNNPP: expected an image_shape (channels, height, width) of sizes from 1 to "
                f"{_MAX_SIZE} and at most {_MAX_VALUES} values, got {shape!r:.60}"
            )
        check_size("PixelCNNPP", most=_MAX_SIZE, context_features=context_features, nr_filters=nr_filters)
        check_size("PixelCNNPP", most=_MAX_BLOCKS, nr_resnet=nr_resnet)
        check_layers("PixelCNNPP", 12 * nr_filters, (nr_filters,), shape[0] * nr_filters)  # the largest layers
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout: expected a probability below 1, got {dropout}")
        self.image_shape: tuple[int, ...] = shape
        self.context_features = context_features
        self.nr_filters, self.nr_resnet, self.dropout = nr_filters, nr_resnet, dropout
        self.set_condition(classes, condition_features, condition_net)
        self.features = math.prod(shape)
        self.order = tuple(torch.arange(self.features, device="cpu").view(shape).permute(1, 2, 0).flatten().tolist())

        channels, filters = shape[0], nr_filters
        self.above_input = ShiftedConv(channels + 1, filters, (2, 3), right=False)
        self.row_input_above = ShiftedConv(channels + 1, filters, (1, 3), right=False)
        self.row_input_left = ShiftedConv(channels + 1, filters, (2, 1), right=True)
        self.down_above, self.down_row = (self._down(right) for right in (False, True))
        self.up_above, self.up_row = (self._up(right) for right in (False, True))
        self.shrink_above = self._shrink((2, 3), right=False)
        self.shrink_row = self._shrink((2, 2), right=True)
        self.grow_above = nn.ModuleList(ShiftedDeconv(filters, (2, 3)) for _ in range(_SCALES - 1))
        self.grow_row = nn.ModuleList(ShiftedDeconv(filters, (2, 2)) for _ in range(_SCALES - 1))
        self.channels = Channels(filters, channels, context_features)

    def _blocks(self, count: int, right: bool, skips: int) -> nn.ModuleList:
        condition = self.condition_layer if self.is_conditional else None
        return nn.ModuleList(
            GatedResidual(self.nr_filters, right, skips, self.dropout, condition) for _ in range(count)
        )

    def _down(self, right: bool) -> nn.ModuleList:
        """Return the residual blocks on the way down, a list for each scale. The row also sees the rows above."""
        return nn.ModuleList(self._blocks(self.nr_resnet, right, int(right)) for _ in range(_SCALES))

    def _up(self, right: bool) -> nn.ModuleList:
        """Return the residual blocks on the way up, one for each feature map of the way down except the last."""
        counts = [self.nr_resnet + (scale < _SCALES - 1) for scale in range(_SCALES)]
        return nn.ModuleList(self._blocks(count, right, 1 + int(right)) for count in counts)

    def _shrink(self, kernel: tuple[int, int], right: bool) -> nn.ModuleList:
        filters = self.nr_filters
        return nn.ModuleList(ShiftedConv(filters, filters, kernel, right, stride=2) for _ in range(_SCALES - 1))

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        self.check_input(x)
        condition = self._flat_condition(condition, x.shape[:-1])
        images = x.reshape(-1, *self.image_shape)  # (B, K, H, W)
        contexts = self.channels(self._pixel_features(images, condition), images)  # (B, K * C, H, W)
        by_value = contexts.unflatten(1, (self.image_shape[0], self.context_features)).permute(0, 1, 3, 4, 2)
        return by_value.reshape(*x.shape, self.context_features)

    def _pixel_features(self, images: Tensor, condition: Condition | None) -> Tensor:
        """Return features of every pixel that depend on the pixels before it only, ``(B, F, H, W)``."""
        inputs = torch.cat([images, torch.ones_like(images[:, :1])], 1)  # ones tell the padding from a zero
        inputs = inputs.contiguous(memory_format=torch.channels_last)  # convolutions are faster
        above = _shift_down(self.above_input(inputs))
        row = _shift_down(self.row_input_above(inputs)) + _shift_right(self.row_input_left(inputs))
        aboves, rows = [above], [row]
        for scale in range(_SCALES):
            if scale:
                aboves.append(self.shrink_above[scale - 1](aboves[-1]))
                rows.append(self.shrink_row[scale - 1](rows[-1]))
            for block_above, block_row in _pairs(self.down_above[scale], self.down_row[scale]):
                aboves.append(block_above(aboves[-1], [], condition))
                rows.append(block_row(rows[-1], [aboves[-1]], condition))
        above, row = aboves.pop(), rows.pop()
        for scale in reversed(range(_SCALES)):
            if scale < _SCALES - 1:
                size = aboves[-1].shape[-2:]
                above, row = self.grow_above[scale](above, size), self.grow_row[scale](row, size)
            for block_above, block_row in _pairs(self.up_above[scale], self.up_row[scale]):
                above = block_above(above, [aboves.pop()], condition)
                row = block_row(row, [above, rows.pop()], condition)
        return row

    def _flat_condition(self, condition: Condition | None, batch_shape: Sequence[int]) -> Condition | None:
        """Return the condition, or its embedding, of each image: labels ``(B,)``, vectors ``(B, F)``, or both."""
        condition = self.embed_condition(condition, batch_shape)
        return None if condition is None else flatten_rows(condition, len(batch_shape))

    @torch.no_grad()
    def begin(self, batch_shape: Sequence[int], condition: Condition | None = None) -> PixelCNNState:
        shape = tuple(int(size) for size in batch_shape)
        return PixelCNNState(self, shape, self._flat_condition(condition, shape))

    @torch.no_grad()
    def step(self, state: PixelCNNState, x_previous: Tensor | None) -> Tensor:
        self.check_step(state.position, x_previous)
        return state.step(x_previous)

    def select(self, state: PixelCNNState, rows: Tensor) -> None:
        self.check_selection(state.batch_shape)
        state.select(rows)


def _pairs(first: nn.Module, second: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    return list(zip(cast(nn.ModuleList, first), cast(nn.ModuleList, second), strict=True))


def _shift_down(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, 0))[..., :-1, :]


def _shift_right(x: Tensor) -> Tensor:
    return F.pad(x, (1, 0))[..., :-1]
