"""MADE: a masked multilayer perceptron, run in parallel or one dimension at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm.contexts.base import Context, checked_condition
from arcsm.contexts.masked_products import blocks_of_mask, masked_linear
from arcsm.fourier_features import fourier_frequencies

_MANY_WEIGHTS = 1 << 19  # from about here a processor gains by leaving out what a mask hides
_LARGEST_SIZE = 1 << 20  # what a file or a slip may ask for before any memory is taken


class MaskedLinear(nn.Linear):
    """A linear layer whose unit ``i`` sees input ``j`` only where ``mask[i, j]``, a staircase."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)
        self._flights = blocks_of_mask(mask)
        with torch.no_grad():  # scale by the inputs a unit really has, not by the width of the layer
            fan_in = mask.sum(dim=1, keepdim=True).clamp(min=1)
            self.weight.normal_().mul_(mask / fan_in.sqrt())
            self.bias.zero_()

    def masked_weight(self) -> Tensor:
        """The weight with the masked entries at zero, ``(out, in)``."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        if self._trains(x):
            return masked_linear(x, self.weight, self.mask, self.bias, self._flights)
        return F.linear(x, self.masked_weight(), self.bias)

    def _trains(self, x: Tensor) -> bool:
        """Whether a plain backward pass is to come on a processor, wide enough for what the mask hides to count."""
        wide = self.weight.numel() >= _MANY_WEIGHTS and x.device.type == "cpu"
        return wide and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class FourierFeatures(nn.Module):
    """Values together with sines and cosines of them, ``(*, D)`` to ``(*, D * (1 + 2 J))``, value by value.

    Where values may be missing there is one number more, which says so; the others are then zero.

    Attributes:
        features: How many numbers stand for one value, ``1 + 2 J`` or ``2 + 2 J``.
    """

    frequencies: Tensor

    def __init__(self, sinusoids: int, max_frequency: float, missing: bool = False) -> None:
        super().__init__()
        self.sinusoids, self.max_frequency, self.missing = sinusoids, float(max_frequency), missing
        self.features = 1 + 2 * sinusoids + missing
        waves = fourier_frequencies(sinusoids, self.max_frequency)
        self.register_buffer("frequencies", waves.to(torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.sinusoids and not self.missing:
            return x
        x = x.unsqueeze(-1)  # (*, D, 1)
        unknown = x.isnan()
        x = torch.where(unknown, 0.0, x) if self.missing else x
        angle = x * self.frequencies  # (*, D, J)
        cosine = torch.where(unknown, 0.0, torch.cos(angle)) if self.missing else torch.cos(angle)
        flag = [unknown.to(x)] if self.missing else []
        return torch.cat([x, torch.sin(angle), cosine, *flag], -1).flatten(-2)


class RandomMasking(nn.Module):
    """Makes values unknown at random while training, so that contexts of any part of the values are learned.

    Every row hides each of its values with one probability, drawn between zero and twice ``share``, but for half of
    the rows, which hide nothing: what is learned of whole rows should not suffer.

    Arguments:
        share: At most 0.5; 0 for never.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        if not 0.0 <= share <= 0.5:
            raise ValueError(f"hide: expected a share from 0 to 0.5, got {share}")
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """``(*, D)``, with some of the values NaN."""
        if not self.training or self.share == 0.0:
            return x
        probability = 2.0 * self.share * torch.rand_like(x[..., :1]) * (torch.rand_like(x[..., :1]) < 0.5)
        return torch.where(torch.rand_like(x) < probability, torch.nan, x)


@dataclass
class MADEState:
    """What an incremental pass over a batch of rows knows so far (positions count along the order)."""

    position: int
    inputs: Tensor  # (B, D * (1 + 2 J)) values and their waves by position, known up to `position`
    first: Tensor  # (B, H) bias of the first hidden layer, plus what the condition adds
    output: Tensor  # (B, D * C) or (1, D * C), the same for the contexts
    hidden: list[Tensor]  # (B, H) a layer, units of degree <= position filled in
    weights: list[Tensor]  # masked weights, copied once
    biases: list[Tensor]
    batch_shape: tuple[int, ...]


class MADE(Context):
    """Masked autoencoder for distribution estimation, giving ``C`` context features for each dimension.

    .. math:: c_d = f_d(x_{<d}), \\qquad d = 1, \\dots, D

    Hidden units are sorted by degree, the number of inputs (in the order of the chain rule) that they may see. That
    makes every mask a staircase, so the incremental pass computes just the units that the newest input completes:
    all :math:`D` steps together cost no more than one parallel pass.

    References:
        MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015), https://arxiv.org/abs/1502.03509

    Arguments:
        features: Number of dimensions :math:`D`.
        context_features: Size :math:`C` of the context of each dimension.
        hidden_features: Units of each hidden layer; ``()`` makes the contexts affine in :math:`x_{<d}`.
        condition_features: Size of a dense condition vector that every dimension sees; 0 for none.
        order: A permutation of ``range(features)``; ``None`` for the order of the columns.
        classes: Number of class labels; with it the condition is a tensor of integer labels.
        residual: Add each hidden layer to the one before it; all hidden layers then have one width.
        sinusoids: Show the network each value also as ``J`` sines and cosines, of frequencies from 1 to
            ``max_frequency``: a narrow structure that moves fast with the values before it is learned far sooner.
        max_frequency: In radians for a unit of standardised data.
        missing: Whether values may be NaN, which means that they are not known: the contexts are told so.
        hide: Fraction of values masked from the contexts of half of the rows during training
            (:class:`RandomMasking`), if ``missing``.

    Raises:
        ValueError: for an order that is no permutation, sizes below one, both kinds of condition, or residual
            layers of different widths.

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
    ) -> None:
        super().__init__()
        if hide and not missing:
            raise ValueError(f"hide: expected 0 where no values may be missing, got {hide}")
        hidden_features = tuple(int(size) for size in hidden_features)
        _check_sizes(features, context_features, hidden_features, condition_features, classes, residual, sinusoids)
        order = tuple(range(features)) if order is None else tuple(int(i) for i in order)
        if sorted(order) != list(range(features)):
            raise ValueError(f"order: expected a permutation of range({features}), got {order}")
        self.features, self.context_features = features, context_features
        self.hidden_features, self.order = hidden_features, order
        self.condition_features, self.classes, self.residual = condition_features, classes, residual

        conditional = bool(condition_features or classes)
        degrees = [_sorted_degrees(size, features, conditional) for size in hidden_features]
        self.missing, self._hide = missing, RandomMasking(hide)
        self._waves = FourierFeatures(sinusoids, max_frequency, missing)
        inputs = torch.arange(1, features + 1).repeat_interleave(self._waves.features)
        seen = [inputs, *degrees]  # all that is shown of the value at position i has degree i + 1
        masks = [out[:, None] >= into[None, :] for into, out in zip(seen, degrees, strict=False)]
        outputs = torch.arange(features).repeat_interleave(context_features)
        masks.append(outputs[:, None] >= seen[-1][None, :])
        self.layers = nn.ModuleList(MaskedLinear(mask) for mask in masks)
        # ends[l][d]: how many units of layer l have degree <= d
        self._ends = [[int((degree <= d).sum()) for d in range(features)] for degree in degrees]

        self.condition = self._condition_layers() if conditional else None
        permutation = torch.tensor(order, dtype=torch.long)
        self.register_buffer("permutation", permutation, persistent=False)
        self.register_buffer("positions", torch.argsort(permutation), persistent=False)

    def _condition_layers(self) -> nn.ModuleList:
        """Maps of the condition to the first hidden layer (if there is one) and to all contexts."""
        sizes = [*self.hidden_features[:1], self.features * self.context_features]
        if self.classes:
            return nn.ModuleList(nn.Embedding(self.classes, size) for size in sizes)
        return nn.ModuleList(nn.Linear(self.condition_features, size, bias=False) for size in sizes)

    def config(self) -> dict[str, Any]:
        return {
            "features": self.features,
            "context_features": self.context_features,
            "hidden_features": list(self.hidden_features),
            "condition_features": self.condition_features,
            "order": None if self.order == tuple(range(self.features)) else list(self.order),
            "classes": self.classes,
            "residual": self.residual,
            "sinusoids": self._waves.sinusoids,
            "max_frequency": self._waves.max_frequency,
            "missing": self.missing,
            "hide": self._hide.share,
        }

    def _condition_terms(
        self, condition: Tensor | None, batch_shape: Sequence[int]
    ) -> tuple[Tensor | float, Tensor | float]:
        """What the condition adds to the first hidden layer ``(*, H)`` and to the contexts ``(*, D * C)``."""
        like = self._masked_layers()[0].weight
        given = checked_condition(condition, batch_shape, self.classes, self.condition_features, like)
        if given is None or self.condition is None:
            return 0.0, 0.0
        terms = [layer(given) for layer in self.condition]
        return (terms[0] if len(terms) > 1 else 0.0), terms[-1]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if x.shape[-1:] != (self.features,):
            raise ValueError(f"x: expected shape (*, {self.features}), got {tuple(x.shape)}")
        to_hidden, to_output = self._condition_terms(condition, x.shape[:-1])
        hidden = self._waves(self._hide(x)[..., self.permutation])  # (*, D * (1 + 2 J)) by position
        for index, layer in enumerate(self.layers[:-1]):
            update = F.silu(layer(hidden) + (to_hidden if index == 0 else 0.0))  # (*, H)
            hidden = hidden + update if self.residual and index > 0 else update
        output = self.layers[-1](hidden) + to_output  # (*, D * C) by position
        contexts = output.unflatten(-1, (self.features, self.context_features))
        return contexts if self._in_column_order else contexts[..., self.positions, :]  # (*, D, C) by feature

    @property
    def _in_column_order(self) -> bool:
        return self.order == tuple(range(self.features))

    @torch.no_grad()
    def begin(self, batch_shape: Sequence[int], condition: Tensor | None = None) -> MADEState:
        shape = tuple(int(size) for size in batch_shape)
        rows = math.prod(shape)
        to_hidden, to_output = self._condition_terms(condition, shape)
        weights = [layer.masked_weight() for layer in self._masked_layers()]
        biases: list[Tensor] = [layer.bias for layer in self._masked_layers()]
        new = weights[0].new_zeros
        first = biases[0].expand(rows, -1)
        output = biases[-1].expand(rows, -1)
        if isinstance(to_hidden, Tensor):
            first = first + to_hidden.expand(*shape, -1).reshape(rows, to_hidden.shape[-1])
        if isinstance(to_output, Tensor):
            output = output + to_output.expand(*shape, -1).reshape(rows, to_output.shape[-1])
        hidden = [new(rows, size) for size in self.hidden_features]
        return MADEState(
            0, new(rows, self.features * self._waves.features), first, output, hidden, weights, biases, shape
        )

    def _masked_layers(self) -> list[MaskedLinear]:
        return [layer for layer in self.layers if isinstance(layer, MaskedLinear)]

    @torch.no_grad()
    def step(self, state: MADEState, x_previous: Tensor | None) -> Tensor:
        d = state.position
        if d >= self.features:
            raise ValueError(f"state: all {self.features} features of this batch are already known")
        if (x_previous is None) != (d == 0):
            raise ValueError(f"x_previous: expected {'None' if d == 0 else 'a tensor'} at step {d}")
        if x_previous is not None:
            width = self._waves.features
            state.inputs[:, (d - 1) * width : d * width] = self._waves(x_previous.reshape(-1, 1))

        known, seen = state.inputs, d * self._waves.features  # the layer below and how much of it is known
        for index, (hidden, ends) in enumerate(zip(state.hidden, self._ends, strict=True)):
            start, stop = (ends[d - 1] if d else 0), ends[d]
            if stop > start:
                bias = state.first if index == 0 else state.biases[index].expand(1, -1)
                weight = state.weights[index][start:stop, :seen]  # (new units, seen)
                update = F.silu(torch.addmm(bias[:, start:stop], known[:, :seen], weight.T))
                if self.residual and index > 0:
                    update = update + known[:, start:stop]
                hidden[:, start:stop] = update
            known, seen = hidden, stop
        block = slice(d * self.context_features, (d + 1) * self.context_features)
        contexts = torch.addmm(state.output[:, block], known[:, :seen], state.weights[-1][block, :seen].T)
        state.position += 1
        return contexts.reshape(*state.batch_shape, self.context_features)

    def select(self, state: MADEState, rows: Tensor) -> None:
        if len(state.batch_shape) != 1:
            raise ValueError(f"state: expected a batch of one dimension, got {state.batch_shape}")
        state.batch_shape = (len(rows),)
        state.inputs, state.hidden = state.inputs[rows], [hidden[rows] for hidden in state.hidden]
        state.first, state.output = _rows_of(state.first, rows), _rows_of(state.output, rows)


def _sorted_degrees(units: int, features: int, conditional: bool) -> Tensor:
    """Degrees of a hidden layer, evenly spread and ascending.

    Degree 0 sees nothing but the condition, so without one the degrees start at 1 (unless there is but one feature).
    """
    lowest = 0 if conditional or features == 1 else 1
    return lowest + torch.arange(units) * (features - lowest) // units


def _rows_of(terms: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor; one whose rows are all the same memory stays so."""
    return terms[:1].expand(len(rows), -1) if terms.stride(0) == 0 else terms[rows]


def _check_sizes(
    features: int,
    context_features: int,
    hidden_features: tuple[int, ...],
    condition_features: int,
    classes: int,
    residual: bool,
    sinusoids: int,
) -> None:
    sizes = (features, context_features, *hidden_features)
    if min(sizes) < 1 or max(*sizes, sinusoids) > _LARGEST_SIZE:
        raise ValueError(
            f"MADE: expected sizes from 1 to {_LARGEST_SIZE}, "
            f"got features={features}, context_features={context_features}, hidden_features={hidden_features}, "
            f"sinusoids={sinusoids}"
        )
    if condition_features < 0 or classes < 0 or (condition_features and classes):
        raise ValueError(
            f"MADE: expected condition_features or classes, not both, got {condition_features} and {classes}"
        )
    if residual and len(set(hidden_features)) > 1:
        raise ValueError(f"hidden_features: residual layers need one width, got {hidden_features}")
