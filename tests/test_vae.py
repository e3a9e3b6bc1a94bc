"""Training of autoencoders with implicit encoders."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

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
    VAETrainConfig,
    fit_vae,
    load_vae,
)
from arcsm.implicit.vae.methods import estimator
from arcsm.implicit.vae.training import _Trainer, spreads, used_latents
from arcsm.reports.vae import traversals
from arcsm.training.log import read_metrics
from arcsm.training.loop import TrainingDiverged
from arcsm.training.run_config import apply_change

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*latents say nothing of the input"),
    pytest.mark.filterwarnings("ignore:.*the scores give .* of the entropy's pressure"),
]
FLOAT64 = torch.float64
IMAGES = {"image_shape": [1, 4, 4], "levels": 256}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=FLOAT64)


def rows(count: int, features: int = 16) -> Tensor:
    """Bright or dark images, in [-1, 1), with noise."""
    generator = seeded(7)
    bright = torch.randint(2, (count, 1), generator=generator) * 1.6 - 0.8
    return (bright + 0.1 * torch.randn(count, features, generator=generator)).clamp(-1.0, 0.99)


class LinearDecoder(Decoder):
    """x = W z + s e: everything about it is known."""

    def __init__(self, latents: int, features: int) -> None:
        super().__init__()
        self.latents, self.features, self.largest_layer = latents, features, features
        self.weight = nn.Parameter(normal(features, latents, seed=3))
        self.std = 0.5

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.distributions.Normal(self.mean(z), self.std).log_prob(x.unsqueeze(1)).sum(-1)

    def mean(self, z: Tensor) -> Tensor:
        return z @ self.weight.T

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = self.mean(z)
        return mean + self.std * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)


def linear(latents: int = 3, features: int = 5, encoder: Encoder | None = None) -> VAE:
    torch.manual_seed(0)
    if encoder is None:
        encoder = AutoregressiveEncoder(DenseTrunk(features, (16,)), latents)
    parts = VAEConfig(latents=latents, hidden_features=(16,))
    metadata = {"image_shape": [1, 1, features], "levels": 256}
    return VAE(encoder.double(), LinearDecoder(latents, features), parts, metadata).double()


def simulated(vae: VAE, count: int) -> tuple[Tensor, Tensor]:
    """Latents and inputs that the model draws."""
    with torch.no_grad():
        z = torch.randn(count, vae.latents, generator=seeded(11), dtype=FLOAT64)
        return z, vae.decoder.sample(z, seeded(12))


def posterior(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    weight = vae.decoder.weight.detach()  # type: ignore[union-attr]
    precision = torch.eye(vae.latents, dtype=FLOAT64) + weight.T @ weight / 0.25
    covariance = torch.linalg.inv(precision)
    return x @ weight @ covariance / 0.25, covariance


def test_a_row_of_traversals_moves_one_latent() -> None:
    """Of a linear decoder: along the column of that latent, by equal steps over the range of the prior."""
    vae = linear()
    x = simulated(vae, 1)[1]
    images = traversals(vae, x, seeded()).view(3, 8, 5)
    weight = vae.decoder.weight.detach()  # type: ignore[union-attr]
    for latent, row in enumerate(images):
        step = (weight[:, latent] * 5.0 / 7.0).expand(7, -1)
        torch.testing.assert_close(row.diff(dim=0), step)
    start = vae.encode(x, 1, seeded())[0, 0].detach()
    middle = images[:, 3:5].mean(1)  # of the two places around 0
    for latent, row in enumerate(middle):
        torch.testing.assert_close(row, (start * (torch.arange(3) != latent)) @ weight.T)


# Training -----------------------------------------------------------------------------------------------------------


def settings(method: str, **changes: object) -> VAETrainConfig:
    small = {"steps": 6, "batch_size": 8, "score_hidden": (8,), "head_hidden": (8,), "particles": 4,
             "validate_every": 3, "validation_samples": 4, "device": "cpu"}  # fmt: skip
    return VAETrainConfig.model_validate({"method": method, **small, **changes})


ENCODER = {"elbo": "gaussian", "stein": "implicit", "spectral": "implicit", "ssm": "implicit",
           "ssm-ar": "autoregressive", "csm": "autoregressive"}  # fmt: skip


def tiny(method: str, networks: str = "dense") -> VAE:
    torch.manual_seed(0)
    parts = {"encoder": ENCODER[method], "networks": networks, "latents": 2, "hidden_features": (8,), "channels": (4,)}
    return VAEConfig.model_validate(parts).build(IMAGES)


@pytest.mark.parametrize("networks", ["dense", "convolutional"])
@pytest.mark.parametrize("method", list(ENCODER))
def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path, method: str, networks: str) -> None:
    whole, resumed = tiny(method, networks), tiny(method, networks)
    fit_vae(whole, rows(40), rows(10), settings(method), tmp_path / "whole")

    stopped = _Trainer(resumed, rows(40), rows(10), settings(method), tmp_path / "stopped")
    for _ in range(4):
        stopped.advance()
    stopped.save_state()
    stopped.advance()  # lost
    again = tiny(method, networks)
    result = fit_vae(again, rows(40), rows(10), settings(method), tmp_path / "stopped", resume=True)
    assert result.steps == 6
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"was written with another train configuration \(seed: 0 then, 1 now\)"):
        fit_vae(again, rows(40), rows(10), settings(method, seed=1), tmp_path / "stopped", resume=True)


def test_a_run_is_not_overwritten_nor_gone_on_with_on_other_rows(tmp_path: Path) -> None:
    config = settings("csm")
    fit_vae(tiny("csm"), rows(40), rows(10), config, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds a run already; give resume=True"):
        fit_vae(tiny("csm"), rows(40), rows(10), config, tmp_path)
    with pytest.raises(ValueError, match=r"other data \(40 rows then, 39 now\)"):
        fit_vae(tiny("csm"), rows(40)[1:], rows(10), config, tmp_path, resume=True)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_scores_with_a_noise_ladder_are_as_reproducible(tmp_path: Path) -> None:
    noisy = settings("csm", score_noise={"sigma_max": 0.5, "sigma_min": 0.1, "levels": 3}, mix=0.3, whitened=True)
    first, second = tiny("csm"), tiny("csm")
    fit_vae(first, rows(40), rows(10), noisy)
    torch.rand(7)
    state = torch.random.get_rng_state()
    fit_vae(second, rows(40), rows(10), noisy)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("whitened", [False, True])
def test_centred_entropies_do_not_move_the_locations(whitened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_bias(**changes: object) -> tuple[Tensor, Tensor]:
        """The gradient of one step by the biases of locations and log scales."""
        trainer = _Trainer(tiny("csm"), rows(40), rows(10), settings("csm", whitened=whitened, **changes), None)
        trainer.advance()
        encoder = trainer.vae.encoder
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


def test_the_weight_of_the_entropy_is_that_of_its_gradient() -> None:
    def gradient(weight: float) -> Tensor:
        trainer = _Trainer(tiny("csm"), rows(40), rows(10), settings("csm", entropy_weight=weight), None)
        trainer.advance()
        return torch.cat([p.grad.flatten() for p in trainer.vae.encoder.parameters() if p.grad is not None])

    none, half, whole = gradient(0.0), gradient(0.5), gradient(1.0)
    assert not torch.allclose(none, whole)
    torch.testing.assert_close(half, 0.5 * (none + whole))


def test_scores_may_learn_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    update = AutoregressiveScore.update

    def noted(self: AutoregressiveScore, z: Tensor, *rest: Any) -> float:
        seen.append(z)
        return update(self, z, *rest)

    monkeypatch.setattr(AutoregressiveScore, "update", noted)
    vae = tiny("csm")
    before = {name: weight.clone() for name, weight in vae.state_dict().items()}
    trainer = _Trainer(vae, rows(40), rows(10), settings("csm", warm_start=5, steps=4), tmp_path / "run")
    trainer.warm_up(lambda: False, progress=False)
    assert len(seen) == 5
    assert not any(torch.equal(z, seen[0]) for z in seen[1:])
    assert all(torch.equal(weight, before[name]) for name, weight in vae.state_dict().items())
    trainer.advance()
    trainer.save_state()
    seen.clear()
    fit_vae(tiny("csm"), rows(40), rows(10), trainer.config, tmp_path / "run", resume=True)
    assert len(seen) == 3
    seen.clear()
    fit_vae(tiny("csm"), rows(40), rows(10), trainer.config)
    assert len(seen) == 9


def test_a_warm_start_that_is_stopped_begins_again(tmp_path: Path) -> None:
    config = settings("csm", warm_start=5, whitened=True)
    stopped = _Trainer(tiny("csm"), rows(40), rows(10), config, tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt, match="interrupted in the warm start, of which nothing is kept"):
        stopped.warm_up(lambda: True, progress=False)
    again, whole = tiny("csm"), tiny("csm")
    fit_vae(again, rows(40), rows(10), config, tmp_path / "stopped", resume=True)
    fit_vae(whole, rows(40), rows(10), config)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_a_warm_start_that_breaks_says_what_to_change(tmp_path: Path) -> None:
    config = settings("csm", warm_start=50, score_learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match=r"warm start, step \d+: .*; lower score_learning_rate \(1e\+30\)"):
        fit_vae(tiny("csm"), rows(40), rows(10), config, tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("elbo", {}),
        ("stein", {}),
        ("spectral", {}),
        ("ssm", {}),
        ("ssm-ar", {}),
        ("csm", {}),
        ("csm", {"whitened": True}),
        ("csm", {"whitened": "conditionals"}),
        ("ssm-ar", {"whitened": "conditionals"}),
    ],
)
def test_every_method_finds_the_posterior_of_a_linear_model(method: str, changes: dict[str, object]) -> None:
    """One latent, x = w z + e: the encoder's samples must have the posterior's mean and width."""
    kinds = {"gaussian": GaussianEncoder, "autoregressive": AutoregressiveEncoder}
    torch.manual_seed(0)
    encoder: Encoder
    if ENCODER[method] == "implicit":
        encoder = ImplicitEncoder(DenseTrunk(2, (16,), 1), 1)
    else:
        encoder = kinds[ENCODER[method]](DenseTrunk(2, (16,)), 1)
    vae = linear(latents=1, features=2, encoder=encoder)
    vae.parts = VAEConfig(latents=1, hidden_features=(16,), encoder=ENCODER[method])  # type: ignore[arg-type]
    vae.float()
    vae.decoder.requires_grad_(False)
    _, x = simulated(linear(latents=1, features=2), 4000)
    vae.prepare = lambda rows, generator=None: rows  # type: ignore[method-assign, assignment]
    config = settings(
        method, steps=700, batch_size=64, learning_rate=3e-3, score_learning_rate=3e-3, score_hidden=(16,),
        head_hidden=(32, 32), particles=10, validate_every=700, ema=0.98, **changes,
    )  # fmt: skip
    with torch.no_grad():
        before = vae.encode(x[:500].float(), 200, seeded())
    result = fit_vae(vae, x.float(), x[:100].float(), config)
    with torch.no_grad():
        z = vae.encode(x[:500].float(), 200, seeded()).double()
    mean, covariance = posterior(vae.double(), x[:500])
    width = math.sqrt(float(covariance))
    assert float((before.mean(1) - mean).square().mean().sqrt()) > 1.5 * width  # there is something to learn
    assert float((z.mean(1) - mean).square().mean().sqrt()) < 0.35 * width
    in_its_units = method == "elbo" or bool(changes)
    assert float(z.std(1).mean()) == pytest.approx(width, rel=0.05 if in_its_units else 0.15)
    if in_its_units:  # other scores lag behind an encoder that still moves
        assert result.history[-1]["pressure"] == pytest.approx(1.0, abs=0.1)


def test_standardised_scores_start_with_the_pressure_of_the_true_ones() -> None:
    def at_start(**changes: object) -> float:
        torch.manual_seed(0)
        vae = VAEConfig(latents=4, hidden_features=(32,)).build(IMAGES)
        vae.encoder.output.data.mul_(20.0)  # type: ignore[union-attr]
        images = rows(2_000)
        return _Trainer(vae, images, images, settings("csm", validation_rows=2_000, **changes), None).pressure()

    assert at_start(whitened="conditionals") == pytest.approx(1.0, abs=0.02)
    assert not 0.5 < at_start() < 2.0


def test_a_run_says_with_what_pressure_it_ended(tmp_path: Path) -> None:
    config = settings("csm", learning_rate=1e-9, score_learning_rate=1e-9, validate_every=3)
    with pytest.warns(UserWarning, match=r"the scores give \d+% of the entropy's pressure.*whitened=cond") as said:
        result = fit_vae(tiny("csm"), rows(40), rows(10), config, tmp_path / "run")
    assert len(result.history) > 1
    assert [str(one.message).split(":")[0] for one in said if "pressure" in str(one.message)] == ["step 3"]  # once
    found = [row["pressure"] for row in read_metrics(tmp_path / "run")]
    assert found == [row["pressure"] for row in result.history]
    trainer = _Trainer(tiny("csm"), rows(40), rows(10), config, tmp_path / "run")
    trainer.restore()
    assert trainer.pressure() == pytest.approx(found[-1])


class Stuck(Encoder):
    """An encoder that has collapsed, or that runs away."""

    def __init__(self, scale: float, spread: float) -> None:
        super().__init__()
        self.latents = 2
        self.weight = nn.Parameter(torch.full((16, 2), scale))
        self.spread = spread

    def features(self, x: Tensor) -> Tensor:
        return x @ self.weight

    def draw(self, precomputed: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return precomputed[0].unsqueeze(1) + self.spread * noise


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (Stuck(1.0, 1e-6), r"step 3: the encoder has collapsed: latent \d of an input varies by .*e-06"),
        (Stuck(0.0, 1e-6), r"step 3: the encoder has collapsed: latent \d of an input varies by .*e-0[67]"),
        (Stuck(0.0, 0.0), r"step 3: the encoder has collapsed: latent \d of an input varies by 0.0e\+00"),
        (Stuck(1e4, 1e3), r"step 3: the latents have run away"),
    ],
)
def test_a_broken_encoder_is_said_with_what_to_change(tmp_path: Path, encoder: Encoder, message: str) -> None:
    torch.manual_seed(0)
    parts = VAEConfig(encoder="implicit", latents=2, hidden_features=(8,))
    vae = VAE(encoder, BernoulliDecoder(2, 16, (8,)), parts, IMAGES)
    config = settings("ssm", learning_rate=1e-9)
    with pytest.raises(TrainingDiverged, match=message + r".*learning_rate.*score_steps"):
        fit_vae(vae, rows(40), rows(10), config)


@pytest.mark.parametrize(
    ("method", "changes", "helps"),
    [
        ("elbo", {}, None),
        ("stein", {}, "more particles (4)"),
        ("ssm", {}, "model.encoder=autoregressive with train.whitened=true, then more score_steps (1), another "),
        ("ssm-ar", {}, "train.whitened=conditionals, then more score_steps"),
        ("csm", {"whitened": True}, "train.whitened=conditionals, then more score_steps"),
        ("csm", {"whitened": "conditionals", "score_steps": 2}, ": more score_steps (2), another score_learning_rate"),
    ],
)
def test_what_may_help_is_possible(method: str, changes: dict[str, object], helps: str | None) -> None:
    vae = tiny(method)
    trainer = _Trainer(vae, rows(40), rows(10), settings(method, **changes), None)
    with pytest.raises(TrainingDiverged, match=r"^step 0: a reason\. .*; lower learning_rate \(0\.001\)") as said:
        trainer.diverged("a reason")
    if helps is None:
        assert str(said.value).endswith("(0.001)")
        return
    assert helps in str(said.value)
    tree = {"train": trainer.config.model_dump(), "model": vae.parts.model_dump()}
    for change in re.findall(r"(?:train|model)\.\w+=\w+", helps):
        apply_change(tree, change)
    changed = VAEConfig(**tree["model"]).build(IMAGES)
    assert isinstance(estimator(changed, VAETrainConfig(**tree["train"])), EntropyGradient)


@pytest.mark.parametrize(("pressure", "said"), [(0.3, "30% .* narrower"), (3.0, "300% .* wider"), (0.9, None)])
def test_a_pressure_far_off_is_said(pressure: float, said: str | None) -> None:
    trainer = _Trainer(tiny("csm"), rows(40), rows(10), settings("csm"), None)
    trainer.step = 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if said is None:
            trainer.check_pressure(pressure)
            return
        with pytest.warns(
            UserWarning, match=f"^step 3: the scores give {said} than the posterior; what may help: train"
        ):
            trainer.check_pressure(pressure)
        trainer.check_pressure(pressure)  # once is enough


class Own(EntropyGradient):
    """A user's: the scores of normal distributions of the width that all samples had at the last update."""

    def __init__(self, worth: float = 1.0) -> None:
        self.std, self.worth, self.seen, self.drawn = 1.0, worth, [], set()

    def update(
        self, z: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> float | None:
        assert condition is not None
        self.seen.append(condition)
        self.drawn.add(z.shape[1])
        self.std = float(z.std())
        return None

    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return -self.worth * (z - z.mean()) / self.std**2


class Fixed(Own):
    """The same for one width."""

    update = EntropyGradient.update


def test_an_autoencoder_trains_with_an_estimator_of_ones_own(tmp_path: Path) -> None:
    own = Own()
    vae = tiny("csm")
    assert fit_vae(vae, rows(40), rows(10), settings("csm", score_steps=2, warm_start=3), entropy=own).steps == 6
    assert len(own.seen) == 3 + 2 * 6
    assert all(x.shape == (8, 16) and bool(((x == 0.0) | (x == 1.0)).all()) for x in own.seen)
    assert own.std != 1.0
    widths = []
    for worth in (0.0, 1.0):
        vae = tiny("csm")
        fit_vae(vae, rows(40), rows(10), settings("csm", steps=60, learning_rate=0.01), entropy=Own(worth))
        widths.append(float(spreads(vae, vae.prepare(rows(40), seeded()), seeded())[0].mean()))
    assert widths[1] > 1.2 * widths[0]

    greedy = Own()
    greedy.min_samples = 3
    fit_vae(tiny("csm"), rows(40), rows(10), settings("csm"), entropy=greedy)
    assert greedy.drawn == {4}
    with pytest.raises(ValueError, match="particles: expected at least 3, which Own takes"):
        fit_vae(tiny("csm"), rows(40), rows(10), settings("csm", particles=2), entropy=greedy)
    with pytest.raises(ValueError, match="checkpoints cannot hold what Own learns"):
        fit_vae(tiny("csm"), rows(40), rows(10), settings("csm"), tmp_path / "own", entropy=own)
    assert not (tmp_path / "own").exists()
    with pytest.raises(ValueError, match="expected an autoregressive encoder"):
        fit_vae(tiny("ssm"), rows(40), rows(10), settings("ssm", centred=True), entropy=Fixed())

    fit_vae(tiny("csm"), rows(40), rows(10), settings("csm"), tmp_path / "fixed", entropy=Fixed())
    again = fit_vae(tiny("csm"), rows(40), rows(10), settings("csm"), tmp_path / "fixed", resume=True, entropy=Fixed())
    assert again.steps == 6
    with pytest.raises(ValueError, match="another entropy configuration"):
        fit_vae(tiny("csm"), rows(40), rows(10), settings("csm"), tmp_path / "fixed", resume=True)


def test_an_entropy_gradient_that_is_no_number_ends_training() -> None:
    class Late(Fixed):
        calls = 0

        def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
            self.calls += 1
            return super().score(z, condition) * (math.nan if self.calls > 3 else 1.0)

    with pytest.raises(TrainingDiverged, match="step 3: the entropy gradient of held-out images is nan"):
        fit_vae(tiny("csm"), rows(40), rows(10), settings("csm"), entropy=Late())


class Faulty(Stuck):
    def draw(self, precomputed: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        raise ValueError("a mistake of the encoder's own")


def test_an_error_of_a_users_encoder_is_not_taken_for_a_divergence() -> None:
    parts = VAEConfig(encoder="implicit", latents=2, hidden_features=(8,))
    vae = VAE(Faulty(1.0, 1.0), BernoulliDecoder(2, 16, (8,)), parts, IMAGES)
    for warm_start in (0, 2):
        with pytest.raises(ValueError, match=r"^a mistake of the encoder's own$"):
            fit_vae(vae, rows(40), rows(10), settings("ssm", warm_start=warm_start))


def test_a_rate_that_is_too_large_is_said_and_weights_are_kept(tmp_path: Path) -> None:
    vae = tiny("ssm")
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        fit_vae(vae, rows(40), rows(10), settings("ssm", steps=50, learning_rate=1e18), tmp_path)
    kept = load_vae(tmp_path)  # which checks that all weights are finite
    assert kept.latents == 2


def test_latents_that_say_nothing_are_counted() -> None:
    torch.manual_seed(0)
    encoder = GaussianEncoder(DenseTrunk(16, (8,)), 2)
    with torch.no_grad():
        encoder.location_and_log_scale.weight.zero_()
        encoder.location_and_log_scale.weight[1] = 3.0
        encoder.location_and_log_scale.bias.zero_()
    parts = VAEConfig(encoder="gaussian", latents=2, hidden_features=(8,))
    vae = VAE(encoder, BernoulliDecoder(2, 16, (8,)), parts, IMAGES)
    assert used_latents(vae, vae.prepare(rows(100), seeded()), seeded()) == 1
    with pytest.warns(UserWarning, match="1 of 2 latents say nothing of the input"):
        fit_vae(vae, rows(40), rows(40), settings("elbo", learning_rate=1e-9))


@pytest.mark.parametrize("images", [1, 5, 20, 200])
def test_latents_that_chance_moves_are_not_used(images: int) -> None:
    vae = VAEConfig(encoder="gaussian", latents=100, hidden_features=(8,)).build(
        {"image_shape": [1, 4, 4], "levels": 2}
    )
    assert isinstance(vae.encoder, GaussianEncoder)
    with torch.no_grad():
        vae.encoder.location_and_log_scale.weight.zero_()  # the same for every image
    x = vae.prepare(rows(images), seeded())
    assert sum(used_latents(vae, x, seeded(seed)) for seed in range(5)) <= 5  # of 500


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("elbo", {"encoder": "implicit"}, "elbo is for gaussian encoders"),
        ("csm", {"encoder": "gaussian"}, "elbo is for gaussian encoders"),
        ("csm", {"encoder": "implicit"}, "csm needs an autoregressive encoder"),
        ("ssm-ar", {"encoder": "implicit"}, "ssm-ar needs an autoregressive encoder"),
        ("ssm", {"encoder": "implicit", "whitened": True}, "whitened: expected an encoder with units of its own"),
        (
            "ssm",
            {"encoder": "implicit", "score_noise": {"sigma_max": 1.0, "sigma_min": 0.1}},
            "score_noise: expected none for ssm",
        ),
        ("elbo", {"encoder": "gaussian", "whitened": True}, "expected neither for elbo"),
        (
            "ssm",
            {"encoder": "autoregressive", "whitened": "conditionals"},
            "whitened: conditionals are for csm and ssm-ar, got ssm",
        ),
        ("ssm", {"encoder": "implicit", "centred": True}, "centred: expected an autoregressive encoder"),
        ("stein", {"encoder": "implicit", "warm_start": 1}, "warm_start: expected 0 for stein, which learns no scores"),
    ],
)
def test_what_does_not_go_together_is_refused(method: str, changes: dict[str, object], message: str) -> None:
    parts = VAEConfig.model_validate({"latents": 2, "hidden_features": (8,), "encoder": changes.pop("encoder")})
    with pytest.raises(ValueError, match=message):
        fit_vae(parts.build(IMAGES), rows(20), rows(5), settings(method, **changes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_vae(tiny("csm"), rows(20, 9), rows(5)), r"train: expected rows \(N, 16\), got \(20, 9\)"),
        (lambda: fit_vae(tiny("csm"), rows(20), rows(5)[:0]), r"valid: expected rows"),
        (lambda: fit_vae(tiny("csm"), rows(20) / 0.0, rows(5)), "train: holds NaN or infinity"),
        (lambda: settings("csm", score_noise={"sigma_max": 1.0}), "sigma_min"),
        (lambda: settings("csm", score_noise={"sigma_max": 1.0, "sigma_min": 2.0}), "expected at most sigma_max, 1"),
        (lambda: settings("csm", score_hidden=(0,)), "score_hidden"),
    ],
)
def test_wrong_arguments_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
