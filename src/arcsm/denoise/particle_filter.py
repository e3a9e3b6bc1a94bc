"""Samples from the joint posterior of a corrupted row, by sequential Monte Carlo over its dimensions."""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from arcsm._runtime.batching import ROWS, condition_rows, slices_of
from arcsm._runtime.conditions import Condition, map_condition
from arcsm._runtime.progress import track
from arcsm._runtime.random import open_uniform_like
from arcsm.conditionals import Count
from arcsm.conditionals.conditionals import EvaluationCache
from arcsm.conditionals.traversal import warn_unconverged
from arcsm.denoise.corruptions import Corruption, MissingValues, standardised_at
from arcsm.denoise.posteriors import Posterior
from arcsm.model import AutoregressiveModel


@dataclass(frozen=True)
class WeightedCandidates:
    """Candidates for each row, weighted by how well they explain all of its corrupted values.

    Attributes:
        candidates: ``(*, K, D)`` in data units.
        weights: ``(*, K)``; the weights of a row sum to one.
        log_evidence: Log of an unbiased estimate of the density :math:`p(y)` of a corrupted row, ``(*)``, in nats and
            data units.
    """

    candidates: Tensor
    weights: Tensor
    log_evidence: Tensor

    def mean(self) -> Tensor:
        """Return the posterior mean, ``(*, D)``."""
        return (self.weights.to(self.candidates).unsqueeze(-1) * self.candidates).sum(-2)


@torch.no_grad()
def particle_filter(
    model: AutoregressiveModel,
    y: Tensor,
    corruption: Corruption,
    count: int = 32,
    generator: torch.Generator | None = None,
    condition: Condition | None = None,
    method: str | None = None,
    threshold: float = 0.5,
    tol: float = 1e-3,
    max_evaluations: int = 512,
    progress: bool = False,
    level: int = -1,
) -> WeightedCandidates:
    """Sample from the *joint* posterior of each row by sequential Monte Carlo over its dimensions.

    .. math:: x_d^k \\sim p(x_d \\mid y_d, x_{<d}^k), \\qquad
        w_k \\leftarrow w_k\\, p(y_d \\mid x_{<d}^k), \\quad
        p(y_d \\mid x_{<d}) = \\int q(x_d \\mid x_{<d})\\, p(y_d \\mid x_d)\\, dx_d

    A candidate that makes later corrupted values unlikely loses weight, so that later evidence reaches earlier
    dimensions. When the weights have become too unequal, candidates are resampled systematically. In long rows,
    few distinct ancestors then remain for the first dimensions, whose posterior is represented coarsely. Other
    arguments and warnings are as in :func:`arcsm.denoise.posterior`.

    References:
        A Tutorial on Particle Filtering and Smoothing (Doucet and Johansen, 2009), Section 4.2 (optimal proposal)

    Arguments:
        count: Number of candidates :math:`K` for each row, at least one.
        threshold: Resample when the effective sample size falls below this fraction of ``count``; 0 never resamples.
        level: Noise level of the prior.

    Example:
        >>> from arcsm import MADE, GaussianHead
        >>> from arcsm.denoise.corruptions import GaussianNoise
        >>> model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4))
        >>> restored = particle_filter(model, torch.zeros(3, 2), GaussianNoise(0.5), count=10)
        >>> restored.candidates.shape, restored.mean().shape
        (torch.Size([3, 10, 2]), torch.Size([3, 2]))
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold: expected a fraction from 0 to 1, got {threshold}")
    model.check_noise_units("particle filter; arcsm.queries.complete fills missing values")
    missing = isinstance(corruption, MissingValues)  # candidates fill them before a context sees them
    flat = model.standardise(y, missing or None).reshape(-1, model.features)
    if not len(flat):
        raise ValueError(f"y: expected at least one row, got shape {tuple(y.shape)}")
    if not missing and bool(flat.isnan().any()):
        raise ValueError("y: contains missing values; fill them first (arcsm.denoise.MissingValues)")
    rows = condition_rows(model.standardise_condition(condition, y.shape[:-1]), y.ndim - 1)
    build = model.conditionals_builder(level, method, None, tol, max_evaluations, EvaluationCache())
    size = max(1, ROWS // count)
    batches = []
    unconverged: Count = 0
    with track("denoising", model.features * -(-len(flat) // size), progress) as advance:
        for part in slices_of(len(flat), size):
            batch = _Particles.start(model, flat[part], rows(part), count)
            for d in model.context.order:
                head = model.head_of(d)
                conditionals = build(head.project(model.context.step(batch.state, batch.previous)), head)
                corrupted = flat[part, d].repeat_interleave(count)
                posterior = standardised_at(corruption, model, d).posterior(conditionals, corrupted)
                batch.reweight(posterior.log_evidence())
                posterior = batch.resample(model, posterior, threshold, generator)
                batch.candidates[:, d] = batch.previous = posterior.icdf(open_uniform_like(corrupted, generator))
                unconverged += conditionals.unconverged
                advance()
            batches.append(batch)
    warn_unconverged(unconverged, flat.numel() * count)
    candidates = torch.cat([batch.candidates for batch in batches]) * model.scale + model.shift
    log_scale = (torch.log(model.scale) * ~flat.isnan()).sum(-1)
    log_evidence = torch.cat([batch.log_evidence for batch in batches]) - log_scale
    return WeightedCandidates(
        candidates.view(*y.shape[:-1], count, model.features),
        torch.cat([batch.log_weights for batch in batches]).exp().view(*y.shape[:-1], count),
        log_evidence.view(y.shape[:-1]),
    )


@dataclass
class _Particles:
    """State of the filter for ``N`` rows, in standardised units."""

    state: Any  # of the context, for all candidates
    candidates: Tensor  # (N * K, D)
    log_weights: Tensor  # (N, K), normalised
    log_evidence: Tensor  # (N,)
    previous: Tensor | None = None  # (N * K,) the dimension sampled last

    @classmethod
    def start(cls, model: AutoregressiveModel, corrupted: Tensor, condition: Condition | None, count: int) -> Self:
        condition = map_condition(lambda part: part.repeat_interleave(count, 0), condition)
        candidates = torch.zeros_like(corrupted).repeat_interleave(count, 0)
        log_weights = corrupted.new_full((len(corrupted), count), -math.log(count), dtype=torch.float64)
        state = model.context.begin((len(candidates),), condition)
        return cls(state, candidates, log_weights, log_weights.new_zeros(len(corrupted)))

    def reweight(self, log_evidence: Tensor) -> None:
        """Multiply the weights by the evidence ``(N * K,)`` of the next corrupted values."""
        log_weights = self.log_weights + log_evidence.view(self.log_weights.shape)
        total = torch.logsumexp(log_weights, 1)
        self.log_weights, self.log_evidence = log_weights - total[:, None], self.log_evidence + total

    def resample(
        self, model: AutoregressiveModel, posterior: Posterior, threshold: float, generator: torch.Generator | None
    ) -> Posterior:
        """Resample the candidates of rows with a small effective sample size."""
        n, count = self.log_weights.shape
        weights = self.log_weights.exp()
        small = 1.0 / weights.square().sum(1) < threshold * count  # (N,)
        if not bool(small.any()):
            return posterior
        unchanged = torch.arange(count, device=small.device)
        ancestors = torch.where(small[:, None], systematic_resampling(weights, generator), unchanged)  # (N, K)
        rows = (ancestors + count * torch.arange(n, device=small.device)[:, None]).flatten()  # (N * K,)
        self.log_weights = torch.where(small[:, None], -math.log(count), self.log_weights)
        self.candidates = self.candidates[rows]
        model.context.select(self.state, rows)
        return posterior.select(rows)


def systematic_resampling(
    weights: Tensor, generator: torch.Generator | None = None, count: int | None = None
) -> Tensor:
    """Draw ``count`` of ``K`` candidates in proportion to their weights ``(N, K)``, ``(N, count)``.

    A candidate of weight :math:`w` is drawn :math:`w` ``count`` times, rounded up or down such that the expectation is
    exact. Default: ``count`` is ``K``.

    Example:
        >>> systematic_resampling(torch.tensor([[0.5, 0.0, 0.5, 0.0]])).tolist()
        [[0, 0, 2, 2]]
    """
    n, last = weights.shape[0], weights.shape[1] - 1
    count = weights.shape[1] if count is None else count
    start = torch.rand(n, 1, generator=generator, device=weights.device, dtype=weights.dtype)
    positions = (torch.arange(count, device=weights.device) + start) / count
    return torch.searchsorted(weights.cumsum(1), positions, right=True).clamp(max=last)
