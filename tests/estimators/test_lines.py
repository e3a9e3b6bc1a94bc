"""Tables whose numbers lie near a line: dates that move together, totals, sums."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from arcsm import LocatedHead
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector, ScoreRegressor
from arcsm.estimators.density_estimator import DensityEstimator

#: Arguments of an estimator that has hardly learned more than the line.
HARDLY: dict[str, Any] = {"max_steps": 20, "n_estimators": 1, "random_state": 0}


def orders(rows: int, seed: int = 0) -> pd.DataFrame:
    """Return dates within two years, each with another some days later, and a third that is independent."""
    random = np.random.default_rng(seed)
    days = random.integers(0, 700, rows)
    lag = 1 + random.poisson(5.0, rows)
    start = pd.Timestamp("2024-01-01")
    return pd.DataFrame(
        {
            "ordered": start + pd.to_timedelta(days, unit="D"),
            "delivered": start + pd.to_timedelta(days + lag, unit="D"),
            "born": pd.Timestamp("1980-01-01") + pd.to_timedelta(random.integers(0, 9000, rows), unit="D"),
        }
    )


def sums(rows: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return normal features ``(N, 3)`` and the sum of two of them with noise, ``(N,)``."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 3))
    return x, x[:, 0] + x[:, 1] + noise * random.normal(size=rows)


def heads(estimator: DensityEstimator) -> list[type[Any]]:
    model = estimator.model_.model
    return [type(head) for head, _ in model.head.parts(model.features)]


@pytest.fixture(scope="module")
def density() -> ScoreDensity:
    return ScoreDensity(**HARDLY).fit(orders(200))


def test_synthetic_dates_keep_the_time_between_them(density: ScoreDensity) -> None:
    drawn = density.sample(500, random_state=0)
    lag = (drawn["delivered"] - drawn["ordered"]).dt.days
    assert lag.mean() == pytest.approx(6.0, abs=0.5)
    assert lag.std() == pytest.approx(math.sqrt(5.0), rel=0.25)
    assert (lag < 0).mean() < 0.05


def test_a_gap_in_one_of_two_dates_is_filled_from_the_other(density: ScoreDensity) -> None:
    table = orders(100, seed=1)
    filled = density.impute(table.assign(delivered=pd.NaT), draws=50)["delivered"]
    error = (filled - table["delivered"]).dt.total_seconds() / 86400.0
    assert math.sqrt((error**2).mean()) < 1.5 * math.sqrt(5.0)


def test_a_regression_on_a_line_goes_on_beyond_the_targets() -> None:
    random = np.random.default_rng(0)
    price, ship = random.uniform(0.0, 600.0, 200), random.normal(20.0, 3.0, 200)
    y = 1.2 * price + ship + random.normal(0.0, 0.5, 200)
    regressor = ScoreRegressor(**HARDLY).fit(np.column_stack([price, ship]), y)
    predicted = regressor.predict(np.array([[620.0, 20.0], [700.0, 20.0], [900.0, 20.0]]))
    np.testing.assert_allclose(predicted, [764.0, 860.0, 1100.0], rtol=0.02)


def test_the_density_of_dates_is_normalised(density: ScoreDensity) -> None:
    """The probabilities of all delivery dates given one order date sum to one, with that of any beyond the range."""
    days = pd.date_range("2024-05-01", periods=120)
    rows = pd.DataFrame({"ordered": pd.Timestamp("2024-06-10"), "delivered": days, "born": pd.NaT})
    log_prob = density.score_samples(rows, columns=["delivered"], given=["ordered"])
    beyond = 1.0 / 201.0  # the ends of the training range
    assert np.exp(log_prob).sum() == pytest.approx(1.0 - beyond, abs=3e-4)


@pytest.mark.parametrize("estimator", [ScoreOutlierDetector, ScoreDensity])
def test_whole_numbers_that_add_up_exactly_have_high_densities(estimator: type[Any]) -> None:
    """The noise on values of a grid does not add up; a line without noise would be hundreds of its widths away."""
    random = np.random.default_rng(0)
    parts = random.poisson(200.0, (300, 2)) + 30 * random.integers(0, 5, (300, 2))
    rows = np.column_stack([parts, parts.sum(1)]).astype(float)
    fitted = estimator(**HARDLY).fit(rows[:200])
    assert LocatedHead in heads(fitted)
    scores = fitted.score_samples(rows[200:])
    broken = rows[200:] + np.array([0.0, 0.0, 60.0])
    assert scores.min() > -40.0
    assert (fitted.score_samples(broken)[:, None] < scores).mean() > 0.95


def services(rows: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Return dates with another some days later and the service, slow or fast; and the truth's log loss of each row."""
    random = np.random.default_rng(seed)
    is_slow = random.random(rows) < 0.3
    lag = np.where(is_slow, random.normal(12.0, 1.5, rows), random.normal(4.0, 1.5, rows)).round().astype(int)
    start = pd.Timestamp("2024-01-01") + pd.to_timedelta(random.integers(0, 700, rows), unit="D")
    table = {"ordered": start, "delivered": start + pd.to_timedelta(lag, unit="D")}
    log_odds = math.log(3.0 / 7.0) + ((lag - 4.0) ** 2 - (lag - 12.0) ** 2) / (2.0 * 1.5**2)
    loss = np.logaddexp(0.0, np.where(is_slow, -log_odds, log_odds))
    return pd.DataFrame({**table, "service": np.where(is_slow, "slow", "fast")}), loss


@pytest.mark.slow
def test_a_name_can_depend_on_the_distance_from_a_line() -> None:
    """The network sees how far two dates are apart, which their values tell it far too vaguely."""
    density = ScoreDensity(max_steps=800, random_state=0).fit(services(800, 0)[0])
    table, loss = services(400, 1)
    log_prob = density.score_samples(table, columns=["service"], given=["ordered", "delivered"])
    assert -log_prob.mean() == pytest.approx(loss.mean(), abs=0.05)  # the share of slow ones alone: 0.61


def test_tables_without_lines_have_plain_heads() -> None:
    x, y = sums(200, 1.0)
    fitted = ScoreDensity(**{**HARDLY, "max_steps": 1}).fit(np.column_stack([x, y]))
    assert LocatedHead not in heads(fitted)


def totals(rows: int, seed: int) -> pd.DataFrame:
    """Return skewed parts, their total to the cent, and two columns that are independent of them."""
    random = np.random.default_rng(seed)
    net, tax = random.gamma(3.0, 2.0, rows).round(2), random.gamma(2.0, 3.0, rows).round(2)
    others = random.normal(size=(2, rows))
    return pd.DataFrame({"net": net, "tax": tax, "total": net + tax, "first": others[0], "second": others[1]})


def test_totals_of_skewed_parts_are_on_a_line_before_their_maps() -> None:
    table = totals(250, 0)
    gap = np.random.default_rng(1).random(250) < 0.15
    with_gaps = table.assign(total=table["total"].mask(gap))
    density = ScoreDensity(**HARDLY).fit(with_gaps)
    assert sum(kind.exponent_of_map != 1.0 for kind in density.columns_.kinds) >= 2  # the premise
    filled = density.impute(with_gaps)["total"][gap]
    assert float(np.abs(filled - table["total"][gap]).max()) < 0.1  # sd 5.3
    drawn = density.sample(200, random_state=0)
    off = (drawn["total"] - drawn["net"] - drawn["tax"]).abs()
    assert float(off.quantile(0.95)) < 0.15


def test_a_density_on_a_mapped_line_is_normalised() -> None:
    """The density of the total given the parts integrates to one, with the probability of any beyond the range."""
    table = totals(250, 0)
    table["total"] += 0.05 * np.random.default_rng(1).normal(size=250)
    density = ScoreDensity(**HARDLY).fit(table)
    errors = np.linspace(-2.0, 2.0, 2001)
    for net, tax in ((1.2, 2.3), (6.0, 5.0), (15.0, 4.0)):
        rows = pd.DataFrame({"net": net, "tax": tax, "total": net + tax + errors, "first": 0.0, "second": 0.0})
        log_prob = density.score_samples(rows, columns=["total"], given=["net", "tax"])
        beyond = 1.0 / 251.0  # the ends of the training range
        assert 0.002 * np.exp(log_prob).sum() == pytest.approx(1.0 - beyond, abs=1e-3)
