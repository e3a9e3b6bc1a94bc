"""The network of an any-order context: from sets of known values to the contexts of its dimensions."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._runtime.conditions import Condition

_SMALLEST_MEAN_SQUARE = 1e-6  # of a hidden layer, from which on it is normalised


class SetNetwork(nn.Module):
    """The map from sets of known values to the contexts of ``D`` dimensions, of the size ``C``.

    .. math:: c_d = W_d\\, \\big( g(s) + A s \\big) + b_d, \\qquad s = \\tfrac{1}{\\sqrt{1 + n}}\\, t

    A set comes as the sum :math:`t` of the vectors of its ``n`` values. See :class:`~arcsm.AnyOrder`.

    Arguments:
        shape: ``D`` and ``C``.
        embedding_features: Size ``E`` of the vectors.
        hidden_features: Units of each layer of :math:`g`, all equal.
        dropout: Fraction of the units of residual layers that training switches off.
        residuals: Whether the network also sees residuals of values on a line.
        condition_layer: Makes a layer that maps conditions to vectors of a size; ``None`` without conditions.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        embedding_features: int,
        hidden_features: Sequence[int],
        dropout: float,
        residuals: bool = False,
        condition_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        (features, outputs), width = shape, hidden_features[0]
        self.dropout = dropout
        self.first = nn.Linear(embedding_features, width)
        self.linear = nn.Linear(embedding_features, width, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in hidden_features[1:])
        self.output_weight = nn.Parameter(torch.randn(features, width, outputs) / math.sqrt(width))
        self.output_bias = nn.Parameter(torch.zeros(features, outputs))
        self.residual_weight = nn.Parameter(torch.zeros(features, 2 * width)) if residuals else None
        self.condition = None if condition_layer is None else condition_layer(width)
        self.linear_condition = None if condition_layer is None else condition_layer(width)
        if self.linear_condition is not None:
            for parameter in self.linear_condition.parameters():
                nn.init.zeros_(parameter)

    def condition_term(self, condition: Condition | None, rows: int) -> Tensor:
        """Return what an embedded condition adds to the first and to the last hidden layer, ``(B, 2 H)``."""
        width = 2 * self.first.out_features
        if self.condition is None or self.linear_condition is None:
            return self.first.weight.new_zeros(()).expand(rows, width)
        return torch.cat([self.condition(condition), self.linear_condition(condition)], -1).reshape(rows, width)

    def residual_term(self, residuals: Tensor, columns: Sequence[int]) -> Tensor:
        """Return what residuals ``(*, K)`` of some columns add to these layers, ``(*, 2 H)``."""
        assert self.residual_weight is not None
        return residuals @ (self.residual_weight[list(columns)] * self._slowly)

    @property
    def _slowly(self) -> float:
        """The factor of weights that are learned more slowly than others."""
        return self.first.in_features**-0.5

    def hidden(self, total: Tensor, count: Tensor, term: Tensor) -> Tensor:
        """Return the last hidden layer, :math:`g(s) + A s`, of sets with ``total (*, E)`` and ``count (*, 1)``."""
        s = total * (1.0 + count).rsqrt()
        of_first, of_last = term.chunk(2, -1)
        h = self.first(s) + of_first
        for layer in self.layers:
            h = h + F.dropout(F.silu(layer(F.silu(h))), self.dropout, self.training)
        g = F.silu(F.rms_norm(h, h.shape[-1:], eps=_SMALLEST_MEAN_SQUARE))
        return g + (self.linear(s) + of_last) * self._slowly

    def of_one(self, hidden: Tensor, d: int) -> Tensor:
        """Return the contexts of dimension ``d``, ``(B, H)`` to ``(B, C)``."""
        return torch.addmm(self.output_bias[d], hidden, self.output_weight[d])

    def of_all(self, hidden: Tensor) -> Tensor:
        """Return the contexts of all dimensions given one set, ``(B, H)`` to ``(B, D, C)``."""
        weight = self.output_weight.transpose(1, 2).flatten(0, 1)  # (D * C, H)
        return F.linear(hidden, weight, self.output_bias.flatten()).unflatten(-1, self.output_bias.shape)

    def of_each(self, hidden: Tensor, dimensions: Tensor | None = None) -> Tensor:
        """Return the contexts of all or some dimensions given a set for each, ``(B, D, H)`` to ``(B, D, C)``."""
        part = slice(None) if dimensions is None else dimensions
        bias, weight = self.output_bias[part].unsqueeze(1), self.output_weight[part]
        return torch.baddbmm(bias, hidden.transpose(0, 1), weight).transpose(0, 1)
