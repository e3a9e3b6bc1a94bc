"""The estimator of the entropy gradient that the method of a configuration names."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from arcsm.contexts import MADE
from arcsm.heads import ScoreHead
from arcsm.implicit.entropy.gradients import ConditionalUnits, EncoderUnits, EntropyGradient, GaussianEntropy
from arcsm.implicit.entropy.kernels import Spectral, Stein
from arcsm.implicit.entropy.learned import AutoregressiveScore, JointScore, ScoreNetwork
from arcsm.implicit.networks.encoders import AutoregressiveEncoder, GaussianEncoder, LocationScaleEncoder
from arcsm.implicit.networks.vae import VAE
from arcsm.implicit.vae.config import VAETrainConfig
from arcsm.model import AutoregressiveModel
from arcsm.noise import NoiseLadder

# Far from what it has seen a score head is that of a normal distribution of this width. With one it would push latents
# outwards just as strongly as the prior pulls them back, and nothing would hold them.
_FAR_STD = 3.0


def estimator(vae: VAE, config: VAETrainConfig) -> EntropyGradient:
    """The estimator that a method names, for an autoencoder.

    Its conditions are the inputs, as in the paper; those of ``"elbo"`` and of whitened scores are the features that
    the encoder makes of them.

    Raises:
        ValueError: for a method and an encoder that do not go together.
    """
    encoder, method = vae.encoder, config.method
    if method == "elbo" and (config.whitened or config.score_noise is not None):
        raise ValueError("train.whitened, train.score_noise: expected neither for elbo, which has no scores")
    if (method == "elbo") != isinstance(encoder, GaussianEncoder):
        raise ValueError(f"train.method: elbo is for gaussian encoders and they for it, got {method} and "
                         f"{vae.parts.encoder}")  # fmt: skip
    if config.centred and not isinstance(encoder, AutoregressiveEncoder):
        raise ValueError(f"train.centred: expected an autoregressive encoder, got {vae.parts.encoder}")
    if config.warm_start and method in ("elbo", "stein", "spectral"):
        raise ValueError(f"train.warm_start: expected 0 for {method}, which learns no scores")
    if isinstance(encoder, GaussianEncoder):
        return GaussianEntropy(encoder.location_scale)
    inner = _inner(vae, config)
    if not config.whitened:
        return inner
    if not isinstance(encoder, LocationScaleEncoder):
        raise ValueError("train.whitened: expected an encoder with units of its own, such as autoregressive")
    if config.whitened != "conditionals":
        return EncoderUnits(inner, encoder.location_scale)
    if not isinstance(encoder, AutoregressiveEncoder) or not isinstance(inner, AutoregressiveScore):
        raise ValueError(f"train.whitened: conditionals are for csm and ssm-ar, got {method}")
    return ConditionalUnits(inner, partial(_moments, encoder))


def remedies(vae: VAE, config: VAETrainConfig) -> str:
    """What may help an entropy gradient that is wrong, the best first; nothing for one in closed form."""
    if config.method == "elbo":
        return ""
    if config.method in ("stein", "spectral"):
        return f"more particles ({config.particles})"
    units = "true" if config.method == "ssm" else "conditionals"
    whiten = "" if str(config.whitened).lower() == units else f"train.whitened={units}, then "
    if whiten and not isinstance(vae.encoder, LocationScaleEncoder):
        whiten = f"model.encoder=autoregressive with {whiten}"
    return f"{whiten}more score_steps ({config.score_steps}), another score_learning_rate"


@torch.no_grad()
def _moments(encoder: AutoregressiveEncoder, z: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of the conditionals of the encoder, by the features that it makes of inputs."""
    assert features is not None
    return encoder.conditional_moments(encoder.precompute(features), z)


def _inner(vae: VAE, config: VAETrainConfig) -> EntropyGradient:
    method, latents = config.method, vae.latents
    if config.mix != 1.0 and method != "csm":
        raise ValueError(f"train.mix: expected 1 for {method}, got {config.mix}; it is for csm")
    if config.score_noise is not None and method != "csm":
        raise ValueError(f"train.score_noise: expected none for {method}; it is for csm")
    if method in ("stein", "spectral"):
        return Stein() if method == "stein" else Spectral()
    rate = config.score_learning_rate or (2e-4 if method == "csm" else config.learning_rate)
    if method == "ssm":
        return JointScore(_joint_network(vae, config).to(vae.device), rate, config.slices)
    if not isinstance(vae.encoder, AutoregressiveEncoder):
        raise ValueError(f"train.method: {method} needs an autoregressive encoder, got {vae.parts.encoder}")
    embed = None
    if vae.parts.networks == "convolutional" and not config.whitened:
        embed = vae.parts.trunk(_shape(vae)).to(vae.device)
    seen = math.prod(_shape(vae)) if embed is None else embed.out_features
    seen = vae.encoder.trunk.out_features if config.whitened else seen
    made = MADE(latents, config.context_features, config.score_hidden, condition_features=seen)
    noise = None if config.score_noise is None else NoiseLadder(**config.score_noise.model_dump())
    head = ScoreHead(config.context_features, config.head_hidden, data_std=1.0 if config.whitened else _FAR_STD)
    model = AutoregressiveModel(made, head, noise).to(vae.device)
    objective: Literal["csm", "ssm"] = "csm" if method == "csm" else "ssm"
    return AutoregressiveScore(model, objective, rate, config.mix, config.slices, embed)


def _joint_network(vae: VAE, config: VAETrainConfig) -> ScoreNetwork:
    """Of the input and the latents; of the encoder's features and the latents in its units if whitened."""
    if config.whitened and isinstance(vae.encoder, LocationScaleEncoder):
        return ScoreNetwork(vae.latents, vae.encoder.trunk.out_features, config.score_hidden)
    parts = vae.parts.model_copy(update={"hidden_features": config.score_hidden})
    return ScoreNetwork(vae.latents, trunk=parts.trunk(_shape(vae), vae.latents))


def _shape(vae: VAE) -> tuple[int, ...]:
    return tuple(int(size) for size in vae.metadata["image_shape"])
