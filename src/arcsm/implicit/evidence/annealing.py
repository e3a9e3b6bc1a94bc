"""Annealed importance sampling of the evidence of a latent variable model, from below and from above."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from arcsm._runtime.batching import slices_of
from arcsm._runtime.progress import track
from arcsm._runtime.random import normal_like, uniform_like
from arcsm.implicit.evidence.proposals import Proposal, check_inputs, decoded_at_once, fit_proposal
from arcsm.implicit.networks.vae import VAE

_TARGET_ACCEPTANCE = 0.65
_STEP_GROWTH = 1.02  # of the step size after an accepted transition
_MIN_STEP, _MAX_STEP = 1e-4, 2.0
_SCHEDULE_RADIUS = 4.0  # the sigmoid's arguments run from minus to plus this

LogRatio = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Annealing:
    """Settings of the path from the proposal to the posterior, all of them positive.

    Attributes:
        temperatures: Number of steps, on a sigmoid schedule.
        chains: Chains of each input.
        leapfrog: Leapfrog steps of each transition of Hamiltonian Monte Carlo.
        step_size: Initial leapfrog step in standardised coordinates of the proposal. A preliminary chain of each input
            adapts it at every temperature towards an acceptance of 0.65.
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
        """Return inverse temperatures from 0 to 1, denser at both ends."""
        arguments = [_SCHEDULE_RADIUS * (2.0 * t / self.temperatures - 1.0) for t in range(self.temperatures + 1)]
        sigmoid = [1.0 / (1.0 + math.exp(-argument)) for argument in arguments]
        return [(value - sigmoid[0]) / (sigmoid[-1] - sigmoid[0]) for value in sigmoid]


def annealed_bound(
    vae: VAE,
    x: Tensor,
    annealing: Annealing | None = None,
    proposal: Proposal | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Return a lower bound of :math:`\\log p(x)` in nats, ``(B,)``, by annealed importance sampling.

    The mean weight of any number of chains is an unbiased estimate of the evidence. Its log is too small by about half
    the relative variance of that estimate.

    References:
        Annealed Importance Sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008;
        On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017),
        https://arxiv.org/abs/1611.04273

    Arguments:
        x: Inputs, ``(B, F)``, as for :func:`fit_proposal`.
        proposal: Initial distribution. Default: fitted to the inputs, which needs far fewer temperatures than the
            prior (:meth:`Proposal.prior`) that Wu et al. use.
        progress: Show progress; see :func:`arcsm.fit`.
    """
    check_inputs(vae, x)
    annealing = annealing or Annealing()
    proposal = fit_proposal(vae, x, generator=generator) if proposal is None else proposal
    v = normal_like(x.new_empty(len(x), annealing.chains, vae.latents), generator)
    return _log_mean_weight(vae, x, v, proposal, annealing, False, generator, progress)


def annealed_upper_bound(
    vae: VAE,
    x: Tensor,
    z: Tensor,
    annealing: Annealing | None = None,
    proposal: Proposal | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Return an upper bound of :math:`\\log p(x)` in nats, ``(B,)``, by annealing backwards from exact latents.

    The model must have generated the inputs from the latents ``z``, ``(B, D)``. All other arguments and errors are as
    in :func:`annealed_bound`.

    References:
        Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse, Ghahramani and Adams, 2015),
        https://arxiv.org/abs/1511.02543
    """
    check_inputs(vae, x)
    if z.shape != (len(x), vae.latents):
        raise ValueError(f"z: expected latents {(len(x), vae.latents)}, got {tuple(z.shape)}")
    annealing = annealing or Annealing()
    proposal = fit_proposal(vae, x, generator=generator) if proposal is None else proposal
    v = proposal.to_standardised(z).unsqueeze(1).expand(-1, annealing.chains, -1)
    return -_log_mean_weight(vae, x, v, proposal, annealing, True, generator, progress)


def bidirectional_bounds(
    vae: VAE, count: int, annealing: Annealing | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return lower and upper bounds in nats, ``(count,)`` each, on inputs that the model generates.

    Their difference bounds the error of annealing on such inputs.
    """
    with torch.no_grad():
        z = vae.sample_prior(count, generator)
        x = vae.decoder.sample(z, generator)
        proposal = fit_proposal(vae, x, generator=generator)
    lower = annealed_bound(vae, x, annealing, proposal, generator)
    return lower, annealed_upper_bound(vae, x, z, annealing, proposal, generator)


def _log_mean_weight(
    vae: VAE,
    x: Tensor,
    v: Tensor,
    proposal: Proposal,
    annealing: Annealing,
    backwards: bool,
    generator: torch.Generator | None,
    progress: bool,
) -> Tensor:
    """Return the log mean weight of each input's chains, ``(B,)``, for initial coordinates ``v (B, K, D)``.

    Only some inputs are annealed at a time, so memory does not grow with their number.
    """
    parts = list(slices_of(len(x), max(1, decoded_at_once(vae) // annealing.chains)))
    log_means = [x.new_zeros(0)]
    with track("annealing", len(parts) * annealing.temperatures, progress) as advance:
        for rows in parts:
            log_ratio = posterior_log_ratio(vae, x[rows], Proposal(proposal.mean[rows], proposal.scale[rows]))
            steps = _adapt_steps(log_ratio, v[rows, :1], annealing, generator)
            path = list(zip(itertools.pairwise(annealing.schedule()), steps, strict=True))
            point, log_weights = evaluate(log_ratio, v[rows]), v.new_zeros(v[rows].shape[:2])
            for (lower, upper), step in reversed(path) if backwards else path:
                if not backwards:
                    log_weights = log_weights + (upper - lower) * point.log_ratio
                point, _ = transition(log_ratio, point, upper, step, annealing.leapfrog, generator)
                if backwards:
                    log_weights = log_weights - (upper - lower) * point.log_ratio
                advance()
            log_means.append(torch.logsumexp(log_weights, 1) - math.log(v.shape[1]))
    return torch.cat(log_means)


def posterior_log_ratio(vae: VAE, x: Tensor, proposal: Proposal) -> LogRatio:
    """Return the log of joint over proposal density as a function of coordinates, ``(B, K, D)`` to ``(B, K)``."""
    constant = 0.5 * vae.latents * math.log(2.0 * math.pi)

    def log_ratio(v: Tensor) -> Tensor:
        log_joint = vae.log_joint(x, proposal.to_latents(v))
        return log_joint + proposal.log_volume() + 0.5 * v.square().sum(-1) + constant

    return log_ratio


def _adapt_steps(
    log_ratio: LogRatio, like: Tensor, annealing: Annealing, generator: torch.Generator | None
) -> list[Tensor]:
    """Return step sizes at every temperature above the first, ``(B, 1)`` each, from a separate chain.

    A chain that adapted its own steps would not leave its distribution invariant, and the mean of its weights would not
    be the evidence.
    """
    v = normal_like(like, generator)
    point, step = evaluate(log_ratio, v), v.new_full(v.shape[:2], annealing.step_size)
    steps = []
    for beta in annealing.schedule()[1:]:
        point, accepted = transition(log_ratio, point, beta, step, annealing.leapfrog, generator)
        step = adapted_step(step, accepted)
        steps.append(step)
    return steps


class Point(NamedTuple):
    """State of chains in standardised coordinates."""

    v: Tensor  # (B, K, D)
    log_ratio: Tensor  # (B, K)
    gradient: Tensor  # of the log ratio, (B, K, D)


def transition(
    log_ratio: LogRatio, point: Point, beta: float, step: Tensor, leapfrog: int, generator: torch.Generator | None
) -> tuple[Point, Tensor]:
    """Take a step of Hamiltonian Monte Carlo, which leaves :math:`N(v; 0, I)\\, e^{\\beta\\, r(v)}` invariant.

    ``log_ratio`` is :math:`r`; ``step`` holds leapfrog step sizes, ``(B, K)`` or ``(B, 1)``. Return the next state and
    whether each chain accepted it, ``(B, K)``.
    """
    size = step.unsqueeze(-1)
    initial_momentum = normal_like(point.v, generator)

    def energy(at: Point, momentum: Tensor) -> Tensor:
        return 0.5 * (at.v.square() + momentum.square()).sum(-1) - beta * at.log_ratio

    end, momentum = point, initial_momentum + 0.5 * size * (beta * point.gradient - point.v)
    for index in range(leapfrog):
        end = evaluate(log_ratio, end.v + size * momentum)
        is_last = index == leapfrog - 1
        momentum = momentum + (0.5 if is_last else 1.0) * size * (beta * end.gradient - end.v)
    log_acceptance = energy(point, initial_momentum) - energy(end, momentum)
    uniform = uniform_like(log_acceptance, generator)
    accepted = uniform.log() < log_acceptance.nan_to_num(nan=-math.inf)
    rows = accepted.unsqueeze(-1)
    moved = Point(
        torch.where(rows, end.v, point.v),
        torch.where(accepted, end.log_ratio, point.log_ratio),
        torch.where(rows, end.gradient, point.gradient),
    )
    return moved, accepted


def adapted_step(step: Tensor, accepted: Tensor) -> Tensor:
    """Return the next step sizes, stationary at an acceptance of :data:`_TARGET_ACCEPTANCE`."""
    shrinkage = _STEP_GROWTH ** (-_TARGET_ACCEPTANCE / (1.0 - _TARGET_ACCEPTANCE))
    return torch.where(accepted, _STEP_GROWTH * step, shrinkage * step).clamp(_MIN_STEP, _MAX_STEP)


def evaluate(log_ratio: LogRatio, v: Tensor) -> Point:
    """Return the log ratio and its gradient at ``v (B, K, D)``."""
    v = v.detach().requires_grad_()
    with torch.enable_grad():
        value = log_ratio(v)
        (gradient,) = torch.autograd.grad(value.sum(), v)
    return Point(v.detach(), value.detach(), gradient)
