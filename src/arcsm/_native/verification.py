"""Check the numbers of a compiled library once, since a compiler and its flags may be wrong without an error.

Each function is compared with the same formula in double precision, and its gradients with a central difference along
a random direction. Torch takes no part, so the check runs in any mode of torch. It takes about a millisecond.
"""

import ctypes
import math
from collections.abc import Sequence

import numpy as np

from arcsm._native.comparison import RELATIVE_TOLERANCE, Array, Memory, address, addresses, agree, random_arrays
from arcsm._native.context_verification import (
    is_context_walk_right,
    is_level_losses_right,
    is_normal_in_order_right,
    is_normal_predictor_right,
    is_set_network_right,
    is_value_sums_right,
)
from arcsm._native.interface import Indicators, PointHead, Rule, Shape
from arcsm._native.optimizer_verification import is_muon_right
from arcsm._native.score_verification import are_score_levels_right
from arcsm._native.spline_verification import is_spline_right


def first_wrong_result(code: ctypes.CDLL) -> str | None:
    """Return the name of the first function whose numbers are wrong, or ``None`` if all are right."""
    with np.errstate(all="ignore"):  # wrong code may return anything
        return next((name for name, is_right in _CHECKS.items() if not is_right(code)), None)


def _is_score_matching_right(code: ctypes.CDLL) -> bool:
    points, units = int(code.vector_step()) + 3, 5  # a full tile and a part of one
    sizes = [(points, 2), (points, 3), (points, 1), (6, points), *[(units, units), (units,)] * 3, (1, units), (1,)]
    context, features, slopes, coefficients, *parameters = arrays = random_arrays(sizes)
    layers = (ctypes.c_long * 3)(units, units, units)
    shape = Shape(5, 2, 1, 3, layers, True, True, code.vector_step())
    workspace = Memory(code, code.score_matching_workspace_bytes(ctypes.byref(shape)))
    by_context, by_parameters = np.zeros_like(context), [np.zeros_like(p) for p in parameters]
    loss = code.score_matching_forward_backward(
        ctypes.byref(shape),
        ctypes.c_long(points),
        *map(address, (context, features, slopes, coefficients)),
        ctypes.c_long(points),
        *map(addresses, (parameters[0::2], parameters[1::2], by_parameters[0::2], by_parameters[1::2])),
        address(by_context),
        workspace.address,
    )
    return agree(_score_matching_loss, arrays, loss, [by_context, None, None, None, *by_parameters])


def _score_matching_loss(
    context: Array, features: Array, slopes: Array, coefficients: Array, *parameters: Array
) -> float:
    """Return the loss of score_matching.c for three hidden layers with residual connections."""
    h = np.hstack([context, features])
    dh = np.hstack([np.zeros((len(h), h.shape[1] - slopes.shape[1])), slopes])
    *hidden, last, output = zip(parameters[0::2], parameters[1::2], strict=True)
    for number, (weight, bias) in enumerate(hidden):
        z, dz = h @ weight.T + bias, dh @ weight.T
        gate = 1.0 / (1.0 + np.exp(-z))
        below, d_below = (h, dh) if number else (0.0, 0.0)
        h, dh = z * gate + below, (gate + z * gate * (1.0 - gate)) * dz + d_below
    gate = 1.0 / (1.0 + np.exp(-(h @ last[0].T + last[1])))
    h, dh = gate - 0.5, gate * (1.0 - gate) * (dh @ last[0].T)
    correction, slope = (h @ output[0].T + output[1])[:, 0], (dh @ output[0].T)[:, 0]
    gain, base_score, weight, linear, correction_weight, slope_weight = coefficients
    score = base_score + gain * correction
    each = weight * score * (0.5 * score + linear) + correction_weight * correction + slope_weight * slope
    return float(each.sum())


def _is_latent_chain_right(code: ctypes.CDLL) -> bool:
    rows, latents, units = 3, 4, 5
    sizes = [(rows, latents, units), (rows, latents), (latents, units), (latents, latents, units), (latents, units)]
    fixed, noise, *weights = arrays = random_arrays(sizes)
    counts = tuple(map(ctypes.c_long, (rows, latents, units)))
    hidden = Memory(code, code.latent_chain_hidden_bytes(*counts))
    workspace = Memory(code, code.latent_chain_workspace_bytes(*counts[1:]))
    u, mean, variance, *gradients = map(np.zeros_like, (noise, noise, noise, *arrays))
    ends = hidden.address, workspace.address
    inputs = *counts, addresses(weights)
    code.latent_chain_forward(*inputs, *map(address, (fixed, noise, u)), *ends)
    by_arrays = *map(address, gradients[:2]), addresses(gradients[2:])
    code.latent_chain_backward(*inputs, *map(address, (noise, u, u)), *by_arrays, *ends)
    nodes, node_weights = np.array([-1.0, 1.0], np.float32), np.array([0.5, 0.5], np.float32)
    quadrature = ctypes.c_long(2), *map(address, (nodes, node_weights))
    results = *map(address, (mean, variance)), workspace.address
    code.latent_chain_moments(*inputs, *map(address, (fixed, u)), *quadrature, *results)
    exact = [array.astype(np.float64) for array in arrays]
    values = [_next_latents(exact[0], u, np.full_like(u, node), *exact[2:]) for node in (-1.0, 1.0)]
    pairs = (u, _latents(*exact)), (mean, np.mean(values, 0)), (variance, np.var(values, 0))
    right = all(np.allclose(ours, expected, RELATIVE_TOLERANCE, 1e-5) for ours, expected in pairs)
    loss = float((u.astype(np.float64) ** 2).sum() / 2.0)
    return right and agree(lambda *given: float((_latents(*given) ** 2).sum() / 2.0), arrays, loss, gradients)


def _are_score_points_right(code: ctypes.CDLL) -> bool:
    count, head = int(code.vector_step()) + 3, PointHead(1, None, 0.8, 4.0, 1.0, 2.0)
    x, sigma, weight, derivative, linear = random_arrays([(count,)] * 5)
    x, sigma, frequency = 2.0 * x, np.exp(sigma), np.array([1.7], np.float32)
    head.frequency = address(frequency)
    features, slopes = np.zeros((count, 8), np.float32), np.zeros((count, 3), np.float32)
    coefficients = np.zeros((6, count), np.float32)
    arrays = x, sigma, weight, derivative, linear, features, slopes, coefficients
    constant = code.score_points(ctypes.byref(head), ctypes.c_long(count), *map(address, arrays))
    return _agrees_with(head, [array.astype(np.float64) for array in (*arrays[:5], frequency)], arrays[5:], constant)


def _agrees_with(head: PointHead, given: Sequence[Array], found: Sequence[Array], constant: float) -> bool:
    """Return whether features, slopes, coefficients and constant are those of the formulas of score_points.c."""
    x, sigma, weight, derivative, linear, frequency = given
    tau = float(head.data_std)
    width = np.sqrt(sigma**2 + tau**2)
    gain, log, distance = tau / (sigma * width), np.log1p(tau / sigma), x / (4.0 * width)
    factor = np.exp(-0.5 * distance**2 - 0.5 * (frequency * sigma) ** 2)
    inner = np.clip(x, -2.0 * width, 2.0 * width)
    sine, cosine = factor * np.sin(frequency * inner), factor * np.cos(frequency * inner)
    decay = -x / (4.0 * width) ** 2
    rows = log, np.sin(log), np.cos(log), np.sin(2.0 * log), np.cos(2.0 * log), x / width, sine, cosine
    by_x = 1.0 / width, frequency * cosine + decay * sine, decay * cosine - frequency * sine
    t = np.clip(np.abs(x) / width - 1.0, 0.0, 1.0)
    window, slope = 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t**2), -30.0 * (t * (1.0 - t)) ** 2 / width * np.sign(x)
    outer = weight * derivative
    of_loss = gain * window, -x / width**2, weight, linear, outer * gain * slope, outer * gain * window
    expected = np.stack(rows, 1), np.stack(by_x, 1), np.stack(of_loss), -(outer / width**2).sum()
    pairs = zip((*found, np.array(constant)), expected, strict=True)
    return all(np.allclose(ours, its, RELATIVE_TOLERANCE, RELATIVE_TOLERANCE) for ours, its in pairs)


def _is_piecewise_right(code: ctypes.CDLL) -> bool:
    """Check densities exp(-x^4 / 4), whose scores the quintics between these nodes reproduce up to their curvature."""
    x = np.array([[-2.0, -0.9, 0.1, 1.2, 2.5], [-1.5, -0.4, 0.3, 0.9, 2.0]])
    s, ds = -(x**3), -3.0 * x**2
    half, inner = math.sqrt(2.0 / 3.0), math.sqrt(0.2)
    points = tuple(0.5 + 0.5 * p for p in (-half, -inner, 0.0, inner, half))
    weights = tuple(w / 2940.0 for w in (432.0, 625.0, 672.0, 625.0, 432.0))
    rule = Rule(points, weights, 77.0 / 2940.0, 5.0 / 12.0, 1.0 / 12.0, 60.0, 1e-300, 1e-3)
    dds, energy, cells, of_rule = np.zeros_like(x), np.zeros_like(x), np.zeros((2, 4)), np.zeros((2, 4))
    sizes = ctypes.c_long(2), ctypes.c_long(5)
    code.piecewise_integrate(*sizes, ctypes.byref(rule), *map(address, (x, s, ds, dds, energy, cells, of_rule)))
    within = np.zeros_like(cells)
    widest, mass = (ctypes.c_double(0.5), ctypes.c_double(0.1)), np.log(cells.sum(1) + 0.3)
    code.piecewise_cell_errors(*sizes, *widest, *map(address, (x, cells, mass, of_rule, within)))
    share, middle = cells / np.exp(mass)[:, None], 0.5 * (x[:, 1:] + x[:, :-1])
    spread = np.sqrt((share * (middle - (share * middle).sum(1, keepdims=True)) ** 2).sum(1, keepdims=True))
    of_cells = of_rule / np.exp(mass)[:, None] + share * (np.diff(x) > np.maximum(0.5 * spread, 0.1))
    exact = -(x**4) / 4.0
    inside = dds[:, 1:-1] + 6.0 * x[:, 1:-1]  # cubics are exact between inner nodes
    shape = np.exp(energy.max(1) - (energy - exact + exact.max(1, keepdims=True)).max(1))
    tails, log_mass = np.array([[0.1, 0.2], [0.3, 0.1]]), np.log(cells.sum(1) + 0.3)
    anchor, errors, workspace = np.array([0.0, 1.9]), np.zeros((2, 4)), np.zeros(24)
    indicators = Indicators(1.0, 0.1, 32.0, 1.0, 1e-300)
    arrays = x, s, ds, dds, energy, cells, tails, log_mass, of_rule, anchor, errors, workspace
    code.piecewise_errors(*sizes, ctypes.byref(indicators), *map(address, arrays))
    expected = [_piecewise_errors(*row) for row in zip(*arrays[:10], strict=True)]
    fine = x[:, :-1, None] + np.diff(x)[..., None] * (np.arange(1000) + 0.5) / 1000.0
    masses = np.diff(x) * np.exp(-(fine**4) / 4.0 - exact.max(1)[:, None, None]).mean(-1)
    pairs = (inside, np.zeros_like(inside)), (shape, np.ones(2)), (cells, masses), (errors, np.array(expected))
    close = all(np.allclose(ours, its, 2e-2, 2e-2) for ours, its in pairs[:3])
    quantiles, share = np.zeros(2), np.array([0.3, 0.7])
    accuracy = ctypes.c_double(1e-12), ctypes.c_double(700.0), ctypes.c_long(60)
    of_quantiles = *arrays[:8], share, quantiles
    code.piecewise_icdf(*sizes, ctypes.byref(rule), *accuracy, *map(address, of_quantiles))
    for row, at in enumerate(quantiles):  # the mass below a quantile, by the mid-point rule
        edges = np.append(x[row][x[row] < at], at)
        points = edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(1000) + 0.5) / 1000.0
        mass_below = (np.diff(edges) * np.exp(-(points**4) / 4.0 - exact[row].max()).mean(1)).sum() + tails[row, 0]
        close = close and bool(abs(mass_below / np.exp(log_mass[row]) - share[row]) < 2e-2)
    return close and np.allclose(*pairs[3], 1e-9, 1e-12) and np.allclose(within, of_cells, 1e-9, 1e-12)


def _piecewise_errors(
    x: Array, s: Array, ds: Array, dds: Array, energy: Array, cells: Array, tails: Array, log_mass: float,
    inside: Array, anchor: float,
) -> Array:  # fmt: skip
    """Return the errors of one density by the formulas of quadrature.py."""
    width, rise, slopes = np.diff(x), np.diff(s), np.diff(x) * 0.5 * (ds[:-1] + ds[1:])
    size = np.abs(rise) + width * 0.5 * (np.abs(ds[:-1]) + np.abs(ds[1:]))
    relative = np.minimum(np.abs(rise - slopes) / size, 1.0)
    by_curvature = np.abs(width**2 * (0.5 * width * (dds[:-1] + dds[1:]) - np.diff(ds)) / 60.0)
    raw = (0.3 * width * np.abs(rise - slopes) * relative + by_curvature) * np.clip(relative, 0.1, 1.0)
    near = np.minimum(2.0 * relative, 1.0)
    raw = np.maximum(raw, 0.5 * np.maximum(width * rise - 1.0, 0.0) * near**2)
    steps, ratio = raw.copy(), (width[1:] / width[:-1]) ** 5
    steps[1:] = np.maximum(steps[1:], raw[:-1] * np.minimum(ratio, 32.0))
    steps[:-1] = np.maximum(steps[:-1], raw[1:] / np.maximum(ratio, 1.0 / 32.0))
    reference = int(np.abs(x - anchor).argmin())
    total = np.concatenate([[0.0], steps.cumsum()])
    total = np.abs(total - total[reference])
    bound = np.concatenate([total[:1], np.maximum(total[:-1], total[1:]), total[-1:]])
    masses = np.concatenate([tails[:1], cells, tails[1:]])
    rest, favoured = np.log((masses * np.exp(-bound)).sum()), masses * np.exp(bound)
    beyond = [favoured[: j + 1].sum() if j + 1 <= reference else favoured[j + 2 :].sum() for j in range(len(cells))]
    outer = 1.0 / (1.0 + np.exp(rest) / np.array(beyond))
    return np.asarray(inside + cells / np.exp(log_mass) * np.minimum(steps, 1.0) + steps * outer)


def _latents(fixed: Array, noise: Array, *weights: Array) -> Array:
    u = np.zeros_like(noise)
    for d in range(noise.shape[1]):
        u[:, d] = _next_latents(fixed, u, noise, *weights)[:, d]
    return u


def _next_latents(
    fixed: Array, u: Array, noise: Array, noise_weight: Array, latent_weight: Array, output_weight: Array
) -> Array:
    """Return each latent given the earlier ones in ``u`` and its noise, by the formula of latent_chain.c."""
    earlier = np.tril(np.ones((u.shape[1], u.shape[1])), -1)
    from_earlier = np.einsum("nj,dj,dju->ndu", u, earlier, latent_weight)
    hidden = np.tanh(fixed + noise[..., None] * noise_weight + from_earlier)
    return noise + (hidden * output_weight).sum(-1)


_CHECKS = {
    "score_matching": _is_score_matching_right,
    "latent_chain": _is_latent_chain_right,
    "score_points": _are_score_points_right,
    "score_levels": are_score_levels_right,
    "piecewise": _is_piecewise_right,
    "value_sums": is_value_sums_right,
    "set_network": is_set_network_right,
    "context_walk": is_context_walk_right,
    "normal_given_set": is_normal_predictor_right,
    "normal_in_order": is_normal_in_order_right,
    "level_losses": is_level_losses_right,
    "spline": is_spline_right,
    "muon": is_muon_right,
}
