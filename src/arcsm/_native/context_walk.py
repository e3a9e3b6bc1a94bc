"""Bindings of ``context_walk.c``: contexts of all dimensions in one order."""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from arcsm._native.build import library
from arcsm._native.interface import SetNetwork, WalkNetwork
from arcsm._native.memory import address, allocate, check_shapes
from arcsm._native.set_network import SetWeights
from arcsm._native.value_sums import ValueVectors

_TILE_ROWS = 64


class WalkedNetwork(NamedTuple):
    """A network of sets, and what is added to its hidden layers."""

    weights: SetWeights
    terms: Tensor | None  #: (B, 2 H)
    residual_weight: Tensor | None  #: (K, 2 H)


def context_walk(
    vectors: ValueVectors,
    networks: Sequence[WalkedNetwork],
    small_sets: int,
    order: Sequence[int],
    x: Tensor,
    known: Tensor,
    residuals: Tensor | None = None,
) -> Tensor:
    """Return the contexts ``(B, D, C)`` of values ``x (B, D)`` given those before each that are ``known (B, D)``.

    Errors are those of :mod:`arcsm._native.latent_chain`.

    Arguments:
        vectors: Of the values.
        networks: That of larger sets and, if there is one, that of sets of at most ``small_sets`` values.
        small_sets: The largest number of values of a small set.
        order: A permutation of the dimensions.
        x: Values.
        known: Which of them sets have, 1 or 0.
        residuals: Of K columns, for each dimension, ``(B, D, K)``.
    """
    vectors, x, known = vectors.contiguous(), x.contiguous(), known.contiguous()
    networks = [
        WalkedNetwork(one.weights.contiguous(), *(None if t is None else t.detach().contiguous() for t in one[1:]))
        for one in networks
    ]
    residuals = None if residuals is None or not residuals.shape[-1] else residuals.contiguous()
    columns, rows = 0 if residuals is None else residuals.shape[-1], len(x)
    embedding, structures = vectors.structure(), [one.weights.structure() for one in networks]
    inputs, units, dimensions, outputs = networks[0].weights.sizes
    matching = x.shape == known.shape == (rows, dimensions) and len(vectors.levels) == dimensions
    matching &= sorted(order) == list(range(dimensions)) and inputs == vectors.presence.shape[1]
    matching &= 1 <= len(networks) <= 2 and all(
        one.weights.sizes == networks[0].weights.sizes and len(one.weights.layers) == len(networks[0].weights.layers)
        for one in networks
    )
    matching &= residuals is None or residuals.shape == (rows, dimensions, columns)
    for one in networks:
        matching &= one.terms is None or one.terms.shape == (rows, 2 * units)
        matching &= residuals is None or (
            one.residual_weight is not None and one.residual_weight.shape == (columns, 2 * units)
        )
    given = [t for one in networks for t in one[1:] if t is not None]
    check_shapes("context_walk", (x, known, *given, *([] if residuals is None else [residuals])), matching)
    walked = (WalkNetwork * 2)(
        *(_structure(network, one, columns) for network, one in zip(structures, networks, strict=True))
    )
    code = library()
    step = int(code.vector_step())
    tile = ctypes.c_long(max(step, min(_TILE_ROWS, -(-rows // step) * step)))
    first = ctypes.byref(structures[0])
    workspace = allocate(
        int(code.context_walk_workspace_bytes(ctypes.byref(embedding), first, ctypes.c_long(columns), tile))
    )
    contexts = x.new_empty(rows, dimensions, outputs)
    code.context_walk(
        ctypes.byref(embedding), walked, ctypes.c_long(small_sets if len(networks) == 2 else -1),
        (ctypes.c_long * dimensions)(*order), ctypes.c_long(columns), tile, ctypes.c_long(rows), address(x),
        address(known), None if residuals is None else address(residuals), address(contexts), address(workspace),
    )  # fmt: skip
    return contexts


def _structure(network: SetNetwork, one: WalkedNetwork, columns: int) -> WalkNetwork:
    terms = None if one.terms is None else address(one.terms)
    weight = None if one.residual_weight is None or not columns else address(one.residual_weight)
    return WalkNetwork(ctypes.pointer(network), terms, weight)
