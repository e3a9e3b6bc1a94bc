"""Training of autoencoders: scores of the encoder and the autoencoder itself take steps in turn."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from arcsm import checkpoint
from arcsm.contexts import MADE
from arcsm.devices import resolve_device
from arcsm.heads import ScoreHead
from arcsm.implicit.encoders import AutoregressiveEncoder, GaussianEncoder, LocationScaleEncoder
from arcsm.implicit.entropy import EntropyGradient, GaussianEntropy, Whitened
from arcsm.implicit.evidence import fit_proposal, importance_bound
from arcsm.implicit.kernels import Spectral, Stein
from arcsm.implicit.learned import AutoregressiveScore, JointScore, ScoreNetwork
from arcsm.implicit.vae import VAE, Width, completed_vae_config, save_vae
from arcsm.interrupts import asked_to_stop
from arcsm.model import AutoregressiveModel
from arcsm.noise import NoiseLadder
from arcsm.progress import track
from arcsm.training import STATE_NAME, FitResult, TrainingDiverged
from arcsm.training_log import TrainingLog
from arcsm.training_setup import averaging
from arcsm.warning import warn

Method = Literal["elbo", "stein", "spectral", "ssm", "ssm-ar", "csm"]
# Far from what it has seen a score head is that of a normal distribution of this width. With one it would push latents
# outwards just as strongly as the prior pulls them back, and nothing would hold them.
_FAR_STD = 3.0
_COLLAPSED = 1e-4  # share of the spread of all latents that those of one input have at least
_LARGEST = 1e3  # spread of the latents, whose prior has spread one
_SPREAD_SAMPLES = 16  # of each input
_USED = 0.01  # share of the variance of a latent that inputs must explain for it to count as used


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
        particles: Samples of each input that the kernels of ``"stein"`` and ``"spectral"`` see; the decoder sees one.
            (The code that the paper builds on has 100 for digits and 20 for faces.)
        slices: Projections of each sample, of ``"ssm"`` and ``"ssm-ar"``.
        score_hidden: Units of the hidden layers of the score network (of its context network, where it has one).
        context_features: Context of each latent, of ``"csm"`` and ``"ssm-ar"``.
        head_hidden: Units of the hidden layers of their head.
        centred: Leave the locations :math:`m(x)` out of the entropy gradient: no entropy depends on where the samples
            of an input are; what reaches them is noise and errors of the scores. For autoregressive encoders.
        whitened: Learn the scores in the units of the encoder (:class:`~arcsm.implicit.Whitened`), and show them its
            features in place of the input; for autoregressive encoders.
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
    particles: int = Field(20, ge=2)
    slices: int = Field(1, ge=1)
    score_hidden: tuple[Width, ...] = Field((256, 256), min_length=1)
    context_features: int = Field(8, ge=1)
    head_hidden: tuple[Width, ...] = Field((32, 32), min_length=1)
    centred: bool = False
    whitened: bool = False
    score_noise: ScoreNoise | None = None
    mix: float | Literal["auto"] = 1.0
    ema: float = Field(0.999, ge=0, lt=1)
    validate_every: int = Field(2_000, ge=1)
    validation_rows: int = Field(256, ge=2)
    validation_samples: int = Field(64, ge=1)
    checkpoint_seconds: float = Field(60.0, ge=0)
    seed: int = Field(0, ge=0)
    device: str = "auto"


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
    return Whitened(inner, encoder.location_scale)


def _inner(vae: VAE, config: VAETrainConfig) -> EntropyGradient:
    method, latents = config.method, vae.latents
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


def fit_vae(
    vae: VAE,
    train: Tensor,
    valid: Tensor,
    config: VAETrainConfig | None = None,
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> FitResult:
    """Train an autoencoder in place (paper, Appendix D.2).

    .. math:: \\max_{\\theta, \\phi}\\;
        \\mathbb{E}_{q_\\phi(z \\mid x)} \\log p_\\theta(x, z) + H[q_\\phi(\\cdot \\mid x)]

    All randomness is a function of the seed and the step: a run that is killed and resumed ends with the same weights.
    Losses are means of :math:`-\\log p_\\theta(x, z)`; held-out ones are importance weighted bounds of
    :math:`-\\log p_\\theta(x)`, which all methods share.

    Arguments:
        vae: The autoencoder.
        train: Rows of images, ``(N, F)`` in [-1, 1).
        valid: Held-out rows.
        config: How to train.
        run: Folder for checkpoints, weights and the log; ``None`` to keep nothing on disk.
        resume: Go on from the checkpoint in ``run``, if there is one.
        progress: Show a progress bar (on a terminal).

    Returns:
        What came out; the averaged weights of the last step are in ``vae``, so ``best_step`` and ``best_loss`` are the
        last step and its held-out bound.

    Raises:
        ValueError: for rows of another size, or a method and an encoder that do not go together.
        KeyboardInterrupt: after Ctrl-C (or the signal TERM), at the end of a step and with a checkpoint in ``run``.
        TrainingDiverged: where a loss or gradient is not finite, or the encoder has collapsed; with what to change.

    Example:
        >>> from arcsm.implicit import VAEConfig
        >>> vae = VAEConfig(latents=2, hidden_features=(8,)).build({"image_shape": [1, 2, 2], "levels": 256})
        >>> rows = torch.rand(64, 4) * 2.0 - 1.0
        >>> fit_vae(vae, rows, rows, VAETrainConfig(steps=3, score_hidden=(8,), device="cpu")).steps
        3
    """
    trainer = _Trainer(vae, train, valid, config or VAETrainConfig(), run)
    if resume:
        trainer.restore()
    return trainer.train(progress)


@torch.no_grad()
def spreads(vae: VAE, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Standard deviations of every latent, within an input and over all inputs ``(B, F)``, ``(D,)`` each."""
    z = vae.encode(x, _SPREAD_SAMPLES, generator)
    return z.std(1).square().mean(0).sqrt(), z.flatten(0, 1).std(0)


def used_latents(vae: VAE, x: Tensor, generator: torch.Generator | None = None) -> int:
    """How many latents say something of the input: it explains at least a hundredth of their variance."""
    within, over_all = spreads(vae, x, generator)
    return int((1.0 - (within / over_all).square() >= _USED).sum())


class _Trainer:
    def __init__(
        self, vae: VAE, train: Tensor, valid: Tensor, config: VAETrainConfig, run: str | os.PathLike[str] | None
    ) -> None:
        for name, rows in (("train", train), ("valid", valid)):
            if rows.ndim != 2 or rows.shape[1] != vae.features or len(rows) == 0:
                raise ValueError(f"{name}: expected rows (N, {vae.features}), got {tuple(rows.shape)}")
            if not bool(rows.isfinite().all()):
                raise ValueError(f"{name}: holds NaN or infinity")
        self.vae, self.config = vae, config
        self.run = None if run is None else Path(run)
        self.device = resolve_device(config.device)
        vae.to(self.device).train()
        like = next(vae.parameters())
        self.rows, self.valid = train.to(like), valid[: config.validation_rows].to(like)
        self.batch = min(config.batch_size, len(train))
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(config.seed)
            self.entropy = estimator(vae, config)
        self.sees_features = isinstance(self.entropy, GaussianEntropy | Whitened)
        inner = self.entropy.inner if isinstance(self.entropy, Whitened) else self.entropy
        self.learned = inner if isinstance(inner, (AutoregressiveScore, JointScore)) else None
        self.particles = config.particles if self.entropy.least_samples > 1 else 1
        self.optimizer = torch.optim.RMSprop(vae.parameters(), config.learning_rate, foreach=True)
        self.average = AveragedModel(vae, multi_avg_fn=averaging(config.ema))
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []

    # One step ---------------------------------------------------------------------------------------------------

    def generator(self, purpose: int, step: int) -> torch.Generator:
        """Randomness of a step: a function of the seed, the purpose and the step alone."""
        seed = (
            self.config.seed * 0x9E3779B97F4A7C15 + purpose * 0xC2B2AE3D27D4EB4F + step * 0x165667B19E3779F9
        ) % 2**63
        return torch.Generator(self.device).manual_seed(seed)

    def inputs(self, generator: torch.Generator) -> Tensor:
        """A batch, as the autoencoder takes it."""
        chosen = torch.randint(len(self.rows), (self.batch,), generator=generator, device=self.device)
        return self.vae.prepare(self.rows[chosen], generator)

    def learn_scores(self, begun: tuple[Tensor, ...], seen: Tensor, steps: int, generator: torch.Generator) -> None:
        """Steps of the scores, where there are any to learn, on as many samples of the inputs."""
        for _ in range(steps if self.learned is not None else 0):
            with torch.no_grad():
                z = self.vae.draw(begun, 1, generator)
            self.entropy.update(z, seen, generator)

    def advance(self) -> float:
        """Steps of the scores, then one of the autoencoder; returns :math:`-\\log p(x, z)`."""
        generator = self.generator(1, self.step)
        x = self.inputs(generator)
        features = self.vae.encoder.features(x)
        begun = self.vae.encoder.begin(features)
        seen = features if self.sees_features else x
        self.learn_scores(begun, seen, self.config.score_steps, generator)
        z = self.vae.draw(begun, self.particles, generator)
        energy = -self.vae.log_joint(x, z[:, :1]).mean()
        with self.seeded_scores():
            loss = energy - self.entropy.surrogate(self.in_place(z, begun), seen)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.get_total_norm(p.grad for p in self.vae.parameters() if p.grad is not None)
        if not bool(loss.isfinite() & norm.isfinite()):
            raise ValueError(f"the loss is {float(loss.detach()):g}, the norm of its gradient {float(norm):g}")
        self.optimizer.step()
        self.average.update_parameters(self.vae)
        self.step += 1
        return float(energy.detach())

    def in_place(self, z: Tensor, begun: tuple[Tensor, ...]) -> Tensor:
        """The same latents; if centred, no gradient of theirs reaches the locations that they are drawn around."""
        if not self.config.centred:
            return z
        location = begun[0].unsqueeze(1)
        return z - (location - location.detach())

    @torch.no_grad()
    def warm_up(self, asked: Callable[[], bool], progress: bool) -> None:
        """Let the scores learn what the encoder begins with; a run that goes on from a step has done so.

        Raises:
            KeyboardInterrupt: when asked to stop; nothing is kept of a warm start.
            TrainingDiverged: where a loss or gradient is not finite.
        """
        steps = self.config.warm_start if self.step == 0 else 0
        if steps == 0 or self.learned is None:
            return
        with track("scores", steps, progress) as advance:
            for number in range(steps):
                generator = self.generator(5, number)
                x = self.inputs(generator)
                features = self.vae.encoder.features(x)
                seen = features if self.sees_features else x
                try:
                    self.learn_scores(self.vae.encoder.begin(features), seen, 1, generator)
                except ValueError as error:
                    rate = self.learned.optimiser.param_groups[0]["lr"]
                    raise TrainingDiverged(
                        f"warm start, step {number}: {error}; lower score_learning_rate ({rate:g})"
                    ) from error
                advance()
                if asked():
                    raise KeyboardInterrupt("interrupted in the warm start, of which nothing is kept")

    @contextmanager
    def seeded_scores(self) -> Iterator[None]:
        """Scores with a noise ladder draw from torch's own generator: seeded for the step, then put back."""
        noisy = self.config.score_noise is not None
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else [], enabled=noisy):
            if noisy:
                torch.manual_seed(self.generator(4, self.step).initial_seed())
            yield

    @torch.no_grad()
    def validate(self) -> float:
        """The importance weighted bound of held-out images, by the averaged weights and always the same noise."""
        averaged: VAE = self.average.module  # type: ignore[assignment]
        generator = self.generator(2, 0)
        x = averaged.prepare(self.valid, generator)
        proposal = fit_proposal(averaged, x, self.config.validation_samples, 1, generator)
        return -float(importance_bound(averaged, x, self.config.validation_samples, proposal, generator).mean())

    def check_encoder(self) -> None:
        """Stop an encoder that has become a point, or has run away.

        Raises:
            ValueError: which of the two.
        """
        generator = self.generator(3, 0)
        within, over_all = spreads(self.vae, self.vae.prepare(self.valid, generator), generator)
        if bool((within < _COLLAPSED * over_all).any()) or not bool(within.isfinite().all()):
            latent = int((within / over_all).nan_to_num().argmin())
            raise ValueError(
                f"the encoder has collapsed: latent {latent} of an input varies by {float(within[latent]):.1e}; the "
                "entropy gradient is too small or wrong"
            )
        if bool((over_all > _LARGEST).any()):
            raise ValueError(f"the latents have run away, to {float(over_all.max()):.1e} standard deviations")

    # The loop ---------------------------------------------------------------------------------------------------

    def train(self, progress: bool) -> FitResult:
        log = TrainingLog(self.run, self.step, False)
        with log, asked_to_stop() as asked:
            self.warm_up(asked, progress)
            self.take_steps(log, asked, progress)
        return self.finish()

    def take_steps(self, log: TrainingLog, asked: Callable[[], bool], progress: bool) -> None:
        """All that are left, with checkpoints."""
        begun, saved = time.monotonic() - self.seconds, time.monotonic()
        running = math.nan
        with track("training", self.config.steps, progress) as bar:
            bar(self.step)
            while self.step < self.config.steps:
                try:
                    value = self.advance()
                    assessed = self.step % self.config.validate_every == 0 or self.step == self.config.steps
                    if assessed:
                        self.check_encoder()
                        held_out = self.validate()
                except ValueError as error:
                    self.diverged(str(error))
                running = value if math.isnan(running) else 0.99 * running + 0.01 * value
                bar(note=f"-log p(x, z) {running:.4g}")
                self.seconds = time.monotonic() - begun
                if assessed:
                    rate = self.config.learning_rate
                    row = {"step": float(self.step), "loss": running, "valid": held_out, "learning_rate": rate,
                           "seconds": self.seconds}  # fmt: skip
                    self.history.append(row)
                    log.write(row)
                due = time.monotonic() - saved >= self.config.checkpoint_seconds or asked()
                if self.run is not None and due:
                    self.save_state()
                    saved = time.monotonic()
                if asked():
                    raise KeyboardInterrupt(f"interrupted after step {self.step}")

    def diverged(self, cause: str) -> None:
        """Keep the average of the weights so far, and stop."""
        self.vae.load_state_dict(self.average.module.state_dict())
        if self.run is not None:
            save_vae(self.vae, self.run)
        raise TrainingDiverged(
            f"step {self.step}: {cause}. The model holds the average of the weights so far; lower learning_rate "
            f"({self.config.learning_rate:g}), or let the scores keep up: more score_steps "
            f"({self.config.score_steps}), another score_learning_rate"
        )

    def finish(self) -> FitResult:
        if self.run is not None:
            self.save_state()
        self.vae.load_state_dict(self.average.module.state_dict())
        self.vae.eval()
        if self.run is not None:
            save_vae(self.vae, self.run)
        generator = self.generator(3, 0)
        unused = self.vae.latents - used_latents(self.vae, self.vae.prepare(self.valid, generator), generator)
        if unused:
            warn(f"{unused} of {self.vae.latents} latents say nothing of the input; fewer may do")
        last = self.history[-1]["valid"] if self.history else math.nan
        return FitResult(self.step, self.seconds, self.step, last, self.history, False)

    # Checkpoints ------------------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Everything that the next step depends on, in one file."""
        assert self.run is not None
        parts: dict[str, dict[str, Tensor]] = {
            "model": self.vae.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": checkpoint.optimizer_tensors(self.optimizer),
        }
        if self.learned is not None:
            parts["scores"] = self.learned.trained.state_dict()
            parts["score_optimizer"] = checkpoint.optimizer_tensors(self.learned.optimiser)
        tensors = {f"{part}.{name}": t.clone() for part, named in parts.items() for name, t in named.items()}
        header = {
            "kind": "training state of an autoencoder",
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "train": _comparable(self.config),
            "model": self.vae.config(),
        }
        checkpoint.write_tensors(self.run / STATE_NAME, tensors, header)

    def restore(self) -> None:
        """Go on from the checkpoint in the run folder, if there is one."""
        path = None if self.run is None else self.run / STATE_NAME
        if path is None or not path.exists():
            return
        expected = {"train": _comparable(self.config), "model": self.vae.config()}
        completed = {"train": lambda train: _comparable(VAETrainConfig(**train)), "model": completed_vae_config}
        parts, header = checkpoint.read_state(path, self.device, expected, completed)
        checkpoint.load_state(self.vae, parts.get("model", {}), path)
        checkpoint.load_state(self.average, parts.get("average", {}), path)
        checkpoint.load_optimizer(self.optimizer, parts.get("optimizer", {}))
        if self.learned is not None:
            checkpoint.load_state(self.learned.trained, parts.get("scores", {}), path)
            checkpoint.load_optimizer(self.learned.optimiser, parts.get("score_optimizer", {}))
        try:
            self.step, self.seconds = int(header["step"]), float(header["seconds"])
            self.history = list(header["history"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a training state ({type(error).__name__}: {error})") from error


def _comparable(config: VAETrainConfig) -> dict[str, Any]:
    """What must agree for a run to be resumed."""
    return config.model_dump(mode="json", exclude={"checkpoint_seconds", "device"})
