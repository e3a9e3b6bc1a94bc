"""Draws from the joint posterior of a spoilt row, by sequential Monte Carlo over its dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arcsm._runtime.batching import ROWS, condition_rows, slices_of
from arcsm._runtime.progress import track
from arcsm._runtime.random import open_uniform_like
from arcsm.conditionals.conditionals import EvaluationCache
from arcsm.conditionals.traversal import warn_unconverged
from arcsm.denoise.corruptions import Corruption, MissingValues, standardised_at
from arcsm.denoise.posteriors import Posterior
from arcsm.model import AutoregressiveModel

__all__ = ["Particles", "particles", "systematic"]


@dataclass(frozen=True)
class Particles:
    """Candidates for each row, weighed by how well they explain all of its noisy values.

    Attributes:
        candidates: ``(*, K, D)`` in data units.
        weights: ``(*, K)``, each row summing to one.
        log_evidence: :math:`\\log p(y)` in nats, ``(*)``: the log of an unbiased estimate of the density of a noisy
            row (data units).
    """

    candidates: Tensor
    weights: Tensor
    log_evidence: Tensor

    def mean(self) -> Tensor:
        """The posterior mean, ``(*, D)``."""
        return (self.weights.to(self.candidates).unsqueeze(-1) * self.candidates).sum(-2)


@torch.no_grad()
def particles(
    model: AutoregressiveModel,
    y: Tensor,
    corruption: Corruption,
    count: int = 32,
    generator: torch.Generator | None = None,
    condition: Tensor | None = None,
    method: str | None = None,
    threshold: float = 0.5,
    tol: float = 1e-3,
    max_evaluations: int = 512,
    progress: bool = False,
    level: int = -1,
) -> Particles:
    """Draw from the *joint* posterior of a row by sequential Monte Carlo over its dimensions.

    .. math:: x_d^k \\sim p(x_d \\mid y_d, x_{<d}^k), \\qquad
        w_k \\leftarrow w_k\\, p(y_d \\mid x_{<d}^k), \\quad
        p(y_d \\mid x_{<d}) = \\int q(x_d \\mid x_{<d})\\, p(y_d \\mid x_d)\\, dx_d

    A candidate whose values make the later noisy ones unlikely loses its weight, so that later evidence reaches
    earlier dimensions. Candidates are resampled (systematically) when the weights have become too unequal: that
    leaves few ancestors for the first dimensions of long rows, whose posterior is then represented coarsely.

    References:
        A Tutorial on Particle Filtering and Smoothing (Doucet and Johansen, 2009), Section 4.2 (optimal proposal)

    Arguments:
        model: The model.
        y: Noisy rows, ``(*, D)`` in data units.
        corruption: How they came about, as in :func:`arcsm.denoise.posterior`.
        count: Number of candidates :math:`K` for each row.
        generator: Source of randomness, on the model's device.
        condition: What the model is conditioned on, ``(*, F)`` or labels ``(*)``.
        method: How :math:`q` is normalised, as in :func:`arcsm.denoise.posterior`.
        threshold: Resample when the effective number of candidates is below this share of all; 0 for never.
        tol: Error of a log density in nats to aim for.
        max_evaluations: Largest number of evaluations of the score for one integral.
        progress: Show a progress bar (on a terminal).
        level: Noise level of the prior.

    Raises:
        ValueError: for no rows, a count below one, or a threshold that is no share.

    Warns:
        AccuracyWarning: once a call, if some integrals missed ``tol``.

    Example:
        >>> from arcsm import MADE, GaussianHead
        >>> from arcsm.denoise.corruptions import GaussianNoise
        >>> model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4))
        >>> found = particles(model, torch.zeros(3, 2), GaussianNoise(0.5), count=10)
        >>> found.candidates.shape, found.mean().shape
        (torch.Size([3, 10, 2]), torch.Size([3, 2]))
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold: expected a share from 0 to 1, got {threshold}")
    missing = isinstance(corruption, MissingValues)  # candidates fill the gaps before a context sees them
    flat = model.standardise(y, missing or None).reshape(-1, model.features)
    if not len(flat):
        raise ValueError(f"y: expected at least one row, got shape {tuple(y.shape)}")
    if not missing and bool(flat.isnan().any()):
        raise ValueError("y: holds missing values; fill them first (arcsm.denoise.corruptions.MissingValues)")
    rows = condition_rows(condition, y.shape[:-1])
    build = model.conditionals_of(level, method, None, tol, max_evaluations, EvaluationCache())
    size = max(1, ROWS // count)
    clouds, unconverged = [], 0
    with track("denoising", model.features * -(-len(flat) // size), progress) as advance:
        for part in slices_of(len(flat), size):
            cloud = _Cloud.start(model, flat[part], rows(part), count)
            for d in model.context.order:
                conditionals = build(model.head.project(model.context.step(cloud.state, cloud.previous)))
                noisy = flat[part, d].repeat_interleave(count)
                found = standardised_at(corruption, model, d).posterior(conditionals, noisy)
                cloud.weigh(found.log_evidence())
                found = cloud.resample(model, found, threshold, generator)
                cloud.extend(d, found.quantile(open_uniform_like(noisy, generator)))
                unconverged += conditionals.unconverged
                advance()
            clouds.append(cloud)
    warn_unconverged(unconverged, flat.numel() * count)
    candidates = torch.cat([cloud.candidates for cloud in clouds]) * model.scale + model.shift
    units = (torch.log(model.scale) * ~flat.isnan()).sum(-1)  # what is not there has no density
    log_evidence = torch.cat([cloud.log_evidence for cloud in clouds]) - units
    return Particles(
        candidates.view(*y.shape[:-1], count, model.features),
        torch.cat([cloud.log_weights for cloud in clouds]).exp().view(*y.shape[:-1], count),
        log_evidence.view(y.shape[:-1]),
    )


@dataclass
class _Cloud:
    """Candidates of ``N`` rows on their way through the dimensions, in standardised units."""

    state: Any
    candidates: Tensor  # (N * K, D)
    log_weights: Tensor  # (N, K), normalised
    log_evidence: Tensor  # (N,)
    previous: Tensor | None = None  # (N * K,)

    @classmethod
    def start(cls, model: AutoregressiveModel, noisy: Tensor, condition: Tensor | None, count: int) -> _Cloud:
        condition = None if condition is None else condition.repeat_interleave(count, 0)
        candidates = torch.zeros_like(noisy).repeat_interleave(count, 0)
        log_weights = noisy.new_full((len(noisy), count), -math.log(count), dtype=torch.float64)
        state = model.context.begin((len(candidates),), condition)
        return cls(state, candidates, log_weights, log_weights.new_zeros(len(noisy)))

    def weigh(self, log_evidence: Tensor) -> None:
        """Multiply the weights by the evidence ``(N * K,)`` of the next noisy values."""
        log_weights = self.log_weights + log_evidence.view(self.log_weights.shape)
        total = torch.logsumexp(log_weights, 1)
        self.log_weights, self.log_evidence = log_weights - total[:, None], self.log_evidence + total

    def resample(
        self, model: AutoregressiveModel, found: Posterior, threshold: float, generator: torch.Generator | None
    ) -> Posterior:
        """Where few candidates have most of the weight, draw all anew from among them."""
        n, count = self.log_weights.shape
        weights = self.log_weights.exp()
        poor = 1.0 / weights.square().sum(1) < threshold * count  # (N,)
        if not bool(poor.any()):
            return found
        chosen = torch.where(poor[:, None], systematic(weights, generator), torch.arange(count, device=poor.device))
        rows = (chosen + count * torch.arange(n, device=poor.device)[:, None]).flatten()  # (N * K,)
        self.log_weights = torch.where(poor[:, None], -math.log(count), self.log_weights)
        self.candidates = self.candidates[rows]
        model.context.select(self.state, rows)
        return found.select(rows)

    def extend(self, d: int, values: Tensor) -> None:
        """Add a dimension."""
        self.candidates[:, d] = self.previous = values


def systematic(weights: Tensor, generator: torch.Generator | None = None, keep: int | None = None) -> Tensor:
    """Systematic resampling: which of ``K`` candidates to keep, ``(N, keep)``, by their weights ``(N, K)``.

    A candidate of weight :math:`w` is kept ``keep`` :math:`w` times, rounded up or down, so that the expectation is
    right. As many are kept as there are, unless told otherwise.

    Example:
        >>> systematic(torch.tensor([[0.5, 0.0, 0.5, 0.0]])).tolist()
        [[0, 0, 2, 2]]
    """
    n, last = weights.shape[0], weights.shape[1] - 1
    count = weights.shape[1] if keep is None else keep
    start = torch.rand(n, 1, generator=generator, device=weights.device, dtype=weights.dtype)
    wanted = (torch.arange(count, device=weights.device) + start) / count
    return torch.searchsorted(weights.cumsum(1), wanted, right=True).clamp(max=last)
