"""Check scores in C at noise levels, and what is made of them; see :mod:`arcsm._native.verification`."""

import ctypes
from collections.abc import Sequence

import numpy as np

from arcsm._native.comparison import RELATIVE_TOLERANCE, Array, Memory, address, addresses, random_arrays
from arcsm._native.interface import Level, Network, Nodes


def are_score_levels_right(code: ctypes.CDLL) -> bool:
    units, points = 5, int(code.vector_step()) + 3  # a full tile and a part of one
    sizes = [(points, units), (points,), (1,), (units,), (units, 3), (units, units), (units,), (units,)]
    projection, y, frequency, *level_weights, weight, bias, output = random_arrays(sizes)
    layers = (ctypes.c_long * 2)(units, units)
    network = Network(1, 2, layers, False, True, address(frequency), addresses([weight]), addresses([bias]))
    level_arrays = *map(address, level_weights), address(output)
    first = Level(2.0, 0.25, 3.0, 1.0, 2.0, 0.1, *level_arrays, 0.5, 0.3)
    second = Level(1.5, 1.0 / 2.25, 2.0, 1.0, 2.0, 0.1, *level_arrays, 0.4, 0.2, 1, (0.7,), (0.4, 0.3), True)
    tile = ctypes.c_long(int(code.vector_step()))
    workspace = Memory(code, code.score_levels_workspace_bytes(ctypes.byref(network), tile))
    found = np.zeros((6, points), np.float32)
    code.score_levels_follow(
        ctypes.byref(network), (Level * 2)(first, second), ctypes.c_long(2), tile, ctypes.c_long(points),
        address(projection), address(y), ctypes.c_float(0.0), address(found), ctypes.c_long(points),
        workspace.address,
    )  # fmt: skip
    exact = [array.astype(np.float64) for array in (projection, frequency, *level_weights, weight, bias, output)]
    start, near, s, ds = y.astype(np.float64), y, y, y
    velocities: list[Array] = []
    rates: list[Array] = []
    for level in (first, second):
        near = start + (0.7 * velocities[0] if velocities else 0.0)
        x, width = near * level.width, level.width
        s, ds = _score(x, level, *exact)
        velocities.append(-level.speed * (s + x / width**2) / width)
        rates.append(-level.speed * (ds + 1.0 / width**2))
    point, log_slope = (0.4 * first + 0.3 * last for first, last in (velocities, rates))
    point = start + point
    error = np.abs(point - near) * (1.0 + np.abs(rates[1]) * second.noise**2 / second.speed) * second.width / 0.4
    expected = np.stack([point, log_slope, error, near * second.width, s, ds])
    scores, slopes = np.zeros((points, 1), np.float32), np.zeros((points, 1), np.float32)
    code.score_levels_at_points(
        ctypes.byref(network), ctypes.byref(first), tile, ctypes.c_long(points), ctypes.c_long(1),
        *map(address, (projection, y, scores, slopes)), workspace.address,
    )  # fmt: skip
    direct = np.stack(_score(y.astype(np.float64), first, *exact))
    pairs = (found, expected), (np.hstack([scores, slopes]).T, direct), _interpolations(code, network, first, y, exact)
    return all(np.allclose(ours, its, RELATIVE_TOLERANCE, RELATIVE_TOLERANCE) for ours, its in pairs)


def _interpolations(
    code: ctypes.CDLL, with_derivatives: Network, level: Level, x: Array, exact: Sequence[Array]
) -> tuple[Array, Array]:
    """Return masses and errors by C from scores at three nodes, and by their formulas."""
    network = Network.from_buffer_copy(with_derivatives)
    network.tangent = False
    count, projection, tile = len(x), exact[0].astype(np.float32), ctypes.c_long(int(code.vector_step()))
    node, sums, place, share = given = random_arrays([(3,), (8, 3), (2,), (2,)], seed=2)
    node_address, sums_address, *rule = map(address, given)
    nodes = Nodes(3, 1.0, node_address, sums_address, 2.0, 2, *rule)
    workspace = Memory(code, code.score_levels_workspace_bytes(ctypes.byref(network), tile))
    found = np.zeros((3, count), np.float32)
    code.score_levels_interpolate(
        *map(ctypes.byref, (network, level, nodes)), tile, ctypes.c_long(count), address(projection), address(x),
        address(found), ctypes.c_long(count), workspace.address,
    )  # fmt: skip
    scores = [_score(np.full(count, place, np.float64), level, *exact)[0] for place in node]
    coefficients = sums @ (np.stack(scores) + level.precision * node[:, None].astype(np.float64))

    def energy(at: Array) -> Array:
        inside = np.clip(at, -1.0, 1.0)
        beyond = (at - inside) * np.where(at < 0.0, coefficients[4], coefficients[5])
        series = np.polynomial.chebyshev.chebval(inside, coefficients[:4], tensor=False)
        return np.asarray(series + beyond - 0.5 * level.precision * at**2)

    masses, ends = [], np.zeros(count)
    for sign in (-1.0, 1.0):
        way = 2.0 + np.maximum(-sign * x, 0.0)
        there = x + sign * way * place[:, None].astype(np.float64)
        ratios = np.exp(np.stack([energy(at) for at in there]) - energy(x))
        slopes = np.abs(np.where(there < 0.0, coefficients[6], coefficients[7]))
        masses.append(way * (share @ ratios))
        ends += 0.5 * way * (share @ (ratios * slopes * np.maximum(np.abs(there) - 1.0, 0.0) ** 2)) + ratios[-1]
    error = 0.5 * np.abs(coefficients[2:4]).sum(0) + ends / (masses[0] + masses[1])
    return found, np.stack([*masses, np.where(np.abs(x) <= 1.0, error, np.inf)])


def _score(
    x: Array, level: Level, projection: Array, frequency: Array, level_bias: Array, level_weight: Array,
    weight: Array, bias: Array, output: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Return score and derivative by the formula of score_levels.c for two hidden layers and one frequency."""
    inner = np.clip(x, -level.window_end, level.window_end)
    envelope, decay = np.exp(-0.5 * (inner / level.envelope_width) ** 2), -inner / level.envelope_width**2
    sine, cosine = envelope * np.sin(frequency * inner), envelope * np.cos(frequency * inner)
    slopes = [frequency * cosine + decay * sine, decay * cosine - frequency * sine, np.ones_like(x)]
    z = projection + level_bias + np.stack([sine, cosine, inner], 1) @ level_weight.T
    dz = np.stack(slopes, 1) @ level_weight.T
    gate = 1.0 / (1.0 + np.exp(-z))
    h, dh = z * gate, (gate + z * gate * (1.0 - gate)) * dz
    gate = 1.0 / (1.0 + np.exp(-(h @ weight.T + bias)))
    correction, slope = gate @ output + level.output_bias, (gate * (1.0 - gate) * (dh @ weight.T)) @ output
    span = level.window_end - level.window_start
    t = np.clip((np.abs(x) - level.window_start) / span, 0.0, 1.0)
    window, by_x = 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t**2), -30.0 * (t * (1.0 - t)) ** 2 / span * np.sign(x)
    return window * correction - x * level.precision, window * slope + by_x * correction - level.precision
