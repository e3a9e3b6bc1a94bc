"""Training of autoencoders: scores of the encoder and the autoencoder itself take steps in turn."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from arcsm import serialization
from arcsm._runtime.devices import resolve_device
from arcsm._runtime.progress import track
from arcsm._runtime.random import fold_in
from arcsm._runtime.signals import stop_requested
from arcsm.errors import NonFiniteError, TrainingWarning, warn
from arcsm.implicit.entropy.gradients import EntropyGradient, GaussianEntropy, RescaledEntropy
from arcsm.implicit.entropy.learned import AutoregressiveScore, JointScore
from arcsm.implicit.evidence.bounds import importance_bound
from arcsm.implicit.evidence.proposals import fit_proposal
from arcsm.implicit.networks.encoders import AutoregressiveEncoder
from arcsm.implicit.networks.vae import VAE, completed_vae_config, save_vae
from arcsm.implicit.vae.config import VAETrainConfig
from arcsm.implicit.vae.methods import estimator, remedies
from arcsm.training.data import fingerprint
from arcsm.training.log import TrainingLog
from arcsm.training.loop import STATE_NAME, FitResult, TrainingDiverged, check_same_data, check_unused
from arcsm.training.optimization import averaging

_COLLAPSED = 1e-4  # share of the spread of all latents, or of their prior, that those of one input have at least
_LARGEST = 1e3  # spread of the latents, whose prior has spread one
_SPREAD_SAMPLES = 16  # of each input
_WEAK, _STRONG = 0.5, 2.0  # shares of the entropy's pressure, outside of which it is said that the estimate is wrong
_SETTLED = 0.1  # share of the training after which it is
_CERTAIN = 4.0  # standard deviations of what chance explains
_USED = 0.01  # share of the variance of a latent that inputs must explain for it to count as used


def fit_vae(
    vae: VAE,
    train: Tensor,
    valid: Tensor,
    config: VAETrainConfig | None = None,
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
    entropy: EntropyGradient | None = None,
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
        entropy: An estimator of your own, on the device of the training, in place of the one that the method names. It
            sees samples of the encoder (``particles`` of each input, if it takes more than one), and the inputs
            ``(B, F)`` as the decoder is a distribution of them. With a ``run`` it is one that does not learn, or one of
            ours, whose checkpoints we know to write.

    Returns:
        What came out; the averaged weights of the last step are in ``vae``, so ``best_step`` and ``best_loss`` are the
        last step and its held-out bound.

    Raises:
        ValueError: for rows of another size, a method and an encoder that do not go together, a checkpoint of another
            configuration or other data, or a folder that holds a run and no ``resume``.
        KeyboardInterrupt: after Ctrl-C (or the signal TERM), at the end of a step and with a checkpoint in ``run``.
        TrainingDiverged: where a loss or gradient is not finite, or the encoder has collapsed; with what to change.

    Example:
        >>> from arcsm.implicit import VAEConfig
        >>> vae = VAEConfig(latents=2, hidden_features=(8,)).build({"image_shape": [1, 2, 2], "levels": 256})
        >>> rows = torch.rand(64, 4) * 2.0 - 1.0
        >>> fit_vae(vae, rows, rows, VAETrainConfig(steps=3, score_hidden=(8,), device="cpu")).steps
        3
    """
    check_unused(run, resume)
    trainer = _Trainer(vae, train, valid, config or VAETrainConfig(), run, entropy)
    if resume:
        trainer.restore()
    return trainer.train(progress)


@torch.no_grad()
def spreads(vae: VAE, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Standard deviations of every latent, within an input and over all inputs ``(B, F)``, ``(D,)`` each."""
    z = vae.encode(x, _SPREAD_SAMPLES, generator)
    return z.std(1).square().mean(0).sqrt(), z.flatten(0, 1).std(0)


@torch.no_grad()
def used_latents(vae: VAE, x: Tensor, generator: torch.Generator | None = None) -> int:
    """How many latents say something of the input: it explains at least a hundredth of their variance.

    What samples alone explain is taken off, and what chance may explain on so few inputs does not count.
    """
    z = vae.encode(x, _SPREAD_SAMPLES, generator)
    within, between = z.var(1).mean(0), z.mean(1).var(0) if len(z) > 1 else z.new_zeros(z.shape[-1])
    by_chance = within / _SPREAD_SAMPLES
    explained = between - by_chance
    enough = explained >= _USED * (explained + within)
    certain = explained > _CERTAIN * math.sqrt(2.0 / max(1, len(z) - 1)) * by_chance
    return int((enough & certain).sum())


class _Trainer:
    def __init__(
        self,
        vae: VAE,
        train: Tensor,
        valid: Tensor,
        config: VAETrainConfig,
        run: str | os.PathLike[str] | None,
        entropy: EntropyGradient | None = None,
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
        self.data = fingerprint(train, None)
        self.rows, self.valid = train.to(like), valid[: config.validation_rows].to(like)
        self.batch_size = min(config.batch_size, len(train))
        self.own = None if entropy is None else type(entropy).__name__
        self.entropy = self.named_entropy() if entropy is None else entropy
        self.sees_features = entropy is None and isinstance(self.entropy, GaussianEntropy | RescaledEntropy)
        inner = self.entropy.inner if isinstance(self.entropy, RescaledEntropy) else self.entropy
        self.learned = inner if isinstance(inner, (AutoregressiveScore, JointScore)) else None
        if self.own is not None:
            self.check_own()
        if self.learned is not None:
            self.learned.width_checked = True  # latents spread as the encoder learns; their pressure is looked at
        self.particles = config.particles if self.entropy.min_samples > 1 else 1
        self.optimizer = torch.optim.RMSprop(vae.parameters(), config.learning_rate, foreach=True)
        self.average = AveragedModel(vae, multi_avg_fn=averaging(config.ema))
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.warned = False  # that scores do not keep up

    def named_entropy(self) -> EntropyGradient:
        """The estimator that the configuration names."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.config.seed)
            return estimator(self.vae, self.config)

    def check_own(self) -> None:
        """Whether all that is asked for goes together with the user's own estimator.

        Raises:
            ValueError: where it does not.
        """
        if self.entropy.min_samples > self.config.particles:
            raise ValueError(f"train.particles: expected at least {self.entropy.min_samples}, which {self.own} takes")
        if self.config.centred and not isinstance(self.vae.encoder, AutoregressiveEncoder):
            raise ValueError("train.centred: expected an autoregressive encoder")
        if self.run is not None and self.entropy.learns and self.learned is None:
            raise ValueError(f"run: checkpoints cannot hold what {self.own} learns; train without a folder")

    # One step ---------------------------------------------------------------------------------------------------

    def generator(self, purpose: int, step: int) -> torch.Generator:
        """Randomness of a step: a function of the seed, the purpose and the step alone."""
        return torch.Generator(self.device).manual_seed(fold_in(self.config.seed, purpose, step))

    def batch(self, generator: torch.Generator) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Inputs ``(B, F)``, what the encoder begins with for them, and what the scores see of them."""
        chosen = torch.randint(len(self.rows), (self.batch_size,), generator=generator, device=self.device)
        x = self.vae.prepare(self.rows[chosen], generator)
        features = self.vae.encoder.features(x)
        return x, self.vae.encoder.precompute(features), features if self.sees_features else x

    def learn_scores(self, begun: tuple[Tensor, ...], seen: Tensor, steps: int, generator: torch.Generator) -> None:
        """Steps of the scores, where there are any to learn, on as many samples of the inputs."""
        for _ in range(steps if self.entropy.learns else 0):
            with torch.no_grad():
                z = self.vae.draw(begun, self.particles, generator)
            self.entropy.update(z, seen, generator)

    def advance(self) -> float:
        """Steps of the scores, then one of the autoencoder; returns :math:`-\\log p(x, z)`."""
        generator = self.generator(1, self.step)
        x, begun, seen = self.batch(generator)
        self.learn_scores(begun, seen, self.config.score_steps, generator)
        z = self.vae.draw(begun, self.particles, generator)
        energy = -self.vae.log_joint(x, z[:, :1]).mean()
        with self.seeded_scores():
            loss = energy - self.config.entropy_weight * self.entropy.surrogate(self.in_place(z, begun), seen)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.get_total_norm(p.grad for p in self.vae.parameters() if p.grad is not None)
        if not bool(loss.isfinite() & norm.isfinite()):
            raise NonFiniteError(f"the loss is {float(loss.detach()):g}, the norm of its gradient {float(norm):g}")
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
        if steps == 0 or not self.entropy.learns:
            return
        with track("scores", steps, progress) as advance:
            for number in range(steps):
                generator = self.generator(5, number)
                _, begun, seen = self.batch(generator)
                try:
                    self.learn_scores(begun, seen, 1, generator)
                except NonFiniteError as error:
                    rate = "" if self.learned is None else f" ({self.learned.optimizer.param_groups[0]['lr']:g})"
                    raise TrainingDiverged(
                        f"warm start, step {number}: {error}; lower score_learning_rate{rate}"
                    ) from error
                advance()
                if asked():
                    raise KeyboardInterrupt("interrupted in the warm start, of which nothing is kept")

    @contextmanager
    def seeded_scores(self) -> Iterator[None]:
        """Scores with a noise ladder draw from torch's own generator: seeded for the step, then put back."""
        noisy = self.config.score_noise is not None or self.own is not None
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

    @torch.no_grad()
    def pressure(self) -> float:
        """:meth:`EntropyGradient.entropy_ratio` on held-out images, mean over the latents; by the weights of this step.

        Raises:
            NonFiniteError: where it is not finite.
        """
        generator = self.generator(6, 0)
        x = self.vae.prepare(self.valid, generator)
        features = self.vae.encoder.features(x)
        z = self.vae.draw(self.vae.encoder.precompute(features), max(self.particles, _SPREAD_SAMPLES), generator)
        with self.seeded_scores():
            found = float(self.entropy.entropy_ratio(z, features if self.sees_features else x).mean())
        if not math.isfinite(found):
            raise NonFiniteError(f"the entropy gradient of held-out images is {found:g}")
        return found

    def check_encoder(self) -> None:
        """Stop an encoder that has become a point, or has run away.

        Raises:
            NonFiniteError: which of the two.
        """
        generator = self.generator(3, 0)
        within, over_all = spreads(self.vae, self.vae.prepare(self.valid, generator), generator)
        share = within / over_all.clamp(min=1.0)  # the prior has spread one
        if not bool((share >= _COLLAPSED).all()):
            latent = int(share.nan_to_num().argmin())
            raise NonFiniteError(
                f"the encoder has collapsed: latent {latent} of an input varies by {float(within[latent]):.1e}; the "
                "entropy gradient is too small or wrong"
            )
        if bool((over_all > _LARGEST).any()):
            raise NonFiniteError(f"the latents have run away, to {float(over_all.max()):.1e} standard deviations")

    def check_pressure(self, pressure: float) -> None:
        """Say so, once, where the estimate of the entropy gradient is far off after a tenth of the training."""
        if _WEAK <= pressure <= _STRONG or self.step < _SETTLED * self.config.steps or self.warned:
            return
        self.warned = True
        helps, off = self.remedies(), "narrower" if pressure < _WEAK else "wider"
        warn(
            f"step {self.step}: the scores give {max(pressure, 0.0):.0%} of the entropy's pressure, so that the "
            f"encoder is {off} than the posterior{helps and f'; what may help: {helps}'}",
            TrainingWarning,
        )

    def remedies(self) -> str:
        return remedies(self.vae, self.config) if self.own is None else ""

    # The loop ---------------------------------------------------------------------------------------------------

    def train(self, progress: bool) -> FitResult:
        log = TrainingLog(self.run, self.history, False, ("pressure",))
        with log, stop_requested() as asked:
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
                        held_out, pressure = self.validate(), self.pressure()
                        self.check_pressure(pressure)
                except NonFiniteError as error:
                    self.diverged(str(error))
                running = value if math.isnan(running) else 0.99 * running + 0.01 * value
                bar(note=f"-log p(x, z) {running:.4g}")
                self.seconds = time.monotonic() - begun
                if assessed:
                    rate = self.config.learning_rate
                    row = {"step": float(self.step), "loss": running, "valid": held_out, "learning_rate": rate,
                           "seconds": self.seconds, "pressure": pressure}  # fmt: skip
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
        self.vae.eval()
        if self.run is not None:
            save_vae(self.vae, self.run)
        helps = self.remedies()
        raise TrainingDiverged(
            f"step {self.step}: {cause}. The model holds the average of the weights so far; lower learning_rate "
            f"({self.config.learning_rate:g}){helps and f', or let the entropy gradient keep up: {helps}'}"
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
        if self.history and "pressure" in self.history[-1]:
            self.check_pressure(self.history[-1]["pressure"])
        return FitResult(self.step, self.seconds, self.step, last, self.history, False)

    # Checkpoints ------------------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Everything that the next step depends on, in one file."""
        assert self.run is not None
        parts: dict[str, dict[str, Tensor]] = {
            "model": self.vae.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": serialization.optimizer_tensors(self.optimizer),
        }
        if self.learned is not None:
            parts["scores"] = self.learned.trained.state_dict()
            parts["score_optimizer"] = serialization.optimizer_tensors(self.learned.optimizer)
        tensors = {f"{part}.{name}": t.clone() for part, named in parts.items() for name, t in named.items()}
        header = {
            "kind": "training state of an autoencoder",
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "data": self.data,
            "train": _comparable(self.config),
            "model": self.vae.config(),
            "entropy": self.own,
        }
        serialization.write_tensors(self.run / STATE_NAME, tensors, header)

    def restore(self) -> None:
        """Go on from the checkpoint in the run folder, if there is one."""
        path = None if self.run is None else self.run / STATE_NAME
        if path is None or not path.exists():
            return
        expected = {"train": _comparable(self.config), "model": self.vae.config(), "entropy": self.own}
        completed = {
            "train": lambda train: _comparable(VAETrainConfig(**train)),
            "model": completed_vae_config,
            "entropy": lambda name: name,
        }
        parts, header = serialization.read_state(path, self.device, expected, completed)
        check_same_data(path, header, self.data)
        serialization.load_state(self.vae, parts.get("model", {}), path)
        serialization.load_state(self.average, parts.get("average", {}), path)
        serialization.load_optimizer(self.optimizer, parts.get("optimizer", {}))
        if self.learned is not None:
            serialization.load_state(self.learned.trained, parts.get("scores", {}), path)
            serialization.load_optimizer(self.learned.optimizer, parts.get("score_optimizer", {}))
        try:
            self.step, self.seconds = int(header["step"]), float(header["seconds"])
            self.history = list(header["history"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a training state ({type(error).__name__}: {error})") from error


def _comparable(config: VAETrainConfig) -> dict[str, Any]:
    """What must agree for a run to be resumed."""
    return config.model_dump(mode="json", exclude={"checkpoint_seconds", "device"})
