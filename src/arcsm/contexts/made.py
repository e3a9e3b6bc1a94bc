"""MADE: a masked multilayer perceptron, evaluated in parallel or one dimension at a time."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._runtime.conditions import Condition
from arcsm._runtime.sizes import check_layers, check_size, whole_numbers
from arcsm.contexts.base import Context
from arcsm.contexts.masked_products import masked_linear, unit_blocks
from arcsm.fourier_features import fourier_frequencies

_MIN_WEIGHTS_FOR_BLOCKS = 1 << 19  # smaller layers are faster with the mask multiplied into the weight


class MaskedLinear(nn.Linear):
    """A linear layer whose unit ``i`` sees input ``j`` only if ``mask[i, j]``; the mask is block lower-triangular."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)
        self._blocks = () if mask.is_meta else unit_blocks(mask)
        with torch.no_grad():  # scale by the number of inputs that a unit sees, not by the width of the layer
            fan_in = mask.sum(dim=1, keepdim=True).clamp(min=1)
            self.weight.normal_().mul_(mask / fan_in.sqrt())
            self.bias.zero_()

    def masked_weight(self) -> Tensor:  # (out, in)
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        is_large = self.weight.numel() >= _MIN_WEIGHTS_FOR_BLOCKS and x.device.type == "cpu"
        if is_large and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return masked_linear(x, self.weight, self.mask, self.bias, self._blocks)
        return F.linear(x, self.masked_weight(), self.bias)


class FourierFeatures(nn.Module):
    """Each value with sines and cosines of it, ``(*, D)`` to ``(*, D * features)``.

    If values may be missing, a flag marks a missing value, and its other features are zero.
    """

    frequencies: Tensor

    def __init__(self, sinusoids: int, max_frequency: float, missing: bool = False) -> None:
        super().__init__()
        self.sinusoids, self.missing = sinusoids, missing
        self.features = 1 + 2 * sinusoids + missing  # of one value
        frequencies = fourier_frequencies(sinusoids, max_frequency)
        self.register_buffer("frequencies", frequencies.to(torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.sinusoids and not self.missing:
            return x
        x = x.unsqueeze(-1)  # (*, D, 1)
        is_missing = x.isnan()
        if self.missing:
            x = torch.where(is_missing, 0.0, x)
        angle = x * self.frequencies  # (*, D, J)
        sine, cosine = torch.sin(angle), torch.cos(angle)
        if not self.missing:
            return torch.cat([x, sine, cosine], -1).flatten(-2)
        return torch.cat([x, sine, torch.where(is_missing, 0.0, cosine), is_missing.to(x)], -1).flatten(-2)


class RandomMasking(nn.Module):
    """Random missing values in training, so that contexts of incomplete rows are learned.

    Half of the rows stay complete, so that contexts of complete rows are still learned well. In each other row, values
    go missing with a probability that is drawn between zero and twice ``share``, the mean fraction, at most 0.5.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        if not 0.0 <= share <= 0.5:
            raise ValueError(f"hide: expected a share from 0 to 0.5, got {share}")
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Replace values of ``x (*, D)`` by NaN."""
        if not self.training or self.share == 0.0:
            return x
        probability = 2.0 * self.share * torch.rand_like(x[..., :1]) * (torch.rand_like(x[..., :1]) < 0.5)
        return torch.where(torch.rand_like(x) < probability, torch.nan, x)


@dataclass
class MADEState:
    """State of an incremental pass over ``B`` rows. Positions count along the order of the chain rule."""

    position: int
    inputs: Tensor  # (B, D * features of a value), filled in before `position`
    first_bias: Tensor  # (B, H), of the first hidden layer, the term of the condition included
    output_bias: Tensor  # (B, D * C), of the contexts, the term of the condition included
    hidden: list[Tensor]  # (B, H) for each layer, units of degree <= position filled in
    weights: list[Tensor]  # masked, one for each layer
    biases: list[Tensor]
    batch_shape: tuple[int, ...]


class MADE(Context):
    """Masked autoencoder for distribution estimation, with ``C`` context features for each dimension.

    .. math:: c_d = f_d(x_{<d}), \\qquad d = 1, \\dots, D

    Hidden units are sorted by degree, the number of inputs (in the order of the chain rule) that they may see. Every
    mask is then block lower-triangular, and each incremental step computes only the units that the newest input
    completes: all :math:`D` steps together cost as much as one parallel pass.

    References:
        MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015), https://arxiv.org/abs/1502.03509

    Arguments:
        features: Number of dimensions :math:`D`.
        context_features: Size :math:`C` of the context of each dimension.
        hidden_features: Units of each hidden layer; ``()`` makes the contexts affine in :math:`x_{<d}`.
        condition_features: Size of a condition vector that every dimension sees; 0 for none.
        order: A permutation of ``range(features)``. Default: the order of the columns.
        classes: Number of class labels; 0 for none. The condition is then a tensor of integer labels or, with
            ``condition_features``, a mapping ``{"classes": labels, "vector": vectors}``.
        residual: Add each hidden layer to the one before it. All hidden layers must have the same width.
        sinusoids: Number :math:`J` of frequencies, from 1 to ``max_frequency``, at which the network sees sines and
            cosines of each value. They speed up the learning of narrow structures.
        max_frequency: The largest frequency, in radians per unit of standardised data.
        missing: Whether values may be NaN, which marks them as missing.
        hide: Fraction of values masked from the contexts of half of the rows during training
            (:class:`RandomMasking`), if ``missing``.
        condition_net: A network that embeds the condition first, ``(B, F)`` to ``(B, E)``, and is trained with the
            context; see :class:`~arcsm.ConditionNet`.

    Example:
        >>> made = MADE(features=3, context_features=2, hidden_features=(8,))
        >>> made(torch.zeros(5, 3)).shape
        torch.Size([5, 3, 2])
    """

    positions: Tensor
    permutation: Tensor

    def __init__(
        self,
        features: int,
        context_features: int = 16,
        hidden_features: Sequence[int] = (256, 256),
        condition_features: int = 0,
        order: Sequence[int] | None = None,
        classes: int = 0,
        residual: bool = False,
        sinusoids: int = 0,
        max_frequency: float = 20.0,
        missing: bool = False,
        hide: float = 0.0,
        condition_net: nn.Module | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.features, self.context_features = features, context_features
        self.hidden_features = whole_numbers("hidden_features", hidden_features)
        self.set_condition(classes, condition_features, condition_net)
        self.residual, self.missing, self.hide = residual, missing, hide
        self.sinusoids, self.max_frequency = sinusoids, float(max_frequency)
        self._check_sizes()
        if hide and not missing:
            raise ValueError(f"hide: expected 0 without missing=True, got {hide}")
        self.order = tuple(range(features)) if order is None else whole_numbers("order", order)
        if sorted(self.order) != list(range(features)):
            raise ValueError(f"order: expected a permutation of range({features}), got {self.order!r:.60}")

        self.masking = RandomMasking(hide)
        self._input_features = FourierFeatures(sinusoids, self.max_frequency, missing)
        inputs = torch.arange(1, features + 1).repeat_interleave(self._input_features.features)
        hidden = [self._degrees(size) for size in self.hidden_features]
        outputs = torch.arange(features).repeat_interleave(context_features)
        degrees = itertools.pairwise([inputs, *hidden, outputs])
        self.layers = nn.ModuleList(MaskedLinear(above[:, None] >= below[None, :]) for below, above in degrees)

        self.condition = self._condition_layers() if self.is_conditional else None
        permutation = torch.tensor(self.order, dtype=torch.long)
        self.register_buffer("permutation", permutation, persistent=False)
        self.register_buffer("positions", torch.argsort(permutation), persistent=False)

    def _check_sizes(self) -> None:
        check_size("MADE", features=self.features, context_features=self.context_features)
        check_size("MADE", least=0, sinusoids=self.sinusoids)
        inputs = self.features * (1 + 2 * self.sinusoids + self.missing)
        outputs = self.features * self.context_features
        check_layers("MADE", inputs, self.hidden_features, outputs)
        check_layers("MADE", self.classes + self.condition_features, (), sum(self.hidden_features[:1]) + outputs)
        if self.residual and len(set(self.hidden_features)) > 1:
            raise ValueError(f"hidden_features: residual layers need one width, got {self.hidden_features}")

    def _degrees(self, units: int) -> Tensor:
        """Return the degrees of a hidden layer, evenly spread and ascending.

        Units of degree 0 see only the condition. Without one, degrees start at 1 (unless there is only one feature).
        """
        return self._lowest_degree + torch.arange(units) * (self.features - self._lowest_degree) // units

    @property
    def _lowest_degree(self) -> int:
        return 0 if self.is_conditional or self.features == 1 else 1

    def _units_up_to(self, degree: int, units: int) -> int:
        """Return the number of units of a hidden layer of at most a degree; see :meth:`_degrees`."""
        above = degree + 1 - self._lowest_degree
        return min(-(-above * units // (self.features - self._lowest_degree)), units)

    def _condition_layers(self) -> nn.ModuleList:
        """Return the maps of the condition to the first hidden layer, if there is one, and to all contexts."""
        sizes = [*self.hidden_features[:1], self.features * self.context_features]
        return nn.ModuleList(self.condition_layer(size) for size in sizes)

    def config(self) -> dict[str, Any]:
        arguments = super().config()
        if type(self).__init__ is not MADE.__init__:  # whose defaults may differ
            return arguments
        return {**arguments, "order": None if self._is_in_column_order else list(self.order)}

    @property
    def _is_in_column_order(self) -> bool:
        return self.order == tuple(range(self.features))

    def masked_layers(self) -> list[MaskedLinear]:
        return [layer for layer in self.layers if isinstance(layer, MaskedLinear)]

    def _condition_terms(
        self, condition: Condition | None, shape: Sequence[int]
    ) -> tuple[Tensor | float, Tensor | float]:
        """Return what the condition adds to the first hidden layer ``(*, H)`` and to the contexts ``(*, D * C)``."""
        condition = self.embed_condition(condition, shape)
        if condition is None or self.condition is None:
            return 0.0, 0.0
        terms = [layer(condition) for layer in self.condition]
        return (terms[0] if len(terms) > 1 else 0.0), terms[-1]

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        self.check_input(x)
        hidden_term, output_term = self._condition_terms(condition, x.shape[:-1])
        hidden = self._input_features(self.masking(x)[..., self.permutation])  # (*, D * features of a value)
        for index, layer in enumerate(self.layers[:-1]):
            update = F.silu(layer(hidden) + (hidden_term if index == 0 else 0.0))  # (*, H)
            hidden = hidden + update if self.residual and index > 0 else update
        contexts = (self.layers[-1](hidden) + output_term).unflatten(-1, (self.features, self.context_features))
        return contexts if self._is_in_column_order else contexts[..., self.positions, :]  # (*, D, C), now by feature

    @torch.no_grad()
    def begin(self, batch_shape: Sequence[int], condition: Condition | None = None) -> MADEState:
        shape = tuple(int(size) for size in batch_shape)
        rows = math.prod(shape)
        layers = self.masked_layers()
        weights: list[Tensor] = [layer.masked_weight() for layer in layers]
        biases: list[Tensor] = [layer.bias for layer in layers]

        def with_term(bias: Tensor, term: Tensor | float) -> Tensor:
            bias = bias.expand(rows, -1)
            return bias + term.expand(*shape, -1).reshape(bias.shape) if isinstance(term, Tensor) else bias

        hidden_term, output_term = self._condition_terms(condition, shape)
        return MADEState(
            position=0,
            inputs=weights[0].new_zeros(rows, self.features * self._input_features.features),
            first_bias=with_term(biases[0], hidden_term),
            output_bias=with_term(biases[-1], output_term),
            hidden=[weights[0].new_zeros(rows, size) for size in self.hidden_features],
            weights=weights,
            biases=biases,
            batch_shape=shape,
        )

    @torch.no_grad()
    def step(self, state: MADEState, x_previous: Tensor | None) -> Tensor:
        d = state.position
        self.check_step(d, x_previous)
        if x_previous is not None:
            width = self._input_features.features
            state.inputs[:, (d - 1) * width : d * width] = self._input_features(x_previous.reshape(-1, 1))

        below, seen = state.inputs, d * self._input_features.features  # the layer below, and its number of known units
        for index, hidden in enumerate(state.hidden):
            units = hidden.shape[1]
            start, stop = (self._units_up_to(d - 1, units) if d else 0), self._units_up_to(d, units)
            if stop > start:
                bias = state.first_bias if index == 0 else state.biases[index].expand(1, -1)
                weight = state.weights[index][start:stop, :seen]  # (new units, seen)
                update = F.silu(torch.addmm(bias[:, start:stop], below[:, :seen], weight.T))
                if self.residual and index > 0:
                    update = update + below[:, start:stop]
                hidden[:, start:stop] = update
            below, seen = hidden, stop
        block = slice(d * self.context_features, (d + 1) * self.context_features)
        contexts = torch.addmm(state.output_bias[:, block], below[:, :seen], state.weights[-1][block, :seen].T)
        state.position += 1
        return contexts.reshape(*state.batch_shape, self.context_features)

    def select(self, state: MADEState, rows: Tensor) -> None:
        self.check_selection(state.batch_shape)
        state.batch_shape = (len(rows),)
        state.inputs, state.hidden = state.inputs[rows], [hidden[rows] for hidden in state.hidden]
        state.first_bias, state.output_bias = _select(state.first_bias, rows), _select(state.output_bias, rows)


def _select(bias: Tensor, rows: Tensor) -> Tensor:
    """Select rows of a bias ``(B, H)``. A bias that all rows share is not copied."""
    return bias[:1].expand(len(rows), -1) if bias.stride(0) == 0 else bias[rows]
