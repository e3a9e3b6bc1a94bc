"""How likely data are under a latent variable model, :math:`\\log p_\\theta(x) = \\log \\int p_\\theta(x, z)\\, dz`.

Two estimates, neither of which needs the density of an encoder: importance sampling from a distribution that is
fitted to each input, and annealed importance sampling; both are lower bounds in expectation. On data that the model
itself has drawn, with their latents, annealing backwards bounds from above (:func:`gap`), which tells how far to trust
annealing on data like these.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from arcsm._runtime.progress import track
from arcsm.implicit.evidence.annealing import Annealing, annealed_bound
from arcsm.implicit.evidence.proposals import Proposal, check_inputs, decoded_at_once, fit_proposal, log_joint
from arcsm.implicit.networks.encoders import LocationScaleEncoder
from arcsm.implicit.networks.vae import VAE

_AT_ONCE = 50  # inputs


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
    check_inputs(vae, x, samples)
    if not len(x):
        return x.new_zeros(0)
    proposal = fit_proposal(vae, x, generator=generator) if proposal is None else proposal
    found = []
    for part in _parts(samples, max(1, decoded_at_once(vae) // len(x))):
        z, log_density = proposal.sample(part, generator)
        found.append(log_joint(vae, x, z) - log_density)
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
        for part in x.split(_AT_ONCE):
            proposal = fit_proposal(vae, part, generator=generator)
            important.append(importance_bound(vae, part, samples, proposal, generator))
            annealed.append(annealed_bound(vae, part, annealing, proposal, generator))
            advance(len(part))
    return torch.cat(important), torch.cat(annealed)


@torch.no_grad()
def elbo(vae: VAE, x: Tensor, samples: int = 100, generator: torch.Generator | None = None) -> Tensor:
    """The evidence lower bound in nats (paper, Eq. 6), ``(B,)``.

    It is short of the evidence by the divergence of the encoder from the posterior,
    :math:`\\operatorname{KL}(q(z \\mid x) \\,\\|\\, p(z \\mid x))`. An autoregressive encoder has one, too: its density
    can be found (:mod:`arcsm.implicit.networks.densities`), though scores learn without it.

    Arguments:
        vae: The model.
        x: Inputs, ``(B, F)``.
        samples: Latents of every input that it is averaged over.
        generator: Source of randomness.

    Raises:
        ValueError: for an encoder whose density nobody knows.
    """
    if not isinstance(vae.encoder, LocationScaleEncoder):
        raise ValueError("vae: its encoder has no density, and no evidence lower bound; use importance_bound")
    check_inputs(vae, x, samples)
    found = [x.new_zeros(0)]
    for part in x.split(_AT_ONCE):
        begun = vae.encoder.begin(vae.encoder.features(part))
        z, log_density = vae.encoder.draw_with_log_prob(begun, vae.noise(part, samples, generator))
        found.append((log_joint(vae, part, z) - log_density).mean(1))
    return torch.cat(found)


def _parts(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]
