"""Bindings of ``score_levels.c``: scores at noise levels, and the flow through these."""

import ctypes
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from arcsm._native.build import library
from arcsm._native.interface import Level, Network, Nodes
from arcsm._native.memory import address, addresses, allocate, check_shapes, on_threads, share_rows

_TILE_POINTS = 128
_MIN_POINTS_PER_THREAD = 256
_RESULTS = 6
_ORDER = 4  # of the flow's method
_MOST_NODES, _ROWS_OF_INTERPOLATION = 16, 3


class LevelConstants(NamedTuple):
    """What a network computes from a noise level; see ``level`` of score_levels.c."""

    width: float
    envelope_width: float
    window_start: float
    window_end: float
    output_bias: float
    bias: Tensor  # (H,) of the first hidden layer, besides the projections
    weight: Tensor  # (H, 2 J + 1) of sines, cosines and x in it
    output_weight: Tensor  # (H',)


class Step(NamedTuple):
    """A noise level of the flow, and the weights that lead to it; see :mod:`arcsm.conditionals.flow`."""

    sigma: float
    speed: float
    predictor: tuple[float, ...]
    corrector: tuple[float, ...]
    from_start: bool


class Interpolation(NamedTuple):
    """How the scores at ``N`` nodes around zero give densities; see :mod:`arcsm.conditionals.interpolation`."""

    nodes: Tensor  # (N,)
    half_range: float  # the largest distance of a point from zero
    sums: Tensor  # (N + 5, N), see ``interpolation`` of score_levels.c
    reach: float  # how far from a point, and from zero, its masses are summed
    places: Tensor  # (K,) of the points of these sums, as shares of the way
    shares: Tensor  # (K,) their weights


class ScoreLevels:
    """A score network in single precision, prepared for noise levels on first use.

    It may be shared by threads. Errors are those of :mod:`arcsm._native.latent_chain`.

    Arguments:
        frequencies: Frequencies of sines and cosines that are inputs beside x, ``(J,)``.
        layers: Weight ``(H, I)`` and bias ``(H,)`` of each hidden layer after the first.
        units: Units of the first hidden layer.
        residual: Whether each hidden layer but the last is added to the one below.
        constants: Returns those of a noise level.
    """

    def __init__(
        self,
        frequencies: Tensor,
        layers: Sequence[tuple[Tensor, Tensor]],
        units: int,
        residual: bool,
        constants: Callable[[float], LevelConstants],
    ) -> None:
        self._frequencies = frequencies.detach().float().contiguous()
        self._layers = [tuple(t.detach().float().contiguous() for t in layer) for layer in layers]
        self._units = (units, *(len(weight) for weight, _ in layers))
        self._residual, self._constants = residual, constants
        self._levels: dict[float, tuple[LevelConstants, Level]] = {}
        matching = all(
            weight.shape == (above, below) and bias.shape == (above,)
            for (weight, bias), (below, above) in zip(self._layers, pairwise(self._units), strict=True)
        )
        weights = [t for layer in self._layers for t in layer]
        check_shapes("score_levels", (self._frequencies, *weights), matching and self._frequencies.ndim == 1)

    def score(self, projection: Tensor, x: Tensor, sigma: float) -> Tensor:
        """Return the score at values ``(n,)`` or ``(n, K)`` of ``n`` projections ``(n, H)``."""
        return self._score(projection, x, sigma, tangent=False)[0]

    def score_and_derivative(self, projection: Tensor, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Return the score at values ``(n,)`` or ``(n, K)`` of ``n`` projections ``(n, H)``, and its derivative."""
        return self._score(projection, x, sigma, tangent=True)

    def _score(self, projection: Tensor, x: Tensor, sigma: float, tangent: bool) -> tuple[Tensor, Tensor]:
        points = x[:1].numel()
        check_shapes("score", (projection, x), projection.shape == (len(x), self._units[0]) and x.ndim in (1, 2))
        projection, x = projection.contiguous(), x.contiguous()
        level = self._level(sigma)
        scores = torch.empty_like(x)
        slopes = torch.empty_like(x) if tangent else scores  # which C leaves alone
        parts = share_rows(len(x), -(-_MIN_POINTS_PER_THREAD // max(points, 1)))
        network, tile, workspaces = self._network(tangent, len(parts))

        def run(number: int) -> None:
            rows = parts[number]
            library().score_levels_at_points(
                ctypes.byref(network), ctypes.byref(level), tile, ctypes.c_long(rows.stop - rows.start),
                ctypes.c_long(points), address(projection[rows]), address(x[rows]),
                address(scores[rows]), address(slopes[rows]), address(workspaces[number]),
            )  # fmt: skip

        if x.numel():
            on_threads(run, len(parts))
        return scores, slopes

    def follow(self, projection: Tensor, y: Tensor, steps: Sequence[Step], rounding: float, tangent: bool) -> Tensor:
        """Carry points ``y (n,)``, in widths of the base Gaussian, through the levels of some steps.

        Return, ``(6, n)``: the points at the last level, the log slopes of the map, the weighted distances between
        predicted and corrected points, and points nearby with their scores and derivatives.
        """
        check_shapes("follow", (projection, y), projection.shape == (*y.shape, self._units[0]) and bool(steps))
        projection, y = projection.contiguous(), y.contiguous()
        levels = (Level * len(steps))(*(self._step(step) for step in steps))
        out = y.new_empty(_RESULTS, len(y))
        parts = share_rows(len(y), _MIN_POINTS_PER_THREAD)
        network, tile, workspaces = self._network(tangent, len(parts))

        def run(number: int) -> None:
            rows = parts[number]
            library().score_levels_follow(
                ctypes.byref(network), levels, ctypes.c_long(len(steps)), tile, ctypes.c_long(rows.stop - rows.start),
                address(projection[rows]), address(y[rows]), ctypes.c_float(rounding), address(out[:, rows]),
                ctypes.c_long(len(y)), address(workspaces[number]),
            )  # fmt: skip

        if len(y):
            on_threads(run, len(parts))
        return out

    def interpolate(self, projection: Tensor, x: Tensor, sigma: float, nodes: Interpolation) -> Tensor:
        """Return the masses below and above values ``x (n,)`` over the densities, and estimated errors, ``(3, n)``."""
        found = [t.detach().float().contiguous() for t in (nodes.nodes, nodes.sums, nodes.places, nodes.shares)]
        number, points = len(nodes.nodes), len(nodes.places)
        sizes = (number,), (number + 5, number), (points,), (points,)
        fits = projection.shape == (*x.shape, self._units[0]) and 1 < number <= _MOST_NODES
        check_shapes("interpolate", (projection, x, *found), fits and tuple(t.shape for t in found) == sizes)
        projection, x = projection.contiguous(), x.contiguous()
        level, (at, sums, places, shares) = self._level(sigma), map(address, found)
        given = Nodes(number, nodes.half_range, at, sums, nodes.reach, points, places, shares)
        out = x.new_empty(_ROWS_OF_INTERPOLATION, len(x))
        parts = share_rows(len(x), _MIN_POINTS_PER_THREAD)
        network, tile, workspaces = self._network(False, len(parts))

        def run(part: int) -> None:
            rows = parts[part]
            library().score_levels_interpolate(
                ctypes.byref(network), ctypes.byref(level), ctypes.byref(given), tile,
                ctypes.c_long(rows.stop - rows.start), address(projection[rows]), address(x[rows]),
                address(out[:, rows]), ctypes.c_long(len(x)), address(workspaces[part]),
            )  # fmt: skip

        if len(x):
            on_threads(run, len(parts))
        return out

    def _network(self, tangent: bool, threads: int) -> tuple[Network, ctypes.c_long, list[Tensor]]:
        """Return the structure for C, the points in a tile, and a workspace for each thread."""
        units = (ctypes.c_long * len(self._units))(*self._units)
        weights, biases = ([layer[i] for layer in self._layers] for i in range(2))
        network = Network(
            len(self._frequencies), len(self._units), units, self._residual, tangent,
            address(self._frequencies), addresses(weights), addresses(biases),
        )  # fmt: skip
        code = library()
        tile = ctypes.c_long(max(_TILE_POINTS, code.vector_step()))
        size = int(code.score_levels_workspace_bytes(ctypes.byref(network), tile))
        return network, tile, [allocate(size) for _ in range(threads)]

    def _level(self, sigma: float) -> Level:
        if sigma not in self._levels:
            found = self._constants(sigma)
            tensors = found.bias, found.weight, found.output_weight
            sizes = (self._units[0],), (self._units[0], 2 * len(self._frequencies) + 1), (self._units[-1],)
            bias, weight, output_weight = (t.detach().float().contiguous() for t in tensors)
            check_shapes("level", tensors := (bias, weight, output_weight), tuple(t.shape for t in tensors) == sizes)
            level = Level(
                found.width, found.width**-2, found.envelope_width, found.window_start, found.window_end,
                found.output_bias, address(bias), address(weight), address(output_weight), sigma,
            )  # fmt: skip
            kept = found._replace(bias=bias, weight=weight, output_weight=output_weight)
            self._levels.setdefault(sigma, (kept, level))  # another thread's stays: its addresses are in use
        return self._levels[sigma][1]

    def _step(self, step: Step) -> Level:
        level = Level()
        ctypes.pointer(level)[0] = self._level(step.sigma)
        level.speed, level.before, level.from_start = step.speed, len(step.predictor), step.from_start
        level.predictor[: len(step.predictor)] = step.predictor
        level.corrector[: len(step.corrector)] = step.corrector
        return level
