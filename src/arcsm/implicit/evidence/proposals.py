"""Where the latents of an input are: a distribution fitted to the posterior, from which likelihoods are estimated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from arcsm.errors import all_finite
from arcsm.implicit.networks.decoders import BernoulliDecoder
from arcsm.implicit.networks.vae import VAE

_NUMBERS_AT_ONCE = 1 << 23  # of a decoder's largest layer, or of latents, in one piece: 32 MB
_DEGREES = 10.0  # of freedom of the proposal: tails that are heavier than those of the posterior
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
        """ConditionalUnits ``(B, K, D)`` to latents."""
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
    check_inputs(vae, x, samples)
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
        weights, power = _tempered(log_joint(vae, x[left], z) - log_density)
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


def check_inputs(vae: VAE, x: Tensor, samples: int = 1) -> None:
    """Refuse what is no input of the decoder, such as images that were not prepared."""
    if x.ndim != 2 or x.shape[1] != vae.features:
        raise ValueError(f"x: expected inputs (B, {vae.features}), got {tuple(x.shape)}")
    if not all_finite(x):
        raise ValueError("x: holds NaN or infinity")
    if isinstance(vae.decoder, BernoulliDecoder) and not bool(((x == 0.0) | (x == 1.0)).all()):
        raise ValueError("x: expected zeros and ones, got other numbers; make them of images with vae.prepare(rows)")
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")


def log_joint(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """:meth:`VAE.log_joint` in pieces of bounded memory."""
    rows = max(1, decoded_at_once(vae) // z.shape[1])
    return torch.cat([vae.log_joint(a, b) for a, b in zip(x.split(rows), z.split(rows), strict=True)])


def decoded_at_once(vae: VAE) -> int:
    """How many latents are decoded in one piece."""
    return max(1, _NUMBERS_AT_ONCE // vae.decoder.largest_layer)


def _chi_squared(shape: torch.Size, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Of an even number of degrees of freedom: the sum of exponential variables."""
    uniform = torch.rand((*shape, int(_DEGREES) // 2), generator=generator, device=like.device, dtype=like.dtype)
    return -2.0 * torch.log1p(-uniform).sum(-1)
