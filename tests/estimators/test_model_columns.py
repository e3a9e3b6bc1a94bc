"""Columns as levels: known, unknown and rare numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from arcsm.estimators import ScoreDensity
from arcsm.estimators.column_inference import infer_column
from arcsm.estimators.column_types import Categories, Grid, Listed
from arcsm.estimators.continua import Identity
from arcsm.estimators.model_columns import ModelColumns
from small_tables import QUICK, normal
from small_targets import ROUGH, use_one_model

NAN = math.nan
MANY = Categories(tuple("abcde"), 100, rarest=(3, 2, 1))  # c, d and e share a level
KINDS = [
    Identity(0.0, 1.0, -3.0, 3.0),
    MANY,
    Grid(2.0, 10.0, 9, True, (), 98, few=(10.0, 14.0, 26.0)),
    Grid(1.0, 0.0, 90, True),
]
COLUMNS = ModelColumns.of_columns(KINDS)


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_model(monkeypatch, **ROUGH)


def fit_rough(table: pd.DataFrame) -> ScoreDensity:
    """Fit a small density that is better than a constant."""
    with pytest.MonkeyPatch.context() as patch:
        use_one_model(patch, **ROUGH)
        return ScoreDensity(random_state=0).fit(table)


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


def test_the_rarest_of_many_categories_share_a_level() -> None:
    random = np.random.default_rng(0)
    codes = np.concatenate([np.arange(400), np.minimum(random.geometric(0.02, 3000), 399)])
    names = np.array([f"n{code}" for code in codes], dtype=object)
    kind = infer_column(names, categorical=True)
    assert (len(kind.names), len(kind.level_numbers)) == (400, 256)
    density = ScoreDensity(**QUICK).fit(pd.DataFrame({"name": names, "z": normal(3400)}))
    rows = pd.DataFrame({"name": list(kind.names), "z": 0.0})
    masses = np.exp(density.score_samples(rows, columns=["name"]))
    assert masses.sum() == pytest.approx(1.0 - 1.0 / 3402.0, rel=1e-5)
    assert set(density.sample(3000)["name"]) - set(kind.names[:255])  # some rare ones
    chosen = {kind.names[0], kind.names[-1], kind.names[-2]}  # two of the 145 that share a level
    drawn = density.conditional({"name": chosen, "z": (-1.0, None)}, draws=2000)["name"].value_counts()
    assert set(drawn.index) == chosen
    expected = masses[rows["name"].isin(chosen)].sum() / (1.0 - 1.0 / 3402.0)
    assert density.probability({"name": chosen}) == (pytest.approx(expected, rel=1e-4), 0.0)


def test_unknown_levels_have_a_probability_of_their_own() -> None:
    table = pd.DataFrame({"city": ["Rome", "Oslo", "Rome", "Bern"] * 20, "z": normal(80), "k": np.arange(80) % 4})
    density = ScoreDensity(**QUICK).fit(table)
    rows = pd.DataFrame({"city": ["Paris", "Rome"], "z": [0.1, 0.1], "k": [9, 9]})
    unseen = -math.log(82.0)
    far = unseen - math.log(2.0 * 6.0 * 7.0)  # six steps from 3, on one of two sides
    np.testing.assert_allclose(density.score_samples(rows, columns=["k"]), far, rtol=1e-9)
    others = density.score_samples(rows, columns=["z"])
    np.testing.assert_allclose(density.score_samples(rows)[0], unseen + far + others[0], rtol=1e-6)


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


def spiked_table(count: int = 1500) -> pd.DataFrame:
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
    return fit_rough(table), table


def test_draws_have_the_spikes_of_the_table(spiked: tuple[ScoreDensity, pd.DataFrame]) -> None:
    density, table = spiked
    drawn = density.sample(4000)
    assert (drawn["a"] == 0.0).mean() == pytest.approx((table["a"] == 0.0).mean(), abs=0.03)
    assert (drawn["hours"] == 40).mean() == pytest.approx((table["hours"] == 40).mean(), abs=0.03)
    low = drawn["b"] < 2.0
    assert ((drawn["a"] == 0.0) == low).mean() > 0.93  # 0.977 in the table


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


def test_few_values_off_a_grid_have_levels() -> None:
    values = np.log1p(np.random.default_rng(0).poisson(1.0, 800))
    kind = infer_column(values, categorical=False)
    assert isinstance(kind, Listed)
    np.testing.assert_array_equal(kind.decode(kind.encode(values)), values)
    assert kind.encode(np.array([0.5, np.nan, 99.0, np.inf]))[[0, 2, 3]].tolist() == [0.5, 5.5, 5.5]
    table = pd.DataFrame({"x": values, "z": normal(800)})
    density = ScoreDensity(**QUICK).fit(table)
    others = pd.DataFrame({"x": 0.5 * (np.unique(values)[1:] + np.unique(values)[:-1]), "z": 0.0})
    np.testing.assert_allclose(density.score_samples(others, columns=["x"]), -np.log(802.0))
    with pytest.warns(UserWarning, match="'x' has numbers far from its few values"):
        density.impute(others.assign(z=np.nan))
    assert set(density.sample(300)["x"]) <= set(values)
    masses = np.exp(density.score_samples(pd.DataFrame({"x": np.unique(values), "z": 0.0}), columns=["x"]))
    assert masses.sum() == pytest.approx(1.0 - 1.0 / 802.0, rel=1e-6)
    assert density.impute(pd.DataFrame({"x": [np.nan], "z": [0.0]}), estimate="median")["x"].isin(values).all()


# Ends of grids --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uniform() -> ScoreDensity:
    """Fit whole numbers from 1 to 60 and dates of 90 days, which do not thin out towards their ends."""
    random = np.random.default_rng(7)
    days = pd.Timestamp("2025-01-01") + pd.to_timedelta(random.integers(0, 90, 600), unit="D")
    table = pd.DataFrame({"z": random.normal(size=600), "k": random.integers(1, 61, 600), "day": days})
    return fit_rough(table)


def test_draws_do_not_pile_up_at_the_ends_of_a_grid(uniform: ScoreDensity) -> None:
    drawn = uniform.sample(6000, random_state=1)
    for name, (low, high) in {"k": (1, 60), "day": (pd.Timestamp("2025-01-01"), pd.Timestamp("2025-03-31"))}.items():
        for end in (low, high):
            share, truth = (drawn[name] == end).mean(), uniform.probability({name: end}).value
            assert abs(share - truth) < 5.0 * math.sqrt(truth / 6000)
            assert truth < 0.035


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
    density = fit_rough(table)
    drawn = density.sample(4000, random_state=1)["x"]
    assert (drawn > 0.0).all()  # none piles up at zero
    assert density.probability({"x": (0.0, None)}).value == pytest.approx(1.0, abs=1e-3)
    assert density.cdf(table.assign(x=0.0))[:, 0].max() < 1e-4
    points = pd.DataFrame({"x": np.linspace(0.0005, 0.0995, 100), "z": 0.0})
    near = density.probability({"x": (0.0, 0.1)}).value
    assert np.exp(density.score_samples(points, columns=["x"])).mean() * 0.1 == pytest.approx(near, rel=0.01)
    beyond = density.score_samples(pd.DataFrame({"x": [-0.5, -50.0], "z": 0.0}), columns=["x"])
    assert np.isfinite(beyond).all()
    assert beyond[1] < beyond[0] < density.score_samples(points[:1], columns=["x"])[0] - 3.0


def test_levels_after_a_continuum_survive_quantiles_of_distribution_functions() -> None:
    x = normal(300)
    table = pd.DataFrame({"x": x, "s": np.where(x > 0.5, "a", np.where(x < -0.5, "b", "c")), "n": np.arange(300) % 3})
    density = ScoreDensity(**QUICK).fit(table)
    back = density.quantile(density.cdf(table))
    assert back["s"].tolist() == table["s"].tolist()
    assert back["n"].tolist() == table["n"].tolist()


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


def test_a_number_near_a_level_counts_as_that_level_where_it_is_known() -> None:
    random = np.random.default_rng(0)
    age = random.integers(20, 80, 1500)
    age = age[(age != 72) & ((age < 40) | (age > 50))]
    table = pd.DataFrame({"age": age, "value": 0.1 * age + random.normal(size=len(age))})
    density = ScoreDensity(**QUICK).fit(table)
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
    assert (density.conditional({"age": 72}, draws=4)["age"] == 72).all()
    assert density.probability({"age": 72}).value == 0.0
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
