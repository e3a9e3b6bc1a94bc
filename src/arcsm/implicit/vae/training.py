"""Training of autoencoders, in which steps of the scores and steps of the autoencoder alternate."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from arcsm import serialization
from arcsm._runtime.devices import resolve_device
from arcsm._runtime.files import FilePath
from arcsm._runtime.progress import track
from arcsm.errors import NonFiniteError, TrainingWarning, warn
from arcsm.implicit.entropy.gradients import EntropyGradient, GaussianEntropy, RescaledEntropy
from arcsm.implicit.entropy.learned import AutoregressiveScore, JointScore
from arcsm.implicit.evidence.bounds import importance_bound
from arcsm.implicit.evidence.proposals import fit_proposal
from arcsm.implicit.networks.encoders import AutoregressiveEncoder
from arcsm.implicit.networks.vae import VAE, check_saveable, completed_vae_config, save_vae
from arcsm.implicit.vae.config import VAETrainConfig
from arcsm.implicit.vae.methods import build_estimator, remedies
from arcsm.training.checkpoint import check_unused
from arcsm.training.data import as_tensor, fingerprint
from arcsm.training.loop import FitResult, TrainingDiverged, run_training
from arcsm.training.task import TrainingTask

_MIN_RELATIVE_SPREAD = 1e-4  # of the latents of one input, relative to that of all latents or of the prior
_MAX_SPREAD = 1e3  # of all latents; the prior has spread 1
_SPREAD_SAMPLES = 16  # latents of each input
_ENTROPY_RATIO_RANGE = (0.5, 2.0)  # a warning is due outside
_SETTLING_FRACTION = 0.1  # of the training, before which no such warning is due
_MIN_STANDARD_DEVIATIONS = 4.0  # by which a used latent must exceed chance
_MIN_EXPLAINED_VARIANCE = 0.01  # fraction of a used latent's variance that the inputs explain
_STEP, _VALIDATION, _SPREAD, _SCORES, _WARM_START, _ENTROPY_RATIO = 1, 2, 3, 4, 5, 6  # purposes of random numbers


def fit_vae(
    vae: VAE,
    train: Tensor | NDArray[Any],
    valid: Tensor | NDArray[Any],
    config: VAETrainConfig | None = None,
    run: FilePath | None = None,
    resume: bool = False,
    progress: bool = False,
    entropy: EntropyGradient | None = None,
) -> FitResult:
    """Train an autoencoder in place (paper, Appendix D.2).

    .. math:: \\max_{\\theta, \\phi}\\;
        \\mathbb{E}_{q_\\phi(z \\mid x)} \\log p_\\theta(x, z) + H[q_\\phi(\\cdot \\mid x)]

    The logged losses are means of :math:`-\\log p_\\theta(x, z)`. The held-out losses, ``valid`` in the log, are quick
    upper bounds of :math:`-\\log p_\\theta(x)`, from few latents (``validation_samples``), and loose for a narrow
    encoder: use them to follow a training, and :func:`annealed_bound` to compare methods or to report a likelihood. The
    averaged weights of the last step are kept: ``best_step`` and ``best_loss`` are the last step and its quick bound. A
    run is resumed as by :func:`arcsm.fit`; other arguments and errors are the same, too.

    Arguments:
        train: Rows of images, a tensor or array ``(N, F)`` in [-1, 1).
        valid: Held-out rows.
        entropy: Custom estimator, on the device of the training, in place of the configured method. It
            receives samples of the encoder (``particles`` per input, if it needs more than one) and the decoder's
            inputs ``(B, F)``. With ``run``, it must either not learn, or be an estimator of this package, whose state
            a checkpoint can hold.

    Raises:
        ValueError: If the rows have another size, the method does not suit the encoder, or, with ``run``, the
            autoencoder cannot be saved.
        TrainingDiverged: If a loss or gradient is not finite, or the encoder has collapsed.

    Example:
        >>> from arcsm.implicit import VAEConfig
        >>> vae = VAEConfig(latents=2, hidden_features=(8,)).build({"image_shape": [1, 2, 2], "levels": 256})
        >>> rows = torch.rand(64, 4) * 2.0 - 1.0
        >>> fit_vae(vae, rows, rows, VAETrainConfig(steps=3, score_hidden=(8,), device="cpu")).steps
        3
    """
    check_unused(run, resume)
    if run is not None:
        check_saveable(vae)
    task = VAETask(vae, train, valid, config or VAETrainConfig(), entropy)
    if run is not None and task.entropy.learns and task.learned is None:
        raise ValueError(f"run: checkpoints cannot hold what {task.custom_name} learns; train without a folder")
    return run_training(task, None if run is None else Path(run), resume, progress)


@torch.no_grad()
def spreads(vae: VAE, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Return the standard deviations of each latent, within an input and over all inputs ``(B, F)``, ``(D,)`` each."""
    z = vae.encode(x, _SPREAD_SAMPLES, generator)
    return z.std(1).square().mean(0).sqrt(), z.flatten(0, 1).std(0)


@torch.no_grad()
def used_latents(vae: VAE, x: Tensor, generator: torch.Generator | None = None) -> int:
    """Return how many latents carry information about the input, which explains at least 1 % of their variance.

    The variance that sampling alone explains is subtracted, and must be exceeded by more than chance.
    """
    z = vae.encode(x, _SPREAD_SAMPLES, generator)
    within, between = z.var(1).mean(0), z.mean(1).var(0) if len(z) > 1 else z.new_zeros(z.shape[-1])
    by_chance = within / _SPREAD_SAMPLES
    explained = between - by_chance
    enough = explained >= _MIN_EXPLAINED_VARIANCE * (explained + within)
    significant = explained > _MIN_STANDARD_DEVIATIONS * math.sqrt(2.0 / max(1, len(z) - 1)) * by_chance
    return int((enough & significant).sum())


class VAETask(TrainingTask):
    """An autoencoder in training; see :func:`fit_vae` for the arguments."""

    kind = "training state of an autoencoder"
    loss_name = "-log p(x, z)"
    newest_loss_weight = 0.01
    extra_columns = ("pressure",)
    config: VAETrainConfig

    def __init__(
        self, vae: VAE, train: Any, valid: Any, config: VAETrainConfig, entropy: EntropyGradient | None = None
    ) -> None:
        train, valid = as_tensor(train, "train"), as_tensor(valid, "valid")
        for name, rows in (("train", train), ("valid", valid)):
            if not isinstance(rows, Tensor):
                raise TypeError(f"{name}: expected a tensor or array (N, {vae.features}), got {type(rows).__name__}")
            if rows.ndim != 2 or rows.shape[1] != vae.features or len(rows) == 0:
                raise ValueError(f"{name}: expected rows (N, {vae.features}), got {tuple(rows.shape)}")
            if not bool(rows.isfinite().all()):
                raise ValueError(f"{name}: holds NaN or infinity")
        device = resolve_device(config.device)
        super().__init__(vae.to(device).train(), config, config.steps, device)
        self.vae = vae
        like = next(vae.parameters())
        self.data = fingerprint(train, None)
        self.rows, self.valid = train.to(like), valid[: config.validation_rows].to(like)
        self.batch_size = min(config.batch_size, len(train))
        self.custom_name = None if entropy is None else type(entropy).__name__
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(config.seed)
            self.entropy = entropy or build_estimator(vae, config)
        self.reads_features = entropy is None and isinstance(self.entropy, GaussianEntropy | RescaledEntropy)
        inner = self.entropy.inner if isinstance(self.entropy, RescaledEntropy) else self.entropy
        self.learned = inner if isinstance(inner, (AutoregressiveScore, JointScore)) else None
        if self.custom_name is not None:
            least = self.entropy.min_samples
            if least > config.particles:
                raise ValueError(f"train.particles: expected at least {least}, which {self.custom_name} needs")
            if config.centred and not isinstance(vae.encoder, AutoregressiveEncoder):
                raise ValueError("train.centred: expected an autoregressive encoder")
        if self.learned is not None:
            self.learned.width_checked = True  # the spread of latents changes; the entropy ratio shows if it matters
        self.particles = config.particles if self.entropy.min_samples > 1 else 1
        self.optimizer = torch.optim.RMSprop(vae.parameters(), config.learning_rate, foreach=True)
        self.warned = False  # about the entropy ratio

    def prepare(self, stop: Callable[[], bool], progress: bool) -> None:
        """Train the scores alone on the initial encoder, before the first step; an interruption loses the result."""
        steps = self.config.warm_start if self.step == 0 and self.entropy.learns else 0
        if steps == 0:
            return
        with track("scores", steps, progress) as advance_bar, torch.no_grad():
            for number in range(steps):
                generator = self.generator(_WARM_START, number)
                _, state, seen = self._batch(generator)
                try:
                    self._update_scores(state, seen, 1, generator)
                except NonFiniteError as error:
                    rate = "" if self.learned is None else f" ({self.learned.optimizer.param_groups[0]['lr']:g})"
                    raise TrainingDiverged(
                        f"warm start, step {number}: {error}; lower score_learning_rate{rate}"
                    ) from error
                advance_bar()
                if stop():
                    raise KeyboardInterrupt("interrupted in the warm start, which is lost")

    def advance(self) -> float:
        """Update the scores, then take one step of the autoencoder; return :math:`-\\log p(x, z)`."""
        generator = self.generator(_STEP, self.step)
        x, state, seen = self._batch(generator)
        self._update_scores(state, seen, self.config.score_steps, generator)
        z = self.vae.draw(state, self.particles, generator)
        energy = -self.vae.decoder.log_prob(x, z[:, :1]).mean() - self.vae.log_prior(z).mean()
        if self.config.centred:  # no gradient of the entropy reaches the locations
            location = state[0].unsqueeze(1)
            z = z - (location - location.detach())
        with self._seeded_scores():
            loss = energy - self.config.entropy_weight * self.entropy.surrogate(z, seen)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.get_total_norm(p.grad for p in self.vae.parameters() if p.grad is not None)
        if not bool(loss.isfinite() & norm.isfinite()):
            raise NonFiniteError(f"the loss is {float(loss.detach()):g}, the norm of its gradient {float(norm):g}")
        self.optimizer.step()
        self.update_average()
        return float(energy.detach())

    def _batch(self, generator: torch.Generator) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Return inputs ``(B, F)``, the encoder's state for them, and the condition of the scores."""
        chosen = torch.randint(len(self.rows), (self.batch_size,), generator=generator, device=self.device)
        x = self.vae.prepare(self.rows[chosen], generator)
        features = self.vae.encoder.features(x)
        return x, self.vae.encoder.precompute(features), features if self.reads_features else x

    def _update_scores(self, state: tuple[Tensor, ...], seen: Tensor, steps: int, generator: torch.Generator) -> None:
        for _ in range(steps if self.entropy.learns else 0):
            with torch.no_grad():
                z = self.vae.draw(state, self.particles, generator)
            self.entropy.update(z, seen, generator)

    def _seeded_scores(self) -> AbstractContextManager[None]:
        """Seed torch's global generator, from which scores with a noise ladder draw."""
        return self.global_generator(_SCORES, self.config.score_noise is not None or self.custom_name is not None)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the importance weighted bound on held-out images, by the averaged weights, and the entropy ratio.

        The proposal takes as many rounds as it needs: after one, it would still be as narrow as the encoder.
        """
        self.check_encoder()
        averaged: VAE = self.average.module  # type: ignore[assignment]
        generator = self.generator(_VALIDATION, 0)
        x = averaged.prepare(self.valid, generator)
        proposal = fit_proposal(averaged, x, self.config.validation_samples, generator=generator)
        bound = importance_bound(averaged, x, self.config.validation_samples, proposal, generator).mean()
        return {"valid": -float(bound), "pressure": self.entropy_ratio()}

    def check_encoder(self) -> None:
        """Raise a ``NonFiniteError`` if the latents have collapsed or run away."""
        generator = self.generator(_SPREAD, 0)
        within, overall = spreads(self.vae, self.vae.prepare(self.valid, generator), generator)
        relative = within / overall.clamp(min=1.0)  # the prior has spread 1
        if not bool((relative >= _MIN_RELATIVE_SPREAD).all()):
            latent = int(relative.nan_to_num().argmin())
            raise NonFiniteError(
                f"the encoder has collapsed: latent {latent} of an input varies by {float(within[latent]):.1e}; the "
                "entropy gradient is too small or wrong"
            )
        if bool((overall > _MAX_SPREAD).any()):
            raise NonFiniteError(f"the latents have run away, to {float(overall.max()):.1e} standard deviations")

    @torch.no_grad()
    def entropy_ratio(self) -> float:
        """Return the mean :meth:`EntropyGradient.entropy_ratio` of held-out images, by the current weights."""
        generator = self.generator(_ENTROPY_RATIO, 0)
        x = self.vae.prepare(self.valid, generator)
        features = self.vae.encoder.features(x)
        z = self.vae.draw(self.vae.encoder.precompute(features), max(self.particles, _SPREAD_SAMPLES), generator)
        with self._seeded_scores():
            ratio = float(self.entropy.entropy_ratio(z, features if self.reads_features else x).mean())
        if not math.isfinite(ratio):
            raise NonFiniteError(f"the entropy gradient of held-out images is {ratio:g}")
        return ratio

    def assess(self, row: Mapping[str, float]) -> None:
        """Warn, once, if the entropy gradient is far off after a tenth of the training."""
        ratio, (low, high) = row["pressure"], _ENTROPY_RATIO_RANGE
        if low <= ratio <= high or self.step < _SETTLING_FRACTION * self.steps or self.warned:
            return
        self.warned = True
        advice, off = self._remedies(), "narrower" if ratio < low else "wider"
        warn(
            f"step {self.step}: the entropy gradient has {max(ratio, 0.0):.0%} of its true size, so the encoder is "
            f"{off} than the posterior{advice and f'; what may help: {advice}'}",
            TrainingWarning,
        )

    def _remedies(self) -> str:
        return remedies(self.vae, self.config) if self.custom_name is None else ""

    @property
    def best(self) -> tuple[int, float]:
        return self.step, self.history[-1]["valid"] if self.history else math.nan

    def save(self, run: Path) -> None:
        save_vae(self.vae, run)

    def explain(self, cause: str) -> str:
        advice = self._remedies()
        return (
            f"{cause}. The model holds the average of the weights so far; lower learning_rate "
            f"({self.config.learning_rate:g}){advice and f', or improve the entropy gradient: {advice}'}"
        )

    def warn_if_poor(self) -> None:
        generator = self.generator(_SPREAD, 0)
        unused = self.vae.latents - used_latents(self.vae, self.vae.prepare(self.valid, generator), generator)
        if unused:
            warn(f"{unused} of {self.vae.latents} latents carry no information about the input; fewer may do")
        if self.history and "pressure" in self.history[-1]:
            self.assess(self.history[-1])

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        if self.learned is None:
            return super().tensors()
        optimizer = serialization.optimizer_tensors(self.learned.optimizer)
        return {**super().tensors(), "scores": self.learned.trained.state_dict(), "score_optimizer": optimizer}

    def header(self) -> dict[str, Any]:
        return {**super().header(), "entropy": self.custom_name}

    @property
    def completions(self) -> Mapping[str, Callable[[Any], Any]]:
        return {**super().completions, "model": completed_vae_config, "entropy": lambda name: name}

    def load_state(self, tensors: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, Any], path: Path) -> None:
        super().load_state(tensors, header, path)
        if self.learned is not None:
            serialization.load_state(self.learned.trained, tensors.get("scores", {}), path)
            serialization.load_optimizer(self.learned.optimizer, tensors.get("score_optimizer", {}))
