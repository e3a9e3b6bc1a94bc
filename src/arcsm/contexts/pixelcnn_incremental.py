"""The incremental pass of PixelCNN++: every feature of every pixel is computed once, when its inputs are known.

The feature map of the rows above advances by rows. The feature map of the row itself advances by pixels: the terms that
a convolution takes from the row above are computed for the whole row at once, and a pixel then costs one small matrix
product. Coarser scales advance at every second, or fourth, row and pixel.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._runtime.conditions import Condition
from arcsm.contexts.pixelcnn_layers import Channels, GatedResidual, ShiftedConv, ShiftedDeconv, concat_elu


class PixelCNNNetwork(Protocol):
    """The layers of a :class:`~arcsm.PixelCNNPP`."""

    image_shape: tuple[int, ...]
    nr_filters: int
    context_features: int
    above_input: ShiftedConv
    row_input_above: ShiftedConv
    row_input_left: ShiftedConv
    down_above: nn.ModuleList
    down_row: nn.ModuleList
    up_above: nn.ModuleList
    up_row: nn.ModuleList
    shrink_above: nn.ModuleList
    shrink_row: nn.ModuleList
    grow_above: nn.ModuleList
    grow_row: nn.ModuleList
    channels: Channels


class _Layer:
    """A layer of the incremental pass with tensors that have a batch dimension."""

    batch_dimensions: ClassVar[dict[str, int]] = {}  # of its own tensors, not those of layers within it

    def select(self, rows: Tensor) -> None:
        """Replace the images by some of them, ``rows (M,)``, in this layer and all layers within it."""
        for name, dimension in self.batch_dimensions.items():
            value = vars(self).get(name)
            if value is not None:
                setattr(self, name, value.index_select(dimension, rows))
        for layer in _layers(vars(self).values()):
            layer.select(rows)


def _layers(values: Iterable[Any]) -> Iterator[_Layer]:
    """Yield the layers among some values, nested lists included."""
    for value in values:
        if isinstance(value, _Layer):
            yield value
        elif isinstance(value, list):
            yield from _layers(value)


class _RowConv(_Layer):
    """A convolution over the rows above, one row ``(B, W, C)`` at a time."""

    batch_dimensions: ClassVar[dict[str, int]] = {"row_above": 0}

    def __init__(self, layer: ShiftedConv) -> None:
        self.weight, self.bias = cast(Tensor, layer.conv.weight), cast(Tensor, layer.conv.bias)
        self.left, self.right, self.sees_row_above, _ = layer.padding
        self.stride = layer.stride
        self.row_above: Tensor | None = None  # padded, (B, C, W + left + right)

    def advance(self, row: Tensor) -> Tensor:
        """Return the output for the next row, ``(B, W', O)``."""
        above = self.row_above
        self.skip(row)
        here = cast(Tensor, self.row_above)
        above = torch.zeros_like(here) if above is None else above
        rows = torch.stack([above, here], 2) if self.sees_row_above else here.unsqueeze(2)
        return F.conv2d(rows, self.weight, self.bias, self.stride).squeeze(2).transpose(1, 2)

    def skip(self, row: Tensor) -> None:
        """Take in the next row, whose output the stride leaves out."""
        self.row_above = F.pad(row.transpose(1, 2), (self.left, self.right))


class _PixelConv(_Layer):
    """A convolution over the row itself, one pixel ``(B, C)`` at a time."""

    batch_dimensions: ClassVar[dict[str, int]] = {"row": 0, "row_terms": 1}

    row_terms: Tensor  # (W', B, O) for each pixel: the bias, the terms of the row above, and terms that others add

    def __init__(self, layer: ShiftedConv, images: int, width: int) -> None:
        weight, self.bias = cast(Tensor, layer.conv.weight), cast(Tensor, layer.conv.bias)
        self.stride = layer.stride
        self.weight_above = weight[:, :, :1]  # (O, C, 1, 2)
        self.weight_row = weight[:, :, 1].permute(2, 1, 0).flatten(0, 1)  # (2 C, O): the pixel to the left, the pixel
        self.row = weight.new_zeros(images, width + 1, weight.shape[1])  # the first column is padding
        self.is_first_row = True

    def begin_row(self) -> None:
        """Start the next row; the pixels of the last row become the row above."""
        if self.is_first_row:
            outputs = -(-(self.row.shape[1] - 1) // self.stride)
            self.row_terms = self.bias.expand(outputs, len(self.row), -1)
        else:
            above = self.row.transpose(1, 2).unsqueeze(2)  # (B, C, 1, W + 1)
            self.row_terms = F.conv2d(above, self.weight_above, self.bias, self.stride).squeeze(2).permute(2, 0, 1)
        self.is_first_row = False

    def skip_row(self) -> None:
        """Start the next row, whose output the stride leaves out."""
        self.is_first_row = False

    def set_pixel(self, column: int, pixel: Tensor) -> None:
        self.row[:, column + 1] = pixel

    def output(self, column: int) -> Tensor:
        """Return the output at a column whose pixel is set, ``(B, O)``."""
        pixels = self.row[:, column : column + 2].flatten(1)
        return torch.addmm(self.row_terms[column // self.stride], pixels, self.weight_row)


class _RowBlock(_Layer):
    """A gated residual block over the rows above."""

    batch_dimensions: ClassVar[dict[str, int]] = {"condition": 0}

    def __init__(self, block: GatedResidual, condition: Condition | None) -> None:
        self.first, self.second = _RowConv(block.first), _RowConv(block.second)
        self.skips = [_matrix(layer) for layer in block.skips]
        self.condition = _condition_term(block, condition)

    def advance(self, row: Tensor, skips: list[Tensor]) -> Tensor:
        z = self.first.advance(concat_elu(row, -1))
        for (weight, bias), skip in zip(self.skips, skips, strict=True):
            z = z + (concat_elu(skip, -1) @ weight + bias)
        z = self.second.advance(concat_elu(z, -1))
        if self.condition is not None:
            z = z + self.condition[:, None]
        value, gate = z.chunk(2, -1)
        return row + value * torch.sigmoid(gate)


class _PixelBlock(_Layer):
    """A gated residual block over the row itself, with a skip connection from the rows above and at most one other."""

    batch_dimensions: ClassVar[dict[str, int]] = {"condition": 0}

    def __init__(self, block: GatedResidual, condition: Condition | None, images: int, width: int) -> None:
        self.first, self.second = _PixelConv(block.first, images, width), _PixelConv(block.second, images, width)
        self.above_skip, *others = [_matrix(layer) for layer in block.skips]
        self.skip = others[0] if others else None
        self.condition = _condition_term(block, condition)

    def begin_row(self, above: Tensor) -> None:
        """Start the next row, given the features ``(B, W, F)`` of the rows above."""
        self.first.begin_row()
        weight, bias = self.above_skip
        term = concat_elu(above, -1) @ weight + bias
        if self.skip is not None:
            term = term + self.skip[1]
        self.first.row_terms = self.first.row_terms + term.transpose(0, 1)
        self.second.begin_row()
        if self.condition is not None:
            self.second.row_terms = self.second.row_terms + self.condition

    def advance(self, column: int, pixel: Tensor, skip: Tensor | None = None) -> Tensor:
        self.first.set_pixel(column, concat_elu(pixel))
        z = self.first.output(column)
        if skip is not None and self.skip is not None:
            z = torch.addmm(z, concat_elu(skip), self.skip[0])
        self.second.set_pixel(column, concat_elu(z))
        value, gate = self.second.output(column).chunk(2, 1)
        return torch.addcmul(pixel, value, torch.sigmoid(gate))


class _RowGrow(_Layer):
    """Two rows of the finer scale ``(2, B, W, F)`` from one row of the coarser scale, ``(B, w, F)``."""

    batch_dimensions: ClassVar[dict[str, int]] = {"rows": 1}

    rows: Tensor

    def __init__(self, layer: ShiftedDeconv, width: int) -> None:
        self.layer, self.width = layer, width

    def advance(self, row: Tensor) -> None:
        grown = self.layer(row.transpose(1, 2).unsqueeze(2), (2, self.width))  # (B, F, 2, W)
        self.rows = grown.permute(2, 0, 3, 1)


class _PixelGrow(_Layer):
    """Two by two pixels of the finer scale from one pixel of the coarser scale, ``(B, F)``."""

    batch_dimensions: ClassVar[dict[str, int]] = {"pixels": 2}

    def __init__(self, layer: ShiftedDeconv, images: int, width: int) -> None:
        weight, self.bias = cast(Tensor, layer.conv.weight), cast(Tensor, layer.conv.bias)  # (F, F, 2, 2)
        self.weight = weight.permute(0, 2, 3, 1).flatten(1)  # (F, 4 F)
        self.filters = weight.shape[1]
        self.pixels = weight.new_zeros(2, width + width % 2, images, self.filters)

    def advance(self, column: int, pixel: Tensor) -> None:
        grown = (pixel @ self.weight).view(-1, 2, 2, self.filters) + self.bias
        self.pixels[:, 2 * column : 2 * column + 2] = grown.permute(1, 2, 0, 3)


class PixelCNNState(_Layer):
    """State of an incremental pass over a batch of images, ``position`` of whose values are known."""

    batch_dimensions: ClassVar[dict[str, int]] = {"values": 0, "hidden": 0, "input_terms": 1}

    def __init__(self, network: PixelCNNNetwork, batch_shape: tuple[int, ...], condition: Condition | None) -> None:
        self.network, self.batch_shape, self.position = network, batch_shape, 0
        self.images = images = math.prod(batch_shape)
        channels, _, width = network.image_shape
        like = network.channels.of_pixel.weight
        self.values = like.new_zeros(images, width, channels)  # of the row
        half = (width + 1) // 2
        self.widths = widths = [width, half, (half + 1) // 2]  # of each scale

        def row_blocks(scales: nn.ModuleList) -> list[list[_RowBlock]]:
            return [[_RowBlock(block, condition) for block in blocks] for blocks in _modules(scales)]

        def pixel_blocks(scales: nn.ModuleList) -> list[list[_PixelBlock]]:
            return [
                [_PixelBlock(block, condition, images, size) for block in blocks]
                for blocks, size in zip(_modules(scales), widths, strict=True)
            ]

        self.above_input, self.row_input_above = _RowConv(network.above_input), _RowConv(network.row_input_above)
        left, self.left_bias = network.row_input_left.conv.weight, cast(Tensor, network.row_input_left.conv.bias)
        self.left = cast(Tensor, left)[..., 0].permute(2, 1, 0)  # (2, K + 1, F): from the row above, from the row
        self.down_above, self.up_above = row_blocks(network.down_above), row_blocks(network.up_above)
        self.down_row, self.up_row = pixel_blocks(network.down_row), pixel_blocks(network.up_row)
        self.shrink_above = [_RowConv(layer) for layer in _modules(network.shrink_above)]
        self.grow_above = [_RowGrow(*pair) for pair in zip(_modules(network.grow_above), widths, strict=False)]
        shrink, grow = zip(_modules(network.shrink_row), widths), zip(_modules(network.grow_row), widths)  # noqa: B905
        self.shrink_row = [_PixelConv(layer, images, size) for layer, size in shrink]
        self.grow_row = [_PixelGrow(layer, images, size) for layer, size in grow]
        self._prepare_channels(network)

    def _prepare_channels(self, network: PixelCNNNetwork) -> None:
        channels, filters, context = network.image_shape[0], network.nr_filters, network.context_features
        layer = network.channels
        self.pixel_layer = _matrix(layer.of_pixel)
        self.earlier_weight: Tensor | None = None  # (K, K, F)
        if layer.of_earlier is not None:
            masked = (layer.of_earlier.weight * layer.causal_mask)[:, :, 0, 0]
            self.earlier_weight = masked.view(channels, filters, channels).transpose(1, 2)
        self.output_weight = layer.output.weight[:, :, 0, 0].view(channels, context, filters).transpose(1, 2)
        self.output_bias = cast(Tensor, layer.output.bias).view(channels, context)

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self.batch_shape, self.images = (len(rows),), len(rows)

    def step(self, x_previous: Tensor | None) -> Tensor:
        """Return the context of the next value, ``(*, C)``, given the value before."""
        channels, _, width = self.network.image_shape
        if x_previous is not None:
            pixel, channel = divmod(self.position - 1, channels)
            self.values[:, pixel % width, channel] = x_previous.reshape(-1)
        pixel, channel = divmod(self.position, channels)
        row, column = divmod(pixel, width)
        if channel == 0:
            if column == 0:
                self._begin_row(row)
            weight, bias = self.pixel_layer
            hidden = torch.addmm(bias, concat_elu(self._advance_row(row, column)), weight)
            self.hidden = hidden.view(self.images, channels, -1)  # (B, K, F)
        hidden = self.hidden[:, channel]
        if self.earlier_weight is not None and channel:
            hidden = torch.addmm(hidden, self.values[:, column], self.earlier_weight[channel])
        context = torch.addmm(self.output_bias[channel], F.silu(hidden), self.output_weight[channel])
        self.position += 1
        return context.view(*self.batch_shape, -1)

    def _begin_row(self, row: int) -> None:
        images, width, filters = self.images, self.widths[0], self.network.nr_filters
        if row == 0:
            above = terms = self.values.new_zeros(images, width, filters)
            left = self.values.new_zeros(images, width, filters)
            left[:, 1:] = self.left_bias
        else:
            inputs = _with_ones(self.values)  # of the row above
            self.values = torch.zeros_like(self.values)
            above, terms = self.above_input.advance(inputs), self.row_input_above.advance(inputs)
            left = F.pad((inputs @ self.left[0] + self.left_bias)[:, :-1], (0, 0, 1, 0))
        self.input_terms = (terms + left).transpose(0, 1)  # (W, B, F)
        self._advance_above(row, above)

    def _advance_above(self, row: int, above: Tensor) -> None:
        """Advance the features of the rows above by one row, and start that row in the features of the row."""
        skips: list[list[Tensor]] = []  # for each scale
        deepest = self._deepest_scale(row)
        for scale in range(deepest + 1):
            if scale:
                above = self.shrink_above[scale - 1].advance(above)
                self.shrink_row[scale - 1].begin_row()
            skips.append([above])
            for block, row_block in zip(self.down_above[scale], self.down_row[scale], strict=True):
                above = block.advance(above, [])
                row_block.begin_row(above)
                skips[scale].append(above)
        if deepest < len(self.shrink_above):  # the next scale does not advance, but its next row will see this row
            self.shrink_above[deepest].skip(above)
            self.shrink_row[deepest].skip_row()
        for scale in reversed(range(deepest + 1)):
            is_coarsest = scale == len(self.widths) - 1
            above = skips[scale].pop() if is_coarsest else self.grow_above[scale].rows[(row >> scale) % 2]
            for block, row_block in zip(self.up_above[scale], self.up_row[scale], strict=True):
                above = block.advance(above, [skips[scale].pop()])
                row_block.begin_row(above)
            if scale:
                self.grow_above[scale - 1].advance(above)

    def _advance_row(self, row: int, column: int) -> Tensor:
        """Advance the features of the row by one pixel and return them, ``(B, F)``."""
        features = self.input_terms[column]
        if column:
            features = torch.addmm(features, _with_ones(self.values[:, column - 1]), self.left[1])
        skips: list[list[Tensor]] = []  # for each scale
        deepest = min(self._deepest_scale(row), self._deepest_scale(column))
        for scale in range(deepest + 1):
            if scale:
                features = self.shrink_row[scale - 1].output(column >> (scale - 1))
            skips.append([features])
            for block in self.down_row[scale]:
                features = block.advance(column >> scale, features)
                skips[scale].append(features)
            if scale < len(self.shrink_row):
                self.shrink_row[scale].set_pixel(column >> scale, features)
        for scale in reversed(range(deepest + 1)):
            is_coarsest, place = scale == len(self.widths) - 1, column >> scale
            features = skips[scale].pop() if is_coarsest else self.grow_row[scale].pixels[(row >> scale) % 2, place]
            for block in self.up_row[scale]:
                features = block.advance(place, features, skips[scale].pop())
            if scale:
                self.grow_row[scale - 1].advance(place, features)
        return features

    def _deepest_scale(self, index: int) -> int:
        """Return the coarsest scale that advances at this row or column."""
        return max(scale for scale in range(len(self.widths)) if index % (1 << scale) == 0)


def _modules(modules: nn.ModuleList) -> list[Any]:
    return list(modules)


def _matrix(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a convolution of kernel size 1 as a matrix ``(inputs, outputs)`` and a bias."""
    weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
    return weight[:, :, 0, 0].T.contiguous(), bias


def _condition_term(block: GatedResidual, condition: Condition | None) -> Tensor | None:
    return None if block.condition is None else cast(Tensor, block.condition(condition))


def _with_ones(values: Tensor) -> Tensor:
    return torch.cat([values, torch.ones_like(values[..., :1])], -1)
