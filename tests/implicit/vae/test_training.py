"""Training of autoencoders: it finds posteriors, resumes exactly and reports what breaks."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arcsm.implicit import (
    VAE,
    AutoregressiveEncoder,
    AutoregressiveScore,
    BernoulliDecoder,
    Decoder,
    DenseTrunk,
    Encoder,
    EncoderUnits,
    EntropyGradient,
    GaussianEncoder,
    ImplicitEncoder,
    VAEConfig,
    fit_vae,
    load_vae,
)
from arcsm.implicit.vae.training import VAETask, spreads, used_latents
from arcsm.training.checkpoint import read_checkpoint, write_checkpoint
from arcsm.training.log import read_metrics
from arcsm.training.loop import TrainingDiverged
from small_runs import before_step, have_same_weights, interrupt
from small_vaes import (
    ENCODERS,
    IMAGES,
    NarrowEncoder,
    exact_evidence,
    image_rows,
    linear_vae,
    seeded,
    simulate,
    vae_config,
    vae_for,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*latents carry no information about the input"),
    pytest.mark.filterwarnings("ignore:.*the entropy gradient has .* of its true size"),
]
DATA = (image_rows(40), image_rows(10))  # training and held-out rows


class LinearDecoder(Decoder):
    """x = w z + e with a standard normal z and e of standard deviation 0.5, whose posterior is known."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.features, self.largest_layer = 1, 2, 2
        weight = torch.randn(2, 1, generator=seeded(3), dtype=torch.float64)
        self.register_buffer("weight", weight.float())

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.distributions.Normal(self.mean(z), 0.5).log_prob(x.unsqueeze(1)).sum(-1)

    def mean(self, z: Tensor) -> Tensor:
        return z @ self.weight.T

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.mean(z) + 0.5 * torch.randn(len(z), 2, generator=generator)

    def posterior(self, x: Tensor) -> tuple[Tensor, float]:
        """Return means ``(N, 1)`` and the standard deviation of the latent, given inputs."""
        variance = 1.0 / (1.0 + float(self.weight.square().sum()) / 0.25)
        return x @ self.weight * variance / 0.25, math.sqrt(variance)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("elbo", {}),
        ("stein", {}),
        ("spectral", {}),
        ("ssm", {}),
        ("ssm-ar", {}),
        ("csm", {}),
        ("csm", {"plain_scores": True}),
        ("csm", {"whitened": True}),
        ("csm", {"whitened": "conditionals"}),
        ("ssm-ar", {"whitened": "conditionals"}),
    ],
)
def test_every_method_finds_the_posterior_of_a_linear_model(method: str, changes: dict[str, object]) -> None:
    """The encoder's samples have the posterior's mean and standard deviation."""
    torch.manual_seed(0)
    encoder: Encoder
    if ENCODERS[method] == "implicit":
        encoder = ImplicitEncoder(DenseTrunk(2, (16,), 1), 1)
    else:
        kinds = {"gaussian": GaussianEncoder, "autoregressive": AutoregressiveEncoder}
        encoder = kinds[ENCODERS[method]](DenseTrunk(2, (16,)), 1)
    decoder = LinearDecoder()
    parts = VAEConfig(latents=1, hidden_features=(16,), encoder=ENCODERS[method])  # type: ignore[arg-type]
    vae = VAE(encoder, decoder, parts, {"image_shape": [1, 1, 2], "levels": 256})
    vae.prepare = lambda rows, generator=None: rows  # type: ignore[method-assign, assignment]
    x = decoder.sample(torch.randn(4000, 1, generator=seeded(11)), seeded(12))
    config = vae_config(
        method, steps=250, batch_size=64, learning_rate=5e-3, score_learning_rate=8e-3, score_hidden=(16,),
        head_hidden=(32, 32), particles=10, validate_every=250, ema=0.96, **changes,
    )  # fmt: skip
    mean, std = decoder.posterior(x[:500])
    with torch.no_grad():
        before = vae.encode(x[:500], 200, seeded())
    result = fit_vae(vae, x, x[:100], config)
    with torch.no_grad():
        z = vae.encode(x[:500], 200, seeded())
    assert float((before.mean(1) - mean).square().mean().sqrt()) > 1.5 * std  # there is something to learn
    assert float((z.mean(1) - mean).square().mean().sqrt()) < 0.35 * std
    in_encoder_units = method == "elbo" or "whitened" in changes
    assert float(z.std(1).mean()) == pytest.approx(std, rel=0.05 if in_encoder_units else 0.15)
    if in_encoder_units:  # other scores lag behind an encoder that still moves
        assert result.history[-1]["pressure"] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("networks", ["dense", "convolutional"])
@pytest.mark.parametrize("method", list(ENCODERS))
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, method: str, networks: str) -> None:
    whole, resumed = vae_for(method, networks), vae_for(method, networks)
    expected = fit_vae(whole, *DATA, vae_config(method), tmp_path / "whole").history

    with before_step(5, interrupt, VAETask), pytest.raises(KeyboardInterrupt):
        fit_vae(resumed, *DATA, vae_config(method, checkpoint_seconds=0), tmp_path / "stopped")
    again = vae_for(method, networks)
    history = fit_vae(again, *DATA, vae_config(method), tmp_path / "stopped", resume=True).history
    for column in ("step", "loss", "valid", "pressure"):
        assert [row[column] for row in history] == [row[column] for row in expected]
    assert have_same_weights(whole, again)
    with pytest.raises(ValueError, match=r"was written with a different train configuration \(seed: 0 then, 1 now\)"):
        fit_vae(again, *DATA, vae_config(method, seed=1), tmp_path / "stopped", resume=True)


def test_a_run_is_neither_overwritten_nor_resumed_with_other_rows(tmp_path: Path) -> None:
    config = vae_config("csm")
    fit_vae(vae_for("csm"), *DATA, config, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="already holds a run; give resume=True"):
        fit_vae(vae_for("csm"), *DATA, config, tmp_path)
    with pytest.raises(ValueError, match=r"different data \(40 rows then, 39 now\)"):
        fit_vae(vae_for("csm"), image_rows(40)[1:], image_rows(10), config, tmp_path, resume=True)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_scores_with_a_noise_ladder_are_reproducible(tmp_path: Path) -> None:
    noisy = vae_config("csm", score_noise={"sigma_max": 0.5, "sigma_min": 0.1, "levels": 3}, mix=0.3, whitened=True)
    first, second = vae_for("csm"), vae_for("csm")
    fit_vae(first, *DATA, noisy)
    torch.rand(7)
    state = torch.random.get_rng_state()
    fit_vae(second, *DATA, noisy)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert have_same_weights(first, second)


@pytest.mark.parametrize("whitened", [False, True])
def test_centred_entropies_do_not_move_the_locations(whitened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_bias(**changes: object) -> tuple[Tensor, Tensor]:
        """Return the gradients of one step with respect to the biases of locations and log scales."""
        task = VAETask(vae_for("csm"), *DATA, vae_config("csm", whitened=whitened, **changes))
        task.advance()
        encoder = task.vae.encoder
        assert isinstance(encoder, AutoregressiveEncoder)
        found = encoder.location_and_log_scale.bias.grad
        assert found is not None
        return found.chunk(2)[0], found.chunk(2)[1]

    plain, centred = by_bias(), by_bias(centred=True)
    estimator = EncoderUnits if whitened else AutoregressiveScore
    monkeypatch.setattr(estimator, "surrogate", lambda self, z, condition: 0.0 * z.sum())
    energy = by_bias()
    assert energy[0].abs().min() > 0.0
    torch.testing.assert_close(centred[0], energy[0])
    assert not torch.allclose(plain[0], energy[0])
    torch.testing.assert_close(centred[1], plain[1])
    assert not torch.allclose(centred[1], energy[1])


def test_entropy_weight_scales_the_entropy_gradient() -> None:
    def gradient(weight: float) -> Tensor:
        task = VAETask(vae_for("csm"), *DATA, vae_config("csm", entropy_weight=weight))
        task.advance()
        return torch.cat([p.grad.flatten() for p in task.vae.encoder.parameters() if p.grad is not None])

    none, half, whole = gradient(0.0), gradient(0.5), gradient(1.0)
    assert not torch.allclose(none, whole)
    torch.testing.assert_close(half, 0.5 * (none + whole))


def test_warm_start_trains_the_scores_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    update = AutoregressiveScore.update

    def recorded(self: AutoregressiveScore, z: Tensor, *rest: Any) -> float:
        seen.append(z)
        return update(self, z, *rest)

    monkeypatch.setattr(AutoregressiveScore, "update", recorded)
    vae = vae_for("csm")
    before = {name: weight.clone() for name, weight in vae.state_dict().items()}
    task = VAETask(vae, *DATA, vae_config("csm", warm_start=5, steps=4))
    task.prepare(lambda: False, progress=False)
    assert len(seen) == 5
    assert not any(torch.equal(z, seen[0]) for z in seen[1:])
    assert all(torch.equal(weight, before[name]) for name, weight in vae.state_dict().items())
    task.advance()
    task.step = 1
    write_checkpoint(task, tmp_path / "run")
    seen.clear()
    fit_vae(vae_for("csm"), *DATA, task.config, tmp_path / "run", resume=True)
    assert len(seen) == 3
    seen.clear()
    fit_vae(vae_for("csm"), *DATA, task.config)
    assert len(seen) == 9


def test_an_interrupted_warm_start_starts_again(tmp_path: Path) -> None:
    config = vae_config("csm", warm_start=5, whitened=True)
    stopped = VAETask(vae_for("csm"), *DATA, config)
    with pytest.raises(KeyboardInterrupt, match="interrupted in the warm start, which is lost"):
        stopped.prepare(lambda: True, progress=False)
    again, whole = vae_for("csm"), vae_for("csm")
    fit_vae(again, *DATA, config, tmp_path / "stopped", resume=True)
    fit_vae(whole, *DATA, config)
    assert have_same_weights(whole, again)


def test_a_diverging_warm_start_names_the_remedy(tmp_path: Path) -> None:
    config = vae_config("csm", warm_start=50, score_learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match=r"warm start, step \d+: .*; lower score_learning_rate \(1e\+30\)"):
        fit_vae(vae_for("csm"), *DATA, config, tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_scores_in_conditional_units_start_with_entropy_ratio_one() -> None:
    def at_start(**changes: object) -> float:
        torch.manual_seed(0)
        vae = VAEConfig(latents=4, hidden_features=(32,)).build(IMAGES)
        vae.encoder.output.data.mul_(20.0)  # type: ignore[union-attr]
        images = image_rows(2_000)
        return VAETask(vae, images, images, vae_config("csm", validation_rows=2_000, **changes)).entropy_ratio()

    assert at_start(whitened="conditionals") == pytest.approx(1.0, abs=0.02)
    assert not 0.5 < at_start() < 2.0


def test_the_entropy_ratio_is_logged_and_warned_about(tmp_path: Path) -> None:
    config = vae_config("csm", learning_rate=1e-9, score_learning_rate=1e-9, validate_every=3)
    with pytest.warns(UserWarning, match=r"has \d+% of its true size.*whitened=cond") as warned:
        result = fit_vae(vae_for("csm"), *DATA, config, tmp_path / "run")
    assert len(result.history) > 1
    messages = [str(warning.message) for warning in warned]
    assert [message.split(":")[0] for message in messages if "true size" in message] == ["step 3"]  # once
    logged = [row["pressure"] for row in read_metrics(tmp_path / "run")]
    assert logged == [row["pressure"] for row in result.history]
    task = VAETask(vae_for("csm"), *DATA, config)
    read_checkpoint(task, tmp_path / "run")
    assert task.entropy_ratio() == pytest.approx(logged[-1])


class BrokenEncoder(Encoder):
    """An encoder whose latents have collapsed or run away."""

    def __init__(self, scale: float, spread: float) -> None:
        super().__init__()
        self.latents = 2
        self.weight = nn.Parameter(torch.full((16, 2), scale))
        self.spread = spread

    def features(self, x: Tensor) -> Tensor:
        return x @ self.weight

    def draw(self, begun: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return begun[0].unsqueeze(1) + self.spread * noise


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (BrokenEncoder(1.0, 1e-6), r"step 3: the encoder has collapsed: latent \d of an input varies by .*e-06"),
        (BrokenEncoder(0.0, 1e-6), r"step 3: the encoder has collapsed: latent \d of an input varies by .*e-0[67]"),
        (BrokenEncoder(0.0, 0.0), r"step 3: the encoder has collapsed: latent \d of an input varies by 0.0e\+00"),
        (BrokenEncoder(1e4, 1e3), r"step 3: the latents have run away"),
    ],
)
def test_a_broken_encoder_names_the_remedy(tmp_path: Path, encoder: Encoder, message: str) -> None:
    torch.manual_seed(0)
    parts = VAEConfig(encoder="implicit", latents=2, hidden_features=(8,))
    vae = VAE(encoder, BernoulliDecoder(2, 16, (8,)), parts, IMAGES)
    config = vae_config("ssm", learning_rate=1e-9)
    with pytest.raises(TrainingDiverged, match=message + r".*learning_rate.*score_steps"):
        fit_vae(vae, *DATA, config)


@pytest.mark.parametrize(("ratio", "message"), [(0.3, "30% .* narrower"), (3.0, "300% .* wider"), (0.9, None)])
def test_an_entropy_ratio_far_from_one_warns_once(ratio: float, message: str | None) -> None:
    task = VAETask(vae_for("csm"), *DATA, vae_config("csm"))
    task.step = 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if message is not None:
            start, end = "^step 3: the entropy gradient has", "than the posterior; what may help: train"
            with pytest.warns(UserWarning, match=f"{start} {message} {end}"):
                task.assess({"pressure": ratio})
        task.assess({"pressure": ratio})


class CustomEntropy(EntropyGradient):
    """The score of a normal distribution with the standard deviation of the latest samples, times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        self.std, self.factor, self.seen, self.drawn = 1.0, factor, [], set()

    def update(
        self, z: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> float | None:
        assert condition is not None
        self.seen.append(condition)
        self.drawn.add(z.shape[1])
        self.std = float(z.std())
        return None

    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return -self.factor * (z - z.mean()) / self.std**2


class FixedEntropy(CustomEntropy):
    """The same without updates."""

    update = EntropyGradient.update


def test_a_custom_estimator_trains_an_autoencoder(tmp_path: Path) -> None:
    own = CustomEntropy()
    vae = vae_for("csm")
    assert fit_vae(vae, *DATA, vae_config("csm", score_steps=2, warm_start=3), entropy=own).steps == 6
    assert len(own.seen) == 3 + 2 * 6
    assert all(x.shape == (8, 16) and bool(((x == 0.0) | (x == 1.0)).all()) for x in own.seen)
    assert own.std != 1.0
    widths = []
    for factor in (0.0, 1.0):
        vae = vae_for("csm")
        fit_vae(vae, *DATA, vae_config("csm", steps=60, learning_rate=0.01), entropy=CustomEntropy(factor))
        widths.append(float(spreads(vae, vae.prepare(image_rows(40), seeded()), seeded())[0].mean()))
    assert widths[1] > 1.2 * widths[0]

    greedy = CustomEntropy()
    greedy.min_samples = 3
    fit_vae(vae_for("csm"), *DATA, vae_config("csm"), entropy=greedy)
    assert greedy.drawn == {4}
    with pytest.raises(ValueError, match="particles: expected at least 3, which CustomEntropy needs"):
        fit_vae(vae_for("csm"), *DATA, vae_config("csm", particles=2), entropy=greedy)
    with pytest.raises(ValueError, match="checkpoints cannot hold what CustomEntropy learns"):
        fit_vae(vae_for("csm"), *DATA, vae_config("csm"), tmp_path / "own", entropy=own)
    assert not (tmp_path / "own").exists()
    with pytest.raises(ValueError, match="expected an autoregressive encoder"):
        fit_vae(vae_for("ssm"), *DATA, vae_config("ssm", centred=True), entropy=FixedEntropy())

    fit_vae(vae_for("csm"), *DATA, vae_config("csm"), tmp_path / "fixed", entropy=FixedEntropy())
    again = fit_vae(vae_for("csm"), *DATA, vae_config("csm"), tmp_path / "fixed", resume=True, entropy=FixedEntropy())
    assert again.steps == 6
    with pytest.raises(ValueError, match="a different entropy configuration"):
        fit_vae(vae_for("csm"), *DATA, vae_config("csm"), tmp_path / "fixed", resume=True)


def test_a_nan_entropy_gradient_ends_training() -> None:
    class Late(FixedEntropy):
        calls = 0

        def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
            self.calls += 1
            return super().score(z, condition) * (math.nan if self.calls > 3 else 1.0)

    with pytest.raises(TrainingDiverged, match="step 3: the entropy gradient of held-out images is nan"):
        fit_vae(vae_for("csm"), *DATA, vae_config("csm"), entropy=Late())


class FaultyEncoder(BrokenEncoder):
    def draw(self, begun: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        raise ValueError("an error of the encoder")


def test_an_error_in_a_custom_encoder_is_not_a_divergence() -> None:
    parts = VAEConfig(encoder="implicit", latents=2, hidden_features=(8,))
    vae = VAE(FaultyEncoder(1.0, 1.0), BernoulliDecoder(2, 16, (8,)), parts, IMAGES)
    for warm_start in (0, 2):
        with pytest.raises(ValueError, match=r"^an error of the encoder$"):
            fit_vae(vae, *DATA, vae_config("ssm", warm_start=warm_start))


def test_a_diverging_learning_rate_is_named_and_weights_are_kept(tmp_path: Path) -> None:
    vae = vae_for("ssm")
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        fit_vae(vae, *DATA, vae_config("ssm", steps=50, learning_rate=1e18), tmp_path)
    assert load_vae(tmp_path).latents == 2  # loading checks that all weights are finite


def test_unused_latents_are_counted() -> None:
    torch.manual_seed(0)
    encoder = GaussianEncoder(DenseTrunk(16, (8,)), 2)
    with torch.no_grad():
        encoder.location_and_log_scale.weight.zero_()
        encoder.location_and_log_scale.weight[1] = 3.0
        encoder.location_and_log_scale.bias.zero_()
    parts = VAEConfig(encoder="gaussian", latents=2, hidden_features=(8,))
    vae = VAE(encoder, BernoulliDecoder(2, 16, (8,)), parts, IMAGES)
    assert used_latents(vae, vae.prepare(image_rows(100), seeded()), seeded()) == 1
    with pytest.warns(UserWarning, match="1 of 2 latents carry no information about the input"):
        fit_vae(vae, image_rows(40), image_rows(40), vae_config("elbo", learning_rate=1e-9))


@pytest.mark.parametrize("images", [1, 5, 20, 200])
def test_latents_that_vary_by_chance_are_unused(images: int) -> None:
    vae = VAEConfig(encoder="gaussian", latents=100, hidden_features=(8,)).build(
        {"image_shape": [1, 4, 4], "levels": 2}
    )
    assert isinstance(vae.encoder, GaussianEncoder)
    with torch.no_grad():
        vae.encoder.location_and_log_scale.weight.zero_()  # the same for every image
    x = vae.prepare(image_rows(images), seeded())
    assert sum(used_latents(vae, x, seeded(seed)) for seed in range(5)) <= 5  # of 500


@pytest.mark.parametrize(
    ("train", "valid", "message"),
    [
        (image_rows(20, 9), image_rows(5), r"train: expected rows \(N, 16\), got \(20, 9\)"),
        (image_rows(20), image_rows(5)[:0], r"valid: expected rows"),
        (image_rows(20) / 0.0, image_rows(5), "train: holds NaN or infinity"),
        (np.array(["a"]), image_rows(5), "train: expected an array of numbers"),
        (image_rows(20), image_rows(5).tolist(), r"valid: expected a tensor or array \(N, 16\), got list"),
    ],
)
def test_rows_that_do_not_fit_are_rejected(train: Any, valid: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        fit_vae(vae_for("csm"), train, valid)


def test_arrays_train_as_tensors_do() -> None:
    weights = []
    for rows in (image_rows(40), image_rows(40).double().numpy()):
        vae = vae_for("elbo")
        fit_vae(vae, rows, rows[:5], vae_config("elbo"))
        weights.append(torch.cat([p.flatten() for p in vae.parameters()]))
    torch.testing.assert_close(*weights)


def test_the_logged_bound_is_within_a_nat_for_an_encoder_that_is_far_too_narrow() -> None:
    vae = linear_vae()
    x = simulate(vae, 20)[1].clamp(-1.0, 0.99)
    task = VAETask(vae, x, x, vae_config("csm", validation_samples=64))
    task.average.module.encoder = NarrowEncoder(vae)
    exact = -float(exact_evidence(vae, task.average.module.prepare(x)).mean())
    assert exact < task.validate()["valid"] < exact + 1.0  # after one round of the proposal, 20 nats above
