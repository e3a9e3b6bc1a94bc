"""Bindings of ``value_sums.c``: sums of the vectors of known values, and their gradients."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from arcsm._native.build import library
from arcsm._native.interface import Embedding
from arcsm._native.memory import address, allocate, check_shapes

_TILE_ROWS = 128
_MAX_LEVELS = 1 << 22  # of a dimension, which single precision counts exactly


class ValueVectors(NamedTuple):
    """What makes vectors of values; see ``embedding`` of value_embedding.h."""

    levels: tuple[int, ...]  #: of each dimension, 0 for numbers
    frequencies: Tensor  #: (J,)
    amplitudes: Tensor  #: (2 J + 1,)
    weight: Tensor  #: (numbers, 2 J + 1, E)
    bias: Tensor  #: (numbers, E)
    table: Tensor  #: (sum of levels, E)
    presence: Tensor  #: (D, E)

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tensors with gradients."""
        return self.weight, self.bias, self.table, self.presence

    def to(self, dtype: torch.dtype) -> "ValueVectors":
        return ValueVectors(self.levels, *(t.to(dtype) for t in self[1:]))

    def contiguous(self) -> "ValueVectors":
        return ValueVectors(self.levels, *(t.detach().contiguous() for t in self[1:]))

    def structure(self) -> Embedding:
        """Return the structure for C, which the tensors must outlive; they are contiguous."""
        self.check()
        numbers, places, rows = 0, list[int](), 0
        for levels in self.levels:
            places.append(rows if levels else numbers)
            rows, numbers = rows + levels, numbers + (not levels)
        first = (ctypes.c_long * len(places))(*places)
        counts = (ctypes.c_long * len(places))(*self.levels)
        size, frequencies = self.presence.shape[1], len(self.frequencies)
        return Embedding(
            len(places), size, numbers, frequencies, counts, first, *(address(t) for t in self[1:])
        )  # fmt: skip

    def check(self) -> None:
        numbers, size, inputs = self.levels.count(0), self.presence.shape[-1], 2 * len(self.frequencies) + 1
        shapes = (
            self.frequencies.shape, (inputs,), (numbers, inputs, size), (numbers, size), (sum(self.levels), size),
            (len(self.levels), size),
        )  # fmt: skip
        matching = all(tuple(t.shape) == tuple(shape) for t, shape in zip(self[1:], shapes, strict=True))
        check_shapes("value_sums", self[1:], matching and size > 0 and max(self.levels, default=0) < _MAX_LEVELS)


def value_sums_forward(vectors: ValueVectors, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums ``(B, E)`` of the vectors of the values ``x (B, D)`` that are ``known (B, D)``, 1 or 0.

    The second result is for :func:`value_sums_backward`. Errors are those of :mod:`arcsm._native.latent_chain`.
    """
    vectors, x, known = vectors.contiguous(), x.contiguous(), known.contiguous()
    embedding = vectors.structure()
    check_shapes("value_sums", (x, known), x.shape == known.shape == (len(x), len(vectors.levels)))
    sums = x.new_empty(len(x), vectors.presence.shape[1])
    numbers = int((known > 0.0).sum()) if 0 in vectors.levels else 0
    slopes = allocate(numbers * int(library().value_sums_slope_bytes(ctypes.byref(embedding))))
    tile, workspace = _workspace(embedding, len(x))
    library().value_sums_forward(
        ctypes.byref(embedding), tile, ctypes.c_long(len(x)), *map(address, (x, known, sums, slopes, workspace))
    )
    return sums, slopes


def value_sums_backward(vectors: ValueVectors, x: Tensor, known: Tensor, grad: Tensor, slopes: Tensor) -> list[Tensor]:
    """Return the gradients of the weights, given that of the sums, ``(B, E)``, and the slopes of the forward pass."""
    vectors, x, known, grad = vectors.contiguous(), x.contiguous(), known.contiguous(), grad.contiguous()
    embedding = vectors.structure()
    matching = x.shape == known.shape == (len(x), len(vectors.levels))
    check_shapes("value_sums", (x, known, grad), matching and grad.shape == (len(x), vectors.presence.shape[1]))
    gradients = [torch.zeros_like(weight) for weight in vectors.weights]
    tile, workspace = _workspace(embedding, len(x))
    library().value_sums_backward(
        ctypes.byref(embedding), tile, ctypes.c_long(len(x)), *map(address, (x, known, grad, slopes)),
        *map(address, gradients), address(workspace),
    )  # fmt: skip
    return gradients


def _workspace(embedding: Embedding, rows: int) -> tuple[ctypes.c_long, Tensor]:
    """Return the rows of a tile, and memory for C."""
    code = library()
    step = int(code.vector_step())
    tile = ctypes.c_long(max(step, min(_TILE_ROWS, -(-rows // step) * step)))
    return tile, allocate(int(code.value_sums_workspace_bytes(ctypes.byref(embedding), tile)))
