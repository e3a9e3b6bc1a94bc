"""Training of densities: it learns, and each setting does what it says."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, NoiseLadder, ScoreHead, TrainConfig, fit, objectives
from arcsm.errors import TrainingWarning
from small_runs import correlated_rows, have_same_weights, short_config, small_density


def test_training_learns_a_correlated_gaussian() -> None:
    x = correlated_rows(4000)
    model = AutoregressiveModel(MADE(2, 4, (16,)), ScoreHead(4, (32, 32)), NoiseLadder(1.5, 0.1, 8))
    fit(model, x[:3500], x[3500:], short_config(steps=600, batch_size=256, learning_rate=3e-3, ema=0.98))
    held_out = correlated_rows(1000, seed=2)
    noise = 0.1 * model.scale * torch.randn(held_out.shape, generator=torch.Generator().manual_seed(3))
    true = torch.distributions.MultivariateNormal(
        torch.tensor([3.0, 0.0]), torch.tensor([[4.0, 10.0], [10.0, 26.0]]) + torch.diag((0.1 * model.scale) ** 2)
    )
    gap = (true.log_prob(held_out + noise) - model.log_prob(held_out + noise)).mean()
    assert -0.02 < gap < 0.05


@pytest.mark.parametrize("objective", ["csm", "dsm", "ssm", "sm", "mle"])
def test_every_objective_improves_its_held_out_value(objective: str) -> None:
    model = AutoregressiveModel(MADE(2, 4, (16,)), GaussianHead(4), NoiseLadder(1.0, 0.3, 3))
    x = correlated_rows(500)
    result = fit(model, x, x[:200], short_config(objective=objective, steps=120, learning_rate=1e-2, ema=0.0))
    assert result.history[-1]["valid"] < result.history[0]["valid"]


def test_a_custom_objective_trains(tmp_path: Path) -> None:
    calls = []

    def twice(model: AutoregressiveModel, x: Tensor, **arguments: object) -> Tensor:
        calls.append(len(x))
        return 2.0 * objectives.csm(model, x, 0.3, **arguments)  # type: ignore[arg-type]

    own, known = small_density(), small_density()
    found = fit(
        own, correlated_rows(), correlated_rows(seed=5), short_config(clip_norm=None), run=tmp_path, objective=twice
    )
    expected = fit(known, correlated_rows(), correlated_rows(seed=5), short_config(clip_norm=None, mix=0.3))
    assert len(calls) == 30 + 3  # steps, and one batch of each validation
    assert found.best_loss == pytest.approx(2.0 * expected.best_loss, rel=1e-3)
    for ours, theirs in zip(own.parameters(), known.parameters(), strict=True):  # Adam does not see a factor
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (torch.nn.DataParallel(small_density()), None, "model: expected .* got DataParallel; give its module"),
        (torch.nn.Linear(2, 2), None, "model: expected an AutoregressiveModel, got Linear$"),
        (small_density(), {"steps": 3}, r"config: expected a TrainConfig, got dict; give TrainConfig\(\*\*config\)"),
        (small_density(), 3, "config: expected a TrainConfig, got int$"),
    ],
)
def test_models_and_configurations_of_another_type_are_rejected(model: Any, config: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fit(model, correlated_rows(), config=config)


@pytest.mark.parametrize(
    ("loss", "got"), [(lambda x: x.sum(-1), r"shape \(64,\)"), (lambda x: 0.5, "float"), (lambda x: None, "NoneType")]
)
def test_an_objective_that_returns_no_scalar_is_rejected(loss: Callable[[Tensor], Any], got: str) -> None:
    with pytest.raises(ValueError, match=f"objective: expected to return a scalar tensor, .* got {got}"):
        fit(
            small_density(), correlated_rows(), config=short_config(batch_size=64), objective=lambda _, x, **__: loss(x)
        )


def test_mix_requires_a_ladder() -> None:
    model, x = AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4, (8,))), torch.randn(20, 2)
    with pytest.raises(ValueError, match=r"mix: a model without a noise ladder is trained with mix=1, got 0\.5"):
        fit(model, x, config=TrainConfig(steps=1, mix=0.5))
    losses = [fit(copy.deepcopy(model), x, x, TrainConfig(steps=2, **mix)).best_loss for mix in ({}, {"mix": 1.0})]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "changes", [{"objective": "ssm"}, {"objective": "sm"}, {"objective": "mle"}, {"objective": "dsm", "sigma": 0.1}]
)
def test_objectives_of_one_noise_level_warn_about_a_ladder(changes: dict[str, object]) -> None:
    with pytest.warns(TrainingWarning, match="trains one noise level of the model's 5"):
        fit(small_density(), correlated_rows(), config=short_config(steps=1, **changes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(small_density(noise=False), correlated_rows(), config=short_config(steps=1, **changes))
        fit(small_density(), correlated_rows(), config=short_config(steps=1, objective="dsm"))


def test_half_precision_leaves_rows_in_single_precision() -> None:
    seen: dict[str, Tensor] = {}

    def spy(model: AutoregressiveModel, x: Tensor, **arguments: object) -> Tensor:
        seen[str(torch.is_autocast_enabled("cpu"))] = x
        return objectives.csm(model, x, 1.0, **arguments)  # type: ignore[arg-type]

    x = torch.randn(64, 2) + 1000.0
    fit(small_density(), x, config=short_config(steps=1, precision="bf16-mixed"), objective=spy)
    assert seen["True"].dtype == torch.float32
    assert torch.equal(seen["True"].sort(0).values, x.sort(0).values)


def test_a_head_with_an_overridden_score_is_trained_and_integrated_by_it() -> None:
    class Narrower(ScoreHead):
        def projected_score_and_derivative(
            self, projection: Tensor, x: Tensor, sigma: object = None
        ) -> tuple[Tensor, Tensor]:
            s, ds = super().projected_score_and_derivative(projection, x, sigma)  # type: ignore[arg-type]
            return s - 3.0 * x, ds - 3.0

        def projected_score(self, projection: Tensor, x: Tensor, sigma: object = None) -> Tensor:
            return self.projected_score_and_derivative(projection, x, sigma)[0]

    model = AutoregressiveModel(MADE(1, 4, (8,)), Narrower(4, (8,))).double()
    x = torch.linspace(-6.0, 6.0, 4001, dtype=torch.float64)[:, None]
    log_p = model.log_prob(x).detach()
    assert float(torch.logsumexp(log_p, 0)) + math.log(float(x[1] - x[0])) == pytest.approx(0.0, abs=1e-5)
    slope = (log_p[2:] - log_p[:-2]) / float(x[2] - x[0])
    torch.testing.assert_close(slope, model.score(x[1:-1])[0][:, 0].detach(), rtol=1e-3, atol=1e-3)
    s, ds = (t.detach() for t in model.score(x))
    by_hand = (0.5 * s.square() + ds).mean()
    assert float(objectives.csm(model, x, 1.0).detach()) == pytest.approx(float(by_hand), rel=1e-9)


def test_centring_shifts_all_columns_alike_and_scales_none() -> None:
    model, x = small_density(), correlated_rows()
    fit(model, x, config=short_config(steps=1, standardise="centre", dequantise=2.0))
    torch.testing.assert_close(model.shift, x.mean().expand(2) + 1.0)  # half a step more: values are spread upwards
    assert torch.equal(model.scale, torch.ones(2))


def test_standardisation_is_stored_in_the_model() -> None:
    model, x = small_density(), correlated_rows()
    fit(model, x, config=short_config(steps=1))
    assert torch.allclose(model.shift, x.mean(0), atol=1e-4)
    assert torch.allclose(model.scale, x.std(0, unbiased=False), rtol=1e-4)
    fit(model, x, config=short_config(steps=1, standardise="global"))
    assert torch.allclose(model.scale, x.std(unbiased=False).expand(2), rtol=1e-4)


def test_epochs_and_dequantisation_count_and_shift() -> None:
    model = small_density()
    x = torch.randint(0, 4, (256, 2), generator=torch.Generator().manual_seed(0)).float()
    result = fit(model, x, config=short_config(epochs=3, dequantise=1.0))
    assert result.steps == 12
    assert torch.allclose(model.shift, x.mean(0) + 0.5)


def test_weights_are_a_function_of_the_seed() -> None:
    models = [small_density() for _ in range(3)]
    state = torch.get_rng_state()
    for model, seed in zip(models, (0, 0, 1), strict=True):
        fit(model, correlated_rows(), config=short_config(seed=seed))
    assert have_same_weights(models[0], models[1])
    assert not have_same_weights(models[0], models[2])
    assert torch.equal(state, torch.get_rng_state())


class FunctionalDropout(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, 0.5, self.training)


@pytest.mark.parametrize(
    "layer", [torch.nn.Dropout1d(0.5), torch.nn.AlphaDropout(0.5), torch.nn.RReLU(), FunctionalDropout()]
)
def test_all_random_layers_are_seeded(layer: torch.nn.Module) -> None:
    class Noisy(MADE):
        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            contexts: Tensor = self.layer(super().forward(x, condition))
            return contexts

    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made = Noisy(2, 4, (16,))
        made.load_state_dict(small_density().context.state_dict())
        made.layer = copy.deepcopy(layer)
        models.append(AutoregressiveModel(made, copy.deepcopy(small_density().head), NoiseLadder(1.0, 0.1, 5)))
        fit(models[-1], correlated_rows(), config=short_config(steps=3))
    assert have_same_weights(*models)


def test_a_deterministic_training_depends_neither_on_threads_nor_on_c(monkeypatch: pytest.MonkeyPatch) -> None:
    x = correlated_rows(4000)
    config = short_config(steps=4, batch_size=2000, deterministic=True)
    threads, found, seen = torch.get_num_threads(), [], []
    try:
        for count, has_compiler in ((1, True), (3, True), (3, False)):
            torch.set_num_threads(count)
            monkeypatch.setattr("arcsm.objectives.fused._native.supports", lambda *_, has=has_compiler: has)
            found.append(small_density())
            fit(found[-1], x, x[:500], config, callbacks=[lambda _: seen.append(torch.get_num_threads())])
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert have_same_weights(found[0], found[1])
    assert have_same_weights(found[0], found[2])
    assert set(seen) == {1}
    monkeypatch.undo()
    with_c = small_density()
    fit(with_c, x, x[:500], config.model_copy(update={"deterministic": False}))
    assert not have_same_weights(found[0], with_c)
    assert not torch.are_deterministic_algorithms_enabled()
