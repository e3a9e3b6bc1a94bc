"""Vectors for the values of a row, numbers or levels."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._native import ValueVectors, available, may_train, supports, value_sums_backward, value_sums_forward
from arcsm._runtime.compiled import Compiled, call
from arcsm._runtime.devices import constant
from arcsm.contexts.made import FourierFeatures
from arcsm.fourier_features import cosine_basis


class ValueEmbedding(nn.Module):
    """A vector for each value, ``(B, D)`` to ``(B, D, E)``.

    A number passes through one hidden layer of its column, a level has a vector of its own. In ``ordered`` columns the
    vectors are combinations of cosines along the levels; see :func:`~arcsm.fourier_features.cosine_basis`. The sines
    and cosines of a number at frequency :math:`f` are multiplied by :math:`f^{-p}`, with the exponent ``decay``.
    """

    def __init__(
        self,
        levels: Sequence[int],
        embedding_features: int,
        sinusoids: int,
        max_frequency: float,
        ordered: Sequence[int] = (),
        decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.inputs = FourierFeatures(sinusoids, max_frequency)
        self.numeric = tuple(d for d, count in enumerate(levels) if not count)
        self.nominal = tuple(d for d, count in enumerate(levels) if count)
        by_kind = self.numeric + self.nominal
        self._places = tuple(by_kind.index(d) for d in range(len(levels)))
        of_sinusoids = self.inputs.frequencies**-decay
        amplitudes = torch.cat([torch.ones(1), of_sinusoids, of_sinusoids])
        self.register_buffer("amplitudes", amplitudes.unsqueeze(-1), persistent=False)
        numbers, std = len(self.numeric), float(amplitudes.square().sum().rsqrt())
        self.register_parameter("weight", _weights(numbers, len(amplitudes), embedding_features, std=std))
        self.register_parameter("bias", _weights(numbers, embedding_features, std=0.5))
        self.register_parameter("level_vectors", _weights(sum(levels), embedding_features, std=0.5))
        self.presence = nn.Parameter(torch.zeros(len(levels), embedding_features))  # of a known value, whatever it is
        counts = [levels[d] for d in self.nominal]
        first = torch.tensor([0, *counts]).cumsum(0)[:-1].clone()  # an empty view of more could not be exported
        self.register_buffer("_first", first, persistent=False)
        self.register_buffer("_last", torch.tensor(counts, dtype=torch.long) - 1, persistent=False)
        self._counts, self._ordered, self._levels = counts, set(ordered), tuple(levels)
        for d in ordered:
            self.register_buffer(f"_basis_{d}", cosine_basis(levels[d]), persistent=False)

    weight: Tensor | None
    bias: Tensor
    amplitudes: Tensor  # of the inputs of one number, (P, 1)
    level_vectors: Tensor | None
    _first: Tensor  # row of the first level of each nominal column in `level_vectors`
    _last: Tensor  # the last level of each nominal column

    def forward(self, x: Tensor) -> Tensor:
        table = None if self.level_vectors is None else self._vectors(self.nominal)
        return self._embedded(x, self.weight, self.bias, table, self.presence)

    def _embedded(
        self, x: Tensor, weight: Tensor | None, bias: Tensor, table: Tensor | None, presence: Tensor
    ) -> Tensor:
        """Return vectors of values by some weights, and by the vectors of all levels."""
        vectors = []
        if self.numeric and weight is not None:
            numbers = x[:, constant(self.numeric, torch.long, x.device)] if self.nominal else x
            inputs = self.inputs(numbers).unflatten(-1, (-1, self.inputs.features)).transpose(0, 1)  # (D, B, P)
            hidden = torch.baddbmm(bias.unsqueeze(1), inputs, self.amplitudes * weight)
            vectors.append(F.silu(hidden).transpose(0, 1))  # (B, D, E)
        if self.nominal and table is not None:
            vectors.append(
                F.embedding(self._clipped(x[:, constant(self.nominal, torch.long, x.device)], slice(None)), table)
            )
        found = vectors[0]
        if len(vectors) > 1:
            found = torch.cat(vectors, 1)[:, constant(self._places, torch.long, x.device)]
        return found + presence

    def sums(self, x: Tensor, known: Tensor) -> Tensor:
        """Return the sums ``(B, E)`` of the vectors of the values ``x (B, D)`` that are ``known (B, D)``, 1 or 0."""
        is_plain = may_train() and not x.requires_grad and not known.requires_grad
        vectors = self.vectors()
        if is_plain and supports(x, known, *vectors.weights) and available():
            return call(_Sums(vectors, x, known, self._summed), *vectors.weights)
        return torch.bmm(known.unsqueeze(1), self(torch.where(known > 0.0, x, 0.0)))[:, 0]

    def _summed(self, x: Tensor, known: Tensor, *weights: Tensor) -> Tensor:
        """Return :meth:`sums` by other weights, computed in torch."""
        return torch.bmm(known.unsqueeze(1), self._embedded(x, *weights))[:, 0]

    def vectors(self) -> ValueVectors:
        """Return what makes vectors of values, for C."""
        like = self.presence
        weight = like.new_zeros(0, self.inputs.features, like.shape[1]) if self.weight is None else self.weight
        bias = like.new_zeros(0, like.shape[1]) if self.weight is None else self.bias
        table = like.new_zeros(0, like.shape[1]) if self.level_vectors is None else self._vectors(self.nominal)
        frequencies, amplitudes = self.inputs.frequencies.to(like), self.amplitudes[:, 0].to(like)
        return ValueVectors(self._levels, frequencies, amplitudes, weight, bias, table, like)

    def column(self, d: int, x: Tensor) -> Tensor:
        """Return the vectors of values ``(B,)`` of column ``d``, ``(B, E)``."""
        place, numbers = self._places[d], len(self.numeric)
        if self.level_vectors is not None and place >= numbers:
            column = slice(place - numbers, place - numbers + 1)
            levels = self._clipped(x, column) - self._first[column]
            return F.embedding(levels, self._vectors([d])) + self.presence[d]
        assert self.weight is not None
        hidden = torch.addmm(self.bias[place], self.inputs(x.unsqueeze(-1)), self.amplitudes * self.weight[place])
        return F.silu(hidden) + self.presence[d]

    def _vectors(self, columns: Sequence[int]) -> Tensor:
        """Return the vectors of the levels of some nominal columns, ``(K, E)``."""
        assert self.level_vectors is not None
        if not self._ordered and len(columns) == len(self.nominal):
            return self.level_vectors
        of_column = dict(zip(self.nominal, self.level_vectors.split(self._counts), strict=True))
        return torch.cat(
            [getattr(self, f"_basis_{d}") @ of_column[d] if d in self._ordered else of_column[d] for d in columns]
        )

    def _clipped(self, x: Tensor, columns: slice) -> Tensor:
        """Return the rows of ``level_vectors`` of levels, each clipped to those of its column."""
        return torch.minimum(x.round().clamp(min=0).long(), self._last[columns]) + self._first[columns]


class _Sums(Compiled):
    """Sums of the vectors of known values."""

    def __init__(self, vectors: ValueVectors, x: Tensor, known: Tensor, in_torch: Callable[..., Tensor]) -> None:
        self.vectors, self.x, self.known, self.summed = vectors, x, known, in_torch

    def forward(self, *weights: Tensor) -> Tensor:
        sums, self.slopes = value_sums_forward(self.vectors, self.x, self.known)
        return sums

    def backward(self, grad: Tensor, *weights: Tensor) -> list[Tensor | None]:
        return list(value_sums_backward(self.vectors, self.x, self.known, grad, self.slopes))

    def in_torch(self, *weights: Tensor) -> Tensor:
        return self.summed(torch.where(self.known > 0.0, self.x, 0.0), self.known, *weights)


def _weights(*shape: int, std: float) -> nn.Parameter | None:
    """Return random weights, or ``None`` if there are none."""
    return nn.Parameter(std * torch.randn(shape)) if shape[0] else None
