"""How to train an autoencoder: the settings and their defaults."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from arcsm.implicit.networks.vae import Width

Method = Literal["elbo", "stein", "spectral", "ssm", "ssm-ar", "csm"]


class ScoreNoise(BaseModel):
    """A noise ladder for scores; see :class:`~arcsm.NoiseLadder`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sigma_max: float = Field(gt=0)
    sigma_min: float = Field(gt=0)
    levels: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _check_order(self) -> ScoreNoise:
        if self.sigma_min > self.sigma_max:
            raise ValueError(f"sigma_min: expected at most sigma_max, {self.sigma_max:g}, got {self.sigma_min:g}")
        return self


class VAETrainConfig(BaseModel):
    """How to train an autoencoder; what is ours and not the paper's is off by default, but for ``ema``.

    Attributes:
        method: The estimator of the entropy gradient. ``"elbo"`` is for Gaussian encoders and they take no other,
            ``"csm"`` and ``"ssm-ar"`` are for autoregressive ones, the others for implicit and autoregressive ones.
        steps: Steps of the autoencoder.
        batch_size: Images a step.
        learning_rate: Of RMSProp (paper, Appendix D.4: 1e-3 on MNIST, 1e-4 on faces).
        score_learning_rate: Of the scores; by default the paper's, 2e-4 for csm and ``learning_rate`` for the others.
        score_steps: Steps of the scores for each step of the autoencoder.
        warm_start: Steps of learned scores alone, on the encoder as it begins, before the autoencoder takes its first.
        entropy_weight: Of the entropy in what is maximised; 1 is the evidence lower bound.
        particles: Samples of each input that the kernels of ``"stein"`` and ``"spectral"`` see; the decoder sees one.
            (The code that the paper builds on has 100 for digits and 20 for faces.)
        slices: Projections of each sample, of ``"ssm"`` and ``"ssm-ar"``.
        score_hidden: Units of the hidden layers of the score network (of its context network, where it has one).
        context_features: Context of each latent, of ``"csm"`` and ``"ssm-ar"``.
        head_hidden: Units of the hidden layers of their head.
        centred: Leave the locations :math:`m(x)` out of the entropy gradient: no entropy depends on where the samples
            of an input are; what reaches them is noise and errors of the scores. For autoregressive encoders.
        whitened: Learn the scores in the units of the encoder (:class:`~arcsm.implicit.EncoderUnits`) and from its
            features, not the input; for autoregressive encoders. ``"conditionals"``, of csm and ssm-ar: in the
            units of every conditional (:class:`~arcsm.implicit.ConditionalUnits`).
        score_noise: A noise ladder for the scores, of ``"csm"``.
        mix: With a ladder: see :func:`arcsm.objectives.csm`.
        ema: Decay of the average of the weights that is validated and kept; 0 for the weights themselves.
        validate_every: Steps between validations.
        validation_rows: Images validated on.
        validation_samples: Latents of each, of the importance weighted bound.
        checkpoint_seconds: Seconds between checkpoints.
        seed: Seed of all randomness.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = "csm"
    steps: int = Field(100_000, ge=1)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    score_learning_rate: float | None = Field(None, gt=0)
    score_steps: int = Field(1, ge=1)
    warm_start: int = Field(0, ge=0)
    entropy_weight: float = Field(1.0, ge=0)
    particles: int = Field(20, ge=2)
    slices: int = Field(1, ge=1)
    score_hidden: tuple[Width, ...] = Field((256, 256), min_length=1)
    context_features: int = Field(8, ge=1)
    head_hidden: tuple[Width, ...] = Field((32, 32), min_length=1)
    centred: bool = False
    whitened: bool | Literal["conditionals"] = False
    score_noise: ScoreNoise | None = None
    mix: float | Literal["auto"] = 1.0
    ema: float = Field(0.999, ge=0, lt=1)
    validate_every: int = Field(2_000, ge=1)
    validation_rows: int = Field(256, ge=2)
    validation_samples: int = Field(64, ge=1)
    checkpoint_seconds: float = Field(60.0, ge=0)
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "auto"
