"""Checks of the compiled code of any-order contexts; see :mod:`arcsm._native.verification`."""

import ctypes
import math
from collections.abc import Sequence

import numpy as np

from arcsm._native.comparison import RELATIVE_TOLERANCE, Array, Memory, address, addresses, agree, random_arrays
from arcsm._native.interface import Embedding, LevelHead, SetNetwork, SetNetworkGradients, WalkNetwork

_SET_SIZES = ((5, 3), (5,), (5, 3), (4, 5, 2), (4, 2), (5, 5), (5,))  # of weights for E = 3, H = 5, D = 4, C = 2


def is_value_sums_right(code: ctypes.CDLL) -> bool:
    rows, size, levels, first = int(code.vector_step()) + 3, 5, (0, 3, 0), (0, 0, 1)
    sizes = [(rows, 3), (rows, size), (1,), (3,), (2, 3, size), (2, size), (3, size), (3, size)]
    x, grad, *given = random_arrays(sizes)
    x[:, 1] = np.arange(rows) % 3
    known = (np.arange(3 * rows).reshape(rows, 3) % 5 > 1).astype(np.float32)
    embedding, tile = _embedding(levels, first, size, given), ctypes.c_long(int(code.vector_step()))
    workspace = Memory(code, code.value_sums_workspace_bytes(ctypes.byref(embedding), tile))
    slopes = Memory(code, 2 * rows * code.value_sums_slope_bytes(ctypes.byref(embedding)))
    sums, gradients = np.zeros((rows, size), np.float32), [np.zeros_like(array) for array in given[2:]]
    sizes_and_values = ctypes.byref(embedding), tile, ctypes.c_long(rows), address(x), address(known)
    code.value_sums_forward(*sizes_and_values, address(sums), slopes.address, workspace.address)
    code.value_sums_backward(
        *sizes_and_values, address(grad), slopes.address, *map(address, gradients), workspace.address
    )

    def product(*weights: Array) -> float:
        vectors = _value_vectors(x, levels, first, *given[:2], *weights)
        return float((grad * (known[..., None] * vectors).sum(1)).sum())

    expected = (known[..., None] * _value_vectors(x, levels, first, *given)).sum(1)
    right = np.allclose(sums, expected, RELATIVE_TOLERANCE, RELATIVE_TOLERANCE)
    return right and agree(product, given[2:], float((grad * sums).sum()), gradients)


def _embedding(levels: Sequence[int], first: Sequence[int], size: int, arrays: Sequence[Array]) -> Embedding:
    counts, rows = ((ctypes.c_long * len(levels))(*one) for one in (levels, first))
    frequencies = len(arrays[0])
    return Embedding(len(levels), size, levels.count(0), frequencies, counts, rows, *map(address, arrays))


def _value_vectors(
    x: Array, levels: Sequence[int], first: Sequence[int], frequency: Array, amplitude: Array, weight: Array,
    bias: Array, table: Array, presence: Array,
) -> Array:  # fmt: skip
    """Return the vectors of values by the formula of value_embedding.h, in double precision."""
    found = []
    for d, count in enumerate(levels):
        values = x[:, d].astype(np.float64)
        if count:
            found.append(table[first[d] + values.astype(int)] + presence[d])
            continue
        angles = values[:, None] * frequency.astype(np.float64)
        inputs = np.hstack([values[:, None], np.sin(angles), np.cos(angles)]) * amplitude
        z = inputs @ weight[first[d]].astype(np.float64) + bias[first[d]]
        found.append(z / (1.0 + np.exp(-z)) + presence[d])
    return np.stack(found, 1)


def _set_network(weights: Sequence[Array]) -> SetNetwork:
    return SetNetwork(
        3, 5, 1, 4, 2, 0.7, 1e-3, *map(address, weights[:3]), addresses(weights[5:6]), addresses(weights[6:]),
        *map(address, weights[3:5]),
    )  # fmt: skip


def is_set_network_right(code: ctypes.CDLL) -> bool:
    rows = int(code.vector_step()) + 3
    sums, sizes, terms, dropout, grad, *weights = random_arrays(
        [(rows, 3), (rows,), (rows, 10), (rows, 5), (rows, 4, 2), *_SET_SIZES]
    )
    sizes = np.abs(sizes)
    network, tile = _set_network(weights), ctypes.c_long(int(code.vector_step()))
    workspace = Memory(code, code.set_network_workspace_bytes(ctypes.byref(network), tile))
    hidden = Memory(code, 2 * code.set_network_layer_bytes(ctypes.byref(network), tile))
    contexts, of_weights = np.zeros((rows, 4, 2), np.float32), [np.zeros_like(array) for array in weights]
    by_sums, by_terms = np.zeros_like(sums), np.zeros_like(terms)
    code.set_network_forward(
        ctypes.byref(network), tile, ctypes.c_long(rows), *map(address, (sums, sizes, terms)), addresses([dropout]),
        address(contexts), hidden.address, workspace.address,
    )  # fmt: skip
    to = SetNetworkGradients(
        *map(address, of_weights[:3]), addresses(of_weights[5:6]), addresses(of_weights[6:]),
        *map(address, of_weights[3:5]),
    )  # fmt: skip
    code.set_network_backward(
        ctypes.byref(network), tile, ctypes.c_long(rows), address(grad), hidden.address, ctypes.byref(to),
        *map(address, (by_sums, by_terms)), workspace.address,
    )  # fmt: skip

    def product(sums: Array, terms: Array, *weights: Array) -> float:
        return float((grad * _set_contexts(sums, sizes, terms, dropout, *weights)).sum())

    right = np.allclose(contexts, _set_contexts(sums, sizes, terms, dropout, *weights), 1e-4, 1e-4)
    arrays, gradients = [sums, terms, *weights], [by_sums, by_terms, *of_weights]
    return right and agree(product, arrays, float((grad.astype(np.float64) * contexts).sum()), gradients)


def _set_contexts(
    sums: Array, sizes: Array, terms: Array, dropout: Array, first: Array, first_bias: Array, linear: Array,
    output: Array, output_bias: Array, weight: Array, bias: Array,
) -> Array:  # fmt: skip
    """Return the contexts of all dimensions by the formula of set_network.h, for one residual layer."""
    s = sums.astype(np.float64) / np.sqrt(1.0 + sizes.astype(np.float64))[:, None]
    h = s @ first.T + first_bias + terms[:, :5]
    h = h + dropout * _silu(_silu(h) @ weight.T + bias)
    last = _silu(h / np.sqrt((h**2).mean(1, keepdims=True) + np.float32(1e-3)))
    last = last + np.float64(np.float32(0.7)) * (s @ linear.T + terms[:, 5:])
    return np.asarray(np.einsum("bh,dhc->bdc", last, output) + output_bias)


def _silu(z: Array) -> Array:
    return z / (1.0 + np.exp(-z))


def is_context_walk_right(code: ctypes.CDLL) -> bool:
    rows, size, levels, first, order = int(code.vector_step()) + 3, 3, (0, 3, 0, 0), (0, 0, 1, 2), (2, 0, 3, 1)
    sizes = [(rows, 4), (rows, 10), (rows, 4, 2), (2, 10), (1,), (3,), (3, 3, size), (3, size), (3, size), (4, size)]
    x, terms, residuals, residual_weight, *given = random_arrays(sizes)
    networks = random_arrays(_SET_SIZES), random_arrays(_SET_SIZES, seed=2)
    x[:, 1] = np.arange(rows) % 3
    known = (np.arange(4 * rows).reshape(rows, 4) % 7 > 1).astype(np.float32)
    embedding, tile = _embedding(levels, first, size, given), ctypes.c_long(int(code.vector_step()))
    structures = [_set_network(weights) for weights in networks]
    ends = address(terms), address(residual_weight)
    walked = (WalkNetwork * 2)(*(WalkNetwork(ctypes.pointer(one), *ends) for one in structures))
    columns, count = ctypes.c_long(2), ctypes.byref(structures[0])
    workspace = Memory(code, code.context_walk_workspace_bytes(ctypes.byref(embedding), count, columns, tile))
    contexts = np.zeros((rows, 4, 2), np.float32)
    code.context_walk(
        ctypes.byref(embedding), walked, ctypes.c_long(1), (ctypes.c_long * 4)(*order), columns, tile,
        ctypes.c_long(rows), *map(address, (x, known, residuals, contexts)), workspace.address,
    )  # fmt: skip
    vectors = known[..., None] * _value_vectors(x, levels, first, *given)
    expected, none = np.zeros_like(contexts), np.ones((rows, 5))
    for place, d in enumerate(order):
        before = list(order[:place])
        sums, number = vectors[:, before].sum(1), known[:, before].sum(1)
        added = terms + residuals[:, d].astype(np.float64) @ residual_weight
        large, small = (_set_contexts(sums, number, added, none, *weights)[:, d] for weights in networks)
        expected[:, d] = np.where(number[:, None] <= 1.0, small, large)
    return bool(np.allclose(contexts, expected, 1e-4, 1e-4))


def is_normal_predictor_right(code: ctypes.CDLL) -> bool:
    rows, units = 4, 5
    arrays = _units_to_predict(rows, units)
    workspace = Memory(code, code.normal_predictor_workspace_bytes(ctypes.c_long(units)))
    code.normal_given_set(ctypes.c_long(units), ctypes.c_long(rows), *map(address, arrays), workspace.address)
    given = arrays[2] > 0.0
    return all(_is_prediction_right(b, i, given[b], arrays) for b in range(rows) for i in range(units))


def is_normal_in_order_right(code: ctypes.CDLL) -> bool:
    rows, units = 5, 5
    arrays = _units_to_predict(rows, units)
    arrays[1][3] *= arrays[2][4]
    arrays[2][3] = arrays[2][4]  # two rows that share a factor
    order, dimension = np.array([3, 1, 2, 4, 0], dtype=np.int64), np.array([0, 1, 1, 2, 3], dtype=np.int64)
    longs = ((ctypes.c_long * units)(*one.tolist()) for one in (order, dimension))
    workspace = Memory(code, code.normal_predictor_workspace_bytes(ctypes.c_long(units)))
    code.normal_in_order(ctypes.c_long(units), ctypes.c_long(rows), *longs, *map(address, arrays), workspace.address)
    place = order.argsort()
    first = np.array([place[dimension == dimension[i]].min() for i in range(units)])
    given = arrays[2] > 0.0
    return all(
        _is_prediction_right(b, i, given[b] & (place < first[i]), arrays) for b in range(rows) for i in range(units)
    )


def _units_to_predict(rows: int, units: int) -> tuple[Array, ...]:
    """Return correlations, values, which of them are known, and room for means and errors."""
    values, mixing = random_arrays([(rows, units), (units, 3)])
    correlation = mixing @ mixing.T + np.eye(units, dtype=np.float32)
    deviation = np.sqrt(np.diag(correlation))
    known = (np.arange(rows * units).reshape(rows, units) % 3 > 0).astype(np.float32)
    known[0] = 0.0
    return correlation / np.outer(deviation, deviation), values * known, known, np.zeros_like(known), 1.0 - known


def _is_prediction_right(b: int, i: int, its: Array, arrays: Sequence[Array]) -> bool:
    """Return whether mean and error of a unit in a row are those given ``its (K,)`` units."""
    correlation, values, _, location, error = (array.astype(np.float64) for array in arrays)
    slopes = np.linalg.solve(correlation[its][:, its], correlation[its, i])
    rest = max(1.0 - slopes @ correlation[its, i], 0.0)
    return bool(
        np.isclose(location[b, i], values[b, its] @ slopes, 1e-4, 1e-4)
        and np.isclose(error[b, i] ** 2, rest, 1e-4, 1e-4)
    )


def is_level_losses_right(code: ctypes.CDLL) -> bool:
    rows, features, levels = 7, 3, (4, 19)
    shapes = [shape for count in levels for shape in ((count, features), (count,))]
    context, weight, *given = random_arrays([(rows, features), (rows,), *shapes])
    priors = [(1.0 + np.arange(count, dtype=np.float32)) / np.float32(count * (count + 1) / 2) for count in levels]
    smoothing = (0.7, 0.1), (1.0, 0.0)
    heads = (LevelHead * 2)(
        *(
            LevelHead(count, *smoothing[k], address(given[2 * k]), address(given[2 * k + 1]), address(priors[k]))
            for k, count in enumerate(levels)
        )
    )
    number = np.arange(rows, dtype=np.int64) % 2
    x = (3.0 * np.arange(rows, dtype=np.float32)) % np.array(levels, np.float32)[number]
    by_context, gradients = np.zeros_like(context), [np.zeros_like(array) for array in given]
    counts = ctypes.c_long(2), ctypes.c_long(features)
    workspace = Memory(code, code.level_losses_workspace_bytes(heads, *counts))
    loss = code.level_losses(
        heads, *counts, ctypes.c_long(rows), *map(address, (context, number, x, weight, by_context)),
        addresses(gradients[0::2]), addresses(gradients[1::2]), workspace.address,
    )  # fmt: skip

    def expected(context: Array, *weights: Array) -> float:
        total = 0.0
        for i, k in enumerate(number.tolist()):
            sharpness, share = (float(np.float32(value)) for value in smoothing[k])
            prior = priors[k].astype(np.float64)
            logits = weights[2 * k].astype(np.float64) @ context[i] + weights[2 * k + 1]
            z = (1.0 - sharpness) * np.log(prior) + sharpness * logits
            q = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            total -= float(weight[i]) * math.log((1.0 - share) * q[int(x[i])] + share * prior[int(x[i])])
        return total

    return agree(expected, [context, *given], loss, [by_context, *gradients])
