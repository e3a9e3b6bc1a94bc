"""Entropy gradients of distributions that can be sampled but not evaluated (paper, Section 6 and Appendix D).

Variational inference with a sampler :math:`z = g(\\epsilon)` without a density maximises
:math:`\\mathbb{E}[\\log p(z)] + H[q]`. This example fits a sampler to a density known up to its normaliser,
:math:`\\log p = -z_1^2 / 8 - 2 z_2^2` with standard deviations 2 and 1/2. The sampler is autoregressive, as
:class:`AutoregressiveScore` requires:

    >>> import torch
    >>> from arcsm import MADE, AutoregressiveModel, GaussianHead
    >>> from arcsm.implicit import AutoregressiveScore
    >>> generator = torch.manual_seed(0)
    >>> log_width = torch.zeros(2, requires_grad=True)
    >>> entropy = AutoregressiveScore(AutoregressiveModel(MADE(2, 4, ()), GaussianHead(4)), learning_rate=0.01)
    >>> optimizer = torch.optim.Adam([log_width], 0.01)
    >>> for _ in range(400):
    ...     for _ in range(3):  # the score has to keep up with the sampler
    ...         loss = entropy.update(log_width.exp() * torch.randn(1, 256, 2))  # one input, 256 samples
    ...     z = log_width.exp() * torch.randn(1, 256, 2)
    ...     log_p = -(z[..., 0] ** 2 / 8.0 + 2.0 * z[..., 1] ** 2).mean()
    ...     loss = -log_p - entropy.surrogate(z)
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    >>> [round(width, 1) for width in log_width.exp().tolist()]
    [2.0, 0.5]

To add an estimator, subclass :class:`EntropyGradient` and implement ``score``.
"""

from arcsm.errors import NonFiniteError
from arcsm.implicit.entropy.gradients import (
    ConditionalUnits,
    EncoderUnits,
    EntropyGradient,
    GaussianEntropy,
    RescaledEntropy,
)
from arcsm.implicit.entropy.kernels import Spectral, Stein
from arcsm.implicit.entropy.learned import AutoregressiveScore, JointScore, ScoreNetwork
from arcsm.implicit.evidence.annealing import Annealing, annealed_bound, annealed_upper_bound, bidirectional_bounds
from arcsm.implicit.evidence.bounds import bounds, elbo, importance_bound
from arcsm.implicit.evidence.proposals import Proposal, fit_proposal
from arcsm.implicit.networks.decoders import BernoulliDecoder, Decoder, GaussianImageDecoder
from arcsm.implicit.networks.encoders import (
    AutoregressiveEncoder,
    Encoder,
    GaussianEncoder,
    ImplicitEncoder,
    LocationScaleEncoder,
    MaskedEncoder,
)
from arcsm.implicit.networks.trunks import ConvolutionalTrunk, DenseTrunk, Trunk
from arcsm.implicit.networks.vae import VAE, VAEConfig, load_vae, save_vae
from arcsm.implicit.vae.config import VAETrainConfig
from arcsm.implicit.vae.training import fit_vae

__all__ = [
    "VAE", "Annealing", "AutoregressiveEncoder", "AutoregressiveScore", "BernoulliDecoder", "ConditionalUnits",
    "ConvolutionalTrunk", "Decoder", "DenseTrunk", "Encoder", "EncoderUnits", "EntropyGradient", "GaussianEncoder",
    "GaussianEntropy", "GaussianImageDecoder", "ImplicitEncoder", "JointScore", "LocationScaleEncoder",
    "MaskedEncoder", "NonFiniteError", "Proposal", "RescaledEntropy", "ScoreNetwork", "Spectral", "Stein", "Trunk",
    "VAEConfig", "VAETrainConfig", "annealed_bound", "annealed_upper_bound", "bidirectional_bounds", "bounds", "elbo",
    "fit_proposal", "fit_vae", "importance_bound", "load_vae", "save_vae",
]  # fmt: skip
