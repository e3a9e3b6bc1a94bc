"""Lower bounds of the evidence of a model, :math:`\\log p_\\theta(x) = \\log \\int p_\\theta(x, z)\\, dz`.

Importance sampling and annealed importance sampling need no encoder density; both are lower bounds in expectation. On
data that the model generates, annealing from the exact latents also gives upper bounds (:func:`bidirectional_bounds`),
which show how far to trust annealing on similar data.
"""

import math

import torch
from torch import Tensor

from arcsm._runtime.batching import slices_of
from arcsm._runtime.progress import track
from arcsm.implicit.evidence.annealing import Annealing, annealed_bound
from arcsm.implicit.evidence.proposals import Proposal, check_inputs, decoded_at_once, fit_proposal, log_joint
from arcsm.implicit.networks.encoders import LocationScaleEncoder
from arcsm.implicit.networks.vae import VAE

_INPUTS_AT_ONCE = 50


@torch.no_grad()
def importance_bound(
    vae: VAE, x: Tensor, samples: int = 2000, proposal: Proposal | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Return the importance weighted bound of :math:`\\log p(x)` in nats, ``(B,)``: the log of an unbiased estimate.

    .. math:: \\log \\frac1K \\sum_k \\frac{p_\\theta(x, z_k)}{r(z_k)}, \\qquad z_k \\sim r

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519

    Arguments:
        x: Inputs, ``(B, F)``, as for :func:`fit_proposal`.
        samples: Latents of each input, ``K``.
        proposal: Distribution :math:`r` of the latents. Default: fitted to the inputs.

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
    log_weights = []
    for part in slices_of(samples, max(1, decoded_at_once(vae) // len(x))):
        z, log_density = proposal.sample(part.stop - part.start, generator)
        log_weights.append(log_joint(vae, x, z) - log_density)
    return torch.logsumexp(torch.cat(log_weights, 1), 1) - math.log(samples)


@torch.no_grad()
def bounds(
    vae: VAE,
    x: Tensor,
    samples: int = 2000,
    annealing: Annealing | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return :func:`importance_bound` and :func:`annealed_bound` from the same fitted proposals, ``(B,)`` each.

    ``samples`` is for the first, ``annealing`` for the second.
    """
    importance, annealed = [x.new_zeros(0)], [x.new_zeros(0)]
    with track("likelihood", len(x), progress) as advance:
        for part in x.split(_INPUTS_AT_ONCE):
            proposal = fit_proposal(vae, part, generator=generator)
            importance.append(importance_bound(vae, part, samples, proposal, generator))
            annealed.append(annealed_bound(vae, part, annealing, proposal, generator))
            advance(len(part))
    return torch.cat(importance), torch.cat(annealed)


@torch.no_grad()
def elbo(vae: VAE, x: Tensor, samples: int = 100, generator: torch.Generator | None = None) -> Tensor:
    """Return the evidence lower bound in nats (paper, Eq. 6), ``(B,)``, a mean over ``samples`` latents of each input.

    It is below the evidence by the divergence of the encoder from the posterior,
    :math:`\\operatorname{KL}(q(z \\mid x) \\,\\|\\, p(z \\mid x))`. An autoregressive encoder has a bound too: its
    density can be computed (:mod:`arcsm.implicit.networks.folded_density`), although training does not need it. An
    :class:`ImplicitEncoder` has no bound and is rejected. The arguments are those of :func:`importance_bound`.
    """
    if not isinstance(vae.encoder, LocationScaleEncoder):
        raise ValueError("vae: its encoder has no density, and no evidence lower bound; use importance_bound")
    check_inputs(vae, x, samples)
    bound = [x.new_zeros(0)]
    for part in x.split(_INPUTS_AT_ONCE):
        precomputed = vae.encoder.precompute(vae.encoder.features(part))
        z, log_density = vae.encoder.draw_with_log_prob(precomputed, vae.noise(part, samples, generator))
        bound.append((log_joint(vae, part, z) - log_density).mean(1))
    return torch.cat(bound)
