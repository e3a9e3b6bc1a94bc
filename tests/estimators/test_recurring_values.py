"""Numbers that several rows have recur in draws as often as in new rows."""

import numpy as np
import pytest

from arcsm.estimators import ScoreDensity
from arcsm.estimators.recurring_values import RecurringValues
from small_targets import ROUGH, use_one_model


def prices(rows: int, seed: int) -> np.ndarray:
    """Return numbers of which two in five are one of many round ones, each less than one in a hundred."""
    random = np.random.default_rng(seed)
    x = np.exp(5.0 + 0.6 * random.normal(size=rows))
    return np.where(random.random(rows) < 0.4, np.round(x / 5.0) * 5.0, x)


def test_draws_recur_as_often_as_new_rows() -> None:
    table, new, random = prices(3000, 0), prices(3000, 1), np.random.default_rng(2)
    values = RecurringValues.of_column(table, np.zeros(0))
    assert values is not None
    smooth = np.exp(5.0 + 0.6 * random.normal(size=20_000))
    drawn = values.moved(smooth, random)
    distinct, counts = np.unique(table, return_counts=True)
    often = distinct[counts > 1]
    assert np.isin(drawn, often).mean() == pytest.approx(np.isin(new, often).mean(), abs=0.03)
    most = distinct[counts.argmax()]
    assert (drawn == most).mean() == pytest.approx((new == most).mean(), abs=0.006)
    between = np.arange(17.5, 600.0, 5.0)  # round numbers, to which draws on either side may have moved
    shares = [(one[:, None] < between).mean(0) for one in (drawn, smooth)]
    np.testing.assert_allclose(*shares, atol=0.01)


def test_spikes_and_gaps_do_not_count() -> None:
    rows = np.concatenate([np.full(500, 7.0), np.full(30, np.nan), np.random.default_rng(0).normal(size=500)])
    assert RecurringValues.of_column(rows, np.array([7.0])) is None


def test_synthetic_rows_have_recurring_values(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_model(monkeypatch, **ROUGH)
    rows = np.stack([prices(1500, 0), np.random.default_rng(1).normal(size=1500)], 1)
    density = ScoreDensity(max_steps=20, random_state=0).fit(rows)
    assert list(density.recurring_) == [0]
    distinct, counts = np.unique(rows[:, 0], return_counts=True)
    shares = []
    for values in (density.recurring_, {}):
        density.recurring_ = values
        shares.append(np.isclose(density.sample(1000, 0)[:, :1], distinct[counts > 1], rtol=1e-9).any(1).mean())
    expected = np.isin(prices(5000, 3), distinct[counts > 1]).mean()
    assert shares[0] == pytest.approx(expected, abs=0.06)
    assert shares[1] < shares[0] - 0.1  # the most frequent ones are spikes, which the model draws
