"""The incremental pass of PixelCNN++: every feature of every pixel is computed once, when it becomes known.

The stream of the rows above is advanced a whole row at a time. The stream of the row itself is advanced pixel by
pixel: of each convolution, what it takes from the row before is prepared for the whole row at once, so that a pixel
costs one small matrix product. Coarser scales move on every second, or fourth, row and pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm.contexts.pixelcnn_layers import Channels, GatedResidual, ShiftedConv, ShiftedDeconv


class PixelCNNNetwork(Protocol):
    """The layers of a :class:`~arcsm.PixelCNNPP`, as far as the incremental pass reads them."""

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


def _concat_elu(x: Tensor) -> Tensor:
    """Features last: ``(*, C)`` to ``(*, 2 C)``."""
    return F.elu(torch.cat([x, -x], -1))


def _matrix(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A convolution of kernel 1 as a matrix ``(inputs, outputs)`` and a bias."""
    weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
    return weight[:, :, 0, 0].T.contiguous(), bias


class _Part:
    """A part of the stream.

    Attributes:
        batched: Which dimension of what it holds is the batch.
    """

    batched: ClassVar[dict[str, int]] = {}

    def select(self, rows: Tensor) -> None:
        """Keep the images ``rows (M,)``, in this order, here and in all parts of this part."""
        for name, dimension in self.batched.items():
            value = vars(self).get(name)
            if value is not None:
                setattr(self, name, value.index_select(dimension, rows))
        for part in _parts(vars(self).values()):
            part.select(rows)


def _parts(values: Iterable[Any]) -> Iterator[_Part]:
    """The parts among values and in lists of them."""
    for value in values:
        if isinstance(value, _Part):
            yield value
        elif isinstance(value, list):
            yield from _parts(value)


class _RowConv(_Part):
    """A convolution of the stream of the rows above, given one row of its input at a time, ``(B, W, C)``."""

    batched: ClassVar[dict[str, int]] = {"before": 0}

    def __init__(self, layer: ShiftedConv) -> None:
        self.weight, self.bias = cast(Tensor, layer.conv.weight), cast(Tensor, layer.conv.bias)
        self.left, self.right, self.above, _ = layer.padding
        self.stride = layer.stride
        self.before: Tensor | None = None  # the row before, padded, (B, C, W + left + right)

    def push(self, row: Tensor, wanted: bool = True) -> Tensor | None:
        """The output ``(B, W', O)`` of the row that is added, if it is wanted."""
        here = F.pad(row.transpose(1, 2), (self.left, self.right))
        before = torch.zeros_like(here) if self.before is None else self.before
        self.before = here
        if not wanted:
            return None
        rows = torch.stack([before, here], 2) if self.above else here.unsqueeze(2)
        return F.conv2d(rows, self.weight, self.bias, self.stride).squeeze(2).transpose(1, 2)


class _PixelConv(_Part):
    """A convolution of the stream of the row itself, given one pixel of its input at a time, ``(B, C)``.

    Attributes:
        prepared: What the output of each pixel of this row owes to the row before, the bias and whoever else adds
            to it, ``(W', B, O)``.
    """

    batched: ClassVar[dict[str, int]] = {"row": 0, "prepared": 1}

    prepared: Tensor

    def __init__(self, layer: ShiftedConv, rows: int, width: int) -> None:
        weight, self.bias = cast(Tensor, layer.conv.weight), cast(Tensor, layer.conv.bias)
        self.stride = layer.stride
        self.of_row_before = weight[:, :, :1]  # (O, C, 1, 2)
        self.here = weight[:, :, 1].permute(2, 1, 0).flatten(0, 1)  # (2 C, O): of the pixel to the left, of the pixel
        self.inputs = weight.shape[1]
        self.row = weight.new_zeros(rows, width + 1, self.inputs)  # the first column is the border
        self.first = True

    def begin_row(self, wanted: bool = True) -> None:
        """The row that was being filled is the row before from here on."""
        outputs = -(-(self.row.shape[1] - 1) // self.stride)
        if wanted and self.first:
            self.prepared = self.bias.expand(outputs, len(self.row), -1)
        elif wanted:
            before = self.row.transpose(1, 2).unsqueeze(2)  # (B, C, 1, W + 1)
            self.prepared = F.conv2d(before, self.of_row_before, self.bias, self.stride).squeeze(2).permute(2, 0, 1)
        self.first = False

    def push(self, column: int, pixel: Tensor) -> None:
        self.row[:, column + 1] = pixel

    def output(self, column: int) -> Tensor:
        """At a column whose pixel has been pushed, ``(B, O)``."""
        pixels = self.row[:, column : column + 2].flatten(1)
        return torch.addmm(self.prepared[column // self.stride], pixels, self.here)


class _RowBlock(_Part):
    """A gated residual block of the stream of the rows above."""

    batched: ClassVar[dict[str, int]] = {"condition": 0}

    def __init__(self, block: GatedResidual, condition: Tensor | None) -> None:
        self.first, self.second = _RowConv(block.first), _RowConv(block.second)
        self.skips = [_matrix(layer) for layer in block.skips]
        self.condition = _condition_term(block, condition)

    def push(self, row: Tensor, skips: list[Tensor]) -> Tensor:
        z = cast(Tensor, self.first.push(_concat_elu(row)))
        for (weight, bias), skip in zip(self.skips, skips, strict=True):
            z = z + (_concat_elu(skip) @ weight + bias)
        z = cast(Tensor, self.second.push(_concat_elu(z)))
        if self.condition is not None:
            z = z + self.condition[:, None]
        value, gate = z.chunk(2, -1)
        return row + value * torch.sigmoid(gate)


class _PixelBlock(_Part):
    """A gated residual block of the stream of the row itself; its first skip is the other stream's."""

    batched: ClassVar[dict[str, int]] = {"condition": 0}

    def __init__(self, block: GatedResidual, condition: Tensor | None, rows: int, width: int) -> None:
        self.first, self.second = _PixelConv(block.first, rows, width), _PixelConv(block.second, rows, width)
        self.of_above, *others = [_matrix(layer) for layer in block.skips]
        self.of_skip = others[0] if others else None
        self.condition = _condition_term(block, condition)

    def begin_row(self, above: Tensor) -> None:
        """Prepare a row, ``above (B, W, F)`` being the other stream's features of it."""
        self.first.begin_row()
        weight, bias = self.of_above
        term = _concat_elu(above) @ weight + bias
        if self.of_skip is not None:
            term = term + self.of_skip[1]
        self.first.prepared = self.first.prepared + term.transpose(0, 1)
        self.second.begin_row()
        if self.condition is not None:
            self.second.prepared = self.second.prepared + self.condition

    def push(self, column: int, pixel: Tensor, skip: Tensor | None) -> Tensor:
        self.first.push(column, _concat_elu(pixel))
        z = self.first.output(column)
        if skip is not None and self.of_skip is not None:
            z = torch.addmm(z, _concat_elu(skip), self.of_skip[0])
        self.second.push(column, _concat_elu(z))
        value, gate = self.second.output(column).chunk(2, 1)
        return torch.addcmul(pixel, value, torch.sigmoid(gate))


def _condition_term(block: GatedResidual, condition: Tensor | None) -> Tensor | None:
    return None if block.condition is None else cast(Tensor, block.condition(condition))


class _RowGrow(_Part):
    """Two rows of the finer scale from one of the coarser, ``(B, w, F)``."""

    batched: ClassVar[dict[str, int]] = {"rows": 1}

    def __init__(self, layer: ShiftedDeconv, width: int) -> None:
        self.layer, self.width = layer, width
        self.rows: Tensor  # (2, B, W, F)

    def push(self, row: Tensor) -> None:
        grown = self.layer(row.transpose(1, 2).unsqueeze(2), (2, self.width))  # (B, F, 2, W)
        self.rows = grown.permute(2, 0, 3, 1)


class _PixelGrow(_Part):
    """Two by two pixels of the finer scale from one of the coarser, ``(B, F)``."""

    batched: ClassVar[dict[str, int]] = {"pixels": 2}

    def __init__(self, layer: ShiftedDeconv, rows: int, width: int) -> None:
        weight, self.bias = cast(Tensor, layer.conv.weight), cast(Tensor, layer.conv.bias)  # (F, F, 2, 2)
        self.weight = weight.permute(0, 2, 3, 1).flatten(1)  # (F, 4 F)
        self.filters = weight.shape[1]
        self.pixels = weight.new_zeros(2, width + width % 2, rows, self.filters)

    def push(self, column: int, pixel: Tensor) -> None:
        grown = (pixel @ self.weight).view(-1, 2, 2, self.filters) + self.bias
        self.pixels[:, 2 * column : 2 * column + 2] = grown.permute(1, 2, 0, 3)


class Stream(_Part):
    """What an incremental pass over a batch of images knows so far.

    Attributes:
        position: How many values are known, in the order of the chain rule.
    """

    batched: ClassVar[dict[str, int]] = {"before": 0, "row": 0, "hidden": 0, "entering": 1}

    def __init__(self, network: PixelCNNNetwork, batch_shape: tuple[int, ...], condition: Tensor | None) -> None:
        self.network, self.batch_shape, self.position = network, batch_shape, 0
        self.images = math.prod(batch_shape)
        channels, _, width = network.image_shape
        like = network.channels.of_pixel.weight
        self.before = like.new_zeros(self.images, width, channels)  # the row before
        self.row = like.new_zeros(self.images, width, channels)
        half = (width + 1) // 2
        self.widths = [width, half, (half + 1) // 2]
        scales = range(len(self.widths))

        self.above_input = _RowConv(network.above_input)
        self.row_input_above = _RowConv(network.row_input_above)
        left, self.left_bias = network.row_input_left.conv.weight, cast(Tensor, network.row_input_left.conv.bias)
        self.left = cast(Tensor, left)[..., 0].permute(2, 1, 0)  # (2, K + 1, F): of the row before, of the row
        self.down_above = [[_RowBlock(b, condition) for b in _blocks(network.down_above, s)] for s in scales]
        self.up_above = [[_RowBlock(b, condition) for b in _blocks(network.up_above, s)] for s in scales]
        self.down_row = [
            [_PixelBlock(b, condition, self.images, self.widths[s]) for b in _blocks(network.down_row, s)]
            for s in scales
        ]
        self.up_row = [
            [_PixelBlock(b, condition, self.images, self.widths[s]) for b in _blocks(network.up_row, s)] for s in scales
        ]
        self.shrink_above = [_RowConv(cast(ShiftedConv, layer)) for layer in network.shrink_above]
        self.shrink_row = [
            _PixelConv(cast(ShiftedConv, layer), self.images, self.widths[s])
            for s, layer in enumerate(network.shrink_row)
        ]
        self.grow_above = [
            _RowGrow(cast(ShiftedDeconv, layer), self.widths[s]) for s, layer in enumerate(network.grow_above)
        ]
        self.grow_row = [
            _PixelGrow(cast(ShiftedDeconv, layer), self.images, self.widths[s])
            for s, layer in enumerate(network.grow_row)
        ]
        self._prepare_channels(network)

    def _prepare_channels(self, network: PixelCNNNetwork) -> None:
        channels, filters, context = network.image_shape[0], network.nr_filters, network.context_features
        layer = network.channels
        self.of_pixel = _matrix(layer.of_pixel)
        self.of_earlier: Tensor | None = None
        if layer.of_earlier is not None:
            masked = (layer.of_earlier.weight * layer.earlier)[:, :, 0, 0]
            self.of_earlier = masked.view(channels, filters, channels).transpose(1, 2)  # (K, K, F)
        self.output = layer.output.weight[:, :, 0, 0].view(channels, context, filters).transpose(1, 2)  # (K, F, C)
        self.output_bias = cast(Tensor, layer.output.bias).view(channels, context)

    def step(self, x_previous: Tensor | None) -> Tensor:
        """The context of the next value, ``(*, C)``, given the one before."""
        channels, _, width = self.network.image_shape
        if x_previous is not None:
            pixel, channel = divmod(self.position - 1, channels)
            self.row[:, pixel % width, channel] = x_previous.reshape(-1)
        pixel, channel = divmod(self.position, channels)
        row, column = divmod(pixel, width)
        if channel == 0:
            if column == 0:
                self._begin_row(row)
            features = self._pixel(row, column)
            weight, bias = self.of_pixel
            hidden = torch.addmm(bias, _concat_elu(features), weight)
            self.hidden = hidden.view(self.images, channels, -1)  # (B, K, F)
        hidden = self.hidden[:, channel]
        if self.of_earlier is not None and channel:
            hidden = torch.addmm(hidden, self.row[:, column], self.of_earlier[channel])
        context = torch.addmm(self.output_bias[channel], F.silu(hidden), self.output[channel])
        self.position += 1
        return context.view(*self.batch_shape, -1)

    # The rows above ---------------------------------------------------------------------------------------------

    def _begin_row(self, row: int) -> None:
        """All that the new row owes to the rows before it."""
        images, width, filters = self.images, self.widths[0], self.network.nr_filters
        if row == 0:
            above = entering = self.row.new_zeros(images, width, filters)
            left = self.row.new_zeros(images, width, filters)
            left[:, 1:] = self.left_bias
        else:
            self.before, self.row = self.row, torch.zeros_like(self.row)
            inputs = _with_ones(self.before)
            above = cast(Tensor, self.above_input.push(inputs))
            entering = cast(Tensor, self.row_input_above.push(inputs))
            left = F.pad((inputs @ self.left[0] + self.left_bias)[:, :-1], (0, 0, 1, 0))
        self.entering = (entering + left).transpose(0, 1)  # (W, B, F)
        self._advance_above(row, above)

    def _advance_above(self, row: int, above: Tensor) -> None:
        """Run the stream of the rows above for a row, and prepare that row in the other stream."""
        seen: list[list[Tensor]] = []
        deepest = max(scale for scale in range(len(self.widths)) if row % (1 << scale) == 0)
        for scale in range(deepest + 1):
            if scale:
                above = cast(Tensor, self.shrink_above[scale - 1].push(above))
                self.shrink_row[scale - 1].begin_row()
            found = [above]
            for block, other in zip(self.down_above[scale], self.down_row[scale], strict=True):
                above = block.push(above, [])
                other.begin_row(above)
                found.append(above)
            seen.append(found)
        if deepest < len(self.shrink_above):  # the next scale does not move on, but it will want to know this row
            self.shrink_above[deepest].push(above, wanted=False)
            self.shrink_row[deepest].begin_row(wanted=False)
        for scale in reversed(range(deepest + 1)):
            found = seen[scale]
            coarsest = scale == len(self.widths) - 1
            above = found.pop() if coarsest else self.grow_above[scale].rows[(row >> scale) % 2]
            for block, other in zip(self.up_above[scale], self.up_row[scale], strict=True):
                above = block.push(above, [found.pop()])
                other.begin_row(above)
            if scale:
                self.grow_above[scale - 1].push(above)

    # The row itself ---------------------------------------------------------------------------------------------

    def _pixel(self, row: int, column: int) -> Tensor:
        """Features of a pixel, ``(B, F)``."""
        features = self.entering[column]
        if column:
            features = torch.addmm(features, _with_ones(self.row[:, column - 1]), self.left[1])
        seen: list[list[Tensor]] = []
        deepest = max(s for s in range(len(self.widths)) if row % (1 << s) == 0 and column % (1 << s) == 0)
        for scale in range(deepest + 1):
            at = column >> scale
            if scale:
                features = self.shrink_row[scale - 1].output(column >> (scale - 1))
            found = [features]
            for block in self.down_row[scale]:
                features = block.push(at, features, None)
                found.append(features)
            seen.append(found)
            if scale < len(self.shrink_row):
                self.shrink_row[scale].push(at, features)
        for scale in reversed(range(deepest + 1)):
            found, at = seen[scale], column >> scale
            coarsest = scale == len(self.widths) - 1
            features = found.pop() if coarsest else self.grow_row[scale].pixels[(row >> scale) % 2, at]
            for block in self.up_row[scale]:
                features = block.push(at, features, found.pop())
            if scale:
                self.grow_row[scale - 1].push(at, features)
        return features


def _blocks(layers: nn.ModuleList, scale: int) -> list[GatedResidual]:
    return [cast(GatedResidual, block) for block in cast(nn.ModuleList, layers[scale])]


def _with_ones(values: Tensor) -> Tensor:
    return torch.cat([values, torch.ones_like(values[..., :1])], -1)
