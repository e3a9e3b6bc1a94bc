"""The one-dimensional conditionals of a batch, as plain one-dimensional distributions.

All :math:`q(x_d \\mid c_d)` of a batch, or those of one dimension while sampling, are ``N`` independent
one-dimensional problems. Here they get what a score alone does not give: densities, distribution functions and
quantiles, by quadrature at one noise level or through the whole ladder as a flow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor

from arcsm._runtime.memory import Workspace
from arcsm.conditionals.flow import flow_down, flow_up
from arcsm.conditionals.quadrature import OutsideFunction, PiecewiseDensity, evaluated, from_nodes, integrate
from arcsm.heads import Head, NormalisedHead, ScoreHead
from arcsm.heads.score import WINDOW_END_WIDTHS

Method = Literal["closed_form", "flow", "quadrature"]

#: Where integration starts, in widths of the base Gaussian: fine where the mass usually is, out to where the score
#: is exactly linear.
_HALF_GRID = (0.4, 0.8, 1.2, 1.6, 2.0, 2.5, 3.0, 3.75, 5.0, 7.5, 12.0, WINDOW_END_WIDTHS)
#: The same at the largest noise of a ladder, which leaves nothing narrow.
_HALF_GRID_OF_FLOW = (0.6, 1.2, 1.8, 2.4, 3.0, 4.0, 7.0, WINDOW_END_WIDTHS)
_WIDENED = 60  # times that a bracket may grow to hold a quantile
_LEAST_MASS = 1e-4  # of a cell whose mean density is taken from the distribution function
_CHUNK = 4096  # conditionals integrated at a time
_BLOCK_BYTES = 1 << 21  # of one layer's units that a thread evaluates at a time: more would leave the cache


@dataclass(frozen=True)
class Accuracy:
    """How well to integrate.

    Attributes:
        tol: Error of a conditional's log density in nats to aim for.
        max_evaluations: Largest number of evaluations of the score for one conditional.
    """

    tol: float = 1e-5
    max_evaluations: int = 512


@dataclass
class EvaluationCache:
    """What evaluations of one head share, within one thread: what it prepared for each noise level, and memory.

    Attributes:
        scores: What :meth:`Head.prepare_score` gave so far, by sigma.
        with_derivatives: The same of :meth:`Head.prepare_score_and_derivative`; they write into the workspace.
        workspace: Memory of evaluations.
    """

    scores: dict[float | None, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)
    with_derivatives: dict[float | None, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = field(
        default_factory=dict
    )
    workspace: Workspace = field(default_factory=Workspace)


@dataclass
class Conditionals:
    """``N`` conditionals of one head, given by their projections.

    Attributes:
        head: The head they share.
        projection: ``(N, P)``, from :meth:`Head.project`.
        path: Noise levels from the largest down to the one asked for; empty without noise.
        method: How densities are normalised.
        accuracy: Of the integration.
        unconverged: Number of integrals so far that did not reach the accuracy.
        cache: May be shared with other conditionals of the head in the same thread.
    """

    head: Head
    projection: Tensor
    path: tuple[float, ...]
    method: Method
    accuracy: Accuracy = Accuracy()
    unconverged: int = 0
    cache: EvaluationCache = field(default_factory=EvaluationCache)

    def __len__(self) -> int:
        return len(self.projection)

    @property
    def sigma(self) -> float | None:
        """The noise level asked for."""
        return self.path[-1] if self.path else None

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the head's weights: what densities are computed in, under autocast too."""
        return next(self.head.parameters()).dtype

    @cached_property
    def _projection(self) -> Tensor:
        return self.projection.to(self.dtype)

    def score(self, x: Tensor, sigma: float | None) -> Tensor:
        """The score alone at ``x (*, N)``, without gradients and as fast as it goes."""
        with _without_autocast(x.device.type):
            scores = self.cache.scores
            if sigma not in scores:
                scores[sigma] = self.head.prepare_score(sigma)
            return scores[sigma](self._projection, x)

    def score_and_derivative(self, x: Tensor, rows: Tensor | slice, sigma: float | None) -> tuple[Tensor, Tensor]:
        """Score and derivative of the conditionals ``rows`` at values ``(n,)`` or ``(n, K)``."""
        block = _BLOCK_BYTES * torch.get_num_threads()
        size = max(1, block // self.projection[:1].nbytes // (x[:1].numel() or 1))
        if torch.is_grad_enabled() or len(x) <= size or x.device.type != "cpu":
            return self._evaluate(x, rows, sigma)
        blocks = [slice(start, start + size) for start in range(0, len(x), size)]
        rows = torch.arange(len(self), device=x.device)[rows] if isinstance(rows, slice) else rows
        s, ds = zip(*(self._evaluate(x[block], rows[block], sigma) for block in blocks), strict=True)
        return torch.cat(s), torch.cat(ds)

    def _evaluate(self, x: Tensor, rows: Tensor | slice, sigma: float | None) -> tuple[Tensor, Tensor]:
        x = x.to(self.dtype)
        if torch.is_grad_enabled():
            projection = self.projection[rows]
            return self.head.projected_score_and_derivative(
                projection.unsqueeze(1) if x.ndim == 2 else projection, x, sigma
            )
        with _without_autocast(x.device.type):
            projection = self._projection[rows] if isinstance(rows, slice) else self._gathered(rows)
            known = self.cache.with_derivatives
            if sigma not in known:
                known[sigma] = self.head.prepare_score_and_derivative(sigma, self.cache.workspace)
            return known[sigma](projection.unsqueeze(1) if x.ndim == 2 else projection, x)

    def _gathered(self, rows: Tensor) -> Tensor:
        out = self.cache.workspace.empty("projections", (len(rows), self.projection.shape[1]), self._projection)
        return torch.index_select(self._projection, 0, rows, out=out)

    # Densities --------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at ``x (N,)`` in nats, ``(N,)``."""
        if isinstance(self.head, NormalisedHead) and self.method == "closed_form":
            return self.head.projected_log_prob(self.projection, x, self.sigma)
        base, log_slope = self._base(x)
        density = [piece.log_prob(part)[:, 0] for piece, part in self._integrated(base)]
        return torch.cat(density).to(x.dtype) - log_slope

    def cdf(self, x: Tensor) -> Tensor:
        """Distribution function at ``x (N,)``, ``(N,)``."""
        if isinstance(self.head, NormalisedHead) and self.method == "closed_form":
            return self.head.projected_cdf(self.projection, x, self.sigma)
        base, _ = self._base(x)
        return torch.cat([piece.cdf(part)[:, 0] for piece, part in self._integrated(base)]).to(x.dtype)

    def log_prob_and_cdf(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both at ``x (N,)``, each ``(N,)``, for the price of one; in double precision where they are integrated."""
        if self.method == "closed_form":
            return self.log_prob(x), self.cdf(x)
        base, log_slope = self._base(x)
        pieces = [
            torch.stack([piece.log_prob(part)[:, 0], piece.cdf(part)[:, 0]]) for piece, part in self._integrated(base)
        ]
        log_prob, u = torch.cat(pieces, 1)
        return log_prob - log_slope, u

    def log_mean_density(self, x: Tensor, half: Tensor) -> Tensor:
        """Log of the mean density within ``half (N,)`` of ``x (N,)``, in nats; at ``x`` itself where that is zero.

        By the difference of the distribution function; where that is too small to be told from an error of the
        integration, by the density in the middle.
        """
        wide = (half > 0.0).nonzero()[:, 0]
        mass = torch.zeros_like(x, dtype=torch.float64)
        if len(wide):
            some = replace(self, projection=self.projection[wide], unconverged=0)
            upper, lower = (some.cdf(x[wide] + sign * half[wide]).double() for sign in (1.0, -1.0))
            mass = mass.index_put((wide,), upper - lower)
            self.unconverged += some.unconverged
        least = mass < _LEAST_MASS
        found = torch.log(torch.where(least, 1.0, mass) / (2.0 * half.double()).masked_fill(least, 1.0)).to(x)
        rest = least.nonzero()[:, 0]
        if len(rest):
            some = replace(self, projection=self.projection[rest], unconverged=0)
            found = found.index_put((rest,), some.log_prob(x[rest]))
            self.unconverged += some.unconverged
        return found

    def icdf(self, u: Tensor, nodes: Tensor | None = None) -> Tensor:
        """The inverse of :meth:`cdf` at ``u (N,)`` in (0, 1), ``(N,)``; ``nodes`` as in :meth:`density`.

        What rounds to 0 or 1 is taken for the nearest number inside.
        """
        limits = torch.finfo(u.dtype)
        u = u.clamp(limits.tiny, 1.0 - 0.5 * limits.eps)
        if isinstance(self.head, NormalisedHead) and self.method == "closed_form":
            return self._closed_form_icdf(u)
        start = self.path[0] if self.method == "flow" else self.sigma
        resolution = 1e-6 if u.dtype == torch.float64 else 1e-3  # of a cell, before a last step that squares it
        parts = []
        for rows in self._chunks():
            density = self.density(rows, start, nodes=None if nodes is None else nodes[rows])
            parts.append(density.quantile(u[rows, None].double(), tolerance=resolution)[:, 0])
        x = torch.cat(parts).to(u.dtype)
        return flow_down(self.score_and_derivative, x, self.path) if self.method == "flow" else x

    def density(
        self, rows: slice, sigma: float | None, anchor: Tensor | None = None, nodes: Tensor | None = None
    ) -> PiecewiseDensity:
        """The conditionals ``rows`` at a noise level, integrated from ``nodes (n, K)`` on, or those of the head."""
        part = replace(self, projection=self.projection[rows], unconverged=0)
        if nodes is None:
            half_grid = _HALF_GRID_OF_FLOW if self.method == "flow" else _HALF_GRID
            nodes = starting_nodes(self.head, part.projection, sigma, half_grid)
        density = integrate(
            lambda x, some: part.score_and_derivative(x, some, sigma), nodes, anchor,
            self.accuracy.tol, self.accuracy.max_evaluations, outside_of(self.head, sigma, nodes),
        )  # fmt: skip
        self.unconverged += int((~density.converged).sum())
        return density

    def differentiable_log_prob(self, x: Tensor) -> Tensor:
        """Log density at ``x (N,)`` by quadrature, with gradients for the head and the contexts.

        The nodes are found without gradients; then the score is evaluated once more on all of them, with.
        """
        values = []
        for rows in self._chunks():
            with torch.no_grad():
                nodes = self.density(rows, self.sigma, x[rows]).x

            def score(x: Tensor, _: Tensor, rows: slice = rows) -> tuple[Tensor, Tensor]:
                return self.score_and_derivative(x, rows, self.sigma)

            numbers = torch.arange(len(nodes), device=nodes.device)
            s, ds = evaluated(score, nodes, numbers, outside_of(self.head, self.sigma, nodes))
            density = from_nodes(nodes, s, ds)
            anchor = (nodes - x[rows, None]).abs().argmin(1, keepdim=True)
            values.append(density.energy.gather(1, anchor)[:, 0] - density.log_mass)
        return torch.cat(values).to(x.dtype)

    # What they share --------------------------------------------------------------------------------------------

    def _base(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Points where the quadrature is done, and the log slope of the flow from there to ``x``."""
        if self.method == "flow":
            base, log_slope, converged = flow_up(self.score_and_derivative, x, self.path, self.accuracy.tol)
            self.unconverged += int((~converged).sum())
            return base, log_slope
        return x, torch.zeros_like(x)

    def _integrated(self, base: Tensor) -> Iterator[tuple[PiecewiseDensity, Tensor]]:
        """Densities of some conditionals at a time, and the points ``(n, 1)`` to ask them about."""
        start = self.path[0] if self.method == "flow" else self.sigma
        for rows in self._chunks():
            part = base[rows].double()
            yield self.density(rows, start, part), part[:, None]

    def _chunks(self) -> list[slice]:
        return [slice(start, start + _CHUNK) for start in range(0, len(self), _CHUNK)]

    def _closed_form_icdf(self, u: Tensor) -> Tensor:
        """Bisection on the closed-form CDF, then Newton steps."""
        assert isinstance(self.head, NormalisedHead)
        projection, u = self._projection, u.to(self.dtype)
        low, high = self.head.bracket(projection, self.sigma)
        for _ in range(_WIDENED):  # what is far out in the lower tail is a number, too
            outside = self.head.projected_cdf(projection, low, self.sigma) > u
            if not bool(outside.any()):
                break
            low = torch.where(outside, low - (high - low), low)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = self.head.projected_cdf(projection, middle, self.sigma) < u
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


def starting_nodes(
    head: Head, projection: Tensor, sigma: float | None, half_grid: Sequence[float] = _HALF_GRID
) -> Tensor:
    """Where the integration of a head's conditionals starts, ``(N, K)`` in double precision."""
    grid = _symmetric(tuple(half_grid), projection.device)
    if isinstance(head, ScoreHead):
        return (grid * math.hypot(sigma or 0.0, head.data_std)).expand(len(projection), -1)
    if isinstance(head, NormalisedHead):
        low, high = (edge.double() for edge in head.bracket(projection, sigma))
        return 0.5 * (low + high)[:, None] + 0.5 * (high - low)[:, None] * grid / half_grid[-1]
    raise TypeError(f"{type(head).__name__} says neither where its mass is nor that its tails are Gaussian")


def outside_of(head: Head, sigma: float | None, nodes: Tensor) -> OutsideFunction | None:
    """What the conditionals of a head are at the outer ones of some nodes ``(N, K)``, where that is known."""
    if not isinstance(head, ScoreHead) or not head.has_original_score:
        return None
    innermost = torch.minimum(-nodes[:, 0], nodes[:, -1])
    support = math.hypot(sigma or 0.0, head.data_std) * WINDOW_END_WIDTHS
    return (
        partial(head.tail_score_and_derivative, sigma) if bool((innermost >= support * (1.0 - 1e-12)).all()) else None
    )


@functools.cache
def _symmetric(half_grid: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept may later be differentiated through
        return torch.tensor([-t for t in reversed(half_grid)] + [0.0, *half_grid], dtype=torch.float64, device=device)


def choose_method(head: Head, path: Sequence[float], method: str | None) -> Method:
    """The method asked for, or the default: closed form, else flow with a ladder, else quadrature.

    Raises:
        ValueError: for an unknown method, or one that the model does not offer.
    """
    if method is None:
        return "closed_form" if head.normalised else "flow" if len(path) > 1 else "quadrature"
    if method == "flow" and not path:
        raise ValueError('method: "flow" needs a model with a noise ladder; use "quadrature"')
    if method == "closed_form" and not head.normalised:
        raise ValueError(f'method: a {type(head).__name__} has no closed form; use "flow" or "quadrature"')
    if method not in ("closed_form", "flow", "quadrature"):
        raise ValueError(f'method: expected "closed_form", "flow" or "quadrature", got {method!r}')
    return method  # type: ignore[return-value]
