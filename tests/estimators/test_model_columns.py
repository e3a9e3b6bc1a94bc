"""Columns as levels: known, unknown and rare numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from arcsm.estimators import ScoreDensity, ScoreOutlierDetector, ScoreRegressor
from arcsm.estimators.column_inference import NumberRules, infer_column
from arcsm.estimators.column_types import Categories, Grid, Listed
from arcsm.estimators.continua import Continuous, Identity
from arcsm.estimators.imputation import point_estimates
from arcsm.estimators.model_columns import ModelColumns
from small_tables import QUICK, normal

NAN = math.nan
MANY = Categories(tuple("abcde"), 100, rarest=(3, 2, 1))  # c, d and e share a level
KINDS = [
    Identity(0.0, 1.0, -3.0, 3.0),
    MANY,
    Grid(2.0, 10.0, 9, True, (), 98, few=(10.0, 14.0, 26.0)),
    Grid(1.0, 0.0, 90, True),
]
COLUMNS = ModelColumns.of_columns(KINDS)


def test_few_valued_columns_have_levels() -> None:
    assert COLUMNS.counts == (0, 3, 3, 0)
    assert {m: levels.tolist() for m, levels in COLUMNS.levels.items()} == {1: [0.0, 1.0, 2.0], 2: [0.0, 2.0, 8.0]}
    assert COLUMNS.widths == (0.0, 0.0, 0.0, 1.0)
    assert COLUMNS.nominal == [False, True, True, False]


def test_numbers_become_levels() -> None:
    x = torch.tensor([[0.3, 0.0, 2.0, 7.0], [NAN, 4.0, 8.4, NAN], [-9.5, 5.0, 5.0, 200.0], [1.0, NAN, -9.0, 0.0]])
    expected = [[0.3, 0.0, 1.0, 7.0], [NAN, 2.0, 2.0, NAN], [-9.5, NAN, 1.0, 200.0], [1.0, NAN, NAN, 0.0]]
    torch.testing.assert_close(COLUMNS.inputs(x), torch.tensor(expected), equal_nan=True)
    assert COLUMNS.seen(x).tolist() == [[True] * 4, [True] * 4, [True, False, False, True], [True, True, False, True]]


def test_probabilities_of_numbers_given_their_levels_sum_to_one() -> None:
    x = torch.full((6, 4), NAN, dtype=torch.float64)
    x[:, 1] = torch.arange(6.0)
    shares = COLUMNS.log_shares(x).exp()
    unseen = 1.0 / 102.0
    np.testing.assert_allclose(shares[:, 1], [*[1.0 - unseen] * 2, *(1.0 - unseen) * np.array([3, 2, 1]) / 6, unseen])
    assert shares[2:5, 1].sum() + unseen == pytest.approx(1.0)
    assert bool((shares[:, [0, 2, 3]] == 1.0).all())  # numbers, and missing values


def test_rare_levels_are_drawn_in_proportion_to_their_frequency() -> None:
    rows = torch.zeros(6000, 4)
    rows[:, 1] = 2.0
    drawn = COLUMNS.numbers(rows, torch.Generator().manual_seed(0))[:, 1]
    np.testing.assert_allclose(np.bincount(drawn.long(), minlength=5)[2:] / 6000, [1 / 2, 1 / 3, 1 / 6], atol=0.02)


def test_the_rarest_of_many_categories_share_a_level() -> None:
    random = np.random.default_rng(0)
    codes = np.concatenate([np.arange(400), np.minimum(random.geometric(0.02, 3000), 399)])
    names = np.array([f"n{code}" for code in codes], dtype=object)
    kind = infer_column(names, categorical=True)
    assert len(kind.level_numbers) == 256
    assert len(kind.names) == 400
    shares = kind.shares_of_last_level
    assert len(shares) == 145
    assert sum(shares) == pytest.approx(1.0)
    density = ScoreDensity(**QUICK).fit(pd.DataFrame({"name": names, "z": normal(3400)}))
    rows = pd.DataFrame({"name": list(kind.names), "z": 0.0})
    masses = np.exp(density.score_samples(rows, columns=["name"]))
    assert masses.sum() == pytest.approx(1.0 - 1.0 / 3402.0, rel=1e-5)
    assert set(density.sample(3000)["name"]) - set(kind.names[:255])  # some rare ones
    assert density.conditional({"name": kind.names[-1]}, draws=3)["name"].tolist() == [kind.names[-1]] * 3
    chosen = {kind.names[0], kind.names[-1], kind.names[-2]}  # two of the 145 that share a level
    drawn = density.conditional({"name": chosen, "z": (-1.0, None)}, draws=2000)["name"].value_counts()
    assert set(drawn.index) == chosen
    for names in ([kind.names[-1]], [kind.names[0], kind.names[-1], kind.names[-2]]):  # part of the shared level
        found = density.probability({"name": names})
        known = rows["name"].isin(names).to_numpy()
        assert found == (pytest.approx(masses[known].sum() / (1.0 - 1.0 / 3402.0), rel=1e-4), 0.0)


def test_ten_thousand_names_have_probabilities_and_draws() -> None:
    names = np.array([f"n{code}" for code in range(10_000)], dtype=object)
    rows = pd.DataFrame({"name": np.r_[names, names, names[:500]], "z": normal(20_500)})
    density = ScoreDensity(**{**QUICK, "max_steps": 2}).fit(rows)
    masses = np.exp(density.score_samples(pd.DataFrame({"name": names, "z": 0.0}), columns=["name"]))
    assert masses.sum() == pytest.approx(1.0 - 1.0 / 20_502.0, rel=1e-5)
    gaps = rows.head(20).assign(name=None)
    assert set(density.impute(gaps)["name"]) <= set(names)
    assert density.conditional({"name": {"n1", "n9999"}}, draws=50)["name"].isin(["n1", "n9999"]).all()


def test_unknown_levels_have_a_probability_of_their_own() -> None:
    table = pd.DataFrame({"city": ["Rome", "Oslo", "Rome", "Bern"] * 20, "z": normal(80), "k": np.arange(80) % 4})
    density = ScoreDensity(**QUICK).fit(table)
    rows = pd.DataFrame({"city": ["Paris", "Rome"], "z": [0.1, 0.1], "k": [9, 9]})
    unseen = -math.log(82.0)
    far = unseen - math.log(2.0 * 6.0 * 7.0)  # six steps from 3, on one of two sides
    np.testing.assert_allclose(density.score_samples(rows, columns=["k"]), far, rtol=1e-9)
    others = density.score_samples(rows, columns=["z"])
    np.testing.assert_allclose(density.score_samples(rows)[0], unseen + far + others[0], rtol=1e-6)
    rows["city"] = ["Paris", "Rome"]
    known = density.encode_rows(rows)[0]
    numbers = torch.tensor([[3.0, 0.0], [9.0, 1.0]]).double()
    found = density.model_.conditional_log_density(known, torch.tensor([0, 2]), numbers)
    np.testing.assert_allclose(found[:, 0], [unseen, far], rtol=1e-9)
    assert bool((found[:, 1] > unseen).all())


def test_unseen_numbers_share_their_probability_by_distance() -> None:
    table = pd.DataFrame({"k": np.array([0, 1, 5, 12])[np.arange(200) % 4], "z": normal(200)})
    density = ScoreDensity(**QUICK).fit(table)
    k = np.arange(-20_000, 20_012)
    found = np.exp(density.score_samples(pd.DataFrame({"k": k, "z": 0.0}), columns=["k"]))
    seen = np.isin(k, [0, 1, 5, 12])
    assert found[~seen].sum() == pytest.approx(1.0 / 202.0, rel=1e-4)
    assert found.sum() == pytest.approx(1.0, abs=1e-4)
    by_number = dict(zip(k, found, strict=True))
    assert by_number[13] > by_number[14] > by_number[1000]
    assert by_number[3] == by_number[14]  # two steps from the nearest level


# Spikes ---------------------------------------------------------------------------------------------------------------


def spiked_table(count: int = 4000) -> pd.DataFrame:
    """Return ``a``, 0 in 40 % of rows and else normal, and ``b``, near 0 where ``a`` is 0 and else near 4."""
    random = np.random.default_rng(2)
    zero = random.random(count) < 0.4
    a = np.where(zero, 0.0, random.normal(1.0, 1.0, count))
    hours = np.where(random.random(count) < 0.5, 40, random.integers(1, 90, count))
    return pd.DataFrame({"a": a, "b": np.where(zero, 0.0, 4.0) + random.normal(size=count), "hours": hours})


def test_values_that_repeat_are_spikes() -> None:
    table = spiked_table()
    kinds = [infer_column(table[name].to_numpy(), categorical=False) for name in table]
    assert [kind.spikes for kind in kinds] == [(0.0,), (), (40.0,)]
    columns = ModelColumns.of_columns(kinds)
    assert columns.counts == (0, 0, 0, 2, 2)
    assert columns.parents == [3, -1, 4, -1, -1]
    assert columns.dimensions([2, 1, 0]) == [4, 2, 1, 3, 0]
    numbers = torch.stack(
        [torch.from_numpy(kinds[d].encode(table[name].to_numpy())) for d, name in enumerate(table)], 1
    )
    numbers[0] = NAN
    x = columns.inputs(numbers)
    zero, forty = torch.from_numpy(table[["a", "hours"]].to_numpy() == [0.0, 40])[1:].T
    assert torch.equal(x[1:, 3], zero.double())
    assert torch.equal(x[1:, 0].isnan(), zero)
    assert torch.equal(x[1:, 4], forty.double())
    assert bool(x[0].isnan().all())
    torch.testing.assert_close(columns.numbers(x[1:], torch.Generator()), numbers[1:], equal_nan=True)


@pytest.fixture(scope="module")
def spiked() -> tuple[ScoreDensity, pd.DataFrame]:
    table = spiked_table()
    return ScoreDensity(max_steps=1500, random_state=0).fit(table), table


def test_draws_have_the_spikes_of_the_table(spiked: tuple[ScoreDensity, pd.DataFrame]) -> None:
    density, table = spiked
    drawn = density.sample(4000)
    assert (drawn["a"] == 0.0).mean() == pytest.approx((table["a"] == 0.0).mean(), abs=0.03)
    assert (drawn["hours"] == 40).mean() == pytest.approx((table["hours"] == 40).mean(), abs=0.03)
    low = drawn["b"] < 2.0
    assert ((drawn["a"] == 0.0) == low).mean() > 0.93  # 0.977 in the table
    filled = density.impute(table.head(500).assign(a=np.nan), n=2)[1]
    assert ((filled["a"] == 0.0) == (filled["b"] < 2.0)).mean() > 0.93


def test_probabilities_of_spikes(spiked: tuple[ScoreDensity, pd.DataFrame]) -> None:
    density, table = spiked
    rows = table.head(400)
    assert density.probability({"hours": 40}) == (pytest.approx((table["hours"] == 40).mean(), abs=0.03), 0.0)
    assert density.probability({"a": (-0.5, 0.0)}).standard_error == 0.0
    both = density.probability({"a": (None, 0.0)})
    assert both == (pytest.approx(0.4 + 0.6 * 0.1587, abs=0.03), 0.0)
    assert density.probability({"a": (0.0, None)}, {"b": (None, 1.0)}).value == pytest.approx(0.99, abs=0.03)
    zero = density.score_samples(rows[rows["a"] == 0.0], columns=["a"])
    np.testing.assert_allclose(zero, math.log(0.4), atol=0.1)  # a probability, not a density
    drawn = density.conditional({"a": 0.0}, draws=300)
    assert (drawn["a"] == 0.0).all()
    assert abs(drawn["b"].mean()) < 0.3
    drawn = density.conditional({"a": (-0.5, 0.5), "hours": (30, 50)}, draws=300)
    assert drawn["a"].between(-0.5, 0.5).all()
    assert drawn["hours"].between(30, 50).all()
    assert 0.5 < (drawn["a"] == 0.0).mean() < 0.9


def test_distribution_function_and_quantiles_step_at_spikes(spiked: tuple[ScoreDensity, pd.DataFrame]) -> None:
    density, table = spiked
    rows = table.head(200)
    u = density.cdf(rows)
    back = density.quantile(u)
    np.testing.assert_allclose(back["a"], rows["a"], atol=1e-6)
    assert (back["hours"] == rows["hours"]).mean() > 0.97
    jump = density.cdf(rows.assign(a=0.0))[:, 0] - density.cdf(rows.assign(a=-1e-3))[:, 0]
    np.testing.assert_allclose(jump, 0.4, atol=0.05)
    on_the_step = density.quantile(np.column_stack([np.full(5, 0.25), np.full((5, 2), 0.5)]))
    assert (on_the_step["a"] == 0.0).all()


def test_outliers_in_columns_with_spikes_are_explained() -> None:
    table = spiked_table(1500)
    detector = ScoreOutlierDetector(max_steps=300, random_state=0).fit(table)
    odd = pd.DataFrame({"a": [0.0, 9.0], "b": [4.0, 4.0], "hours": [40, 41]})
    assert detector.explain(odd).iloc[1].idxmin() == "a"
    low, high = detector.expected(odd)
    assert (low["hours"] <= 41).all()
    assert (high["hours"] >= 40).all()
    assert np.isfinite(detector.all_scores(odd)).all(axis=None)


def test_quantiles_of_levels_are_values_that_occur() -> None:
    table = pd.DataFrame({"k": np.array([0, 1, 3, 30])[np.arange(80) % 4], "z": normal(80)})
    density = ScoreDensity(**QUICK).fit(table)
    assert density.quantile(density.cdf(table))["k"].tolist() == table["k"].tolist()
    low, high = ScoreOutlierDetector(**QUICK).fit(table).expected(table)
    assert set(low["k"]) | set(high["k"]) <= {0, 1, 3, 30}


def test_spikes_far_from_all_other_values_keep_their_probability() -> None:
    code = pd.DataFrame({"x": np.where(np.arange(1000) % 10, normal(1000), -999.0), "z": normal(1000, 1)})
    density = ScoreDensity(max_steps=200, random_state=0).fit(code)
    rows = code[code["x"] == -999.0].head(5)
    np.testing.assert_allclose(density.score_samples(rows, columns=["x"]), math.log(0.1), atol=0.3)
    assert density.probability({"x": -999.0}).value == pytest.approx(0.1, abs=0.03)
    assert (density.conditional({"x": -999.0}, draws=3)["x"] == -999.0).all()
    single = rows.assign(x=np.float64(np.float32(-999.0000001)))
    np.testing.assert_allclose(density.score_samples(single), density.score_samples(rows), rtol=1e-6)


def test_a_value_rounded_to_single_precision_is_still_a_spike() -> None:
    table = pd.DataFrame({"x": np.where(np.arange(600) % 3, normal(600), 0.1), "z": normal(600, 1)})
    density = ScoreDensity(**QUICK).fit(table)
    row = pd.DataFrame({"x": [0.1, float(np.float32(0.1))], "z": [0.2, 0.2]})
    exact, rounded = density.score_samples(row)
    assert exact == pytest.approx(rounded, rel=1e-9)
    assert density.probability({"x": 0.1}) == density.probability({"x": (0.1, 0.1)})
    with pytest.raises(ValueError, match="event: column 'x' has single values with probability 0, except some"):
        density.probability({"x": 0.2})


def test_probabilities_on_a_grid_with_spikes_sum_to_one(spiked: tuple[ScoreDensity, pd.DataFrame]) -> None:
    density, _ = spiked
    rows = pd.DataFrame({"a": 0.5, "b": 4.0, "hours": np.arange(-40, 140)})
    for given in ([], ["a", "b"]):
        masses = np.exp(density.score_samples(rows, columns=["hours"], given=given))
        assert masses.sum() == pytest.approx(1.0, abs=2e-3)
    alone = np.exp(density.score_samples(rows, columns=["hours"]))
    for low, high in ((40, 40), (39, 41), (41, 60)):
        inside = rows["hours"].between(low, high).to_numpy()
        assert density.probability({"hours": (low, high)}).value == pytest.approx(alone[inside].sum(), abs=1e-3)


def test_one_range_with_spikes_gives_different_draws(spiked: tuple[ScoreDensity, pd.DataFrame]) -> None:
    drawn = spiked[0].conditional({"a": (0.0, 0.2)}, draws=300)
    assert drawn["b"].nunique() > 270


def test_few_values_off_a_grid_have_levels() -> None:
    values = np.log1p(np.random.default_rng(0).poisson(1.0, 800))
    kind = infer_column(values, categorical=False)
    assert isinstance(kind, Listed)
    np.testing.assert_array_equal(kind.decode(kind.encode(values)), values)
    assert kind.encode(np.array([0.5, np.nan, 99.0, np.inf]))[[0, 2, 3]].tolist() == [0.5, 5.5, 5.5]
    between = kind.encode(0.5 * (np.unique(values)[1:] + np.unique(values)[:-1]))
    assert kind.rounded(between).tolist() == between.tolist()
    table = pd.DataFrame({"x": values, "z": normal(800)})
    density = ScoreDensity(**QUICK).fit(table)
    others = pd.DataFrame({"x": 0.5 * (np.unique(values)[1:] + np.unique(values)[:-1]), "z": 0.0})
    np.testing.assert_allclose(density.score_samples(others, columns=["x"]), -np.log(802.0))
    with pytest.warns(UserWarning, match="'x' has numbers far from its few values"):
        density.impute(others.assign(z=np.nan))
    regressor = ScoreRegressor(**QUICK).fit(table[["z"]], values)
    np.testing.assert_allclose(regressor.predict_distribution(others[["z"]]).log_pdf(others["x"]), -np.log(802.0))
    assert set(density.sample(300)["x"]) <= set(values)
    masses = np.exp(density.score_samples(pd.DataFrame({"x": np.unique(values), "z": 0.0}), columns=["x"]))
    assert masses.sum() == pytest.approx(1.0 - 1.0 / 802.0, rel=1e-6)
    assert density.probability({"x": {values[0]}}).standard_error == 0.0
    assert density.impute(pd.DataFrame({"x": [np.nan], "z": [0.0]}), estimate="median")["x"].isin(values).all()


def test_many_values_off_a_grid_have_levels_if_they_repeat() -> None:
    random = np.random.default_rng(0)
    counts = np.minimum(random.negative_binomial(1.0, 0.12, 900), 40)
    table = pd.DataFrame({"x": np.log1p(counts), "z": normal(900)})
    density = ScoreDensity(**QUICK).fit(table)
    assert density.columns_.describe() == "2 columns: 1 discrete, 1 continuous"
    drawn = density.sample(600)
    assert set(drawn["x"]) <= set(table["x"])
    for low, high in ((1.386, 1.387), (None, 1e-6), (2.0, 3.0)):
        share = table["x"].between(-np.inf if low is None else low, high).mean()
        assert density.probability({"x": (low, high)}).value == pytest.approx(share, abs=0.05)
    assert density.probability({"x": 0.0}).value == pytest.approx((counts == 0).mean(), abs=0.05)
    regressor = ScoreRegressor(**QUICK).fit(table[["z"]], table["x"])
    predicted = regressor.predict_distribution(table[["z"]][:50])
    assert np.isin(predicted.sample(4), table["x"]).all()
    assert predicted.cdf(np.zeros(50)).mean() == pytest.approx((counts == 0).mean(), abs=0.06)


def test_a_median_off_the_levels_becomes_the_nearest_one_and_a_mean_does_not() -> None:
    prices = np.array([4.49, 4.99, 35.96, 39.95, 170.10, 189.0, 1124.55, 1249.5])
    kind = infer_column(np.repeat(prices, 100), categorical=False)
    assert isinstance(kind, Listed)
    assert kind.nearest(np.array([5.47, 4.0, 41.98, 2000.0])).tolist() == [1.0, 0.0, 3.0, 7.0]
    draws = np.array([[1] * 63 + [2], [3] * 63 + [4], [5] * 60 + [6] * 4, [1] * 60 + [0] * 4], dtype=float)
    assert point_estimates(kind, draws, "median").tolist() == [4.99, 39.95, 189.0, 4.99]
    expected = [(63 * 4.99 + 35.96) / 64, (63 * 39.95 + 170.10) / 64, (60 * 189.0 + 4 * 1124.55) / 64]
    np.testing.assert_allclose(point_estimates(kind, draws[:3], "mean"), expected)
    assert point_estimates(kind, np.array([[2.0, 4.0, 4.0, 2.0]]), "median").tolist() == [39.95]  # of 103.03


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7])
def test_the_mean_of_equal_draws_is_their_value(value: float) -> None:
    kind = infer_column(np.repeat([0.1, 0.3, 0.7], 100), categorical=False)
    draws = np.tile(kind.encode(np.array([value])), (1, 64))
    assert point_estimates(kind, draws, "mean").tolist() == [value]


def test_repeated_values_among_many_others_are_spikes_not_levels() -> None:
    random = np.random.default_rng(0)
    frequent = np.sqrt(np.arange(1.0, 5.0))
    values = np.where(random.random(1000) < 0.8, random.choice(frequent, 1000), 3.0 * random.random(1000))
    kind = infer_column(values, categorical=False, rules=NumberRules(most=100))
    assert isinstance(kind, Continuous)
    assert kind.spikes == tuple(frequent)
    detector = NumberRules(few=2, most=2, map_grids=False)
    assert isinstance(infer_column(np.log1p(random.poisson(30.0, 900)), False, detector), Continuous)


def test_two_held_out_rows_calibrate_levels() -> None:
    table = pd.DataFrame({"c": ["a"] * 7 + ["b"], "z": normal(8)})
    for seed in range(6):
        assert np.isfinite(ScoreDensity(**{**QUICK, "random_state": seed}).fit(table).score_samples(table)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tables_on_a_gpu() -> None:
    table = spiked_table(600).assign(city=np.array(["Rome", "Oslo", "Bern"])[np.arange(600) % 3])
    density = ScoreDensity(**QUICK, device="cuda").fit(table)
    gaps = table.head(9).assign(a=np.nan)
    assert np.isfinite(density.score_samples(table)).all()
    assert not density.impute(gaps).isna().any(axis=None)
    assert len(density.conditional({"city": {"Rome"}, "a": (0.0, None)}, draws=5)) == 5
    assert 0.0 <= density.probability({"hours": 40}).value <= 1.0
    assert np.isfinite(np.asarray(density.quantile(density.cdf(table[:5]))["b"], dtype=float)).all()
    assert np.isfinite(ScoreOutlierDetector(**QUICK, device="cuda").fit(table).all_scores(table)).all(axis=None)


# Ends of grids --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uniform() -> ScoreDensity:
    """Fit whole numbers from 1 to 60 and dates of 90 days, which do not thin out towards their ends."""
    random = np.random.default_rng(7)
    days = pd.Timestamp("2025-01-01") + pd.to_timedelta(random.integers(0, 90, 600), unit="D")
    return ScoreDensity(max_steps=150, random_state=0).fit(
        pd.DataFrame({"z": random.normal(size=600), "k": random.integers(1, 61, 600), "day": days})
    )


def test_numbers_on_a_grid_have_probability_one_together(uniform: ScoreDensity) -> None:
    rows = pd.DataFrame({"z": 0.5, "k": range(1, 61), "day": pd.Timestamp("2025-02-01")})
    for given in ([], ["z"], ["z", "day"]):
        found = np.exp(uniform.score_samples(rows, columns=["k"], given=given))
        assert found.sum() == pytest.approx(1.0 - 1.0 / 602.0, abs=2e-3)
    assert uniform.probability({"k": (1, 60)}).value == pytest.approx(1.0, abs=1e-3)
    beyond = np.exp(
        uniform.score_samples(pd.DataFrame({"z": 0.5, "k": [61, 70], "day": rows["day"][:2]}), columns=["k"])
    )
    assert ((beyond > 0.0) & (beyond < 1.0 / 602.0)).all()


def test_draws_do_not_pile_up_at_the_ends_of_a_grid(uniform: ScoreDensity) -> None:
    drawn = uniform.sample(6000, random_state=1)
    for name, (low, high) in {"k": (1, 60), "day": (pd.Timestamp("2025-01-01"), pd.Timestamp("2025-03-31"))}.items():
        for end in (low, high):
            share, truth = (drawn[name] == end).mean(), uniform.probability({name: end}).value
            assert abs(share - truth) < 5.0 * math.sqrt(truth / 6000)
            assert truth < 0.035
    filled = uniform.impute(pd.DataFrame({"z": [0.5] * 3000, "k": [np.nan] * 3000, "day": drawn["day"][:3000]}), n=2)[0]
    assert (filled["k"] == 60).mean() < 0.05
    assert filled["k"].between(1, 60).all()


def test_conditions_at_the_ends_of_a_grid_are_those_of_the_density(uniform: ScoreDensity) -> None:
    drawn = uniform.conditional({"k": (59, None)}, draws=2000, random_state=0)["k"]
    both = [uniform.probability({"k": k}).value for k in (59, 60)]
    assert set(drawn) == {59, 60}
    assert (drawn == 60).mean() == pytest.approx(both[1] / sum(both), abs=0.05)
    with pytest.raises(ValueError, match=r"given: column 'k' has no value in the range \(61, \)"):
        uniform.conditional({"k": (61, None)})


def test_numbers_that_a_column_cannot_have_have_probability_zero_in_events(uniform: ScoreDensity) -> None:
    impossible: list[dict[str, Any]] = [
        {"k": (61, None)}, {"k": (-9, 0)}, {"k": 61}, {"k": 30.5}, {"k": [0, 61]}, {"k": 61, "z": (0.0, 1.0)},
        {"k": (5, 9), "day": "2026-01-01"},
    ]  # fmt: skip
    for event in impossible:
        assert uniform.probability(event) == (0.0, 0.0)
    assert uniform.probability({"k": [60, 61]}) == uniform.probability({"k": 60})
    for event in ({"k": None}, {"k": "many"}, {"k": (61, 1)}, {"k": []}):
        with pytest.raises(ValueError, match="event: column 'k'"):
            uniform.probability(event)


def test_the_distribution_function_of_a_number_on_a_grid_counts_its_own_probability(uniform: ScoreDensity) -> None:
    rows = pd.DataFrame({"z": 0.5, "k": range(1, 61), "day": pd.Timestamp("2025-02-01")})
    mass = np.exp(uniform.score_samples(rows, columns=["k"], given=["z"])) / (1.0 - 1.0 / 602.0)
    np.testing.assert_allclose(uniform.cdf(rows)[:, 1], mass.cumsum(), atol=2e-3)
    assert uniform.cdf(rows)[-1, 1] > 1.0 - 1e-9


@pytest.mark.parametrize("spike", [0.0, 5.0])
def test_spikes_of_columns_that_are_never_negative_have_probabilities(spike: float) -> None:
    for seed in range(4):  # spikes at whose mirror image no number or two lie, by rounding
        random = np.random.default_rng(seed)
        x = np.where(random.random(200) < 0.5, spike, random.gamma(2.0, 5.0, 200))
        density = ScoreDensity(**QUICK).fit(pd.DataFrame({"x": x, "z": random.normal(size=200)}))
        found = [density.probability(event).value for event in ({"x": spike}, {"x": {spike}}, {"x": (spike, spike)})]
        np.testing.assert_allclose(found, found[0], atol=1e-9)
        assert found[0] == pytest.approx(0.5, abs=0.15)
        assert set(density.conditional({"x": {spike}}, draws=5)["x"]) == {spike}


def test_a_price_has_the_probability_of_its_step() -> None:
    price = np.round(np.exp(np.random.default_rng(3).normal(size=400)), 2)
    density = ScoreDensity(**QUICK).fit(pd.DataFrame({"price": price, "z": normal(400)}))
    one = [density.probability({"price": event}).value for event in (1.0, {1.0}, (1.0, 1.0), (0.996, 1.004))]
    np.testing.assert_allclose(one, one[0], rtol=1e-6)
    both = density.probability({"price": {1.0, 1.01}}).value
    assert both == pytest.approx(one[0] + density.probability({"price": 1.01}).value, rel=1e-6)
    assert set(density.conditional({"price": {1.0, 1.01}}, draws=200)["price"]) == {1.0, 1.01}


def test_draws_of_a_column_that_is_never_negative_are_not() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"x": random.gamma(1.0, 1.0, 800), "z": random.normal(size=800)})
    density = ScoreDensity(max_steps=200, random_state=0).fit(table)
    drawn = density.sample(4000, random_state=1)["x"]
    assert (drawn > 0.0).all()  # none piles up at zero
    assert density.probability({"x": (0.0, None)}).value == pytest.approx(1.0, abs=1e-3)
    assert density.cdf(table.assign(x=0.0))[:, 0].max() < 1e-4
    near = density.probability({"x": (0.0, 0.1)}).value
    assert near == pytest.approx((drawn <= 0.1).mean(), abs=0.02)
    points = pd.DataFrame({"x": np.linspace(0.0005, 0.0995, 100), "z": 0.0})
    assert np.exp(density.score_samples(points, columns=["x"])).mean() * 0.1 == pytest.approx(near, rel=0.01)
    beyond = density.score_samples(pd.DataFrame({"x": [-0.5, -50.0], "z": 0.0}), columns=["x"])
    assert np.isfinite(beyond).all()
    assert beyond[1] < beyond[0] < density.score_samples(points[:1], columns=["x"])[0] - 3.0


def test_quantiles_invert_the_distribution_function_on_grids(uniform: ScoreDensity) -> None:
    rows = uniform.sample(200, random_state=2)
    back = uniform.quantile(uniform.cdf(rows))
    assert (back["k"] == rows["k"]).mean() > 0.97
    assert (back["day"] == rows["day"]).mean() > 0.97


def test_levels_after_a_continuum_survive_quantiles_of_distribution_functions() -> None:
    x = normal(300)
    table = pd.DataFrame({"x": x, "s": np.where(x > 0.5, "a", np.where(x < -0.5, "b", "c")), "n": np.arange(300) % 3})
    density = ScoreDensity(**QUICK).fit(table)
    back = density.quantile(density.cdf(table))
    assert back["s"].tolist() == table["s"].tolist()
    assert back["n"].tolist() == table["n"].tolist()
    u = density.cdf(back)
    np.testing.assert_allclose(u, density.cdf(table), atol=1e-6)


def test_levels_after_a_price_survive_quantiles_of_distribution_functions() -> None:
    random = np.random.default_rng(3)
    price = np.round(np.exp(random.normal(size=400)), 2)
    table = pd.DataFrame({"price": price, "s": np.where(price > 1.0, "a", "b"), "t": list("xyzw") * 100})
    density = ScoreDensity(**QUICK).fit(table)
    back = density.quantile(density.cdf(table))
    assert (back["s"] == table["s"]).mean() > 0.99
    assert (back["t"] == table["t"]).mean() > 0.99


def test_prices_do_not_pile_up_at_the_lowest_one() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"price": np.round(5.0 + random.exponential(20.0, 1000), 1), "z": random.normal(size=1000)})
    density = ScoreDensity(max_steps=300, random_state=0).fit(table)
    kind, lowest = density.columns_.kinds[0], table["price"].min()
    assert isinstance(kind, Continuous)
    assert kind.grid is not None
    drawn = density.sample(4000, random_state=1)["price"]
    in_step = density.probability({"price": (lowest - 0.05, lowest + 0.05)}).value
    assert (drawn == lowest).mean() == pytest.approx(in_step, abs=4.0 * math.sqrt(in_step / 4000))
    assert in_step < 0.01
    assert density.probability({"price": (lowest - 0.05, None)}).value == pytest.approx(1.0, abs=1e-3)
    assert 0.0 < density.probability({"price": (table["price"].max() + 0.05, None)}).value < 5e-3
    u = np.column_stack([np.linspace(0.001, 0.999, 99), np.full(99, 0.5)])
    rows = density.quantile(u)
    low, high = (density.cdf(rows.assign(price=rows["price"] + by))[:, 0] for by in (-0.06, 0.06))
    assert ((low <= u[:, 0] + 1e-6) & (u[:, 0] <= high + 1e-6)).all()


def test_reflected_numbers_are_mirrored_back_onto_their_own() -> None:
    kinds = [Grid(1.0, 0.0, 60, True, spikes=(0.0,)), Identity(0.0, 1.0, -3.0, 3.0), Categories(("a", "b"), 10)]
    columns = ModelColumns.of_columns(kinds)
    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 60, (4000, 3), generator=random).double()
    x[:50, 0], x[:, 2] = NAN, x[:, 2] % 2.0
    widths = columns.reflection_widths(x)
    assert widths == {0: pytest.approx(0.5 * 59.0 / math.sqrt(12.0), rel=0.05)}
    found = columns.reflected(x, columns.others(x, {}, random), widths, random)
    torch.testing.assert_close(found[:, 1:], x[:, 1:])
    torch.testing.assert_close(columns.mirrored(0, found[:, 0]), x[:, 0], equal_nan=True)
    changed, distance = found[:, 0] != x[:, 0], torch.minimum(x[:, 0] + 0.5, 59.5 - x[:, 0])
    changed &= ~x[:, 0].isnan()
    assert not bool(changed[(x[:, 0] == 0.0) | (distance > widths[0])].any())
    assert float(changed[x[:, 0] == 59.0].double().mean()) == pytest.approx(0.5, abs=0.15)


def test_spikes_count_as_other_numbers_as_often_as_their_neighbours() -> None:
    kinds = [Grid(1.0, 0.0, 100, True, spikes=(40.0, 99.0)), Identity(0.0, 1.0, -3.0, 3.0, spikes=(0.0,))]
    columns = ModelColumns.of_columns(kinds)
    numbers = np.repeat(np.arange(100.0), np.where(np.arange(100) == 40, 200, np.where(np.arange(100) == 99, 100, 10)))
    x = torch.from_numpy(np.stack([numbers, np.where(numbers < 50.0, 0.0, numbers)], 1))
    shares = columns.shares_of_others(x)
    assert list(shares) == [0]  # no other number of a continuum is where a spike is
    torch.testing.assert_close(shares[0], torch.tensor([0.05, 0.1], dtype=torch.float64))
    copies = x.repeat(50, 1)
    others = columns.others(copies, shares, torch.Generator().manual_seed(0))
    inputs = columns.inputs(copies, others)
    for spike, share in ((40.0, 0.05), (99.0, 0.1)):
        rows = copies[:, 0] == spike
        assert float((inputs[rows, 2] == 0.0).double().mean()) == pytest.approx(share, abs=0.02)
        assert bool((inputs[rows, 0].isnan() == (inputs[rows, 2] > 0.0)).all())
    assert bool((inputs[copies[:, 1] == 0.0, 3] == 1.0).all())
    torch.testing.assert_close(columns.numbers(inputs, torch.Generator()), copies)


def test_a_frequent_level_is_as_likely_as_it_is_frequent() -> None:
    """This was 0.044: calibration drew all levels towards one probability, and not towards their shares."""
    random = np.random.default_rng(0)
    marks = np.where(random.random(1500) < 0.08, 100, random.integers(40, 100, 1500))
    table = pd.DataFrame({"marks": marks, "z": random.normal(size=1500)})
    density = ScoreDensity(random_state=0, max_steps=600).fit(table)
    assert density.probability({"marks": 100}).value == pytest.approx((marks == 100).mean(), rel=0.15)
    near = density.probability({"marks": (90, 99)}).value
    assert near == pytest.approx(((marks >= 90) & (marks < 100)).mean(), rel=0.15)


def test_relations_of_numbers_with_many_levels_to_names_are_kept() -> None:
    """These were 0.09 and 0.09: the weights of 73 levels fitted the rows of each one, and had to be smoothed."""
    random = np.random.default_rng(0)
    age = random.integers(18, 91, 1500)
    smoker = random.random(1500) < 1.0 / (1.0 + np.exp(-(age - 50.0) / 10.0))
    noise = {"a": random.normal(size=1500), "b": random.random(1500), "c": random.integers(1, 6, 1500)}
    density = ScoreDensity(random_state=0).fit(pd.DataFrame({"age": age, "smoker": smoker, **noise}))
    assert density.model_ is not None
    assert density.model_.columns.counts[0] == 73
    young = density.probability({"age": (18, 30)}, {"smoker": True}).value
    assert young == pytest.approx(((age <= 30) & smoker).sum() / smoker.sum(), rel=0.5)
    old = density.probability({"age": (75, 90)}, {"smoker": False}).value
    assert old == pytest.approx(((age >= 75) & ~smoker).sum() / (~smoker).sum(), rel=0.5)


def test_conditions_beyond_all_draws_are_errors() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"z": random.standard_t(2, 400), "x": random.random(400)})
    density = ScoreDensity(**QUICK).fit(table)
    span = table["z"].max() - table["z"].min()
    drawn = density.conditional({"z": (table["z"].max() + 0.5 * span, None)}, draws=20)["z"]
    assert ((table["z"].max() + 0.5 * span <= drawn) & (drawn <= table["z"].max() + span)).all()
    for beyond in ((table["z"].max() + 1.01 * span, None), (None, table["z"].min() - 1.01 * span)):
        with pytest.raises(ValueError, match="given: column 'z' has no value in the range"):
            density.conditional({"z": beyond})
        assert density.probability({"z": beyond}) == (0.0, 0.0)


def test_probabilities_at_hard_ends_are_those_farther_in() -> None:
    """A model rounds off an edge: these weeks had 0.48 and 0.77 of their probability when nothing was reflected."""
    random = np.random.default_rng(1)
    table = pd.DataFrame({"day": random.integers(1, 366, 1500), "z": random.normal(size=1500)})
    density = ScoreDensity(random_state=0).fit(table)
    weeks = [density.probability({"day": week}).value for week in ((1, 7), (359, 365))]
    assert np.mean(weeks) == pytest.approx(7.0 / 365.0, rel=0.2)


def test_a_number_near_a_level_counts_as_that_level_where_it_is_known() -> None:
    random = np.random.default_rng(0)
    age = random.integers(20, 80, 1500)
    age = age[(age != 72) & ((age < 40) | (age > 50))]
    table = pd.DataFrame({"age": age, "value": 0.1 * age + random.normal(size=len(age))})
    density = ScoreDensity(max_steps=300, random_state=0).fit(table)
    assert density.model_ is not None
    assert 0 in density.model_.columns.levels

    def numbers(*ages: float) -> Tensor:
        rows = pd.DataFrame({"age": ages, "value": 7.0})
        return density.model_.columns.inputs(density.encode_rows(rows)[0])[:, 0]  # type: ignore[union-attr]

    known = numbers(71.0, 73.0, 79.0, 20.0, 39.0)
    found = numbers(72.0, 81.0, 15.0, 40.0)
    assert found[0] in known[:2]
    assert found[1:].tolist() == known[2:].tolist()
    assert bool(numbers(45.0, 100.0, 500.0).isnan().all())
    means = [density.conditional({"age": one}, draws=400)["value"].mean() for one in (71, 72, 73)]
    assert min(means[0], means[2]) - 0.1 <= means[1] <= max(means[0], means[2]) + 0.1
    assert (density.conditional({"age": 72}, draws=4)["age"] == 72).all()
    assert density.probability({"age": 72}).value == 0.0
    seen, unseen = density.score_samples(pd.DataFrame({"age": [71, 72], "value": [7.0, 7.0]}))
    assert unseen < seen - 2.0
    filled = density.impute(pd.DataFrame({"age": [72, 79, 81], "value": [np.nan, np.nan, np.nan]}), draws=400)
    assert filled["value"].to_numpy() == pytest.approx([7.2, 7.9, 7.9], abs=0.6)  # 5 if they counted as missing
    with pytest.raises(ValueError, match="column 'age' does not contain 500, or a value near it"):
        density.conditional({"age": 500})


@pytest.mark.parametrize("categories", [3, 20])
def test_categories_keep_a_declared_order(categories: int) -> None:
    names = [f"size {(7 * rank) % categories}" for rank in range(categories)]
    dtype = pd.CategoricalDtype([*names, "never"], ordered=True)
    ranks = np.sort(np.random.default_rng(0).integers(0, categories, 400))  # all occur
    table = pd.DataFrame({"size": pd.Categorical.from_codes(ranks, dtype=dtype), "z": normal(400)})
    density = ScoreDensity(**QUICK).fit(table)
    assert density.columns_.kinds[0] == Categories(tuple(names), 400, ordered=True)
    assert density.model_ is not None
    assert density.model_.columns.ranked == [0]
    assert density.model_.columns.ordered == [categories > 16, False]
    drawn = density.quantile(np.column_stack([np.linspace(0.01, 0.99, 50), np.full(50, 0.5)]))["size"]
    assert drawn.dtype == dtype
    assert drawn.is_monotonic_increasing
    unordered = table.astype({"size": str})
    assert ScoreDensity(**QUICK).fit(unordered).model_.columns.ranked == []
