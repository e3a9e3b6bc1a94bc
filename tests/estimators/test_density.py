"""The density estimator: log densities, samples, imputation and conditional draws."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from arcsm.estimators import ScoreDensity, table_draws
from arcsm.queries import Completions
from small_tables import QUICK, mixed_table, normal, quick_density, use_small_models


def test_samples_have_the_format_of_the_data_frame() -> None:
    table = mixed_table()
    density = ScoreDensity(**QUICK).fit(table)
    assert density.feature_names_in_.tolist() == list(table.columns)
    rows = density.sample(50)
    assert isinstance(rows, pd.DataFrame)
    pd.testing.assert_series_equal(rows.dtypes, table.dtypes)
    assert set(rows["city"]) <= {"north", "east", "west"}
    assert set(rows["kind"]) == {"same"}
    assert rows["visits"].between(table["visits"].min(), table["visits"].max()).all()
    assert bool(np.isfinite(density.score_samples(table)).all())
    pd.testing.assert_frame_equal(rows, density.sample(50))
    assert not rows.equals(density.sample(50, random_state=1))
    with pytest.raises(ValueError, match="feature names should match"):
        density.score_samples(table.rename(columns={"city": "town"}))


def test_the_density_of_a_skewed_column_integrates_to_one() -> None:
    x = np.exp(np.random.default_rng(0).normal(1.0, 0.5, (400, 1)))
    density = ScoreDensity(**QUICK).fit(x)
    grid = np.linspace(0.01, 40.0, 4000)
    assert np.trapezoid(np.exp(density.score_samples(grid[:, None])), grid) == pytest.approx(1.0, abs=0.01)


def test_missing_values_are_filled_with_the_centre_of_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    numbers = np.random.default_rng(0).permutation(np.arange(120) % 12)
    table = pd.DataFrame({"whole": numbers, "tenths": numbers / 10, "city": np.array(["a", "b", "b"])[numbers % 3]})
    fitted = ScoreDensity(**QUICK).fit(table)
    draws = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [10.0, 10.0, 0.0], [11.0, 11.0, 1.0]]]).double()
    monkeypatch.setattr(table_draws, "complete", lambda *_: Completions(draws, torch.zeros(1, 4)))
    gaps = pd.DataFrame({"whole": [np.nan], "tenths": [np.nan], "city": [None]})
    for estimate, whole, tenths in (("mean", 5, 0.525), ("median", 5, 0.5), ("mode", 0, 0.0)):
        filled = fitted.impute(gaps, estimate=estimate)
        assert filled.iloc[0].tolist() == [whole, pytest.approx(tenths), fitted.columns_.kinds[2].names[1]]
        assert filled["whole"].dtype == table["whole"].dtype
    as_numbers = ScoreDensity(**QUICK).fit(table.astype({"whole": float})).impute(gaps)
    assert as_numbers["whole"].tolist() == [5.25]  # no dtype rounds it
    for estimate in (None, "draw"):
        drawn = fitted.impute(gaps, n=4, estimate=estimate)
        assert [frame["whole"][0] for frame in drawn] == [0, 0, 10, 11]
    assert fitted.impute(gaps, estimate="draw").iloc[0].tolist() == [0, 0.0, fitted.columns_.kinds[2].names[1]]
    with pytest.raises(ValueError, match="estimate: expected one of None, mean, median, mode, draw, got 'best'"):
        fitted.impute(gaps, estimate="best")
    with pytest.raises(ValueError, match="estimate: expected one of None, draw with n > 1, where each table is a draw"):
        fitted.impute(gaps, n=2, estimate="mean")


def test_conditions_outside_the_training_values_raise(correlated_density: ScoreDensity) -> None:
    for column, value in (("city", "nowhere"), ("visits", 1.5), ("visits", 1000), ("same", 8)):
        with pytest.raises(ValueError, match=f"given: column '{column}' does not contain"):
            correlated_density.conditional({column: value})


def test_conditions_that_never_occur_together_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    zone = np.arange(120) % 4
    table = pd.DataFrame({"city": np.array(["Oslo", "Rome"])[zone // 2], "zone": zone, "a": normal(120)})
    fitted = ScoreDensity(**QUICK).fit(table)
    with pytest.warns(UserWarning, match="city = 'Oslo' and zone = 3 never occur together in the fitted rows"):
        fitted.conditional({"a": 0.0, "city": "Oslo", "zone": 3}, draws=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.conditional({"a": 0.0, "city": "Rome", "zone": 3}, draws=20)


def test_conditional_draws_come_in_batches(correlated_density: ScoreDensity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_draws, "_DRAWS_AT_A_TIME", 7)
    drawn = correlated_density.conditional({"city": "Rome"}, draws=30)
    assert len(drawn) == 30
    assert (drawn["city"] == "Rome").all()
    assert not drawn.duplicated().any()


def test_few_distinct_conditional_draws_warn(correlated_density: ScoreDensity, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = table_draws.complete

    def unequal(*arguments: Any) -> Completions:
        drawn = complete(*arguments)
        log_weights = torch.full_like(drawn.log_weights, -torch.inf)
        log_weights[:, :3] = 0.0
        return drawn._replace(log_weights=log_weights)

    monkeypatch.setattr(table_draws, "complete", unequal)
    with pytest.warns(UserWarning, match="only about 3 of the 100 draws are distinct"):
        drawn = correlated_density.conditional({"city": {"Rome"}, "visits": (0, 9)}, draws=100)
    assert len(drawn.drop_duplicates()) == 3


# Questions with a known answer ----------------------------------------------------------------------------------------


def dependent_table(rows: int) -> pd.DataFrame:
    """Return columns that depend on each other: ``a`` is normal, ``b = a + noise``, and ``c`` is the sign of ``a``."""
    random = np.random.default_rng(3)
    a = random.normal(size=rows)
    return pd.DataFrame({"a": a, "b": a + random.normal(size=rows), "c": np.where(a > 0.0, "up", "down"), "d": 7})


@pytest.fixture(scope="module")
def density() -> ScoreDensity:
    """Return a density of :func:`dependent_table` that has hardly learned."""
    return quick_density(dependent_table(300))


def test_ranges_and_sets_restrict_conditional_draws(density: ScoreDensity) -> None:
    drawn = density.conditional({"b": (1.0, 2.0), "c": ["down"]}, draws=100)
    assert drawn["b"].between(1.0, 2.0).all()
    assert (drawn["c"] == "down").all()
    assert (density.conditional({"a": (None, -1.0)}, draws=100)["a"] <= -1.0).all()


@pytest.mark.parametrize(("known", "low", "high"), [(None, -1.0, 0.5), (1.0, -6.0, 0.0)])
def test_the_probability_of_a_range_is_the_integral_of_the_density(
    density: ScoreDensity, known: float | None, low: float, high: float
) -> None:
    grid = np.linspace(low, high, 501)
    rows = pd.DataFrame({"a": np.nan if known is None else known, "b": grid, "c": "up", "d": 7})
    integral = np.trapezoid(np.exp(density.score_samples(rows, columns=["b"], given=["a"])), grid)
    found = density.probability({"b": (low, high)}, None if known is None else {"a": known})
    assert found == (pytest.approx(integral, abs=2e-3), 0.0)


def _ends(value: Any) -> tuple[Any, Any]:
    """Return the ends of a range or of a single value."""
    if not isinstance(value, tuple):
        value = tuple(value) * 2 if isinstance(value, set) else (value, value)
    low, high = value
    return (-math.inf if low is None else low, math.inf if high is None else high)


@pytest.mark.parametrize(
    ("event", "given"),
    [
        ({"b": (None, 0.0)}, {"a": 1.0}),
        ({"c": {"up"}}, {"b": (0.0, None)}),
        ({"a": (0.0, None), "b": (0.0, None)}, None),
        ({"d": 7, "c": "up"}, {"d": (0, 9)}),
        ({"a": (2.0, 3.0)}, {"a": (0.0, 1.0)}),
    ],
)
def test_probabilities_of_events_are_shares_of_draws(density: ScoreDensity, event: Any, given: Any) -> None:
    found = density.probability(event, given)
    assert 0.0 <= found.standard_error < 0.04
    drawn = density.conditional(given or {}, draws=1000, random_state=1)
    share = np.all([drawn[name].between(*_ends(value)) for name, value in event.items()], 0).mean()
    assert found.value == pytest.approx(share, abs=4.0 * math.hypot(found.standard_error, 0.5 / math.sqrt(1000)))


@pytest.mark.slow
def test_a_trained_density_knows_probabilities() -> None:
    table = dependent_table(3000)
    density = ScoreDensity(max_steps=1500, random_state=0).fit(table)
    for event, given, truth in (
        ({"c": "up"}, None, 0.5),
        ({"a": (1.0, None)}, None, stats.norm.sf(1.0)),
        ({"b": (None, 0.0)}, {"a": 1.0}, stats.norm.cdf(-1.0)),
        ({"c": {"up"}}, {"b": (0.0, None)}, 0.75),
        ({"a": (0.0, None), "b": (0.0, None)}, None, 0.375),
        ({"a": (-1.0, 1.0)}, {"a": (0.0, None)}, 2.0 * stats.norm.cdf(1.0) - 1.0),
    ):
        assert density.probability(event, given).value == pytest.approx(truth, abs=0.1)
    truncated_mean = -stats.norm.pdf(-1.0) / stats.norm.cdf(-1.0)
    assert density.conditional({"a": (None, -1.0)}, draws=400)["b"].mean() == pytest.approx(truncated_mean, abs=0.3)
    rows = table.tail(300)
    marginal = density.score_samples(rows, columns=["b"])
    np.testing.assert_allclose(marginal.mean(), stats.norm.logpdf(rows["b"], scale=math.sqrt(2.0)).mean(), atol=0.05)
    given_a = density.score_samples(rows, columns=["b"], given=["a"])
    np.testing.assert_allclose(given_a.mean(), stats.norm.logpdf(rows["b"] - rows["a"]).mean(), atol=0.05)


def test_probabilities_of_events_that_exclude_each_other_sum_to_one(density: ScoreDensity) -> None:
    for given in ({"a": (0.5, None)}, {"a": 0.3, "b": (0.0, None)}):
        found = [density.probability({"c": c}, given, draws=200, random_state=0).value for c in ("up", "down")]
        assert sum(found) == pytest.approx(1.0, rel=1e-6)
    halves = [density.probability({"a": ends}, {"a": (0.0, 1.0)}).value for ends in ((0.0, 0.4), (0.4, 1.0))]
    assert sum(halves) == pytest.approx(1.0, abs=1e-3)


def test_a_range_may_touch_the_spike_at_its_end() -> None:
    """The frequent value at a hard end belongs to a range that starts or ends there."""
    random = np.random.default_rng(0)
    share = np.clip(random.normal(0.5, 0.4, 300), 0.0, 1.0)
    density = quick_density(pd.DataFrame({"share": share, "y": share + random.normal(size=300)}))
    for ends, value in (((1.0, None), 1.0), ((1.0, 2.0), 1.0), ((None, 0.0), 0.0), ((-1.0, 0.0), 0.0)):
        assert density.probability({"share": ends}) == density.probability({"share": value})
        assert (density.conditional({"share": ends}, draws=10)["share"] == value).all()
    assert density.probability({"share": (0.0, 1.0)}).value == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="has no value in the range"):
        density.conditional({"share": (1.1, None)}, draws=10)


def test_densities_of_some_columns_given_others(density: ScoreDensity) -> None:
    rows = dependent_table(300).tail(50)
    np.testing.assert_allclose(density.score_samples(rows, given=[]), density.score_samples(rows), rtol=1e-9)
    np.testing.assert_allclose(density.score_samples(rows, columns=["d"]), math.log1p(-1.0 / 302.0), rtol=1e-6)
    others = density.score_samples(rows, columns=["b", "c"], given=["a"])
    np.testing.assert_allclose(density.score_samples(rows, given=["d", "a"]), others, rtol=1e-6)


def test_a_column_without_a_known_value_is_left_out_without_a_warning() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"z": random.standard_t(2, 300), "x": random.normal(size=300)})
    density = quick_density(table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = density.score_samples(table.assign(z=np.nan))
    np.testing.assert_allclose(found, density.score_samples(table, columns=["x"]))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda q: q.conditional({"c": ("down", "up")}), "given: column 'c' has categories without an order"),
        (lambda q: q.conditional({"a": (2.0, 1.0)}), r"given: column 'a' has an empty range \(2, 1\)"),
        (lambda q: q.conditional({"a": (1.0, 1.0)}), "given: column 'a' has single values with probability 0"),
        (lambda q: q.conditional({"a": ("x", "y")}), "given: column 'a' expects ends of a range, got 'x'"),
        (lambda q: q.conditional({"a": math.nan}), "given: column 'a' expects a value, not a missing one"),
        (lambda q: q.conditional({"a": "high"}), "given: column 'a' expects a number, got 'high'"),
        (lambda q: q.conditional({"d": (8, None)}), "given: column 'd' has the value 7 only"),
        (lambda q: q.conditional({"a": (1e9, 2e9)}), r"given: column 'a' has no value in the range \(1000000000, 2"),
        (lambda q: q.probability({}), "event: expected at least one column"),
        (lambda q: q.probability({"a": 1.0}), "event: column 'a' has single values with probability 0"),
        (lambda q: q.probability({"a": (0, 1)}, {"a": 0.5}), "event: column 'a' has a value in `given`"),
        (lambda q: q.score_samples(q.sample(2), given=["a", "b", "c", "d"]), "columns: expected some"),
        (lambda q: q.score_samples(q.sample(2), columns=["a"], given=["a"]), "columns: .* got 'a' in both"),
        (lambda q: q.score_samples(q.sample(2), columns=["a", "a"]), "columns: expected each once, got 'a' more than"),
        (lambda q: q.sample(1.5), "sample: expected whole numbers"),
    ],
)
def test_impossible_questions_raise(density: ScoreDensity, ask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(density)
