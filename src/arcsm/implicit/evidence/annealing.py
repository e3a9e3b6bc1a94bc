"""Annealed importance sampling of the likelihood of a latent variable model, from below and from above."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from arcsm._runtime.progress import track
from arcsm.implicit.evidence.proposals import Proposal, check_inputs, decoded_at_once, fit_proposal
from arcsm.implicit.networks.vae import VAE

_ACCEPTANCE = 0.65  # of transitions, that step sizes are adapted towards
_FACTOR = 1.02  # by which a step grows with each that is accepted


@dataclass(frozen=True)
class Annealing:
    """How to anneal from the proposal to the posterior.

    Attributes:
        temperatures: Number of steps, on a sigmoid schedule.
        chains: For each input.
        leapfrog: Leapfrog steps of each transition of Hamiltonian Monte Carlo.
        step_size: Of the leapfrog at the start, in units of the proposal; a chain of every input that goes before
            the others adapts it for every temperature, towards an acceptance of 0.65.

    Raises:
        ValueError: for numbers that are not positive.
    """

    temperatures: int = 100
    chains: int = 8
    leapfrog: int = 5
    step_size: float = 0.3

    def __post_init__(self) -> None:
        for name in ("temperatures", "chains", "leapfrog", "step_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")

    def schedule(self) -> list[float]:
        """Inverse temperatures from 0 to 1, denser at both ends."""
        radius = 4.0
        raw = [
            1.0 / (1.0 + math.exp(-radius * (2.0 * t / self.temperatures - 1.0))) for t in range(self.temperatures + 1)
        ]
        return [(value - raw[0]) / (raw[-1] - raw[0]) for value in raw]


def annealed_bound(
    vae: VAE,
    x: Tensor,
    annealing: Annealing | None = None,
    proposal: Proposal | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """:math:`\\log p(x)` in nats, ``(B,)``, by annealed importance sampling: a lower bound in expectation.

    The mean weight of the chains is the evidence in expectation, whatever their number; its logarithm is lower, by
    about half of the relative variance of that mean.

    References:
        Annealed Importance Sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008;
        On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017),
        https://arxiv.org/abs/1611.04273

    Arguments:
        vae: The model.
        x: Inputs, ``(B, F)``.
        annealing: How.
        proposal: Where to begin; by default fitted to the inputs, which needs far fewer temperatures than the prior
            (:meth:`Proposal.prior`), where Wu et al. begin.
        generator: Source of randomness.
        progress: Show a progress bar (on a terminal).

    Raises:
        ValueError: as :func:`fit_proposal`.
    """
    check_inputs(vae, x)
    annealing = annealing or Annealing()
    proposal = fit_proposal(vae, x, generator=generator) if proposal is None else proposal
    shape = (len(x), annealing.chains, vae.latents)
    v = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
    return _Chains(vae, annealing, False, generator, progress).log_mean_weight(x, v, proposal)


def annealed_upper_bound(
    vae: VAE,
    x: Tensor,
    z: Tensor,
    annealing: Annealing | None = None,
    proposal: Proposal | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """An upper bound in expectation, by annealing backwards from exact latents ``(B, D)`` of simulated inputs.

    Arguments:
        vae: The model.
        x: Inputs that the model drew, ``(B, F)``.
        z: The latents that they were drawn from, ``(B, D)``.
        annealing: How.
        proposal: Where the annealing ends; by default fitted to the inputs.
        generator: Source of randomness.
        progress: Show a progress bar (on a terminal).

    Returns:
        Bounds of the log likelihood in nats, ``(B,)``.

    References:
        Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse, Ghahramani and Adams, 2015),
        https://arxiv.org/abs/1511.02543

    Raises:
        ValueError: as :func:`fit_proposal`, and for latents of another shape.
    """
    check_inputs(vae, x)
    if z.shape != (len(x), vae.latents):
        raise ValueError(f"z: expected latents {(len(x), vae.latents)}, got {tuple(z.shape)}")
    annealing = annealing or Annealing()
    proposal = fit_proposal(vae, x, generator=generator) if proposal is None else proposal
    centred = (z - proposal.mean).unsqueeze(-1)
    v = torch.linalg.solve_triangular(proposal.scale, centred, upper=False).squeeze(-1)
    v = v.unsqueeze(1).expand(-1, annealing.chains, -1)
    return -_Chains(vae, annealing, True, generator, progress).log_mean_weight(x, v, proposal)


def gap(
    vae: VAE,
    count: int,
    annealing: Annealing | None = None,
    fitted: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds, ``(count,)`` each, on inputs that the model draws: how far off annealing may be there.

    Arguments:
        vae: The model.
        count: Number of simulated inputs.
        annealing: How.
        fitted: Begin at a fitted proposal rather than at the prior.
        generator: Source of randomness.
    """
    with torch.no_grad():
        z = vae.draw_latents(count, generator)
        x = vae.decoder.sample(z, generator)
        prior = Proposal.prior(count, vae.latents, x)
        proposal = fit_proposal(vae, x, generator=generator) if fitted else prior
    lower = annealed_bound(vae, x, annealing, proposal, generator)
    return lower, annealed_upper_bound(vae, x, z, annealing, proposal, generator)


LogRatio = Callable[[Tensor], Tensor]


class _Point(NamedTuple):
    """Where chains are: ``v (B, K, D)``, the log ratio there ``(B, K)`` and its slope."""

    v: Tensor
    ratio: Tensor
    slope: Tensor


@dataclass(frozen=True)
class _Chains:
    """Chains of many inputs along the inverse temperatures, upwards or downwards."""

    vae: VAE
    annealing: Annealing
    backwards: bool
    generator: torch.Generator | None
    progress: bool

    def log_mean_weight(self, x: Tensor, v: Tensor, proposal: Proposal) -> Tensor:
        """Of the chains of each input, ``(B,)``, from ``(B, K, D)`` on, in units of the proposals.

        It takes some inputs at a time, so that memory does not grow with their number.
        """
        size = max(1, decoded_at_once(self.vae) // self.annealing.chains)
        starts = range(0, len(x), size)
        found = [x.new_zeros(0)]
        with track("annealing", len(starts) * self.annealing.temperatures, self.progress) as advance:
            for start in starts:
                rows = slice(start, start + size)
                log_ratio = self._log_ratio(x[rows], Proposal(proposal.mean[rows], proposal.scale[rows]))
                weights = self._weights(log_ratio, v[rows], self._steps(log_ratio, v[rows, :1]), advance)
                found.append(torch.logsumexp(weights, 1) - math.log(v.shape[1]))
        return torch.cat(found)

    def _log_ratio(self, x: Tensor, proposal: Proposal) -> LogRatio:
        """Of the posterior (times the evidence) and the proposal, both in its coordinates: ``(B, K, D)`` to
        ``(B, K)``."""
        constant = 0.5 * self.vae.latents * math.log(2.0 * math.pi)

        def log_ratio(v: Tensor) -> Tensor:
            log_joint = self.vae.log_joint(x, proposal.place(v))
            return log_joint + proposal.log_volume() + 0.5 * v.square().sum(-1) + constant

        return log_ratio

    def _steps(self, log_ratio: LogRatio, like: Tensor) -> list[Tensor]:
        """Step sizes at every temperature above the first, ``(B, 1)`` each, by a chain that is for nothing else.

        Transitions of fixed size leave their distribution as it is. Those of a chain whose size depends on what it
        did before would not, and the weights would not have the evidence as their mean.
        """
        v = torch.randn(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)
        point, step = _point(log_ratio, v), v.new_full(v.shape[:2], self.annealing.step_size)
        steps = []
        for beta in self.annealing.schedule()[1:]:
            point, accepted = _transition(log_ratio, point, beta, step, self.annealing.leapfrog, self.generator)
            step = _adapted(step, accepted)
            steps.append(step)
        return steps

    def _weights(self, log_ratio: LogRatio, v: Tensor, steps: list[Tensor], advance: Callable[[int], object]) -> Tensor:
        """The log weights of chains from ``v (B, K, D)`` on, ``(B, K)``."""
        schedule = self.annealing.schedule()
        point, weights = _point(log_ratio, v), v.new_zeros(v.shape[:2])
        rungs = list(zip(itertools.pairwise(schedule), steps, strict=True))
        for (lower, upper), step in reversed(rungs) if self.backwards else rungs:
            if not self.backwards:
                weights = weights + (upper - lower) * point.ratio
            point, _ = _transition(log_ratio, point, upper, step, self.annealing.leapfrog, self.generator)
            if self.backwards:
                weights = weights - (upper - lower) * point.ratio
            advance(1)
        return weights


def _transition(
    log_ratio: LogRatio,
    point: _Point,
    beta: float,
    step: Tensor,
    leapfrog: int,
    generator: torch.Generator | None,
) -> tuple[_Point, Tensor]:
    """Hamiltonian Monte Carlo: keeps :math:`N(v; 0, I)\\, e^{\\beta\\, \\mathrm{ratio}(v)}`.

    Arguments:
        log_ratio: The ratio.
        point: Where chains are.
        beta: Inverse temperature.
        step: Sizes ``(B, K)`` or ``(B, 1)`` of the leapfrog.
        leapfrog: Number of its steps.
        generator: Source of randomness.

    Returns:
        Where they are then, and which have moved, ``(B, K)``.
    """
    v, size = point.v, step.unsqueeze(-1)
    momentum = torch.randn(v.shape, generator=generator, device=v.device, dtype=v.dtype)

    def energy(at: _Point, p: Tensor) -> Tensor:
        return 0.5 * (at.v.square() + p.square()).sum(-1) - beta * at.ratio

    at, p = point, momentum + 0.5 * size * (beta * point.slope - v)
    for index in range(leapfrog):
        at = _point(log_ratio, at.v + size * p)
        last = index == leapfrog - 1
        p = p + (0.5 if last else 1.0) * size * (beta * at.slope - at.v)
    gain = energy(point, momentum) - energy(at, p)
    draw = torch.rand(gain.shape, generator=generator, device=v.device, dtype=v.dtype)
    accepted = draw.log() < gain.nan_to_num(nan=-math.inf)
    rows = accepted.unsqueeze(-1)
    moved = _Point(
        torch.where(rows, at.v, v),
        torch.where(accepted, at.ratio, point.ratio),
        torch.where(rows, at.slope, point.slope),
    )
    return moved, accepted


def _adapted(step: Tensor, accepted: Tensor) -> Tensor:
    """The next step sizes: in balance where a share :data:`_ACCEPTANCE` of the transitions is accepted."""
    shorter = _FACTOR ** (-_ACCEPTANCE / (1.0 - _ACCEPTANCE))
    return torch.where(accepted, _FACTOR * step, shorter * step).clamp(1e-4, 2.0)


def _point(function: LogRatio, v: Tensor) -> _Point:
    v = v.detach().requires_grad_()
    with torch.enable_grad():
        value = function(v)
        (slope,) = torch.autograd.grad(value.sum(), v)
    return _Point(v.detach(), value.detach(), slope)
