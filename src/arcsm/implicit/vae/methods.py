"""The entropy gradient estimators of the training methods."""

from functools import partial
from typing import Literal

from torch import Tensor

from arcsm.contexts import MADE
from arcsm.heads import Head, PlainScoreHead, ScoreHead
from arcsm.implicit.entropy.gradients import ConditionalUnits, EncoderUnits, EntropyGradient, GaussianEntropy
from arcsm.implicit.entropy.kernels import Spectral, Stein
from arcsm.implicit.entropy.learned import AutoregressiveScore, JointScore, ScoreNetwork
from arcsm.implicit.networks.encoders import (
    AutoregressiveEncoder,
    GaussianEncoder,
    LocationScaleEncoder,
    MaskedEncoder,
)
from arcsm.implicit.networks.vae import VAE
from arcsm.implicit.vae.config import VAETrainConfig
from arcsm.model import AutoregressiveModel
from arcsm.noise import NoiseLadder

# Width of the normal distribution that a score head resembles far from its data. With the prior's width, it would push
# latents outwards as strongly as the prior pulls them back, and nothing would hold them.
_TAIL_STD = 3.0


def build_estimator(vae: VAE, config: VAETrainConfig) -> EntropyGradient:
    """Return the estimator of a training method, or raise a ``ValueError`` if a setting does not suit the encoder.

    Its conditions are the inputs, as in the paper; for ``"elbo"`` and whitened scores, they are the encoder's features.
    """
    encoder, method = vae.encoder, config.method
    if method == "elbo" and (config.whitened or config.score_noise is not None):
        raise ValueError("train.whitened, train.score_noise: expected neither for elbo, which has no scores")
    if (method == "elbo") != isinstance(encoder, GaussianEncoder):
        raise ValueError(f"train.method: elbo requires encoder=gaussian, and vice versa; got {method} and "
                         f"{vae.parts.encoder}")  # fmt: skip
    if config.centred and not isinstance(encoder, AutoregressiveEncoder):
        raise ValueError(f"train.centred: expected an autoregressive encoder, got {vae.parts.encoder}")
    if config.warm_start and method in ("elbo", "stein", "spectral"):
        raise ValueError(f"train.warm_start: expected 0 for {method}, which learns no scores")
    if isinstance(encoder, GaussianEncoder):
        return GaussianEntropy(encoder.location_scale)
    if config.plain_scores and method not in ("csm", "ssm-ar"):
        raise ValueError(f"train.plain_scores: expected false for {method}, which has no head")
    for name, default in (("mix", 1.0), ("score_noise", None)):
        if method != "csm" and getattr(config, name) != default:
            raise ValueError(f"train.{name}: expected {default} for {method}, got {getattr(config, name)}")
    inner = _scores(vae, config)
    if not config.whitened:
        return inner
    if not isinstance(encoder, LocationScaleEncoder):
        raise ValueError("train.whitened: expected an encoder with units of its own, such as autoregressive")
    if config.whitened != "conditionals":
        return EncoderUnits(inner, encoder.location_scale)
    if not isinstance(encoder, AutoregressiveEncoder) or not isinstance(inner, AutoregressiveScore):
        raise ValueError(f"train.whitened: conditionals are for csm and ssm-ar, got {method}")
    return ConditionalUnits(inner, partial(_conditional_moments, encoder))


def remedies(vae: VAE, config: VAETrainConfig) -> str:
    """Return what may improve an entropy gradient, best first; empty for a closed form."""
    if config.method == "elbo":
        return ""
    if config.method in ("stein", "spectral"):
        return f"more particles ({config.particles})"
    units = "true" if config.method == "ssm" else "conditionals"
    whiten = "" if str(config.whitened).lower() == units else f"train.whitened={units}, then "
    if whiten and not isinstance(vae.encoder, LocationScaleEncoder):
        whiten = f"model.encoder=autoregressive with {whiten}"
    return f"{whiten}more score_steps ({config.score_steps}), another score_learning_rate"


def _conditional_moments(encoder: AutoregressiveEncoder, z: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
    assert features is not None
    return encoder.conditional_moments(encoder.precompute(features), z)


def _scores(vae: VAE, config: VAETrainConfig) -> EntropyGradient:
    method = config.method
    if method in ("stein", "spectral"):
        return Stein() if method == "stein" else Spectral(keeps_crossing=config.keeps_crossing)
    rate = config.score_learning_rate or (2e-4 if method == "csm" else config.learning_rate)
    if method == "ssm":
        if config.whitened and isinstance(vae.encoder, LocationScaleEncoder):
            network = ScoreNetwork(vae.latents, vae.encoder.trunk.out_features, config.score_hidden)
        else:
            parts = vae.parts.model_copy(update={"hidden_features": config.score_hidden})
            network = ScoreNetwork(
                vae.latents, trunk=parts.trunk(vae.metadata["image_shape"], vae.latents, smooth=True)
            )
        return JointScore(network.to(vae.device), rate, config.slices)
    if not isinstance(vae.encoder, AutoregressiveEncoder | MaskedEncoder):
        raise ValueError(f"train.method: {method} needs an autoregressive encoder, got {vae.parts.encoder}")
    embed, condition_features = None, vae.features
    if config.whitened:
        condition_features = vae.encoder.trunk.out_features
    elif vae.parts.networks == "convolutional":
        embed = vae.parts.trunk(vae.metadata["image_shape"], smooth=True).to(vae.device)
        condition_features = embed.out_features
    made = MADE(vae.latents, config.context_features, config.score_hidden, condition_features=condition_features)
    noise = None if config.score_noise is None else NoiseLadder(**config.score_noise.model_dump())
    head: Head
    if config.plain_scores:
        head = PlainScoreHead(config.context_features, config.head_hidden, "tanh")
    else:
        head = ScoreHead(config.context_features, config.head_hidden, data_std=1.0 if config.whitened else _TAIL_STD)
    model = AutoregressiveModel(made, head, noise).to(vae.device)
    objective: Literal["csm", "ssm"] = "csm" if method == "csm" else "ssm"
    return AutoregressiveScore(model, objective, rate, config.mix, config.slices, embed)
