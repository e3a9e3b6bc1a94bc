"""The networks of an any-order context: from sets of known values to the contexts of its dimensions."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._native import (
    SetWeights,
    WalkedNetwork,
    available,
    may_train,
    set_network_backward,
    set_network_forward,
    supports,
)
from arcsm._runtime.compiled import Compiled, call
from arcsm._runtime.conditions import Condition
from arcsm._runtime.devices import constant
from arcsm.errors import readable

_FASTER = 30.0  # factor of the weights of linear predictions, which are learned sooner than others
_SMALLEST_MEAN_SQUARE = 1e-6  # of a hidden layer, from which on it is normalised


class Sets(NamedTuple):
    """What networks see of sets of known values: one for each row ``(B, *)``, or for each dimension ``(B, D, *)``."""

    total: Tensor  # (*, E), the sum of the vectors of the values
    size: Tensor  # (*, 1), the number of values
    condition_terms: list[Tensor]  # (*, 2 H) for each network; (B, 1, 2 H) if all dimensions share them
    residuals: Tensor | None  # (*, K), of the values of some columns on a line
    columns: Sequence[int]
    linear: Tensor | None = None  # (B, U, 2), the features of linear predictors, each given the set of its dimension


class SetNetwork(nn.Module):
    """The map from sets of known values to the contexts of ``D`` dimensions, of the size ``C``.

    .. math:: c_d = W_d\\, \\big( g(s) + A s \\big) + b_d, \\qquad s = \\tfrac{1}{\\sqrt{1 + n}}\\, t

    A set comes as the sum :math:`t` of the vectors of its ``n`` values. The units of dimension :math:`d`, if there are
    any, add :math:`\\sum_e (u_e m_e + v_e \\log s_e)`. See :class:`~arcsm.AnyOrder`.

    Arguments:
        shape: ``D`` and ``C``.
        embedding_features: Size ``E`` of the vectors.
        hidden_features: Units of each layer of :math:`g`, all equal.
        dropout: Fraction of the units of residual layers that training switches off.
        residuals: Whether the network also sees residuals of values on a line.
        owners: The dimensions of the units of :class:`LinearFeatures`, whose features contexts also get.
        condition_layer: Makes a layer that maps conditions to vectors of a size; ``None`` without conditions.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        embedding_features: int,
        hidden_features: Sequence[int],
        dropout: float,
        residuals: bool = False,
        owners: Sequence[int] = (),
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
        self.owners = tuple(owners)
        self.unit_weight = nn.Parameter(torch.zeros(len(self.owners), 2, outputs)) if self.owners else None
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

    @property
    def _slowly(self) -> float:
        """The factor of weights that are learned more slowly than others."""
        return self.first.in_features**-0.5

    def weights(self) -> SetWeights:
        """Return the weights, for C."""
        layers = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        deeper = [weight for layer in layers for weight in (layer.weight, layer.bias)]
        of_sets = self.first.weight, self.first.bias, self.linear.weight, self.output_weight, self.output_bias
        return SetWeights(self._slowly, _SMALLEST_MEAN_SQUARE, *of_sets, tuple(deeper))

    def residual_weights(self, columns: Sequence[int]) -> Tensor | None:
        """Return the weights of the residuals of some columns in both hidden layers, ``(K, 2 H)``."""
        if self.residual_weight is None:
            return None
        return self.residual_weight[constant(tuple(columns), torch.long, self.residual_weight.device)] * self._slowly

    def _with_residuals(self, sets: Sets, term: Tensor) -> Tensor:
        weight = self.residual_weights(sets.columns)
        return term if sets.residuals is None or weight is None else term + sets.residuals @ weight

    def hidden(self, sets: Sets, term: Tensor) -> Tensor:
        """Return the last hidden layer, :math:`g(s) + A s`, with the ``term`` of the condition, ``(*, H)``."""
        s = sets.total * (1.0 + sets.size).rsqrt()
        term = self._with_residuals(sets, term)
        weights = self.weights()
        if not (self.training and self.dropout):
            return _hidden(weights, s, term, lambda _, h: h)
        shape = len(weights.layers) // 2, *s.shape[:-1], len(weights.first_bias)
        factors = _dropout_factors(shape, self.dropout, s.device)
        return _hidden(weights, s, term, lambda layer, h: h * factors[layer].to(h))

    def of_one(self, sets: Sets, term: Tensor, d: int) -> Tensor:
        """Return the contexts of dimension ``d``, ``(B, C)``; the ``term`` is that of the condition."""
        contexts = torch.addmm(self.output_bias[d], self.hidden(sets, term), self.output_weight[d])
        units = tuple(unit for unit, owner in enumerate(self.owners) if owner == d)
        if sets.linear is None or self.unit_weight is None or not units:
            return contexts
        own = constant(units, torch.long, contexts.device)
        return torch.addmm(contexts, sets.linear[:, own].flatten(1), _FASTER * self.unit_weight[own].flatten(0, 1))

    def of_all(self, sets: Sets, term: Tensor) -> Tensor:
        """Return the contexts of all dimensions given one set, ``(B, D, C)``."""
        weights = self.weights()
        if may_train() and supports(sets.total, sets.size, *weights.tensors) and available():
            needs_term = self.condition is not None or sets.residuals is not None
            terms = [self._with_residuals(sets, term)] if needs_term else []
            rate = self.dropout if self.training else 0.0
            function = _AllContexts(weights, sets, needs_term, rate)
            return self._with_units(call(function, sets.total, *terms, *weights.tensors), sets)
        weight = self.output_weight.transpose(1, 2).flatten(0, 1)  # (D * C, H)
        contexts = F.linear(self.hidden(sets, term), weight, self.output_bias.flatten())
        return self._with_units(contexts.unflatten(-1, self.output_bias.shape), sets)

    def of_each(self, sets: Sets, term: Tensor, dimensions: Tensor | None = None) -> Tensor:
        """Return the contexts of all or some dimensions given a set for each, ``(B, D, C)``."""
        part = slice(None) if dimensions is None else dimensions
        bias, weight = self.output_bias[part].unsqueeze(1), self.output_weight[part]
        contexts = torch.baddbmm(bias, self.hidden(sets, term).transpose(0, 1), weight).transpose(0, 1)
        return self._with_units(contexts, sets, dimensions)

    def _with_units(self, contexts: Tensor, sets: Sets, dimensions: Tensor | None = None) -> Tensor:
        return self.with_units(contexts, sets.linear, dimensions)

    def with_units(self, contexts: Tensor, linear: Tensor | None, dimensions: Tensor | None = None) -> Tensor:
        """Return contexts of all or some dimensions ``(B, D, C)`` with what their units add."""
        if linear is None or self.unit_weight is None:
            return contexts
        weight = _FASTER * self.unit_weight
        terms = torch.bmm(linear.to(weight).transpose(0, 1), weight)  # (U, B, C)
        owners = constant(tuple(self.owners), torch.long, contexts.device)
        zeros = terms.new_zeros(len(self.output_bias), *terms.shape[1:])
        every = zeros.index_add(0, owners, terms).transpose(0, 1)
        return contexts + (every if dimensions is None else every[:, dimensions]).to(contexts)


def _hidden(weights: SetWeights, s: Tensor, term: Tensor | None, dropout: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Return the last hidden layer of scaled sums, with a term; ``dropout`` maps the units of a residual layer."""
    of_first, of_last = (0.0, 0.0) if term is None else term.chunk(2, -1)
    h = F.linear(s, weights.first_weight, weights.first_bias) + of_first
    for number, (weight, bias) in enumerate(zip(weights.layers[0::2], weights.layers[1::2], strict=True)):
        h = h + dropout(number, F.silu(F.linear(F.silu(h), weight, bias)))
    g = F.silu(F.rms_norm(h, h.shape[-1:], eps=weights.smallest))
    return g + (F.linear(s, weights.linear_weight) + of_last) * weights.slowly


def _dropout_factors(shape: Sequence[int], rate: float, device: torch.device) -> Tensor:
    """Return factors of units: 0 for a fraction of about ``rate``, up to 1/65,536, and 1 / (1 - rate) for the others.

    Each random word decides about four units, which takes half the time of ``bernoulli_``.
    """
    units = math.prod(shape)
    words = torch.empty(-(-units // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    least = round(rate * 2**16) - 2**15
    return (words.view(torch.int16)[:units] >= least).float().div_(1.0 - rate).view(*shape)


class _AllContexts(Compiled):
    """Contexts of all dimensions, a function of sums, of the terms of conditions, if there are any, and of weights."""

    def __init__(self, weights: SetWeights, sets: Sets, has_terms: bool, rate: float) -> None:
        self.weights, self.sizes, self.has_terms = weights, sets.size[:, 0].detach(), has_terms
        shape = len(weights.layers) // 2, len(sets.total), len(weights.first_bias)
        self.dropout = list(_dropout_factors(shape, rate, sets.total.device)) if rate else []

    def _parts(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, SetWeights]:
        sums, *others = tensors
        term = others.pop(0) if self.has_terms else None
        return sums, term, self.weights.replaced(others)

    def forward(self, *tensors: Tensor) -> Tensor:
        sums, term, weights = self._parts(tensors)
        contexts, self.hidden = set_network_forward(weights, sums, self.sizes, term, self.dropout)
        return contexts

    def backward(self, grad: Tensor, *tensors: Tensor) -> list[Tensor | None]:
        _, _, weights = self._parts(tensors)
        gradients, by_sums, by_terms = set_network_backward(weights, grad, self.hidden, self.has_terms)
        return [by_sums, *([by_terms] if self.has_terms else []), *gradients]

    def in_torch(self, *tensors: Tensor) -> Tensor:
        sums, term, weights = self._parts(tensors)
        s = sums * (1.0 + self.sizes.unsqueeze(-1)).rsqrt()
        last = _hidden(weights, s, term, lambda layer, h: h * self.dropout[layer] if self.dropout else h)
        return torch.einsum("bh,dhc->bdc", last, weights.output_weight) + weights.output_bias


class SetNetworks(nn.Module):
    """A network for sets of at most ``small_sets`` values, unless that is 0, and one for the others.

    Training switches off no units of the former: few values are hardly overfitted, and units that are switched off bias
    the shares of levels.

    Arguments:
        small_sets: The largest number of values of a small set.
        new: Makes a network.
    """

    def __init__(self, small_sets: int, new: Callable[[], SetNetwork]) -> None:
        super().__init__()
        self.small_sets = small_sets
        self.large = new()
        self.small = _without_dropout(new()) if small_sets else None

    def divide(self, small_sets: int) -> SetNetwork:
        """Give small sets a copy of the network of the others, and return it."""
        self.small_sets, self.small = small_sets, _without_dropout(copy.deepcopy(self.large))
        return self.small

    def condition_terms(self, condition: Condition | None, rows: int) -> list[Tensor]:
        """Return what an embedded condition adds to the hidden layers of each network, ``(B, 2 H)``."""
        networks = [self.large] if self.small is None else [self.large, self.small]
        return [network.condition_term(condition, rows) for network in networks]

    def walked(self, terms: Sequence[Tensor] | None, columns: Sequence[int]) -> list[WalkedNetwork]:
        """Return the networks in single precision, for C, with the terms of conditions and the columns on a line."""
        found = []
        for number, network in enumerate([self.large] if self.small is None else [self.large, self.small]):
            weights, term = network.weights(), None if terms is None else terms[number].float()
            residual = network.residual_weights(columns)
            residual = None if residual is None else residual.float()
            weights = weights.replaced([weight.float() for weight in weights.tensors])
            found.append(WalkedNetwork(weights, term, residual))
        return found

    def with_units(self, contexts: Tensor, linear: Tensor, is_small: Tensor | None) -> Tensor:
        """Return contexts ``(B, D, C)`` with what the units add, for small sets those of their network."""
        large = self.large.with_units(contexts, linear)
        if self.small is None or is_small is None:
            return large
        return torch.where(is_small, self.small.with_units(contexts, linear), large)

    def of_one(self, sets: Sets, d: int) -> Tensor:
        """Return the contexts of dimension ``d`` given the set of each row, ``(B, C)``."""
        return self._by_size(sets, lambda network, term: network.of_one(sets, term, d))

    def of_all(self, sets: Sets) -> Tensor:
        """Return the contexts of all dimensions given the set of each row, ``(B, D, C)``."""
        return self._by_size(sets, lambda network, term: network.of_all(sets, term), dimensions=1)

    def _by_size(self, sets: Sets, of: Callable[[SetNetwork, Tensor], Tensor], dimensions: int = 0) -> Tensor:
        """Return contexts from the network for the size of each set, which may have further ``dimensions``."""
        large, *small = sets.condition_terms
        if self.small is None:
            return of(self.large, large)
        is_small = sets.size <= self.small_sets
        if readable(is_small) is is_small and bool(is_small.all() | ~is_small.any()):
            return of(self.small, small[0]) if bool(is_small.all()) else of(self.large, large)
        is_small = is_small.unflatten(-1, (1,) * (1 + dimensions))
        return torch.where(is_small, of(self.small, small[0]), of(self.large, large))

    def of_each(self, sets: Sets) -> Tensor:
        """Return the contexts of all dimensions given a set for each, ``(B, D, C)``.

        A network computes only dimensions that a row needs from it.
        """
        large, *small = sets.condition_terms
        if self.small is None:
            return self.large.of_each(sets, large)
        is_small = sets.size <= self.small_sets  # (B, D, 1)
        if readable(is_small) is not is_small:  # in a transform or a compiled graph, whose shapes depend on no values
            return torch.where(is_small, self.small.of_each(sets, small[0]), self.large.of_each(sets, large))
        parts = []
        for network, term, needed in (
            (self.small, small[0], is_small.any(0)), (self.large, large, ~is_small.all(0)),
        ):  # fmt: skip
            chosen = needed[:, 0].nonzero()[:, 0]
            residuals = None if sets.residuals is None else sets.residuals[:, chosen]
            its = sets._replace(total=sets.total[:, chosen], size=sets.size[:, chosen], residuals=residuals)
            found = network.of_each(its, term, chosen)
            parts.append(found.new_zeros(*is_small.shape[:2], found.shape[-1]).index_copy(1, chosen, found))
        return torch.where(is_small, parts[0], parts[1])


def _without_dropout(network: SetNetwork) -> SetNetwork:
    network.dropout = 0.0
    return network
