"""How likely data are under a latent variable model, :math:`\\log p_\\theta(x) = \\log \\int p_\\theta(x, z)\\, dz`.

Two estimates, neither of which needs the density of the encoder: importance sampling from a distribution that is
fitted to each input, and annealed importance sampling. The first is a lower bound in expectation; so is the second but
for the adaptation of its step size. On data that the model itself has drawn, with their latents, annealing backwards
bounds from above (:func:`gap`), which tells how far to trust annealing on data like these.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from arcsm.finite import all_finite
from arcsm.implicit.decoders import BernoulliDecoder
from arcsm.implicit.encoders import GaussianEncoder
from arcsm.implicit.vae import VAE
from arcsm.progress import track

_NUMBERS_AT_ONCE = 1 << 23  # of a decoder's largest layer, or of latents, in one piece: 32 MB
_DEGREES = 10.0  # of freedom of the proposal: tails that are heavier than those of the posterior
_FITTED_AT_ONCE = 50  # inputs
_DECODES = 16  # latents of an input that its proposal begins with
_COUNTING = 0.125  # share of the samples that have to count when a proposal is fitted to them
_LEAST_POWER, _HALVINGS = 1e-6, 16  # of weights that are tempered; to a quarter of a thousandth of the power
_NOTHING = -1e5  # log weight of what has none beside the largest


@dataclass(frozen=True)
class Proposal:
    """A location and a shape of the latents of every input, for importance sampling.

    Attributes:
        mean: ``(B, D)``.
        scale: Lower triangular, ``(B, D, D)``.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def prior(cls, count: int, latents: int, like: Tensor) -> Proposal:
        """That of the prior, for all inputs."""
        identity = torch.eye(latents, dtype=like.dtype, device=like.device)
        return cls(identity.new_zeros(count, latents), identity.expand(count, latents, latents))

    def log_volume(self) -> Tensor:
        """:math:`\\log \\det L`, ``(B, 1)``."""
        return self.scale.diagonal(dim1=1, dim2=2).log().sum(-1, keepdim=True)

    def place(self, v: Tensor) -> Tensor:
        """Standardised ``(B, K, D)`` to latents."""
        return self.mean.unsqueeze(1) + v @ self.scale.transpose(1, 2)

    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Latents ``(B, K, D)`` of Student's t with this location and shape, and their log density ``(B, K)``."""
        latents = self.mean.shape[1]
        shape = (len(self.mean), count, latents)
        normal = torch.randn(shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        chi2 = _chi_squared(normal[..., :1].shape, generator, self.mean)
        v = normal * torch.sqrt(_DEGREES / chi2)
        half = 0.5 * (_DEGREES + latents)
        constant = math.lgamma(half) - math.lgamma(0.5 * _DEGREES) - 0.5 * latents * math.log(_DEGREES * math.pi)
        log_density = constant - half * torch.log1p(v.square().sum(-1) / _DEGREES) - self.log_volume()
        return self.place(v), log_density


def _check(vae: VAE, x: Tensor, samples: int = 1) -> None:
    """Refuse what is no input of the decoder, such as images that were not prepared."""
    if x.ndim != 2 or x.shape[1] != vae.features:
        raise ValueError(f"x: expected inputs (B, {vae.features}), got {tuple(x.shape)}")
    if not all_finite(x):
        raise ValueError("x: holds NaN or infinity")
    if isinstance(vae.decoder, BernoulliDecoder) and not bool(((x == 0.0) | (x == 1.0)).all()):
        raise ValueError("x: expected zeros and ones, got other numbers; make them of images with vae.prepare(rows)")
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")


@torch.no_grad()
def fit_proposal(
    vae: VAE, x: Tensor, samples: int | None = None, rounds: int = 20, generator: torch.Generator | None = None
) -> Proposal:
    """Where the posterior of each input is: from the encoder's samples, then by adaptive importance sampling.

    An encoder may be much narrower than the posterior. Then one or two of the samples have all of the weight, and a
    distribution that is fitted to them gets narrower still. So weights are raised to the largest power, up to one, at
    which an eighth of the samples count. While that is below one, the covariance is about the mean of the round
    before, so that a proposal is wider the way that it moves.

    References:
        A population Monte Carlo scheme with transformed weights and its application to stochastic kinetic models
        (Koblents and Miguez, 2015), https://arxiv.org/abs/1208.5600

    Arguments:
        vae: The model.
        x: Inputs, ``(B, F)``.
        samples: Latents of every input in each round; by default 32 for each dimension, and at least 256.
        rounds: Rounds of adaptation, at most; an input is done when an eighth of its samples have counted as they are
            twice. How far off inputs are whose rounds did not suffice, :func:`gap` tells on simulated ones.
        generator: Source of randomness.

    Raises:
        ValueError: for inputs of another shape, NaN, infinity, or numbers that the decoder is no distribution of.
    """
    samples = max(256, 32 * vae.latents) if samples is None else samples
    _check(vae, x, samples)
    size = max(1, _NUMBERS_AT_ONCE // (samples * vae.latents))
    if len(x) <= size:
        return _fit_proposal(vae, x, samples, rounds, generator)
    parts = [_fit_proposal(vae, part, samples, rounds, generator) for part in x.split(size)]
    return Proposal(torch.cat([part.mean for part in parts]), torch.cat([part.scale for part in parts]))


def _fit_proposal(vae: VAE, x: Tensor, samples: int, rounds: int, generator: torch.Generator | None) -> Proposal:
    """For as many inputs as memory has room for the latents of."""
    z = vae.encode(x, max(_DECODES, 2 * vae.latents), generator)
    prior = torch.eye(vae.latents, dtype=z.dtype, device=z.device).expand(len(x), -1, -1)
    proposal = _moments(z, z.new_full(z.shape[:2], 1.0 / z.shape[1]), z.mean(1), 0.01 * prior)
    left, once = torch.arange(len(x), device=x.device), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(rounds):
        if not len(left):
            break
        before = Proposal(proposal.mean[left], proposal.scale[left])
        z, log_density = before.sample(samples, generator)
        weights, power = _tempered(_log_joint(vae, x[left], z) - log_density)
        whole = power == 1.0
        about = torch.where(whole.unsqueeze(1), _mean(z, weights), before.mean)
        found = _moments(z, weights, about, before.scale @ before.scale.transpose(1, 2))
        proposal.mean[left], proposal.scale[left] = found.mean, found.scale
        done = whole & once[left]
        once[left] = whole
        left = left[~done]
    return proposal


def _tempered(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Importance weights to the largest power, up to one, at which enough of the samples count.

    Arguments:
        log_weights: Up to a constant for each input, ``(B, K)``.

    Returns:
        Weights that sum to one, ``(B, K)``, and the power, ``(B,)``.
    """
    log_weights = log_weights.nan_to_num(nan=-math.inf)
    log_weights = (log_weights - log_weights.amax(1, keepdim=True)).nan_to_num(nan=0.0).clamp(min=_NOTHING)
    wanted = min(log_weights.shape[1], max(2.0, _COUNTING * log_weights.shape[1]))

    def raised(power: Tensor) -> Tensor:
        return torch.softmax(power.unsqueeze(1) * log_weights, 1)

    low, power = log_weights.new_full((len(log_weights),), _LEAST_POWER).log(), log_weights.new_ones(len(log_weights))
    whole = _effective(raised(power)) >= wanted
    if not bool(whole.all()):
        high = torch.zeros_like(low)
        for _ in range(_HALVINGS):  # of an interval of the logarithm
            middle = 0.5 * (low + high)
            enough = _effective(raised(middle.exp())) >= wanted
            low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
        power = torch.where(whole, 1.0, low.exp())
    return raised(power), power


def _moments(z: Tensor, weights: Tensor, about: Tensor, before: Tensor) -> Proposal:
    """Weighted mean, and covariance about a point; the fewer samples count, the more of it is that of before."""
    centred = z - about.unsqueeze(1)
    covariance = (weights.unsqueeze(-1) * centred).transpose(1, 2) @ centred
    effective = _effective(weights)
    share = (effective / (effective + z.shape[-1]))[:, None, None]
    wanted = (share * covariance + (1.0 - share) * before).double()
    scale, failed = torch.linalg.cholesky_ex(wanted)
    spread = wanted.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(z.dtype).tiny).sqrt()
    scale = torch.where((failed > 0)[:, None, None], torch.diag_embed(spread), scale)  # too narrow in some direction
    return Proposal(_mean(z, weights), scale.to(z.dtype))


def _mean(z: Tensor, weights: Tensor) -> Tensor:
    """Of samples ``(B, K, D)`` by weights ``(B, K)`` that sum to one, ``(B, D)``."""
    return (weights.unsqueeze(-1) * z).sum(1)


def _effective(weights: Tensor) -> Tensor:
    """How many samples count, ``(B,)``, by their weights ``(B, K)``."""
    return 1.0 / weights.square().sum(1)


@torch.no_grad()
def importance_bound(
    vae: VAE,
    x: Tensor,
    samples: int = 2_000,
    proposal: Proposal | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Importance weighted lower bound of :math:`\\log p(x)` in nats, ``(B,)``: the log of an unbiased estimate.

    .. math:: \\log \\frac1K \\sum_k \\frac{p_\\theta(x, z_k)}{r(z_k)}, \\qquad z_k \\sim r

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519

    Arguments:
        vae: The model.
        x: Inputs, ``(B, F)``.
        samples: Latents of every input, ``K``.
        proposal: Where to draw them; by default fitted to the inputs.
        generator: Source of randomness.

    Raises:
        ValueError: as :func:`fit_proposal`.

    Example:
        >>> from arcsm.implicit import VAEConfig
        >>> vae = VAEConfig(latents=2, hidden_features=(8,)).build({"image_shape": [1, 2, 2], "levels": 256})
        >>> images = torch.rand(5, 4) * 2.0 - 1.0  # rows in [-1, 1)
        >>> importance_bound(vae, vae.prepare(images), samples=100).shape
        torch.Size([5])
    """
    _check(vae, x, samples)
    if not len(x):
        return x.new_zeros(0)
    proposal = fit_proposal(vae, x, generator=generator) if proposal is None else proposal
    found = []
    for part in _parts(samples, max(1, _at_once(vae) // len(x))):
        z, log_density = proposal.sample(part, generator)
        found.append(_log_joint(vae, x, z) - log_density)
    return torch.logsumexp(torch.cat(found, 1), 1) - math.log(samples)


@torch.no_grad()
def bounds(
    vae: VAE,
    x: Tensor,
    samples: int = 2_000,
    annealing: Annealing | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`importance_bound` and :func:`annealed_bound` from the same fitted proposals, ``(B,)`` each.

    Arguments:
        vae: The model.
        x: Inputs, ``(B, F)``.
        samples: Latents of every input, of the first.
        annealing: How, of the second.
        generator: Source of randomness.
        progress: Show a progress bar (on a terminal).

    Raises:
        ValueError: as :func:`fit_proposal`.
    """
    important, annealed = [x.new_zeros(0)], [x.new_zeros(0)]
    with track("likelihood", len(x), progress) as advance:
        for part in x.split(_FITTED_AT_ONCE):
            proposal = fit_proposal(vae, part, generator=generator)
            important.append(importance_bound(vae, part, samples, proposal, generator))
            annealed.append(annealed_bound(vae, part, annealing, proposal, generator))
            advance(len(part))
    return torch.cat(important), torch.cat(annealed)


@torch.no_grad()
def elbo(vae: VAE, x: Tensor, samples: int = 100, generator: torch.Generator | None = None) -> Tensor:
    """The evidence lower bound in nats (paper, Eq. 6), ``(B,)``, of an autoencoder with a Gaussian encoder.

    Arguments:
        vae: The model.
        x: Inputs, ``(B, F)``.
        samples: Latents of every input that the reconstruction is averaged over.
        generator: Source of randomness.

    Raises:
        ValueError: for an implicit encoder, whose entropy nobody knows.
    """
    if not isinstance(vae.encoder, GaussianEncoder):
        raise ValueError("vae: only a gaussian encoder has an evidence lower bound; use importance_bound")
    _check(vae, x, samples)
    begun = vae.encoder.begin(vae.encoder.features(x))
    entropy = begun[1].sum(-1) + 0.5 * vae.latents * math.log(2.0 * math.pi * math.e)
    return _log_joint(vae, x, vae.draw(begun, samples, generator)).mean(1) + entropy


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
    _check(vae, x)
    annealing = annealing or Annealing()
    proposal = fit_proposal(vae, x, generator=generator) if proposal is None else proposal
    shape = (len(x), annealing.chains, vae.latents)
    v = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
    return _in_pieces(vae, x, v, annealing.schedule(), annealing, proposal, generator, progress)


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
    _check(vae, x)
    if z.shape != (len(x), vae.latents):
        raise ValueError(f"z: expected latents {(len(x), vae.latents)}, got {tuple(z.shape)}")
    annealing = annealing or Annealing()
    proposal = fit_proposal(vae, x, generator=generator) if proposal is None else proposal
    centred = (z - proposal.mean).unsqueeze(-1)
    v = torch.linalg.solve_triangular(proposal.scale, centred, upper=False).squeeze(-1)
    v = v.unsqueeze(1).expand(-1, annealing.chains, -1)
    return -_in_pieces(vae, x, v, annealing.schedule()[::-1], annealing, proposal, generator, progress)


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


# Annealing ----------------------------------------------------------------------------------------------------------


def _in_pieces(
    vae: VAE,
    x: Tensor,
    v: Tensor,
    schedule: list[float],
    annealing: Annealing,
    proposal: Proposal,
    generator: torch.Generator | None,
    progress: bool,
) -> Tensor:
    """:func:`_anneal` for some inputs at a time, so that memory does not grow with their number."""
    size = max(1, _at_once(vae) // annealing.chains)
    found = [x.new_zeros(0)]
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        own = Proposal(proposal.mean[rows], proposal.scale[rows])
        found.append(_anneal(vae, x[rows], v[rows], schedule, annealing, own, generator, progress))
    return torch.cat(found)


def _anneal(
    vae: VAE,
    x: Tensor,
    v: Tensor,
    schedule: list[float],
    annealing: Annealing,
    proposal: Proposal,
    generator: torch.Generator | None,
    progress: bool,
) -> Tensor:
    """Log of the mean weight of the chains ``(B,)``, along inverse temperatures that rise or fall."""

    def log_ratio(v: Tensor) -> Tensor:
        """Of the posterior (times the evidence) and the proposal, both in standardised coordinates, ``(B, K)``."""
        return vae.log_joint(x, proposal.place(v)) + proposal.log_volume() + 0.5 * v.square().sum(-1) + constant

    constant = 0.5 * vae.latents * math.log(2.0 * math.pi)
    weights = v.new_zeros(v.shape[:2])
    step = v.new_full(v.shape[:2], annealing.step_size)
    ratio, slope = _with_slope(log_ratio, v)
    backwards = schedule[0] > schedule[-1]
    with track("annealing", annealing.temperatures, progress) as advance:
        for before, now in itertools.pairwise(schedule):
            if backwards:  # the transition at the old temperature comes first
                v, ratio, slope, step = _hamiltonian(log_ratio, v, ratio, slope, before, step, annealing, generator)
            weights = weights + (now - before) * ratio
            if not backwards:
                v, ratio, slope, step = _hamiltonian(log_ratio, v, ratio, slope, now, step, annealing, generator)
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


def _log_joint(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """:meth:`VAE.log_joint` in pieces of bounded memory."""
    rows = max(1, _at_once(vae) // z.shape[1])
    return torch.cat([vae.log_joint(a, b) for a, b in zip(x.split(rows), z.split(rows), strict=True)])


def _at_once(vae: VAE) -> int:
    """How many latents are decoded in one piece."""
    return max(1, _NUMBERS_AT_ONCE // vae.decoder.largest_layer)


def _chi_squared(shape: torch.Size, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Of an even number of degrees of freedom: the sum of exponential variables."""
    uniform = torch.rand((*shape, int(_DEGREES) // 2), generator=generator, device=like.device, dtype=like.dtype)
    return -2.0 * torch.log1p(-uniform).sum(-1)


def _parts(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]
