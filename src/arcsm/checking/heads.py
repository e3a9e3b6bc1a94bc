"""Tests of heads."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from arcsm.checking.modules import check_config, check_constructor, check_gradients
from arcsm.checking.requirements import TOLERANCE, normal, require, require_equal
from arcsm.heads import Head, LocatedHead, MixedHead, NormalisedHead, ScoreHead
from arcsm.heads.base import Sigma

_SIGMAS: tuple[float | None, ...] = (None, 0.1, 1.0)
_CELLS, _NODES = 1024, 8  # of the quadrature
_FARTHEST_LOGIT = -20.0  # of the probabilities at whose quantiles the quadrature has edges
_MASS_TOLERANCE = 2e-3  # of the quadrature, which is inaccurate where a density jumps
_NOISE_TOLERANCE = 0.05  # of the variance of noise, besides what the quadrature cannot see beside a large variance
_LOST_MASS = 1e-9  # beyond an end of a bracket
_QUANTILE_TOLERANCE = 1e-6  # relative to the smaller of a probability and 1 minus it


def _projection(head: Head, generator: torch.Generator, rows: int = 6) -> Tensor:
    return head.project(normal(generator, rows, head.context_features))


def _values(head: Head, projection: Tensor, sigma: Sigma, generator: torch.Generator, count: int = 0) -> Tensor:
    """Return values ``(N,)``, or ``(N, count)``, where the conditionals ``(N, P)`` have mass.

    Those of a normalised head are about half quantiles, where most of its mass is, and half anywhere in the bracket,
    which is much wider if tails are heavy.
    """
    shape = (len(projection), count) if count else (len(projection),)
    if not isinstance(head, NormalisedHead):
        return 2.0 * normal(generator, *shape)
    projection = projection.detach().unsqueeze(1) if count else projection.detach()
    low, high = (end.detach() for end in head.bracket(projection, sigma))
    values = low + (high - low) * (0.5 + 0.15 * normal(generator, *shape)).clamp(0.01, 0.99)
    if head.discrete:
        return values.floor().clamp(min=0.0)
    u, is_quantile = torch.rand((2, *shape), generator=generator, dtype=values.dtype).unbind(0)
    quantiles = head.projected_icdf(projection, 0.02 + 0.96 * u, sigma).detach()
    return torch.where(is_quantile < 0.5, quantiles.clamp(low, high), values)


def _allowed_sigmas(head: Head) -> list[float | None]:
    """Return the noise levels that a head does not reject with a ``ValueError``."""
    projection = head.project(torch.zeros(1, head.context_features, dtype=torch.float64))
    evaluate = head.projected_score_and_derivative
    if isinstance(head, NormalisedHead) and not head.has_score:
        evaluate = head.projected_log_prob  # type: ignore[assignment]
    allowed = []
    for sigma in _SIGMAS:
        try:
            evaluate(projection, projection.new_zeros(1), sigma)
        except ValueError:
            continue
        allowed.append(sigma)
    require(bool(allowed), f"the head rejects every noise level of {_SIGMAS}")
    return allowed


def _check_attributes(head: Head, generator: torch.Generator) -> None:
    size = getattr(head, "context_features", None)
    require(isinstance(size, int) and size > 0, f"context_features: expected a positive integer, got {size!r}")
    is_normalised = isinstance(head, NormalisedHead)
    claim = f"normalised is {head.normalised}; derive from NormalisedHead if it holds"
    require(head.normalised == is_normalised, claim)
    require(head.has_score or is_normalised, "a head without a score must be a NormalisedHead")
    has_density = isinstance(head, NormalisedHead | ScoreHead) or (
        isinstance(head, LocatedHead) and head.inner.has_density
    )
    require(head.has_density == has_density, f"has_density is {head.has_density}; it follows from the base class")
    context = normal(generator, 6, head.context_features).requires_grad_()
    projection = head.project(context)
    require(projection.ndim == 2 and len(projection) == 6, f"project: expected (6, P), got {tuple(projection.shape)}")
    require_equal(head.project(context[0]), projection[0], "project of one context, against the same in a batch")


def _check_broadcasting(head: Head, generator: torch.Generator) -> None:
    projection = _projection(head, generator)
    functions: dict[str, Callable[[Tensor, Tensor, Sigma], Tensor]] = {}
    if head.has_score:
        functions["score"] = lambda p, x, sigma: head.projected_score_and_derivative(p, x, sigma)[0]
        functions["derivative"] = lambda p, x, sigma: head.projected_score_and_derivative(p, x, sigma)[1]
    if isinstance(head, NormalisedHead):
        functions |= {"log_prob": head.projected_log_prob, "cdf": head.projected_cdf}
    for sigma in _allowed_sigmas(head):
        x = _values(head, projection, sigma, generator, count=4)  # (N, K)
        for name, function in functions.items():
            columns = torch.stack([function(projection, column, sigma) for column in x.unbind(1)], 1)
            together = function(projection.unsqueeze(1), x, sigma)
            require_equal(together, columns, f"{name} of projections (N, 1, P) and values (N, K) at sigma={sigma}")
            require_equal(function(projection[0], x[0, 0], sigma), columns[0, 0], f"{name} of one value, sigma={sigma}")
            if sigma is not None:
                by_level = function(projection, x[:, 0], torch.full_like(x[:, 0], sigma))
                require_equal(by_level, columns[:, 0], f"{name} with sigma as a tensor (N,)")


def _check_score(head: Head, generator: torch.Generator) -> None:
    if not head.has_score:
        return
    projection = _projection(head, generator).detach()
    for sigma in _allowed_sigmas(head):
        x = _values(head, projection, sigma, generator, count=8).requires_grad_()
        s, ds = head.projected_score_and_derivative(projection.unsqueeze(1), x, sigma)
        at = f"at sigma={sigma}"
        require_equal(ds, _derivative(s, x), f"ds {at}, against the derivative of s by autograd")
        if sigma is not None:
            weight = head.loss_weight(torch.tensor(sigma, dtype=torch.float64))
            require(float(weight) > 0.0, f"loss_weight {at}: expected a positive number, got {float(weight)}")
        x = x.detach()
        require_equal(head.projected_score(projection.unsqueeze(1), x, sigma), s, f"projected_score {at}")
        values = x.T[:2].contiguous()
        require_equal(head.prepare_score(sigma)(projection, values), s.T[:2], f"prepare_score {at}, values (2, N)")
        prepared_both = head.prepare_score_and_derivative(sigma)(projection.unsqueeze(1), x)
        for name, value, expected in zip(("score", "derivative"), prepared_both, (s, ds), strict=True):
            require_equal(value, expected, f"{name} of prepare_score_and_derivative {at}")
        if isinstance(head, ScoreHead):
            _check_range(head, projection, sigma)


def _check_noise(head: Head, generator: torch.Generator) -> None:
    """Check that the score of a head that accepts noise levels depends on them."""
    levels = [sigma for sigma in _allowed_sigmas(head) if sigma is not None]
    if not head.has_score or len(levels) < 2:
        return
    projection = _projection(head, generator).detach()
    x = _values(head, projection, levels[0], generator)
    first, second = (head.projected_score(projection, x, sigma) for sigma in levels)
    ignored = torch.allclose(first, second, TOLERANCE, TOLERANCE)
    same = f"the score is the same at sigma={levels[0]} and {levels[1]}"
    require(not ignored, f"{same}; use sigma, or raise a ValueError unless it is None")
    if isinstance(head, NormalisedHead) and not head.discrete:
        _check_moments(head, projection.unsqueeze(1))


def _check_moments(head: NormalisedHead, projection: Tensor) -> None:
    """Check that noise leaves the means of the conditionals ``(N, 1, P)`` and adds its variance to theirs."""
    first, *others = _allowed_sigmas(head)
    mean, least = _moments(head, projection, first)
    for sigma in others:
        assert sigma is not None
        noise = sigma**2 - (first or 0.0) ** 2
        moved, var = _moments(head, projection, sigma)
        shift, added = (moved - mean).abs(), var - least
        far = shift > _NOISE_TOLERANCE * sigma + _MASS_TOLERANCE * least.sqrt()
        differs = f"the mean at sigma={sigma} differs from that at sigma={first} by {float(shift.max()):.3g}"
        require(not bool(far.any()), f"{differs}; noise does not move it")
        wrong = (added - noise).abs() > _NOISE_TOLERANCE * noise + _MASS_TOLERANCE * least
        difference = float(added[wrong.nonzero()[:1, 0]].sum())  # of the first wrong one
        exceeds = f"the variance at sigma={sigma} exceeds that at sigma={first} by {difference:.3g}"
        require(not bool(wrong.any()), f"{exceeds}, not by that of the noise, {noise:.3g}")


def _moments(head: NormalisedHead, projection: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
    """Return means and variances ``(N,)`` by quadrature."""
    _, x, mass = _quadrature(head, projection, sigma)
    mass = mass / mass.sum((1, 2), keepdim=True)
    mean = (mass * x).sum((1, 2))
    return mean, (mass * (x - mean[:, None, None]).square()).sum((1, 2))


def _check_range(head: ScoreHead, projection: Tensor, sigma: float | None) -> None:
    """Check that scores point inwards at the ends of the range of integration."""
    end = head.tail_start(sigma)
    for x in (-end, end):
        s = head.projected_score(projection, torch.full_like(projection[:, 0], x), sigma)
        outward = f"score at sigma={sigma}: points outwards at x={x:g}"
        require(bool((s * x < 0.0).all()), f"{outward}, but the mass must lie within {end:g}; raise data_std")


def _derivative(y: Tensor, x: Tensor) -> Tensor:
    derivative = torch.autograd.grad(y.sum(), x, retain_graph=True, allow_unused=True)[0] if y.requires_grad else None
    return torch.zeros_like(x) if derivative is None else derivative


def _check_density(head: Head, generator: torch.Generator) -> None:
    if not isinstance(head, NormalisedHead):
        return
    if head.discrete:
        _check_level_masses(head, _projection(head, generator).detach())
        return
    projection = _projection(head, generator).detach().unsqueeze(1)  # (N, 1, P)
    for sigma in _allowed_sigmas(head):
        x = _values(head, projection[:, 0], sigma, generator, count=8).requires_grad_()
        log_prob, cdf = head.projected_log_prob(projection, x, sigma), head.projected_cdf(projection, x, sigma)
        if head.has_score:
            s, what = head.projected_score(projection, x, sigma), "the derivative of log_prob"
            require_equal(_derivative(log_prob, x), s, f"{what} at sigma={sigma}, against the score")
        density = log_prob.detach().exp()
        require_equal(_derivative(cdf, x), density, f"the derivative of cdf at sigma={sigma}, against the density")
        _check_masses(head, projection, sigma)
        _check_quantiles(head, projection[:, 0], sigma)


def _check_level_masses(head: NormalisedHead, projection: Tensor) -> None:
    """Check the masses of levels, and distribution function and quantiles against their sums."""
    low, high = head.bracket(projection)
    levels = torch.arange(float(low.min().ceil()), float(high.max().floor()) + 1.0).to(projection)
    below = head.projected_log_prob(projection.unsqueeze(1), levels).exp().cumsum(1)  # (N, K)
    require_equal(below[:, -1], torch.ones_like(below[:, -1]), "the sum of the masses of all levels")
    require_equal(head.projected_cdf(projection.unsqueeze(1), levels), below, "cdf, against the sum of the masses")
    for u in (0.01, 0.3, 0.99):
        quantile = head.projected_icdf(projection, torch.full_like(projection[:, 0], u))
        reached = head.projected_cdf(projection, quantile) >= u - TOLERANCE
        short = head.projected_cdf(projection, quantile - 1.0) < u + TOLERANCE
        require(bool((reached & short).all()), f"projected_icdf of {u}: not the first level whose cdf reaches it")


def _check_quantiles(head: NormalisedHead, projection: Tensor, sigma: Sigma) -> None:
    """Check quantiles against the distribution function."""
    for u in (1e-4, 0.3, 1.0 - 1e-4):
        quantile = head.projected_icdf(projection, torch.full_like(projection[:, 0], u), sigma)
        difference = float((head.projected_cdf(projection, quantile, sigma) - u).detach().abs().max())
        exact = difference <= _QUANTILE_TOLERANCE * min(u, 1.0 - u)
        require(exact, f"projected_icdf of {u} at sigma={sigma}: its cdf differs by {difference:.2g}")


@torch.no_grad()
def _quadrature(head: NormalisedHead, projection: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor, Tensor]:
    """Return the edges ``(N, E)`` of cells between the ends of the bracket, nodes in them, and the masses of these.

    The latter two are ``(N, E - 1, nodes)``. Conditionals are ``(N, 1, P)``.
    """
    low, high = head.bracket(projection, sigma)  # (N, 1)
    require(bool((low < high).all()), f"bracket at sigma={sigma}: the ends are not in order")
    equal = low + (high - low) * torch.linspace(0.0, 1.0, _CELLS + 1, dtype=low.dtype)  # (N, cells + 1)
    u = torch.linspace(_FARTHEST_LOGIT, -_FARTHEST_LOGIT, _CELLS, dtype=low.dtype).sigmoid()
    quantiles = head.projected_icdf(projection, u.expand(len(low), -1), sigma)  # close together in the middle
    edges = torch.cat([equal, quantiles.clamp(low, high)], 1).sort(1).values
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(_NODES))
    width = edges.diff(dim=1)[..., None]
    x = edges[:, :-1, None] + width * (0.5 + 0.5 * nodes)
    density = head.projected_log_prob(projection, x.flatten(1), sigma).exp().view_as(x)
    return edges, x, density * weights * width / 2.0


@torch.no_grad()
def _check_masses(head: NormalisedHead, projection: Tensor, sigma: Sigma) -> None:
    """Check the distribution function against a quadrature of the density between the ends of the bracket."""
    edges, _, mass_of_nodes = _quadrature(head, projection, sigma)
    cdf = head.projected_cdf(projection, edges, sigma)
    mass = cdf[:, :1] + mass_of_nodes.sum(-1).cumsum(1)
    lost = max(float(cdf[:, 0].abs().max()), float((1.0 - cdf[:, -1]).abs().max()))
    require(lost <= _LOST_MASS, f"bracket at sigma={sigma}: the cdf at its ends differs from 0 and 1 by {lost:.2g}")
    require(float(cdf.diff(dim=1).min()) >= -TOLERANCE, f"cdf at sigma={sigma}: decreases")
    difference = float((cdf[:, 1:] - mass).abs().max())
    message = f"cdf at sigma={sigma}: differs from the integral of the density by {difference:.2g}"
    require(difference <= _MASS_TOLERANCE, message)


def _outputs(head: Head, generator: torch.Generator) -> Tensor:
    projection, outputs = _projection(head, generator), []
    for sigma in _allowed_sigmas(head):
        x = _values(head, projection, sigma, generator)
        outputs += list(head.projected_score_and_derivative(projection, x, sigma)) if head.has_score else []
        outputs += [head.projected_log_prob(projection, x, sigma)] if isinstance(head, NormalisedHead) else []
    return torch.stack(outputs)


def _check_heads(head: MixedHead, generator: torch.Generator) -> None:
    """Run all tests on each head of a mixture of kinds."""
    for part in head.parts(len(head.columns)):
        for check in HEAD_CHECKS.values():
            check(part.head, generator)


def _check_mixed_config(head: MixedHead, _: torch.Generator) -> None:
    require(type(head)(**head.config()).config() == head.config(), "config: does not rebuild the head")


HEAD_CHECKS = {
    "attributes": _check_attributes,
    "broadcasting": _check_broadcasting,
    "score": _check_score,
    "density": _check_density,
    "noise": _check_noise,
    "gradients": lambda head, generator: check_gradients(head, _outputs(head, generator), generator),
    "constructor": lambda head, _: check_constructor(
        head, "inner" if isinstance(head, LocatedHead) else "context_features"
    ),
    "config": lambda head, _: check_config(head, _outputs),
}

MIXED_HEAD_CHECKS = {"heads": _check_heads, "config": _check_mixed_config}
