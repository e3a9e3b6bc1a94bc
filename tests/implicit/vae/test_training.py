"""Training of autoencoders: it finds posteriors, resumes exactly and reports what breaks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from arcsm.implicit import (
    VAE,
    AutoregressiveEncoder,
    AutoregressiveScore,
    BernoulliDecoder,
    DenseTrunk,
    Encoder,
    EntropyGradient,
    GaussianEncoder,
    ImplicitEncoder,
    VAEConfig,
    fit_vae,
    load_vae,
)
from arcsm.implicit.vae.training import VAETask, used_latents
from arcsm.training.log import read_metrics
from arcsm.training.loop import TrainingDiverged
from small_runs import before_step, have_same_weights, interrupt
from small_vaes import (
    ENCODERS,
    IMAGES,
    exact_posterior,
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


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("elbo", {}),
        pytest.param("stein", {}, marks=pytest.mark.slow),
        pytest.param("spectral", {}, marks=pytest.mark.slow),
        pytest.param("ssm", {}, marks=pytest.mark.slow),
        pytest.param("ssm-ar", {"whitened": "conditionals"}, marks=pytest.mark.slow),
        pytest.param("csm", {"plain_scores": True}, marks=pytest.mark.slow),
        pytest.param("csm", {"whitened": True}, marks=pytest.mark.slow),
        ("csm", {"whitened": "conditionals"}),
    ],
)
def test_every_method_finds_the_posterior_of_a_linear_model(method: str, changes: dict[str, object]) -> None:
    """The encoder's samples have the posterior's mean and standard deviation."""
    if ENCODERS[method] == "implicit":
        encoder: Encoder = ImplicitEncoder(DenseTrunk(2, (16,), 1), 1)
    else:
        kinds = {"gaussian": GaussianEncoder, "autoregressive": AutoregressiveEncoder}
        encoder = kinds[ENCODERS[method]](DenseTrunk(2, (16,)), 1)
    vae = linear_vae(1, 2, encoder)
    vae.decoder.requires_grad_(False)
    vae.parts = vae.parts.model_copy(update={"encoder": ENCODERS[method]})
    vae.prepare = lambda rows, generator=None: rows  # type: ignore[method-assign, assignment]
    x = simulate(vae, 4000)[1]
    mean, covariance = exact_posterior(vae, x[:500])
    std, vae, x = float(covariance) ** 0.5, vae.float(), x.float()
    config = vae_config(
        method, steps=250, batch_size=64, learning_rate=5e-3, score_learning_rate=8e-3, score_hidden=(16,),
        head_hidden=(32, 32), particles=10, validate_every=250, ema=0.96, **changes,
    )  # fmt: skip
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


@pytest.mark.parametrize(
    ("method", "networks"),
    [
        ("elbo", "convolutional"),
        ("spectral", "dense"),
        ("ssm", "convolutional"),
        ("csm", "dense"),
    ],
)
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
    with pytest.raises(ValueError, match=r"different data \(40 rows then, 39 now\)"):
        fit_vae(again, DATA[0][1:], DATA[1], vae_config(method), tmp_path / "stopped", resume=True)


def test_centred_entropies_do_not_move_the_locations(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_bias(**changes: object) -> tuple[Tensor, Tensor]:
        """Return the gradients of one step with respect to the biases of locations and log scales."""
        task = VAETask(vae_for("csm"), *DATA, vae_config("csm", **changes))
        task.advance()
        encoder = task.vae.encoder
        assert isinstance(encoder, AutoregressiveEncoder)
        found = encoder.location_and_log_scale.bias.grad
        assert found is not None
        return found.chunk(2)[0], found.chunk(2)[1]

    plain, centred = by_bias(), by_bias(centred=True)
    monkeypatch.setattr(AutoregressiveScore, "surrogate", lambda self, z, condition: 0.0 * z.sum())
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
    assert [row["pressure"] for row in read_metrics(tmp_path / "run")] == [row["pressure"] for row in result.history]


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
        (BrokenEncoder(0.0, 0.0), r"step 3: the encoder has collapsed: latent \d of an input varies by 0.0e\+00"),
        (BrokenEncoder(1e4, 1e3), r"step 3: the latents have run away"),
    ],
)
def test_a_broken_encoder_names_the_remedy(encoder: Encoder, message: str) -> None:
    parts = VAEConfig(encoder="implicit", latents=2, hidden_features=(8,))
    vae = VAE(encoder, BernoulliDecoder(2, 16, (8,)), parts, IMAGES)
    config = vae_config("ssm", learning_rate=1e-9)
    with pytest.raises(TrainingDiverged, match=message + r".*learning_rate.*score_steps"):
        fit_vae(vae, *DATA, config)


class CustomEntropy(EntropyGradient):
    """The score of a normal distribution with the standard deviation of the latest samples."""

    def __init__(self) -> None:
        self.std, self.seen = 1.0, []

    def update(
        self, z: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> float | None:
        assert condition is not None
        self.seen.append(condition)
        self.std = float(z.std())
        return None

    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return -(z - z.mean()) / self.std**2


class FixedEntropy(CustomEntropy):
    """The same without updates."""

    update = EntropyGradient.update


def test_a_custom_estimator_trains_an_autoencoder(tmp_path: Path) -> None:
    own = CustomEntropy()
    assert fit_vae(vae_for("csm"), *DATA, vae_config("csm", score_steps=2, warm_start=3), entropy=own).steps == 6
    assert len(own.seen) == 3 + 2 * 6
    assert all(x.shape == (8, 16) and bool(((x == 0.0) | (x == 1.0)).all()) for x in own.seen)
    assert own.std != 1.0
    with pytest.raises(ValueError, match="checkpoints cannot hold what CustomEntropy learns"):
        fit_vae(vae_for("csm"), *DATA, vae_config("csm"), tmp_path / "own", entropy=own)
    assert not (tmp_path / "own").exists()
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


def test_a_diverging_learning_rate_is_named_and_weights_are_kept(tmp_path: Path) -> None:
    vae = vae_for("ssm")
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        fit_vae(vae, *DATA, vae_config("ssm", steps=50, learning_rate=1e18), tmp_path)
    assert load_vae(tmp_path).latents == 2  # loading checks that all weights are finite


def test_unused_latents_are_counted() -> None:
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


def test_rows_that_do_not_fit_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"train: expected rows \(N, 16\), got \(20, 9\)"):
        fit_vae(vae_for("csm"), image_rows(20, 9), image_rows(5))
    with pytest.raises(ValueError, match="train: holds NaN or infinity"):
        fit_vae(vae_for("csm"), image_rows(20) / 0.0, image_rows(5))
