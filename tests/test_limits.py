"""Models at their limits: tails, half precision, missing values and objectives that do not apply."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from arcsm import (
    MADE,
    AutoregressiveModel,
    DiscretisedLogisticMixtureHead,
    GaussianHead,
    LogisticMixtureHead,
    NoiseLadder,
    ScoreHead,
    load,
    objectives,
    registry,
    samplers,
    save,
    serialization,
)
from arcsm.anomaly import negative_log_prob
from arcsm.denoise import GaussianNoise, particle_filter
from arcsm.implicit import GaussianEntropy, ScoreNetwork
from arcsm.interop.export import export_scorer


def conditional(**condition: int) -> AutoregressiveModel:
    return AutoregressiveModel(MADE(2, 4, (8,), **condition), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4))


def test_the_lower_tail_of_a_gaussian_is_exact() -> None:
    model = AutoregressiveModel(MADE(1, 4, (8,)), GaussianHead(4))
    with torch.no_grad():
        mean, variance = model.head.moments(model.head.project(model.context(torch.zeros(1, 1))))
    z = torch.tensor([-3.0, -5.0, -6.0, -8.0, -12.0])
    x = mean.flatten() + z * variance.sqrt().flatten()
    exact = torch.special.log_ndtr(z.double())
    assert torch.allclose(model.cdf(x[:, None]).log().flatten().double(), exact, rtol=1e-5)
    u = torch.tensor([[1e-8], [1e-10]])
    assert torch.allclose(model.cdf(model.icdf(u)), u, rtol=1e-3)


@pytest.mark.parametrize("noise", [None, NoiseLadder(1.0, 0.1, 4)])
def test_probabilities_that_round_to_one_are_the_last_number_below(noise: NoiseLadder | None) -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(1, 4, (8,)), ScoreHead(4, (8,)), noise)
    x = torch.zeros(1, 1)
    near, nearer = (float(model.conditional_icdf(x, u)) for u in (1.0 - 1e-7, 1.0 - 1e-9))
    assert near <= nearer < near + 1.0
    assert float(model.icdf(torch.tensor([[1.0 - 2e-9]], dtype=torch.float64))) == pytest.approx(nearer)
    with pytest.raises(ValueError, match="inside"):
        model.icdf(torch.ones(1, 1))


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": -3}, {"step_size": -1.0}])
def test_langevin_rejects_bad_steps(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="steps, step_size: expected at least 1 and a positive number"):
        conditional().sample(3, "langevin", sampler_options=options)
    assert registry.find("sampler", "langevin") is samplers.langevin


def test_entropy_gradients_of_other_shapes_are_rejected() -> None:
    gaussian = GaussianEntropy(lambda condition: (torch.zeros(2, 3), torch.zeros(2, 3)))
    assert float(gaussian.surrogate(torch.zeros(2, 5, 3))) == pytest.approx(1.5 * math.log(2.0 * math.pi * math.e))
    for z in (torch.zeros(2, 5, 4), torch.zeros(3, 5, 3)):
        with pytest.raises(ValueError, match="parameters: expected log standard deviations for z"):
            gaussian.surrogate(z)
    with pytest.raises(ValueError, match="z, condition: expected"):
        ScoreNetwork(3, condition_features=2)(torch.zeros(5, 4), torch.zeros(5, 2))


def test_samples_in_half_precision_are_not_coarse() -> None:
    model = AutoregressiveModel(MADE(1, 4, (8,)), GaussianHead(4), NoiseLadder(1.0, 0.05, 8)).eval()
    for sampler in ("inverse_cdf", "probability_flow", "fast_flow"):
        with torch.autocast("cpu", torch.bfloat16):
            drawn = model.sample(5_000, sampler, generator=torch.Generator().manual_seed(0))
        assert len(drawn.unique()) > 4_500
        assert float(((drawn - drawn.mean()) / drawn.std()).abs().max()) < 4.8


def test_icdf_inverts_cdf_in_the_lower_tail() -> None:
    for head in (GaussianHead(4), LogisticMixtureHead(4, 3)):
        model = AutoregressiveModel(MADE(1, 4, (8,)), head).double()
        x = torch.tensor([[-35.0], [-15.0], [0.3]], dtype=torch.float64)
        torch.testing.assert_close(model.icdf(model.cdf(x)), x, rtol=1e-9, atol=1e-9)


def test_gradients_of_cells_are_finite_for_far_rows() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4))
    x = torch.tensor([[0.0, 0.0], [12.0, 12.0]], requires_grad=True)
    model.log_prob(x, cells=[0.1, 0.1]).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("objective", [objectives.sm, objectives.ssm])
def test_score_matching_rejects_discrete_heads(objective: Any) -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), DiscretisedLogisticMixtureHead(4, 2))
    with pytest.raises(ValueError, match="has no score"):
        objective(model, torch.zeros(3, 2))


def test_missing_values_have_no_score_and_no_posterior() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,), missing=True), GaussianHead(4), NoiseLadder(1.0, 0.1, 4))
    x = torch.tensor([[math.nan, 0.0]])
    s, ds = model.score(x)
    assert s.isnan().tolist() == ds.isnan().tolist() == [[True, False]]
    with pytest.raises(ValueError, match="y: contains missing values; fill them first"):
        particle_filter(model, x, GaussianNoise(0.5), 4)


def test_weights_that_are_not_real_numbers_are_rejected(tmp_path: Path) -> None:
    save(AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4)), tmp_path)
    tensors, header = serialization.read_module(tmp_path)
    whole = {**tensors, "shift": tensors["shift"].long()}
    serialization.write_tensors(tmp_path / "whole.safetensors", whole, header)
    with pytest.raises(ValueError, match=r"expected weights that are real numbers, got torch\.int64"):
        load(tmp_path / "whole.safetensors")


def test_rows_with_missing_values_have_no_outlier_score() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,), missing=True), GaussianHead(4))
    found = negative_log_prob(model, torch.tensor([[0.0, math.nan], [0.0, 1.0]]))
    assert found.isnan().tolist() == [True, False]


def test_export_keeps_the_training_mode_of_all_modules() -> None:
    model = conditional().train()
    model.context.eval()
    export_scorer(model)
    assert model.training
    assert not model.context.training


@pytest.mark.parametrize("method", ["flow", "quadrature"])
def test_a_value_however_far_costs_no_more_evaluations_and_its_density_is_gaussian(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    ladder, evaluations = NoiseLadder(2.0, 0.1, 6), 0
    model = AutoregressiveModel(MADE(1, 4, (8,)), ScoreHead(4, (8,)), ladder).double()
    forward = ScoreHead._forward

    def counted(self: ScoreHead, level: Any, projection: Any, x: torch.Tensor, *rest: Any) -> Any:
        nonlocal evaluations
        evaluations += x.numel()
        return forward(self, level, projection, x, *rest)

    monkeypatch.setattr(ScoreHead, "_forward", counted)
    counts, values, far = [], [], [60.0, 1e3, 1e10, 1e30]
    for x in far:
        evaluations = 0
        values.append(
            model.log_prob(
                torch.tensor([[x]], dtype=torch.float64), method=method, tol=1e-9, max_evaluations=4096
            ).item()
        )
        counts.append(evaluations)
    assert len(set(counts)) == 1
    for a, b in zip(far[1:], values[1:], strict=True):  # log q(b) - log q(a) of a Gaussian
        precision = 2.0 * (values[0] - b) / (a**2 - far[0] ** 2)
        assert precision == pytest.approx(1.0 / 1.01, rel=1e-9)


def test_the_likelihood_that_is_trained_agrees_with_the_density_far_out() -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(1, 4, (8,)), ScoreHead(4, (8,))).double()
    for value in (0.3, 25.0, -1e10, 1e30):
        x = torch.tensor([[value]], dtype=torch.float64)
        assert objectives.mle(model, x, tol=1e-9, max_evaluations=4096).item() == pytest.approx(
            -model.log_prob(x, tol=1e-9, max_evaluations=4096).item(), rel=1e-9
        )


def test_a_log_density_below_all_floats_is_minus_infinity() -> None:
    model = conditional()
    log_prob = model.log_prob(torch.tensor([[1e30, 0.0], [-1e37, 0.0]]), reduce=False)
    assert log_prob[:, 0].tolist() == [-math.inf, -math.inf]  # -1e60 is beyond single precision
    assert bool(log_prob[:, 1].isfinite().all())
