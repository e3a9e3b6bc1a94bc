"""Annealed importance sampling of the likelihood of a latent variable model, from below and from above."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from arcsm.implicit.proposals import Proposal, check_inputs, decoded_at_once, fit_proposal
from arcsm.implicit.vae import VAE
from arcsm.progress import track


@dataclass(frozen=True)
class Annealing:
    """How to anneal from the proposal to the posterior.

    Attributes:
        temperatures: Number of steps, on a sigmoid schedule.
        chains: For each input.
        leapfrog: Leapfrog steps of each transition of Hamiltonian Monte Carlo.
        step_size: Of the leapfrog at the start, in units of the proposal; adapted towards an acceptance of 0.65.

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

    The step size is adapted on the way, as is usual; strictly, that breaks the bound by a little.

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

    As for :func:`annealed_bound`, the adaptation of the step size breaks the bound by a little.

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
        found = [x.new_zeros(0)]
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            found.append(self._of_some(x[rows], v[rows], Proposal(proposal.mean[rows], proposal.scale[rows])))
        return torch.cat(found)

    def _of_some(self, x: Tensor, v: Tensor, proposal: Proposal) -> Tensor:
        constant = 0.5 * self.vae.latents * math.log(2.0 * math.pi)

        def log_ratio(v: Tensor) -> Tensor:
            """Of the posterior (times the evidence) and the proposal, both in its coordinates, ``(B, K)``."""
            log_joint = self.vae.log_joint(x, proposal.place(v))
            return log_joint + proposal.log_volume() + 0.5 * v.square().sum(-1) + constant

        def moved(beta: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            return _hamiltonian(log_ratio, v, ratio, slope, beta, step, self.annealing, self.generator)

        weights = v.new_zeros(v.shape[:2])
        step = v.new_full(v.shape[:2], self.annealing.step_size)
        ratio, slope = _with_slope(log_ratio, v)
        schedule = self.annealing.schedule()[:: -1 if self.backwards else 1]
        with track("annealing", self.annealing.temperatures, self.progress) as advance:
            for before, now in itertools.pairwise(schedule):
                if self.backwards:  # the transition at the old temperature comes first
                    v, ratio, slope, step = moved(before)
                weights = weights + (now - before) * ratio
                if not self.backwards:
                    v, ratio, slope, step = moved(now)
                advance()
        return torch.logsumexp(weights, 1) - math.log(v.shape[1])


def _hamiltonian(
    log_ratio: Callable[[Tensor], Tensor],
    v: Tensor,
    ratio: Tensor,
    slope: Tensor,
    beta: float,
    step: Tensor,
    annealing: Annealing,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A transition that keeps :math:`N(v; 0, I)\\, e^{\\beta\\, \\mathrm{ratio}(v)}`, and the next step size."""
    momentum = torch.randn(v.shape, generator=generator, device=v.device, dtype=v.dtype)
    size = step.unsqueeze(-1)

    def energy(v: Tensor, ratio: Tensor, momentum: Tensor) -> Tensor:
        return 0.5 * (v.square() + momentum.square()).sum(-1) - beta * ratio

    at, at_ratio, at_slope, p = v, ratio, slope, momentum
    p = p + 0.5 * size * (beta * at_slope - at)
    for index in range(annealing.leapfrog):
        at = at + size * p
        at_ratio, at_slope = _with_slope(log_ratio, at)
        last = index == annealing.leapfrog - 1
        p = p + (0.5 if last else 1.0) * size * (beta * at_slope - at)
    gain = energy(v, ratio, momentum) - energy(at, at_ratio, p)
    draw = torch.rand(gain.shape, generator=generator, device=v.device, dtype=v.dtype)
    accepted = draw.log() < gain.nan_to_num(nan=-math.inf)
    rows = accepted.unsqueeze(-1)
    step = torch.where(accepted, 1.02 * step, step * 1.02 ** (-0.65 / 0.35)).clamp(1e-4, 2.0)
    return torch.where(rows, at, v), torch.where(accepted, at_ratio, ratio), torch.where(rows, at_slope, slope), step


def _with_slope(function: Callable[[Tensor], Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
    v = v.detach().requires_grad_()
    with torch.enable_grad():
        value = function(v)
        (slope,) = torch.autograd.grad(value.sum(), v)
    return value.detach(), slope
