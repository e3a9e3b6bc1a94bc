"""The settings of :func:`arcsm.implicit.fit_vae`."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from arcsm.implicit.networks.vae import Width

Method = Literal["elbo", "stein", "spectral", "ssm", "ssm-ar", "csm"]


class ScoreNoise(BaseModel):
    """The noise ladder of the scores; see :class:`~arcsm.NoiseLadder`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sigma_max: float = Field(gt=0)
    sigma_min: float = Field(gt=0)
    levels: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.sigma_min > self.sigma_max:
            raise ValueError(f"sigma_min: expected at most sigma_max, {self.sigma_max:g}, got {self.sigma_min:g}")
        return self


class VAETrainConfig(BaseModel):
    """How to train an autoencoder. Extensions of the paper's methods are off by default, except ``ema``.

    Other attributes are those of :class:`~arcsm.TrainConfig`.

    Attributes:
        method: Estimator of the entropy gradient: ``"elbo"`` for Gaussian encoders, which need it; ``"csm"`` and
            ``"ssm-ar"`` for autoregressive and masked encoders; the others for implicit ones, too.
        steps: Steps of the autoencoder.
        batch_size: Images per step.
        learning_rate: Learning rate of RMSProp (paper, Appendix D.4: 1e-3 on MNIST, 1e-4 on faces).
        score_learning_rate: Learning rate of the scores. Default: the paper's, 2e-4 for csm and ``learning_rate`` for
            the others.
        score_steps: Steps of the scores per step of the autoencoder.
        warm_start: Steps of the scores alone, on the initial encoder, before the first step of the autoencoder.
        entropy_weight: Weight of the entropy in the objective; 1 is the evidence lower bound.
        particles: Samples per input for the kernels of ``"stein"`` and ``"spectral"``; the decoder uses one of them.
            (The code that the paper builds on uses 100 for digits and 20 for faces.)
        keeps_crossing: Whether ``"spectral"`` uses one eigenvalue more than the authors' code; see
            :class:`~arcsm.implicit.Spectral`.
        slices: Projections per sample, for ``"ssm"`` and ``"ssm-ar"``.
        score_hidden: Units of the hidden layers of the score network, or of its context network if it has one.
        context_features: Context features of each latent, for ``"csm"`` and ``"ssm-ar"``.
        head_hidden: Units of the hidden layers of their head.
        plain_scores: Whether their head is a :class:`~arcsm.PlainScoreHead` with tanh in place of a
            :class:`~arcsm.ScoreHead`.
        centred: Keep the entropy gradient from the locations :math:`m(x)`. The entropy does not depend on them, so all
            that would reach them is noise and errors of the scores. For autoregressive encoders.
        whitened: Learn the scores in the units of the encoder (:class:`~arcsm.implicit.EncoderUnits`) and from its
            features instead of the input; for autoregressive encoders. ``"conditionals"``, for csm and ssm-ar: in the
            units of each conditional (:class:`~arcsm.implicit.ConditionalUnits`).
        score_noise: Noise ladder of the scores, for ``"csm"``.
        mix: With a ladder, see :func:`arcsm.objectives.csm`.
        validation_rows: Number of images to validate on.
        validation_samples: Latents per image, for the importance weighted bound that is logged as ``valid``. It is an
            upper bound of the negative log likelihood, loose where the encoder is narrow; see
            :func:`~arcsm.implicit.fit_vae`.
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
    keeps_crossing: bool = True
    slices: int = Field(1, ge=1)
    score_hidden: tuple[Width, ...] = Field((256, 256), min_length=1)
    context_features: int = Field(8, ge=1)
    head_hidden: tuple[Width, ...] = Field((32, 32), min_length=1)
    plain_scores: bool = False
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
