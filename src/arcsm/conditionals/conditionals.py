"""A batch of one-dimensional conditionals: densities, distribution functions and quantiles from scores.

The conditionals :math:`q(x_d \\mid c_d)` of a batch are ``N`` independent one-dimensional distributions. A score alone
gives neither a normalised density nor a CDF. :class:`Conditionals` computes both, by quadrature at one noise level or
by the flow through the whole ladder.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import methodcaller
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from arcsm import _native
from arcsm._native import Interpolation, ScoreLevels, Step
from arcsm._runtime.memory import Workspace
from arcsm.conditionals.cell_means import log_mean_density
from arcsm.conditionals.flow import Carried, LevelScore, follow
from arcsm.conditionals.interpolation import Interpolated, interpolate, interpolation
from arcsm.conditionals.nodes import HALF_GRID, HALF_GRID_OF_NOISE, check_range, known_tail, starting_nodes
from arcsm.conditionals.piecewise import DensitiesAt, PiecewiseDensity, in_tails
from arcsm.conditionals.quadrature import evaluate_nodes, from_nodes, integrate
from arcsm.heads import Head, LocatedHead, NormalisedHead, ScoreHead
from arcsm.heads.score import WINDOW_END_WIDTHS

Method = Literal["closed_form", "flow", "quadrature"]
#: A number of integrals; a tensor ``()`` if the host has not asked the device for it yet.
Count = int | Tensor

#: Maps densities at points ``(N,)`` to results, ``(*, N)``.
FunctionOfDensities = Callable[[Interpolated | DensitiesAt], Tensor]

_LARGE = 1e15  # standardised values whose squares are numbers in single precision
_MAX_CORRECTION = 0.2  # of a quantile, in standard deviations of noise
#: Nats; rounding in single precision changes log densities by about a tenth of it.
SINGLE_TOLERANCE = 1e-4
CONDITIONALS_AT_A_TIME = 4096  #: conditionals integrated together
_ACCELERATOR_CONDITIONALS_AT_A_TIME = 1 << 16  # fewer would leave an accelerator idle
NEWTON_STEPS = 4  #: for a quantile, where the host does not look at the error
_LEAST_EVALUATIONS = 2 * len(HALF_GRID_OF_NOISE) - 1  # of the quadrature that takes over from few nodes
_BLOCK_BYTES = 1 << 21  # activations of one layer that each thread evaluates at a time; larger blocks miss the cache


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of an integration.

    Attributes:
        tol: Target error of the log density of a conditional, in nats.
        max_evaluations: Largest number of score evaluations for one conditional.
    """

    tol: float = 1e-5
    max_evaluations: int = 512

    def __post_init__(self) -> None:
        if not self.tol > 0.0:
            raise ValueError(f"tol: expected a positive number, got {self.tol}")


@dataclass
class EvaluationCache:
    """Work shared by evaluations of one head within one thread.

    It holds the functions of :meth:`Head.prepare_score` and :meth:`Head.prepare_score_and_derivative`, by sigma, and
    the memory that the latter write into.
    """

    scores: dict[float | None, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)
    scores_and_derivatives: dict[float | None, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = field(
        default_factory=dict
    )
    workspace: Workspace = field(default_factory=Workspace)


@dataclass
class Conditionals:
    """``N`` conditionals of one head.

    With ``method="quadrature"``, the score of the level is integrated. With ``method="flow"``, the score of the largest
    noise :math:`\\sigma_1` is integrated, and the flow :math:`x = \\mathrm{flow}(y)` carries its density down the path:

    .. math:: \\log q(x) = \\log q_{\\sigma_1}(y) - \\log \\left| \\frac{dx}{dy} \\right|

    Attributes:
        projection: Projections of the contexts, ``(N, P)``; see :meth:`Head.project`.
        path: Noise levels from the largest down to the level of the conditionals; empty without noise.
        continuous: Whether the scores know all noise levels between those of the path, so that only its ends matter to
            the flow.
        method: How densities are normalised.
        accuracy: Accuracy of the integration.
        unconverged: Number of integrals so far that missed the tolerance; on the device of the conditionals unless the
            host looks at it.
        cache: May be shared with other conditionals of the same head in the same thread.
        compiled: The scores of the head in C, from :func:`compiled_scores`.
        single: Whether they take the place of a head in double precision, too.
        looks: How often the host looks at errors, to take more steps and nodes where they are needed: whenever useful,
            once, or never. Without a look, shapes do not depend on values; what misses the tolerance is counted.
    """

    head: Head
    projection: Tensor
    path: tuple[float, ...]
    method: Method
    accuracy: Accuracy = Accuracy()
    continuous: bool = False
    unconverged: Count = 0
    cache: EvaluationCache = field(default_factory=EvaluationCache)
    compiled: ScoreLevels | None = None
    single: bool = False
    looks: int | None = None

    def __len__(self) -> int:
        return len(self.projection)

    @property
    def sigma(self) -> float | None:
        """Noise level of the conditionals."""
        return self.path[-1] if self.path else None

    @property
    def core(self) -> "Conditionals":
        """The conditionals in the units of the head's noise, in which samplers work: these, but for a LocatedHead."""
        return self

    def from_core(self, u: Tensor) -> Tensor:
        """Return values ``(N,)`` of the ``core`` in standardised units."""
        return u

    @property
    def data_std(self) -> float:
        """Standard deviation of the base Gaussian, as large as that of the data."""
        return self.head.data_std if isinstance(self.head, ScoreHead) else 1.0

    @property
    def is_remote(self) -> bool:
        """Whether the conditionals are on a device that works while the host goes on."""
        return self.projection.device.type != "cpu"

    def is_noise(self, sigma: float | None) -> bool:
        """Return whether the noise at a level is at least as large as the data, so that no mode is narrow."""
        return sigma is not None and sigma >= self.data_std

    @cached_property
    def dtype(self) -> torch.dtype:
        """Type of the head's weights or else the contexts, in which densities are computed, under autocast too."""
        if self.single:
            return torch.float32
        return next(self.head.parameters(), self.projection).dtype

    @cached_property
    def _projection(self) -> Tensor:
        return self.projection.to(self.dtype)

    def apply(self, function: Callable[[Self], Tensor], rows: Tensor | None = None, **changes: Any) -> Tensor:
        """Return a function of the conditionals ``rows (n,)``, by default all, with some attributes changed.

        Integrals that miss their tolerance are counted in ``unconverged`` of these conditionals.
        """
        if not len(self if rows is None else rows):
            return self.projection.new_zeros(0)
        projection = self.projection if rows is None else self.projection[rows]
        variant = replace(self, projection=projection, unconverged=0, **changes)
        result = function(variant)
        self.unconverged += variant.unconverged
        return result

    def score(self, x: Tensor, sigma: float | None) -> Tensor:
        """Return the score at ``x (*, N)``, without gradients."""
        if sigma is not None and (compiled := self._usable()):
            return compiled.score(self._projection, x.to(self.dtype).movedim(-1, 0), sigma).movedim(0, -1)
        with _without_autocast(x.device.type):
            scores = self.cache.scores
            if sigma not in scores:
                scores[sigma] = self.head.prepare_score(sigma)
            return scores[sigma](self._projection, x)

    def score_and_derivative(self, x: Tensor, rows: Tensor | slice, sigma: float | None) -> tuple[Tensor, Tensor]:
        """Return the score and its derivative for the conditionals ``rows`` at values ``(n,)`` or ``(n, K)``."""
        if sigma is not None and (compiled := self._usable()):
            return compiled.score_and_derivative(self._projection[rows], x.to(self.dtype), sigma)
        block = _BLOCK_BYTES * torch.get_num_threads()
        size = max(1, block // self.projection[:1].nbytes // (x[:1].numel() or 1))
        if torch.is_grad_enabled() or len(x) <= size or x.device.type != "cpu":
            return self._evaluate(x, rows, sigma)
        blocks = [slice(start, start + size) for start in range(0, len(x), size)]
        rows = torch.arange(len(self), device=x.device)[rows] if isinstance(rows, slice) else rows
        s, ds = zip(*(self._evaluate(x[block], rows[block], sigma) for block in blocks), strict=True)
        return torch.cat(s), torch.cat(ds)

    def _usable(self) -> ScoreLevels | None:
        """Return the scores in C if they have the precision of these densities, and nobody asks for gradients."""
        usable = self.compiled is not None and _native.may_evaluate() and _native.supports(self._projection)
        return self.compiled if usable else None

    def may_be_single(self, x: Tensor) -> bool:
        """Return whether the tolerance for densities at ``x (N,)`` allows single precision, which is faster in C."""
        accurate = self.compiled is not None and self.accuracy.tol >= SINGLE_TOLERANCE
        return self.single or (accurate and _native.may_evaluate() and bool((x.abs() < _LARGE).all()))

    def _evaluate(self, x: Tensor, rows: Tensor | slice, sigma: float | None) -> tuple[Tensor, Tensor]:
        x = x.to(self.dtype)
        if torch.is_grad_enabled():
            projection = self.projection[rows]
            projection = projection.unsqueeze(1) if x.ndim == 2 else projection
            return self.head.projected_score_and_derivative(projection, x, sigma)
        with _without_autocast(x.device.type):
            if isinstance(rows, slice):
                projection = self._projection[rows]
            else:
                shape = (len(rows), self.projection.shape[1])
                out = self.cache.workspace.empty("projections", shape, self._projection)
                projection = torch.index_select(self._projection, 0, rows, out=out)
            prepared = self.cache.scores_and_derivatives
            if sigma not in prepared:
                prepared[sigma] = self.head.prepare_score_and_derivative(sigma, self.cache.workspace)
            return prepared[sigma](projection.unsqueeze(1) if x.ndim == 2 else projection, x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density at ``x (N,)`` in nats, ``(N,)``."""
        if isinstance(self.head, NormalisedHead) and self.method == "closed_form":
            return self.head.projected_log_prob(self.projection, x, self.sigma)

        def integrated(part: Self) -> Tensor:
            log_prob, log_slope = part._integrate(x, methodcaller("log_prob"))
            return (log_prob - log_slope).to(x.dtype)

        return self.apply(integrated, single=self.may_be_single(x))

    def cdf(self, x: Tensor) -> Tensor:
        """Return the distribution function at ``x (N,)``, ``(N,)``."""
        if isinstance(self.head, NormalisedHead) and self.method == "closed_form":
            return self.head.projected_cdf(self.projection, x, self.sigma)

        def integrated(part: Self) -> Tensor:
            return part._integrate(x, methodcaller("cdf"))[0].to(x.dtype)

        return self.apply(integrated, single=self.may_be_single(x))

    def log_prob_and_cdf(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return :meth:`log_prob` and :meth:`cdf` from one integration, ``(N,)`` doubles each if integrated."""
        if self.method == "closed_form":
            return self.log_prob(x), self.cdf(x)

        def integrated(part: Self) -> Tensor:
            both, log_slope = part._integrate(x, lambda at: torch.stack([at.log_prob(), at.cdf()]))
            return torch.stack([both[0] - log_slope, both[1]])

        log_prob, cdf = self.apply(integrated, single=self.may_be_single(x))
        return log_prob, cdf

    def log_mean_density(self, x: Tensor, half: Tensor) -> Tensor:
        """Return the log of the mean density within ``half (N,)`` of ``x (N,)``, in nats; see :mod:`cell_means`."""
        return log_mean_density(self, x, half)

    def icdf(self, u: Tensor, nodes: Tensor | None = None) -> Tensor:
        """Return the inverse of :meth:`cdf` at ``u (N,)`` in (0, 1), ``(N,)``; for ``nodes`` see :meth:`density`.

        Values that have been rounded to 0 or 1 are replaced by the nearest number inside. In the tails, the density is
        integrated again up to the quantile.
        """
        limits = torch.finfo(u.dtype)
        u = u.clamp(limits.tiny, 1.0 - 0.5 * limits.eps)
        if isinstance(self.head, NormalisedHead) and self.method == "closed_form":
            dtype = torch.promote_types(u.dtype, self.dtype)
            return self.head.projected_icdf(self.projection.to(dtype), u.to(dtype), self.sigma)
        return self.apply(lambda part: part._integrated_icdf(u, nodes), single=self.may_be_single(u))

    def _integrated_icdf(self, u: Tensor, nodes: Tensor | None) -> Tensor:
        # in cells; the last Newton step squares the error
        tolerance = 1e-6 if u.dtype == torch.float64 else 1e-3
        parts = []
        for rows in self._chunks():
            density = self.density(rows, self._quadrature_sigma, nodes=None if nodes is None else nodes[rows])
            part = u[rows, None].double()
            if self.looks is not None:
                parts.append(density.icdf(part, NEWTON_STEPS, waits=False)[:, 0])
                continue
            x = density.icdf(part, tolerance=tolerance)[:, 0]
            tails = in_tails(part)
            if len(tails):
                near = density.select(tails).tail_icdf(part[tails])[:, 0]
                index = torch.arange(len(self), device=x.device)[rows][tails]
                x[tails] = self.density(index, self._quadrature_sigma, near).tail_icdf(part[tails])[:, 0]
            parts.append(x)
        x = torch.cat(parts)
        if self.method == "flow":
            x = self._inverted(u, self.carry(x.to(self.dtype), self.accuracy.tol, with_slopes=False).x)
        return x.to(u.dtype)

    def _inverted(self, u: Tensor, x: Tensor) -> Tensor:
        """Return quantiles ``u (N,)`` that :meth:`cdf` inverts, by a Newton step from those carried down, ``(N,)``."""
        log_prob, cdf = self.log_prob_and_cdf(x)
        step = (u.double() - cdf) * torch.exp(-log_prob)
        return torch.where(step.abs() <= _MAX_CORRECTION * self.path[-1], x + step, x.double())

    def carry(self, x: Tensor, tol: float, up: bool = False, with_slopes: bool = True) -> Carried:
        """Carry values ``(N,)`` from the largest noise down the path, or ``up``; see :func:`follow`."""

        def scores(rows: Tensor) -> LevelScore:
            part = self if len(rows) == len(self) else replace(self, projection=self.projection[rows])
            if with_slopes:
                return lambda x, sigma: part.score_and_derivative(x, slice(None), sigma)
            return lambda x, sigma: (part.score(x, sigma), None)

        def solve(rows: Tensor, y: Tensor, steps: Sequence[Step], rounding: float) -> tuple[Carried, Tensor]:
            assert self.compiled is not None
            projection = self._projection if len(rows) == len(self) else self._projection[rows]
            found = self.compiled.follow(projection, y, steps, rounding, with_slopes)
            y, log_slope, error, near, s, ds = found
            return Carried(y, log_slope, error <= math.inf, near, s, ds), error

        tail = WINDOW_END_WIDTHS if isinstance(self.head, ScoreHead) and self.head.has_original_score else math.inf
        path = (self.path[0], self.path[-1]) if self.continuous and len(self.path) > 1 else self.path
        carried = follow(
            scores, x, path[::-1] if up else path, tol, self.data_std, tail, self.accuracy.max_evaluations,
            solve if self._usable() else None, self.looks,
        )  # fmt: skip
        self._count(carried.converged)
        return carried

    def _count(self, converged: Tensor) -> None:
        missed = (~converged).sum()
        self.unconverged += int(missed) if self.looks is None else missed

    def density(
        self,
        rows: slice | Tensor,
        sigma: float | None,
        anchor: Tensor | None = None,
        nodes: Tensor | None = None,
        at_anchor: tuple[Tensor, Tensor] | None = None,
    ) -> PiecewiseDensity:
        """Integrate the conditionals ``rows`` at a noise level from initial nodes ``(n, K)``.

        The nodes default to :func:`starting_nodes`. :func:`integrate` says what an anchor ``(n,)`` is, and the score
        and derivative there.
        """
        part = replace(self, projection=self.projection[rows], unconverged=0)
        if nodes is None:
            is_noise = self.method == "flow" or self.is_noise(sigma)
            is_coarse = self.looks is None or 2 * len(HALF_GRID) + 1 > self.accuracy.max_evaluations
            half_grid = HALF_GRID_OF_NOISE if is_noise and is_coarse else HALF_GRID
            nodes = starting_nodes(self.head, part.projection, sigma, half_grid)
        density = integrate(
            lambda x, rows: part.score_and_derivative(x, rows, sigma), nodes, anchor,
            self.accuracy.tol, self.accuracy.max_evaluations, known_tail(self.head, sigma, nodes), sigma or 0.0,
            at_anchor, self.looks is None,
        )  # fmt: skip
        self._count(density.converged)
        if isinstance(self.head, ScoreHead) and not self.head.has_original_score:
            check_range(self.head, density)
        return density

    def differentiable_log_prob(self, x: Tensor) -> Tensor:
        """Return the log density at ``x (N,)`` by quadrature, differentiable with respect to head, contexts and ``x``.

        The nodes, one of them at ``x``, are chosen without gradients. The score at all nodes is then evaluated once
        more, with gradients. With respect to ``x`` the first two derivatives are exact: the score and its derivative.
        """
        values = []
        for rows in self._chunks():
            with torch.no_grad():
                nodes = self.density(rows, self.sigma, x[rows]).x

            def score(x: Tensor, _: Tensor, rows: slice = rows) -> tuple[Tensor, Tensor]:
                return self.score_and_derivative(x, rows, self.sigma)

            index = torch.arange(len(nodes), device=nodes.device)
            s, ds = evaluate_nodes(score, nodes, index, known_tail(self.head, self.sigma, nodes))
            density = from_nodes(nodes, s, ds)
            inside = x[rows, None].detach().to(nodes).clamp(nodes[:, :1], nodes[:, -1:])
            anchor, beyond = (nodes - inside).abs().argmin(1, keepdim=True), x[rows, None] - inside
            energy, slope, bend = (f.gather(1, anchor) for f in (density.energy, density.s, density.ds))
            energy = energy + slope * beyond + 0.5 * bend * beyond.square()
            values.append(energy[:, 0] - density.log_mass)
        return torch.cat(values).to(x.dtype) if values else x.new_zeros(0)

    @property
    def _quadrature_sigma(self) -> float | None:
        return self.path[0] if self.method == "flow" else self.sigma

    def _integrate(self, x: Tensor, function: FunctionOfDensities) -> tuple[Tensor, Tensor]:
        """Evaluate a function of the integrated densities at ``x (N,)``, or where the flow carries ``x`` from.

        Return the results, ``(*, N)`` in double precision, and the log slope of the flow down from there, ``(N,)``.
        """
        if (nodes := self._nodes_of_noise()) is not None:
            return self._interpolate(x, nodes, function)
        if self.looks is not None or not self.is_remote or self.method != "flow":
            return self._integrate_once(x, function)[:2]
        first = replace(self, looks=1)  # each look costs time, and few conditionals need a second one
        results, log_slope, converged = first._integrate_once(x, function)
        rows = (~converged).nonzero()[:, 0]
        if len(rows):
            again = replace(self, projection=self.projection[rows], unconverged=0)
            results[..., rows], log_slope[rows], _ = again._integrate_once(x[rows], function)
            self.unconverged += again.unconverged
        return results, log_slope

    def _integrate_once(self, x: Tensor, function: FunctionOfDensities) -> tuple[Tensor, Tensor, Tensor]:
        """Return what :meth:`_integrate` does, and which results are as accurate as they should be, ``(N,)``."""
        if self.method == "flow":
            carried = self.carry(x.to(self.dtype), self.accuracy.tol, up=True)
            results, converged = self._by_quadrature(carried.x, function, carried)
            return results, -carried.log_slope, carried.converged & converged
        results, converged = self._by_quadrature(x, function)
        return results, torch.zeros_like(x), converged

    def _by_quadrature(
        self, x: Tensor, function: FunctionOfDensities, carried: Carried | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a function of the densities at ``x (N,)``, and whether they are accurate, ``(N,)``.

        Near points that have been ``carried``, scores and derivatives are known.
        """
        results, converged = [], []
        for rows in self._chunks():
            near = x if carried is None else carried.near
            known = None if carried is None else (carried.score[rows], carried.derivative[rows])
            density = self.density(rows, self._quadrature_sigma, near[rows].double(), at_anchor=known)
            results.append(function(DensitiesAt(density, x[rows].double())))
            converged.append(density.converged)
        return torch.cat(results, -1), torch.cat(converged)

    def _nodes_of_noise(self) -> Interpolation | None:
        """Return the few nodes that tell densities at the largest noise, if these are accurate enough."""
        has_base = isinstance(self.head, ScoreHead) and self.head.has_original_score
        if self.method != "flow" or not has_base or self.looks is not None or self.is_remote:
            return None
        if self.accuracy.max_evaluations < _LEAST_EVALUATIONS:
            return None
        return interpolation(self.path[0], self.data_std, self.accuracy.tol)

    def _interpolate(self, x: Tensor, nodes: Interpolation, function: FunctionOfDensities) -> tuple[Tensor, Tensor]:
        """Return what :meth:`_integrate` does from few nodes, and by quadrature where these do not suffice."""
        carried, sigma = self.carry(x.to(self.dtype), self.accuracy.tol, up=True), self.path[0]
        if compiled := self._usable():
            found = Interpolated(*compiled.interpolate(self._projection, carried.x, sigma, nodes))
        else:
            found = interpolate(lambda x: self.score(x, sigma), carried.x, sigma, self.data_std, nodes)
        results = function(found)
        rows = (~(found.error <= self.accuracy.tol)).nonzero()[:, 0]
        if len(rows):
            rest = Carried(*(values[rows] for values in carried))
            results[..., rows] = self.apply(lambda part: part._by_quadrature(rest.x, function, rest)[0], rows)
        return results, -carried.log_slope

    def _chunks(self) -> list[slice]:
        size = _ACCELERATOR_CONDITIONALS_AT_A_TIME if self.is_remote else CONDITIONALS_AT_A_TIME
        return [slice(start, start + size) for start in range(0, len(self), size)]


def compiled_scores(head: Head) -> ScoreLevels | None:
    """Return the scores of a head in C, or ``None`` if the head or this machine has none."""
    if isinstance(head, LocatedHead):
        return compiled_scores(head.inner)
    if not isinstance(head, ScoreHead) or not head.has_original_score or any("score" in name for name in vars(head)):
        return None
    readable = all(
        type(t) is nn.Parameter and t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64)
        for t in head.parameters()
    )
    return head.native_levels() if readable and not torch.compiler.is_compiling() and _native.available() else None


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


def choose_method(head: Head, path: Sequence[float], method: str | None) -> Method:
    """Return a checked method, or the default: closed form, else the flow with a ladder, else quadrature."""
    if method is None:
        return "closed_form" if head.normalised else "flow" if len(path) > 1 else "quadrature"
    if method == "flow" and not path:
        raise ValueError('method: "flow" needs a model with a noise ladder; use "quadrature"')
    if method == "closed_form" and not head.normalised:
        raise ValueError(f'method: a {type(head).__name__} has no closed form; use "flow" or "quadrature"')
    if method not in ("closed_form", "flow", "quadrature"):
        raise ValueError(f'method: expected "closed_form", "flow" or "quadrature", got {method!r}')
    return method  # type: ignore[return-value]
