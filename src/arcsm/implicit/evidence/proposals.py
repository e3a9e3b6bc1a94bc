"""Proposals: distributions of latents fitted to the posterior of each input, from which evidence is estimated."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from arcsm._runtime.random import normal_like, uniform_like
from arcsm._runtime.sizes import check_size
from arcsm.errors import all_finite
from arcsm.implicit.networks.decoders import BernoulliDecoder
from arcsm.implicit.networks.vae import VAE

MAX_ELEMENTS = 1 << 23  # of a tensor of latents, or of a decoder's largest layer: 32 MB
_DEGREES_OF_FREEDOM = 10  # tails heavier than the posterior's; even, see _chi_squared
_INITIAL_SAMPLES = 16  # latents of an input from the encoder, or twice their dimension
_MIN_EFFECTIVE_SHARE = 0.125  # effective sample size over the number of samples
_MIN_POWER, _BISECTIONS = 1e-6, 16  # of tempered weights; precise to a quarter of a thousandth of the power
_MIN_LOG_WEIGHT = -1e5  # relative to the largest


@dataclass(frozen=True)
class Proposal:
    """Location ``(B, D)`` and lower triangular scale ``(B, D, D)`` of the latents of each input."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def prior(cls, count: int, latents: int, like: Tensor) -> Self:
        """Return the prior for ``count`` inputs."""
        identity = torch.eye(latents, dtype=like.dtype, device=like.device)
        return cls(identity.new_zeros(count, latents), identity.expand(count, latents, latents))

    def log_volume(self) -> Tensor:
        """Return :math:`\\log \\det L` of the scale, ``(B, 1)``."""
        return self.scale.diagonal(dim1=1, dim2=2).log().sum(-1, keepdim=True)

    def to_latents(self, v: Tensor) -> Tensor:
        """Map standardised coordinates ``(B, K, D)`` to latents."""
        return self.mean.unsqueeze(1) + v @ self.scale.transpose(1, 2)

    def to_standardised(self, z: Tensor) -> Tensor:
        """Map one latent vector for each input, ``(B, D)``, to standardised coordinates."""
        centred = (z - self.mean).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.scale, centred, upper=False).squeeze(-1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw latents ``(B, K, D)`` from Student's t with this location and scale; return also log densities."""
        latents, degrees = self.mean.shape[1], _DEGREES_OF_FREEDOM
        normal = normal_like(self.mean.new_empty(len(self.mean), count, latents), generator)
        v = normal * torch.sqrt(degrees / _chi_squared(normal[..., :1], generator))
        half = 0.5 * (degrees + latents)
        constant = math.lgamma(half) - math.lgamma(0.5 * degrees) - 0.5 * latents * math.log(degrees * math.pi)
        log_density = constant - half * torch.log1p(v.square().sum(-1) / degrees) - self.log_volume()
        return self.to_latents(v), log_density


@torch.no_grad()
def fit_proposal(
    vae: VAE, x: Tensor, samples: int | None = None, max_iterations: int = 20, generator: torch.Generator | None = None
) -> Proposal:
    """Fit a proposal to the posterior of each input by adaptive importance sampling that starts at the encoder.

    If the encoder is much narrower than the posterior, one or two samples carry all the weight, and a distribution
    fitted to them would be narrower still. Weights are therefore tempered: raised to the largest power, at most one, at
    which the effective sample size is an eighth of the samples. While the power is below one, the covariance is taken
    about the previous mean, so that the proposal widens in the direction in which it moves.

    References:
        A population Monte Carlo scheme with transformed weights and its application to stochastic kinetic models
        (Koblents and Miguez, 2015), https://arxiv.org/abs/1208.5600

    Arguments:
        x: Inputs, ``(B, F)``, finite and in the decoder's support.
        samples: Latents of each input in each iteration. Default: 32 per dimension, at least 256.
        max_iterations: Limit on iterations. An input is done once its power has been one twice.
            :func:`bidirectional_bounds` measures the error of inputs that reach the limit, on simulated data.
    """
    samples = max(256, 32 * vae.latents) if samples is None else samples
    check_inputs(vae, x, samples)
    inputs_at_once = max(1, MAX_ELEMENTS // (samples * vae.latents))
    fitted = [_fit_proposal(vae, part, samples, max_iterations, generator) for part in x.split(inputs_at_once)]
    return Proposal(torch.cat([part.mean for part in fitted]), torch.cat([part.scale for part in fitted]))


def _fit_proposal(
    vae: VAE, x: Tensor, samples: int, max_iterations: int, generator: torch.Generator | None
) -> Proposal:
    z = vae.encode(x, max(_INITIAL_SAMPLES, 2 * vae.latents), generator)
    prior = torch.eye(vae.latents, dtype=z.dtype, device=z.device).expand(len(x), -1, -1)
    proposal = weighted_moments(z, z.new_full(z.shape[:2], 1.0 / z.shape[1]), z.mean(1), 0.01 * prior)
    active = torch.arange(len(x), device=x.device)
    had_power_one = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(max_iterations):
        if not len(active):
            break
        previous = Proposal(proposal.mean[active], proposal.scale[active])
        z, log_density = previous.sample(samples, generator)
        weights, power = tempered_weights(log_joint(vae, x[active], z) - log_density)
        has_power_one = power == 1.0
        centre = torch.where(has_power_one.unsqueeze(1), _weighted_mean(z, weights), previous.mean)
        fitted = weighted_moments(z, weights, centre, previous.scale @ previous.scale.transpose(1, 2))
        proposal.mean[active], proposal.scale[active] = fitted.mean, fitted.scale
        done = has_power_one & had_power_one[active]
        had_power_one[active] = has_power_one
        active = active[~done]
    return proposal


def tempered_weights(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Temper importance weights, given as logs up to a constant, ``(B, K)``, until enough samples are effective.

    Return normalised weights, ``(B, K)``, and the power that they were raised to, at most one, ``(B,)``.
    """
    log_weights = log_weights.nan_to_num(nan=-math.inf)
    log_weights = (log_weights - log_weights.amax(1, keepdim=True)).nan_to_num(nan=0.0).clamp(min=_MIN_LOG_WEIGHT)
    min_effective = min(log_weights.shape[1], max(2.0, _MIN_EFFECTIVE_SHARE * log_weights.shape[1]))

    def tempered(power: Tensor) -> Tensor:
        return torch.softmax(power.unsqueeze(1) * log_weights, 1)

    low, power = log_weights.new_full((len(log_weights),), _MIN_POWER).log(), log_weights.new_ones(len(log_weights))
    is_enough = _effective_sample_size(tempered(power)) >= min_effective
    if not bool(is_enough.all()):
        high = torch.zeros_like(low)
        for _ in range(_BISECTIONS):  # in the log of the power
            middle = 0.5 * (low + high)
            valid = _effective_sample_size(tempered(middle.exp())) >= min_effective
            low, high = torch.where(valid, middle, low), torch.where(valid, high, middle)
        power = torch.where(is_enough, 1.0, low.exp())
    return tempered(power), power


def weighted_moments(z: Tensor, weights: Tensor, centre: Tensor, previous_covariance: Tensor) -> Proposal:
    """Fit the mean of weighted samples and their covariance about a centre.

    The covariance is shrunk towards the previous one; the fewer samples are effective, the more.
    """
    centred = z - centre.unsqueeze(1)
    covariance = (weights.unsqueeze(-1) * centred).transpose(1, 2) @ centred
    effective = _effective_sample_size(weights)
    share = (effective / (effective + z.shape[-1]))[:, None, None]
    shrunk = (share * covariance + (1.0 - share) * previous_covariance).double()
    scale, failed = torch.linalg.cholesky_ex(shrunk)
    std = shrunk.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(z.dtype).tiny).sqrt()
    scale = torch.where((failed > 0)[:, None, None], torch.diag_embed(std), scale)  # degenerate in some direction
    return Proposal(_weighted_mean(z, weights), scale.to(z.dtype))


def _weighted_mean(z: Tensor, weights: Tensor) -> Tensor:
    return (weights.unsqueeze(-1) * z).sum(1)  # (B, D)


def _effective_sample_size(weights: Tensor) -> Tensor:
    return 1.0 / weights.square().sum(1)  # (B,)


def check_inputs(vae: VAE, x: Tensor, samples: int = 1) -> None:
    """Reject anything that is not an input of the decoder, such as images that were not prepared."""
    if x.ndim != 2 or x.shape[1] != vae.features:
        raise ValueError(f"x: expected inputs (B, {vae.features}), got {tuple(x.shape)}")
    if not all_finite(x):
        raise ValueError("x: holds NaN or infinity")
    if isinstance(vae.decoder, BernoulliDecoder) and not bool(((x == 0.0) | (x == 1.0)).all()):
        raise ValueError("x: expected zeros and ones, got other numbers; prepare images with vae.prepare(rows)")
    check_size("evidence", samples=samples)


def log_joint(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """Return :meth:`VAE.log_joint`, computed in pieces of bounded memory."""
    rows = max(1, decoded_at_once(vae) // z.shape[1])
    return torch.cat([vae.log_joint(a, b) for a, b in zip(x.split(rows), z.split(rows), strict=True)])


def decoded_at_once(vae: VAE) -> int:
    return max(1, MAX_ELEMENTS // vae.decoder.largest_layer)


def _chi_squared(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw from a chi-squared distribution with an even number of degrees of freedom: sums of exponentials."""
    uniform = uniform_like(like.new_empty(*like.shape, _DEGREES_OF_FREEDOM // 2), generator)
    return -2.0 * torch.log1p(-uniform).sum(-1)
