"""Training of densities: it learns, and each setting does what it says."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, TrainConfig, fit, objectives
from arcsm.errors import TrainingWarning
from small_runs import correlated_rows, have_same_weights, short_config, small_density


@pytest.mark.slow
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


def test_models_and_configurations_of_another_type_are_rejected() -> None:
    with pytest.raises(TypeError, match=r"model: expected .* got DataParallel; give its module"):
        fit(torch.nn.DataParallel(small_density()), correlated_rows())
    with pytest.raises(TypeError, match=r"config: expected a TrainConfig, got dict; give TrainConfig\(\*\*config\)"):
        fit(small_density(), correlated_rows(), config={"steps": 3})


def test_an_objective_that_returns_no_scalar_is_rejected() -> None:
    config = short_config(batch_size=64)
    with pytest.raises(ValueError, match=r"objective: expected to return a scalar tensor, .* got shape \(64,\)"):
        fit(small_density(), correlated_rows(), config=config, objective=lambda _, x, **__: x.sum(-1))


def test_mix_requires_a_ladder() -> None:
    model, x = AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4, (8,))), torch.randn(20, 2)
    with pytest.raises(ValueError, match=r"mix: a model without a noise ladder is trained with mix=1, got 0\.5"):
        fit(model, x, config=TrainConfig(steps=1, mix=0.5))
    losses = [fit(copy.deepcopy(model), x, x, TrainConfig(steps=2, **mix)).best_loss for mix in ({}, {"mix": 1.0})]
    assert losses[0] == losses[1]


def test_an_objective_of_one_noise_level_warns_about_a_ladder() -> None:
    one_level = short_config(steps=1, objective="ssm")
    with pytest.warns(TrainingWarning, match="trains one noise level of the model's 5"):
        fit(small_density(), correlated_rows(), config=one_level)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(small_density(noise=False), correlated_rows(), config=one_level)
        fit(small_density(), correlated_rows(), config=short_config(steps=1, objective="dsm"))


def test_a_head_with_an_overridden_score_is_trained_by_it() -> None:
    class Narrower(ScoreHead):
        def projected_score_and_derivative(
            self, projection: Tensor, x: Tensor, sigma: object = None
        ) -> tuple[Tensor, Tensor]:
            s, ds = super().projected_score_and_derivative(projection, x, sigma)  # type: ignore[arg-type]
            return s - 3.0 * x, ds - 3.0

        def projected_score(self, projection: Tensor, x: Tensor, sigma: object = None) -> Tensor:
            return self.projected_score_and_derivative(projection, x, sigma)[0]

    model = AutoregressiveModel(MADE(1, 4, (8,)), Narrower(4, (8,))).double()
    x = torch.linspace(-6.0, 6.0, 41, dtype=torch.float64)[:, None]
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


def test_a_deterministic_training_has_no_compiled_code() -> None:
    with pytest.raises(ValueError, match="compiled: a deterministic training has no compiled code"):
        TrainConfig(deterministic=True, compiled=True)


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
