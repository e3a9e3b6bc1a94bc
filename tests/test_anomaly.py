"""Outlier scores against closed forms, on samples of the model itself, and on a real table with known outliers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_breast_cancer
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, NoiseLadder, TrainConfig, fit
from arcsm.anomaly import Combination, pit_statistics, statistics
from arcsm.contexts import Context
from arcsm.metrics import pit_uniformity
from conftest import MakeModel

SLOPE, OFFSET, STD = 0.6, 0.2, 0.8
SHIFT, SCALE = 1.5, 2.0


class Previous(Context):
    """The context of a value is the value before it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features, self.context_features, self.order = features, 1, tuple(range(features))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1).unsqueeze(-1)

    def begin(self, batch_shape: Sequence[int], condition: Tensor | None = None) -> Tensor:
        return torch.zeros(*batch_shape, 1, dtype=torch.float64)

    def step(self, state: Tensor, x_previous: Tensor | None) -> Tensor:
        return state if x_previous is None else x_previous.unsqueeze(-1)

    def config(self) -> dict[str, Any]:
        return {"features": self.features}


def autoregression(features: int = 5, noise: NoiseLadder | None = None) -> AutoregressiveModel:
    """A Gaussian autoregression of order one in standardised units, ``N(SLOPE x_{d-1} + OFFSET, STD^2)``."""
    head = GaussianHead(1)
    with torch.no_grad():
        head.parameters_of.weight.copy_(torch.tensor([[SLOPE], [0.0]]))
        raw = math.log(math.expm1(math.log(STD) + 7.0)) - 7.0  # the head's floor of the deviation, undone
        head.parameters_of.bias.copy_(torch.tensor([OFFSET, raw]))
    model = AutoregressiveModel(Previous(features), head, noise).double().eval()
    model.set_standardisation(SHIFT, SCALE)
    return model


def deviations(x: Tensor) -> Tensor:
    """How far the standardised values are from their conditional means."""
    z = (x - SHIFT) / SCALE
    return z - SLOPE * torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1) - OFFSET


@pytest.fixture
def rows() -> Tensor:
    return 3.0 * torch.randn(7, 5, dtype=torch.float64)


# Closed forms -------------------------------------------------------------------------------------------------------


def test_sums_and_norms_of_scores(rows: Tensor, ladder: NoiseLadder) -> None:
    model = autoregression(noise=ladder)
    norms = statistics.score_norms(model, rows)
    assert norms.shape == (7, ladder.levels)
    for level, sigma in enumerate(ladder.sigmas):
        s = -deviations(rows) / (STD**2 + sigma**2)
        for sign in (1.0, -1.0):
            torch.testing.assert_close(
                statistics.score_sum(model, rows, level, sign), sign * s.sum(1), rtol=1e-6, atol=0
            )
        torch.testing.assert_close(norms[:, level], s.norm(dim=1), rtol=1e-6, atol=0)


def test_likelihood_and_pit_statistics(rows: Tensor) -> None:
    model = autoregression()
    standard = deviations(rows) / STD
    nats = (0.5 * standard.square() + math.log(STD * SCALE * math.sqrt(2.0 * math.pi))).sum(1)
    torch.testing.assert_close(statistics.negative_log_prob(model, rows), nats, rtol=1e-6, atol=0)
    table = features(model, rows)
    torch.testing.assert_close(table["-log q, closed_form"], nats, rtol=1e-6, atol=0)
    torch.testing.assert_close(table["PIT squares, closed_form"], standard.square().sum(1), rtol=1e-5, atol=0)
    lag = (standard[:, 1:] * standard[:, :-1]).sum(1) / standard.square().sum(1)
    torch.testing.assert_close(table["PIT lag 1, closed_form"], lag, rtol=0, atol=1e-5)
    u = torch.special.ndtr(standard)
    torch.testing.assert_close(table["PIT KS, closed_form"], statistics.kolmogorov_smirnov(u), rtol=0, atol=1e-6)


def test_distances_from_the_uniform_are_those_of_the_textbooks() -> None:
    u = torch.rand(4, 50, dtype=torch.float64)
    expected = [stats.kstest(row.numpy(), "uniform").statistic for row in u]
    assert statistics.kolmogorov_smirnov(u).tolist() == pytest.approx(expected)
    for row, found in zip(u, statistics.anderson_darling(u), strict=True):
        # the integral of (F_n - u)^2 / (u (1 - u)), times n
        grid = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
        empirical = torch.searchsorted(row.sort().values, grid) / len(row)
        integral = float(((empirical - grid).square() / (grid * (1.0 - grid))).mean())
        assert float(found) == pytest.approx(len(row) * integral, rel=1e-3)


def test_values_rounded_to_the_ends_stay_finite() -> None:
    u = torch.tensor([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
    for name, column in pit_statistics(u).items():
        assert bool(column.isfinite().all()), name


def test_a_single_column_has_no_autocorrelation() -> None:
    assert "lag 1" not in pit_statistics(torch.rand(3, 1))


# One pass -----------------------------------------------------------------------------------------------------------


def test_one_pass_gives_what_the_model_gives(
    make_model: MakeModel, ladder: NoiseLadder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(features=4, noise=ladder, shift=0.3, scale=1.7, order=(2, 0, 3, 1))
    x = 1.5 * torch.randn(9, 4, dtype=torch.float64)
    monkeypatch.setattr(statistics, "_CONDITIONALS", 8)  # two rows at a time
    monkeypatch.setattr("arcsm.conditionals.conditionals._CHUNK", 3)
    table = features(model, x, tol=1e-6)
    for method in ("flow", "quadrature"):
        nats = -model.log_prob(x, method=method, tol=1e-6)
        torch.testing.assert_close(table[f"-log q, {method}"], nats, rtol=0, atol=1e-4)
        u = model.cdf(x, method=method, tol=1e-6)[:, [2, 0, 3, 1]]
        for name, column in pit_statistics(u).items():
            torch.testing.assert_close(table[f"PIT {name}, {method}"], column, rtol=1e-4, atol=1e-4)
    for level, sigma in enumerate(ladder.sigmas):
        s = model.score(x, level)[0] * model.scale
        torch.testing.assert_close(table[f"h, {sigma:.4g}"], s.sum(1))
        torch.testing.assert_close(table[f"|s|, {sigma:.4g}"], s.norm(dim=1))


def test_levels_and_methods_can_be_chosen(make_model: MakeModel, ladder: NoiseLadder) -> None:
    model = make_model(noise=ladder)
    x = torch.randn(3, 2, dtype=torch.float64)
    assert list(features(model, x, levels=(-1,), methods=())) == ["h, 0.2", "|s|, 0.2"]
    assert next(iter(features(model, x, levels=(), methods=("quadrature",)))) == "-log q, quadrature"
    with pytest.raises(ValueError, match="level"):
        features(model, x, levels=(8,))
    with pytest.raises(ValueError, match="closed form"):
        features(model, x, methods=("closed_form",))


def test_columns_leave_no_graph_and_are_in_double_precision(make_model: MakeModel) -> None:
    model = make_model("mixture", dtype=torch.float32)
    for column in features(model, torch.randn(3, 2)).values():
        assert column.dtype == torch.float64
        assert not column.requires_grad


@pytest.mark.parametrize("kind", ["score", "mixture"])
def test_pit_values_of_samples_of_the_model_itself_are_uniform(
    kind: str, make_model: MakeModel, ladder: NoiseLadder
) -> None:
    features_, count = 6, 400
    model = make_model(kind, features=features_, noise=ladder)
    x = model.sample(count, generator=torch.Generator().manual_seed(1))
    assert pit_uniformity(model.cdf(x).detach()).p_value > 1e-3
    table = features(model, x)
    by = "flow" if kind == "score" else "closed_form"
    expected = {  # mean and standard deviation for independent uniform values
        "squares": (features_, math.sqrt(2.0 * features_)),
        "tails": (2.0 - math.log(4.0), math.sqrt((4.0 - math.pi**2 / 3.0) / features_)),
        "AD": (1.0, math.sqrt(2.0 / 3.0 * (math.pi**2 - 9.0))),
    }
    for name, (mean, deviation) in expected.items():
        found = float(table[f"PIT {name}, {by}"].mean())
        assert found == pytest.approx(mean, abs=4.0 * deviation / math.sqrt(count)), name
    assert abs(float(table[f"PIT lag 1, {by}"].mean())) < 4.0 / math.sqrt(count * features_)


# The combination ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cancer() -> tuple[AutoregressiveModel, dict[str, Tensor]]:
    """A linear Gaussian model of a real table, and rows that it was not trained on, with outliers of three kinds."""
    x = torch.from_numpy(load_breast_cancer().data)
    x = torch.log(x + 0.1 * x.mean(0))[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoregressiveModel(MADE(30, 8, ()), GaussianHead(8)).double()
    config = TrainConfig(objective="mle", steps=600, batch_size=64, learning_rate=1e-2, device="cpu", ema=0.99)
    fit(model, x[:300], config=config)
    mean, deviation, test = x[:300].mean(0), x[:300].std(0), x[430:]
    level = torch.randn(len(test), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return model, {
        "validation": x[300:430],
        "test": test,
        "shifted": test + 4.0 * deviation,
        "scaled": mean + 3.0 * (test - mean),
        "constant": mean + 0.3 * level * deviation,
        "too likely": mean.expand(len(test), -1),
    }


@pytest.mark.parametrize("kind", ["shifted", "scaled", "constant", "too likely"])
def test_the_combination_finds_outliers_that_it_never_saw(
    kind: str, cancer: tuple[AutoregressiveModel, dict[str, Tensor]]
) -> None:
    model, sets = cancer
    combination = Combination().fit(features(model, sets["validation"]))
    test, outliers = (combination.score(features(model, sets[name])) for name in ("test", kind))
    assert auroc(test, outliers) > 0.95


def test_fresh_inliers_are_no_outliers(cancer: tuple[AutoregressiveModel, dict[str, Tensor]]) -> None:
    model, sets = cancer
    combination = Combination().fit(features(model, sets["validation"]))
    known, fresh = (combination.score(features(model, sets[name])) for name in ("validation", "test"))
    assert auroc(known, fresh) == pytest.approx(0.5, abs=0.12)
    assert auroc(fresh[::2], fresh[1::2]) == pytest.approx(0.5, abs=0.12)


def test_the_combination_is_two_sided_and_unbounded() -> None:
    sample = torch.distributions.LogNormal(0.0, 1.0).sample((1000,)).double()
    combination = Combination().fit({"a": sample})
    distances = combination.score({"a": torch.tensor([1.0, 0.1, -1.0, -5.0, 8.0, 50.0, 500.0])})
    middle, *left_and_right = distances.tolist()
    left, right = left_and_right[:3], left_and_right[3:]
    assert middle < 0.1
    assert left == sorted(left)
    assert right == sorted(right)
    assert min(left[0], right[0]) > middle


def test_the_combination_of_normal_columns_is_their_mahalanobis_distance() -> None:
    a, b = torch.randn(2, 20_000, dtype=torch.float64)
    combination = Combination().fit({"a": 5.0 + 3.0 * a, "b": a + 0.5 * b})
    at = torch.tensor([[0.5, 1.0], [-1.0, 0.3], [1.5, -1.0]], dtype=torch.float64)  # of a and b
    found = combination.score({"a": 5.0 + 3.0 * at[:, 0], "b": at[:, 0] + 0.5 * at[:, 1]})
    torch.testing.assert_close(found, at.square().sum(1), rtol=0.12, atol=0.05)


def test_columns_with_ties_are_no_trouble() -> None:
    values = torch.tensor([0.0] * 40 + [1.0] * 30 + [2.0] * 30)
    distances = Combination().fit({"a": values}).score({"a": torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0])})
    assert bool(distances.isfinite().all())
    assert float(distances[-1]) > float(distances[-2]) > float(distances[1])


# AUROC --------------------------------------------------------------------------------------------------------------


def test_orientation_of_the_auroc() -> None:
    low, high = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert auroc(low, high) == 1.0
    assert auroc(high, low) == 0.0
    assert auroc(low, low) == 0.5


def test_the_bootstrap_gives_the_spread_over_fresh_draws() -> None:
    rng = torch.Generator().manual_seed(0)

    def drawn() -> tuple[Tensor, Tensor]:
        return torch.randn(80, generator=rng), torch.randn(60, generator=rng) + 0.7

    spread = float(np.std([auroc(*drawn()) for _ in range(200)]))
    found = float(np.mean([auroc_standard_error(*drawn(), seed=seed) for seed in range(10)]))
    assert found == pytest.approx(spread, rel=0.15)
    assert auroc_standard_error(torch.zeros(5), torch.ones(4)) == 0.0


# Mistakes -----------------------------------------------------------------------------------------------------------

NAN = torch.tensor([[0.0, math.nan, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    "score", [statistics.score_sum, statistics.score_norms, statistics.negative_log_prob, statistics.features]
)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (NAN, "NaN"),
        (torch.zeros(3, 4), r"expected shape \(\*, 5\)"),
        (torch.zeros(5), r"shape \(N, 5\)"),
        (torch.zeros(2, 3, 5), r"shape \(N, 5\)"),
        (torch.zeros(0, 5), "at least one"),
        ([[0.0] * 5], "torch.Tensor"),
    ],
)
def test_rows_that_cannot_be_scored_are_one_line_errors(score: Callable[..., Any], x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        score(autoregression(), x)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "at least one"),
        ({"a": torch.zeros(2)}, "at least 3 rows"),
        ({"a": torch.zeros(50)}, "a is the same for nearly all rows"),
        ({"a": torch.rand(5), "b": torch.rand(4)}, "one length"),
        ({"a": torch.rand(5, 1)}, "one length"),
        ({"a": torch.rand(5), "b": torch.tensor([1.0, 2.0, math.inf, 0.0, 1.0])}, "b holds NaN or infinity"),
    ],
)
def test_tables_that_cannot_be_combined(table: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Combination().fit(table)


def test_a_combination_wants_to_be_fitted_first_and_all_columns() -> None:
    with pytest.raises(ValueError, match="not fitted"):
        Combination().score({"a": torch.rand(3)})
    fitted = Combination().fit({"a": torch.rand(9), "b": torch.rand(9)})
    with pytest.raises(ValueError, match="expected the columns a, b"):
        fitted.score({"a": torch.rand(3)})
    with pytest.raises(ValueError, match="knots"):
        Combination(knots=1).fit({"a": torch.rand(9)})


@pytest.mark.parametrize("scores", [torch.tensor([]), torch.tensor([math.nan]), torch.zeros(2, 2)])
def test_scores_without_an_auroc(scores: Tensor) -> None:
    with pytest.raises(ValueError, match="outliers: expected finite scores"):
        auroc(torch.zeros(2), scores)
    with pytest.raises(ValueError, match="outliers: expected finite scores"):
        auroc_standard_error(torch.zeros(2), scores)
