"""Predictive distributions: closed forms of known conditionals, and what holds for every kind of target."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from arcsm.estimators import PredictiveDistribution, ScoreRegressor
from small_targets import ROUGH, fitted, targets, use_one_model

X = np.linspace(-1.0, 1.0, 5)[:, None]
KINDS = ("spiked", "steps", "few", "constant")


def regressor_of(name: str) -> ScoreRegressor:
    return fitted(name, 400)


def predicted(name: str) -> PredictiveDistribution:
    return regressor_of(name).predict_distribution(X)


def test_a_linear_normal_target_has_its_conditionals() -> None:
    found, truth = predicted("linear"), stats.norm(2.0 * X[:, 0], 1.0)
    np.testing.assert_allclose(found.mean(), truth.mean(), atol=0.15)
    np.testing.assert_allclose(found.std(), 1.0, atol=0.15)
    for u in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(found.quantile(u), truth.ppf(u), atol=0.25)
        np.testing.assert_allclose(found.cdf(truth.ppf(u)), u, atol=0.06)
    np.testing.assert_allclose(found.pdf(truth.mean()), truth.pdf(truth.mean()), atol=0.06)
    np.testing.assert_allclose(found.mode(), truth.mean(), atol=0.3)


def test_a_spike_has_its_probability() -> None:
    found, share = predicted("spiked"), stats.norm.cdf(X[:, 0])
    np.testing.assert_allclose(found.pdf(0.0), share, atol=0.08)
    np.testing.assert_allclose(found.cdf(0.0) - found.cdf(-1e-9), found.pdf(0.0), atol=1e-6)
    np.testing.assert_allclose(found.mean(), (1.0 - share) * np.exp(0.125), atol=0.12)
    drawn = found.sample(2000)
    np.testing.assert_allclose((drawn == 0.0).mean(0), found.pdf(0.0), atol=0.04)
    assert found.mode()[-1] == 0.0
    assert found.median()[-1] == 0.0


@pytest.mark.parametrize("name", KINDS)
def test_quantiles_invert_the_distribution_function(name: str) -> None:
    found, u = predicted(name), np.linspace(0.02, 0.98, 13)[:, None]
    y = found.quantile(u)
    assert (np.diff(y, axis=0) >= 0.0).all()
    at, below = found.cdf(y), found.cdf(y - 1e-3 * (1.0 + abs(y)))
    assert (at > u - 1e-6).all()  # the smallest value whose distribution function is at least u
    assert (below < u + 1e-6).all()
    np.testing.assert_array_equal(found.cdf([-np.inf] * 5), pytest.approx(np.zeros(5), abs=1e-12))
    np.testing.assert_array_equal(found.cdf([np.inf] * 5), pytest.approx(np.ones(5)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["spiked", "steps"])
def test_rows_do_not_depend_on_one_another(name: str) -> None:
    """On a grid, a single row may have no quantile near an end of the range."""
    found, each = predicted(name), [regressor_of(name).predict_distribution(X[i : i + 1]) for i in range(len(X))]
    for u in (0.1, 0.5):
        np.testing.assert_allclose(found.quantile(u), [row.quantile(u)[0] for row in each], atol=1e-4)
    for ask in (PredictiveDistribution.mean, PredictiveDistribution.mode):
        np.testing.assert_allclose(ask(found), [ask(row)[0] for row in each], atol=1e-4)
    np.testing.assert_allclose(found.pdf(4.0), [row.pdf(4.0)[0] for row in each], rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_draws_have_the_distribution_function_and_its_moments(name: str) -> None:
    found = predicted(name)
    drawn = found.sample(3000)
    assert drawn.shape == (3000, 5)
    np.testing.assert_array_equal(drawn[:9], found.sample(3000)[:9])
    error = 5.0 * found.std() / np.sqrt(3000.0)
    assert (abs(drawn.mean(0) - found.mean()) <= error + 1e-12).all()
    np.testing.assert_allclose(drawn.std(0), found.std(), rtol=0.1, atol=1e-12)
    drawn = np.sort(drawn, 0)
    until = np.stack([np.searchsorted(row, row, side="right") for row in drawn.T], 1) / 3000.0
    assert abs(found.cdf(drawn) - until).max() < 1.95 / np.sqrt(3000.0)  # exceeded once in 1,000 times


@pytest.mark.parametrize(
    ("name", "grid", "share"), [("linear", (-12.0, 12.0, 401), 0.0), ("spiked", (1e-3, 40.0, 4001), 1.0)]
)
def test_densities_are_the_slopes_of_distribution_functions(
    name: str, grid: tuple[float, float, int], share: float
) -> None:
    found, y = predicted(name), np.linspace(*grid)[:, None]
    density = found.pdf(y)
    total = np.trapezoid(density, y[:, 0], axis=0) + share * found.pdf(0.0)
    np.testing.assert_allclose(total, 1.0, atol=0.01)
    y = np.linspace(0.5, 2.0, 5)[:, None]
    slope = (found.cdf(y + 1e-4) - found.cdf(y - 1e-4)) / 2e-4
    np.testing.assert_allclose(found.pdf(y), slope, rtol=0.01, atol=1e-4)


def test_probabilities_of_discrete_targets_add_up_to_one() -> None:
    whole = np.arange(-10.0, 35.0)[:, None]
    steps = predicted("steps")
    np.testing.assert_allclose(steps.pdf(whole).sum(0), 1.0, atol=2e-3)
    np.testing.assert_allclose(np.diff(steps.cdf(whole), axis=0), steps.pdf(whole[1:]), atol=2e-3)
    few = predicted("few")
    masses = 3.0 * few.pdf(np.array([[0.0], [3.0], [9.0]]))  # the step between values is 3
    np.testing.assert_allclose(masses.sum(0), 1.0, atol=1e-3)
    truth = np.diff([np.zeros(5), stats.norm.cdf(-X[:, 0]), stats.norm.cdf(1.0 - X[:, 0]), np.ones(5)], axis=0)
    np.testing.assert_allclose(masses, truth, atol=0.08)
    sums = np.array([np.zeros(5), masses[0], masses[0] + masses[1], np.ones(5)])
    np.testing.assert_allclose(few.cdf(np.array([[-1.0], [0.0], [5.0], [9.0]])), sums, atol=1e-3)
    assert set(few.quantile(np.linspace(0.01, 0.99, 50)[:, None]).ravel()) == {0.0, 3.0, 9.0}
    assert set(few.mode()) <= {0.0, 3.0, 9.0}


@pytest.mark.parametrize("name", ["spiked", "few"])
def test_densities_are_those_of_the_parallel_pass(name: str) -> None:
    regressor, (x, y) = regressor_of(name), targets(name, 40, seed=2)
    joint = regressor._joint  # private: the model of the table of features, hints and target
    hints = joint._hints_of(regressor.columns_.encode(x))
    numbers = np.column_stack([regressor.columns_.encode(x), hints, joint.columns_.kinds[-1].encode(y)])
    expected = joint._contributions(*joint._separate(numbers))[0, :, -1]  # the target comes last
    np.testing.assert_allclose(regressor.predict_distribution(x).log_pdf(y), expected, atol=1e-6)


def test_two_targets_are_joint() -> None:
    found = predicted("two")
    assert found.shape == (5, 2)
    drawn = found.sample(1000)
    assert drawn.shape == (1000, 5, 2)
    np.testing.assert_allclose(found.mean(), drawn.mean(0), atol=0.25)
    assert found.pdf(np.zeros((7, 1, 2))).shape == (7, 5)
    assert found.quantile(0.5).shape == found.cdf([0.0, 1.0]).shape == (5, 2)
    y = np.stack(np.meshgrid(np.linspace(-6, 6, 61), np.linspace(-6, 6, 61)), -1).reshape(-1, 1, 2)
    middle = regressor_of("two").predict_distribution(X[2:3])
    masses = middle.pdf(y)[:, 0] * 0.2**2
    assert masses.sum() == pytest.approx(1.0, abs=0.02)
    of_density = np.cov(y[:, 0].T, aweights=masses)
    np.testing.assert_allclose(np.cov(middle.sample(2000)[:, 0].T), of_density, atol=0.2)


@pytest.mark.slow
def test_two_targets_have_their_closed_form() -> None:
    found = fitted("two").predict_distribution(X)
    np.testing.assert_allclose(found.mean(), np.stack([X[:, 0], np.zeros(5)], 1), atol=0.25)
    np.testing.assert_allclose(np.cov(found.sample(2000)[:, 2].T), [[1.0, 1.0], [1.0, 2.0]], atol=0.35)


def test_arguments_broadcast_with_the_rows() -> None:
    found = predicted("linear")
    assert len(found) == 5
    for y, shape in ((0.0, (5,)), (np.zeros(5), (5,)), (np.zeros((3, 1)), (3, 5)), (np.zeros((2, 3, 5)), (2, 3, 5))):
        assert found.pdf(y).shape == found.cdf(y).shape == shape
    each = np.array([[found.pdf(y)[n] for n in range(5)] for y in (-1.0, 2.0)])
    np.testing.assert_allclose(found.pdf(np.array([[-1.0], [2.0]])), each)
    assert np.isnan(found.pdf(np.nan)).all()
    assert np.isnan(found.cdf(np.nan)).all()
    assert np.isnan(predicted("few").cdf(np.nan)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda found: found.pdf(np.zeros(4)), r"y: expected a shape that broadcasts with \(5,\), got \(4,\)"),
        (lambda found: found.quantile(1.0), r"u: expected values inside \(0, 1\)"),
        (lambda found: found.interval(90), "coverage: expected a number between 0 and 1, got 90"),
        (lambda found: found.sample(0), "sample: expected whole numbers from 1"),
    ],
)
def test_wrong_arguments_raise(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(predicted("constant"))  # type: ignore[operator]


def test_values_on_a_fine_grid_are_reached_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prices are a continuum to the model, but each has the probability of its step."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1000, 1))
    y = np.round(5.0 + random.exponential(20.0, 1000), 1)
    use_one_model(monkeypatch, **ROUGH)
    found = ScoreRegressor(random_state=0).fit(x, y).predict_distribution(x[:3])
    u = np.linspace(0.001, 0.999, 57)[:, None]
    q = found.quantile(u)
    assert (found.cdf(q) > u - 1e-6).all()
    assert (found.cdf(q - 0.1) < u + 1e-6).all()
    lowest = np.full(3, y.min())
    np.testing.assert_allclose(found.cdf(lowest), 0.1 * found.pdf(lowest), rtol=0.02)
    assert (found.cdf(np.full(3, y.max())) < 1.0 - 1e-4).all()  # there is room above, since prices thin out
    np.testing.assert_allclose(found.cdf(np.full(3, np.inf)), 1.0, atol=1e-9)
