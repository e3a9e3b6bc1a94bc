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
from small_tables import QUICK, correlated_table, mixed_table, normal, use_small_models


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
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(1.0, 0.5, (3000, 1)))
    density = ScoreDensity(max_steps=400, n_estimators=1, random_state=0).fit(x)
    grid = np.linspace(0.01, 40.0, 4000)[:, None]
    found = density.score_samples(grid)
    assert np.trapezoid(np.exp(found), grid[:, 0]) == pytest.approx(1.0, abs=0.01)
    truth = stats.lognorm(0.5, scale=math.e).logpdf(x[:, 0])
    assert density.score(x) == pytest.approx(truth.mean(), abs=0.05)


def test_the_density_of_integers_is_their_probability() -> None:
    rng = np.random.default_rng(0)
    x = rng.choice(4, p=[0.5, 0.3, 0.15, 0.05], size=(3000, 1)).astype(float)
    density = ScoreDensity(max_steps=600, n_estimators=1, random_state=0).fit(x)
    found = np.exp(density.score_samples(np.arange(4.0)[:, None]))
    np.testing.assert_allclose(found, [0.5, 0.3, 0.15, 0.05], atol=0.05)


def test_samples_of_a_skewed_column_stay_in_range() -> None:
    x = np.random.default_rng(0).gamma(0.3, size=(800, 1))
    density = ScoreDensity(max_steps=200, n_estimators=1, random_state=0).fit(x)
    sample = np.asarray(density.sample(3000))
    assert sample.max() <= 2.0 * x.max()
    assert sample.mean() == pytest.approx(x.mean(), rel=0.25)


def test_missing_values_are_filled_from_known_ones() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=600)
    table = pd.DataFrame(
        {"a": first, "b": 2.0 * first + 0.1 * rng.normal(size=600), "c": np.where(first > 0, "p", "n")}
    )
    density = ScoreDensity(max_steps=400, n_estimators=1, random_state=0).fit(table)
    gaps = table.head(60).copy()
    gaps.index = gaps.index + 1000
    gaps.loc[gaps.index[:30], "a"] = np.nan
    gaps.loc[gaps.index[30:], "c"] = None
    filled = density.impute(gaps)
    assert isinstance(filled, pd.DataFrame)
    assert filled.index.equals(gaps.index)
    assert not filled.isna().any().any()
    assert np.abs(filled["a"].to_numpy()[:30] - first[:30]).mean() < 0.25
    certain = np.abs(first[30:60]) > 0.3
    assert (filled["c"].to_numpy()[30:][certain] == table["c"].to_numpy()[30:60][certain]).mean() > 0.9
    pd.testing.assert_series_equal(filled["b"], gaps["b"])
    rows = density.conditional({"b": 2.0}, draws=40)
    assert isinstance(rows, pd.DataFrame)
    np.testing.assert_allclose(rows["b"], 2.0, atol=1e-6)
    assert abs(float(rows["a"].mean()) - 1.0) < 0.2
    known = table.head(30)[["b", "c"]].assign(a=np.nan)[["a", "b", "c"]]
    np.testing.assert_allclose(
        density.score_samples(known), density.score_samples(table.head(30), columns=["b", "c"]), rtol=1e-6
    )


def test_medians_of_discrete_values_are_on_their_grid() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, 600).astype(float)
    table = np.column_stack([x, 2.0 * x + 5.0])
    density = ScoreDensity(max_steps=400, n_estimators=1, random_state=0).fit(table)
    gaps = table[:40].copy()
    gaps[:, 1] = np.nan
    np.testing.assert_array_equal(density.impute(gaps, estimate="median")[:, 1], table[:40, 1])
    np.testing.assert_allclose(density.impute(gaps)[:, 1], table[:40, 1], atol=0.2)


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


def test_conditions_outside_the_training_values_raise() -> None:
    density = ScoreDensity(**QUICK).fit(mixed_table(120))
    for column, value in (("city", "nowhere"), ("visits", 1.5), ("visits", 1000), ("kind", "other")):
        with pytest.raises(ValueError, match=f"given: column '{column}' does not contain"):
            density.conditional({column: value})
    rows = density.conditional({"city": "north", "kind": "same"}, draws=5)
    assert isinstance(rows, pd.DataFrame)
    assert set(rows["city"]) == {"north"}


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


def test_conditional_draws_are_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    drawn = ScoreDensity(**QUICK).fit(correlated_table(300)).conditional({"city": "Rome"}, draws=100)
    assert not drawn.duplicated().any()


def test_conditional_draws_come_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    monkeypatch.setattr(table_draws, "_DRAWS_AT_A_TIME", 7)
    drawn = ScoreDensity(**QUICK).fit(correlated_table(300)).conditional({"city": "Rome"}, draws=30)
    assert len(drawn) == 30
    assert (drawn["city"] == "Rome").all()
    assert not drawn.duplicated().any()


def test_few_distinct_conditional_draws_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    fitted = ScoreDensity(**QUICK).fit(correlated_table(300))
    complete = table_draws.complete

    def unequal(*arguments: Any) -> Completions:
        drawn = complete(*arguments)
        log_weights = torch.full_like(drawn.log_weights, -torch.inf)
        log_weights[:, :3] = 0.0
        return drawn._replace(log_weights=log_weights)

    monkeypatch.setattr(table_draws, "complete", unequal)
    with pytest.warns(UserWarning, match="only about 3 of the 100 draws are distinct"):
        drawn = fitted.conditional({"city": {"Rome"}, "visits": (0, 9)}, draws=100)
    assert len(drawn.drop_duplicates()) == 3


# Questions with a known answer ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted_table() -> tuple[ScoreDensity, pd.DataFrame]:
    """Fit columns that depend on each other: ``a`` is normal, ``b = a + noise``, and ``c`` is the sign of ``a``."""
    random = np.random.default_rng(3)
    a = random.normal(size=3000)
    table = pd.DataFrame({"a": a, "b": a + random.normal(size=3000), "c": np.where(a > 0.0, "up", "down"), "d": 7})
    return ScoreDensity(max_steps=1500, random_state=0).fit(table), table


def test_ranges_and_sets_restrict_conditional_draws(fitted_table: tuple[ScoreDensity, pd.DataFrame]) -> None:
    density, _ = fitted_table
    drawn = density.conditional({"b": (1.0, 2.0), "c": ["down"]}, draws=400)
    assert drawn["b"].between(1.0, 2.0).all()
    assert (drawn["c"] == "down").all()
    negative = density.probability({"a": (None, 0.0)}, {"b": (1.0, 2.0), "c": "down"})
    assert (drawn["a"] < 0.0).mean() == pytest.approx(negative.value, abs=0.1)
    assert negative.value > 0.7  # 1 in the table
    drawn = density.conditional({"a": (None, -1.0)}, draws=400)
    assert (drawn["a"] <= -1.0).all()
    truncated_mean = -stats.norm.pdf(-1.0) / stats.norm.cdf(-1.0)
    assert drawn["b"].mean() == pytest.approx(truncated_mean, abs=0.3)


@pytest.mark.parametrize(("known", "low", "high"), [(None, -1.0, 0.5), (1.0, -6.0, 0.0), (-2.0, -2.5, 4.0)])
def test_the_probability_of_a_range_is_the_integral_of_the_density(
    fitted_table: tuple[ScoreDensity, pd.DataFrame], known: float | None, low: float, high: float
) -> None:
    density, _ = fitted_table
    grid = np.linspace(low, high, 2001)
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
    ("event", "given", "truth"),
    [
        ({"c": "up"}, None, 0.5),
        ({"a": (1.0, None)}, None, stats.norm.sf(1.0)),
        ({"b": (None, 0.0)}, {"a": 1.0}, stats.norm.cdf(-1.0)),
        ({"c": {"up"}}, {"b": (0.0, None)}, 0.75),
        ({"a": (0.0, None), "b": (0.0, None)}, None, 0.375),
        ({"a": (-1.0, 1.0)}, {"a": (0.0, None)}, 2.0 * stats.norm.cdf(1.0) - 1.0),
        ({"d": 7, "c": "up"}, {"d": (0, 9)}, 0.5),
        ({"a": (2.0, 3.0)}, {"a": (0.0, 1.0)}, 0.0),
    ],
)
def test_probabilities_of_events(
    fitted_table: tuple[ScoreDensity, pd.DataFrame], event: Any, given: Any, truth: float
) -> None:
    density, _ = fitted_table
    found = density.probability(event, given)
    assert found.value == pytest.approx(truth, abs=0.1)  # the density of 3,000 rows is that far from the truth
    assert 0.0 <= found.standard_error < 0.04
    drawn = density.conditional(given or {}, draws=4000, random_state=1)  # the model's own
    share = np.all([drawn[name].between(*_ends(value)) for name, value in event.items()], 0).mean()
    assert found.value == pytest.approx(share, abs=4.0 * math.hypot(found.standard_error, 0.5 / math.sqrt(4000)))
    assert (found.standard_error == 0.0) or given is not None or len(event) > 1


def test_probabilities_of_events_that_exclude_each_other_sum_to_one(
    fitted_table: tuple[ScoreDensity, pd.DataFrame],
) -> None:
    density, table = fitted_table
    for given in ({"a": (0.5, None)}, {"a": (0.5, None), "b": (None, 1.0)}, {"a": 0.3, "b": (0.0, None)}):
        found = [density.probability({"c": c}, given, draws=200, random_state=0).value for c in table["c"].unique()]
        assert sum(found) == pytest.approx(1.0, rel=1e-6)
    halves = [density.probability({"a": ends}, {"a": (0.0, 1.0)}).value for ends in ((0.0, 0.4), (0.4, 1.0))]
    assert sum(halves) == pytest.approx(1.0, abs=1e-3)


def test_a_range_may_touch_the_spike_at_its_end() -> None:
    """The frequent value at a hard end belongs to a range that starts or ends there."""
    random = np.random.default_rng(0)
    share = np.clip(random.normal(0.5, 0.4, 1000), 0.0, 1.0)
    table = pd.DataFrame({"share": share, "y": share + random.normal(size=1000)})
    density = ScoreDensity(max_steps=150, random_state=0).fit(table)
    for ends, value in (((1.0, None), 1.0), ((1.0, 2.0), 1.0), ((None, 0.0), 0.0), ((-1.0, 0.0), 0.0)):
        found = density.probability({"share": ends})
        assert found == density.probability({"share": value})
        assert found.value == pytest.approx((share == value).mean(), abs=0.03)
        assert (density.conditional({"share": ends}, draws=10)["share"] == value).all()
    inside = density.probability({"share": (0.0, 1.0)}).value
    assert inside == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="has no value in the range"):
        density.conditional({"share": (1.1, None)}, draws=10)


def test_densities_of_some_columns_given_others(fitted_table: tuple[ScoreDensity, pd.DataFrame]) -> None:
    density, table = fitted_table
    rows = table.tail(300)
    marginal = density.score_samples(rows, columns=["b"])
    np.testing.assert_allclose(marginal.mean(), stats.norm.logpdf(rows["b"], scale=math.sqrt(2.0)).mean(), atol=0.05)
    given = density.score_samples(rows, columns=["b"], given=["a"])
    np.testing.assert_allclose(given.mean(), stats.norm.logpdf(rows["b"] - rows["a"]).mean(), atol=0.05)
    all_others = density.score_samples(rows, given=["d", "a"])
    np.testing.assert_allclose(all_others.mean(), given.mean(), atol=0.1)  # `c` is certain
    np.testing.assert_allclose(density.score_samples(rows, given=[]), density.score_samples(rows), rtol=1e-9)
    np.testing.assert_allclose(density.score_samples(rows, columns=["d"]), math.log1p(-1.0 / 3002.0), rtol=1e-6)


def test_a_column_without_a_known_value_is_left_out_without_a_warning() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"z": random.standard_t(2, 300), "x": random.normal(size=300)})
    density = ScoreDensity(max_steps=20, random_state=0).fit(table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = density.score_samples(table.assign(z=np.nan))
    np.testing.assert_allclose(found, density.score_samples(table, columns=["x"]))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda q: q.conditional({"x": 1.0}), "given: column 'x' is unknown; known: a, b, c, d"),
        (lambda q: q.conditional({"c": "left"}), "given: column 'c' does not contain 'left' in the training rows"),
        (lambda q: q.conditional({"c": ("down", "up")}), "given: column 'c' has categories without an order"),
        (lambda q: q.conditional({"a": (2.0, 1.0)}), r"given: column 'a' has an empty range \(2, 1\)"),
        (lambda q: q.conditional({"a": (1.0, 1.0)}), "given: column 'a' has single values with probability 0"),
        (lambda q: q.conditional({"a": (math.nan, 1.0)}), "given: column 'a' expects ends of a range, got nan"),
        (lambda q: q.conditional({"d": ("x", None)}), "given: column 'd' expects ends of a range like 7"),
        (lambda q: q.conditional({"a": ("x", "y")}), "given: column 'a' expects ends of a range, got 'x'"),
        (lambda q: q.conditional({"a": (1.0, 2.0, 3.0)}), "given: column 'a' expects a range"),
        (lambda q: q.conditional({"a": {0.0, 1.0}}), "given: column 'a' has single values with probability 0"),
        (lambda q: q.conditional({"a": math.nan}), "given: column 'a' expects a value, not a missing one"),
        (lambda q: q.conditional({"a": "high"}), "given: column 'a' expects a number, got 'high'"),
        (lambda q: q.conditional({"c": []}), "given: column 'c' expects at least one value, got none"),
        (lambda q: q.conditional({"d": (8, None)}), "given: column 'd' has the value 7 only"),
        (lambda q: q.conditional({"d": {6, 8}}), "given: column 'd' has the value 7 only"),
        (lambda q: q.conditional({"a": (1e9, 2e9)}), r"given: column 'a' has no value in the range \(1000000000, 2"),
        (lambda q: q.probability({}), "event: expected at least one column"),
        (lambda q: q.probability({"a": 1.0}), "event: column 'a' has single values with probability 0"),
        (lambda q: q.probability({"a": (0, 1)}, {"a": 0.5}), "event: column 'a' has a value in `given`"),
        (lambda q: q.probability({"c": "up"}, {"a": (1e9, 2e9)}), "given: column 'a' has no value in the range"),
        (lambda q: q.score_samples(q.sample(2), given=["a", "b", "c", "d"]), "columns: expected some"),
        (lambda q: q.score_samples(q.sample(2), columns=["a"], given=["a"]), "columns: .* got 'a' in both"),
        (lambda q: q.score_samples(q.sample(2), columns=["x"]), "columns: column 'x' is unknown"),
        (lambda q: q.score_samples(q.sample(2), columns=["a", "a"]), "columns: expected each once, got 'a' more than"),
        (lambda q: q.sample(1.5), "sample: expected whole numbers"),
    ],
)
def test_impossible_questions_raise(fitted_table: tuple[ScoreDensity, pd.DataFrame], ask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(fitted_table[0])
