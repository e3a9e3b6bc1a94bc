import math

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from arcsm.privacy import PrivateStatistics, marginals, statistics
from arcsm.privacy.marginals import Numbers
from arcsm.privacy.releases import Releases

ALMOST_NO_NOISE = 1e8  # epsilon


def small_table(rows: int, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    x = random.normal(50.0, 10.0, rows).round(1)
    city = np.where(x + random.normal(0.0, 10.0, rows) > 55.0, "Rome", "Turin")
    y = 2.0 * x + np.where(city == "Rome", 30.0, 0.0) + random.normal(0.0, 5.0, rows)
    visits = random.poisson(1.5, rows)
    return pd.DataFrame({"x": x, "city": city, "y": y, "visits": visits})


def statistics_of(table: pd.DataFrame, epsilon: float = ALMOST_NO_NOISE) -> PrivateStatistics:
    return PrivateStatistics.release(table, epsilon, 1e-6, np.random.default_rng(0))


class Recorded(Releases):
    """Releases whose results are those of another run, so that both runs ask the same; it keeps the true sums."""

    runs: list[list[tuple[NDArray[np.float64], float, float]]]
    results: list[NDArray[np.float64]]
    is_replay = False

    def sums(self, sums: NDArray[np.float64], sensitivity: float, weight: float = 1.0) -> NDArray[np.float64]:
        cls = type(self)
        cls.runs[-1].append((np.array(sums, dtype=float), sensitivity, weight))
        if not cls.is_replay:
            cls.results.append(super().sums(sums, sensitivity, weight))
        return cls.results[len(cls.runs[-1]) - 1].copy()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    Recorded.runs, Recorded.results, Recorded.is_replay = [], [], False
    monkeypatch.setattr(statistics, "Releases", Recorded)
    return Recorded


@pytest.mark.parametrize("row", [0, 200, 400])
def test_a_row_changes_no_release_by_more_than_its_sensitivity(recorded: type[Recorded], row: int) -> None:
    table = pd.concat([small_table(400), small_table(1).assign(x=np.nan, city=None)], ignore_index=True)
    table = pd.concat([table, table.iloc[[row]]], ignore_index=True)  # whose values another row has
    for rows in (table, table.iloc[:-1]):
        recorded.runs.append([])
        PrivateStatistics.release(rows, 1.0, 1e-6, np.random.default_rng(0))
        recorded.is_replay = True
    of_all, without = recorded.runs
    assert len(of_all) == len(without)
    changes = [
        float(np.linalg.norm(a - b)) / sensitivity for (a, sensitivity, _), (b, *_) in zip(of_all, without, strict=True)
    ]
    assert max(changes) <= 1.0 + 1e-9
    assert max(changes[:-1]) == 1.0  # of counts


def test_an_extreme_row_changes_moments_by_as_much_as_they_are_said_to(recorded: type[Recorded]) -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"x": random.normal(size=500), "y": random.normal(size=500)})
    extreme = table.max().to_frame().T  # whose normal scores are large and equal
    for rows in (pd.concat([table, extreme], ignore_index=True), table):
        recorded.runs.append([])
        PrivateStatistics.release(rows, 5.0, 1e-6, np.random.default_rng(0))
        recorded.is_replay = True
    (of_all, sensitivity, _), (without, *_) = (run[-1] for run in recorded.runs)
    assert 0.99 < float(np.linalg.norm(of_all - without)) / sensitivity <= 1.0 + 1e-9


def test_the_weights_of_all_releases_are_the_budget(recorded: type[Recorded]) -> None:
    recorded.runs.append([])
    PrivateStatistics.release(small_table(400), 1.0, 1e-6, np.random.default_rng(0))
    *of_counts, of_moments = recorded.runs[0]
    planned = 0.1 + 3 * marginals.WEIGHT_OF_NUMBERS + marginals.WEIGHT_OF_NAMES
    assert sum(weight for *_, weight in of_counts) == pytest.approx(planned)
    assert of_moments[2] == 1.0


def test_releases_refuse_more_than_the_budget() -> None:
    releases = Releases(1.0, 1.0, np.random.default_rng(0))
    releases.count(np.zeros(3), 0.75)
    with pytest.raises(RuntimeError, match="more weight than the budget has"):
        releases.count(np.zeros(3), 0.5)


def test_noise_has_the_variance_of_its_weight() -> None:
    releases = Releases(3.0, 1.0, np.random.default_rng(0))
    found = releases.sums(np.zeros(100_000), 2.0, 0.25)
    assert found.std() == pytest.approx(3.0 * 2.0 / math.sqrt(0.25), rel=0.02)


@pytest.mark.parametrize("noise", [0.6, 2.0])
def test_a_name_of_one_row_is_released_with_the_probability_delta(noise: float) -> None:
    delta, trials = 0.02, 20_000
    names = [*["often"] * 200, *(f"once {trial}" for trial in range(trials))]
    releases = Releases(noise, marginals.WEIGHT_OF_NAMES, np.random.default_rng(0))
    found = len(marginals.release_names(names, releases, delta).names) - 1
    standard_error = math.sqrt(delta * (1.0 - delta) / trials)
    assert abs(found / trials - delta) < 4.0 * standard_error


def test_draws_have_the_columns_and_the_correlations_of_the_table() -> None:
    table = small_table(4_000)
    drawn = statistics_of(table).draw(4_000, np.random.default_rng(1))
    assert list(drawn.columns) == list(table.columns)
    assert drawn["visits"].dtype == table["visits"].dtype
    for name in ("x", "y", "visits"):
        found, expected = (np.quantile(rows[name], [0.1, 0.5, 0.9]) for rows in (drawn, table))
        np.testing.assert_allclose(found, expected, atol=0.05 * float(table[name].std()))
    assert float(drawn["x"].corr(drawn["y"])) == pytest.approx(float(table["x"].corr(table["y"])), abs=0.05)
    by_city, expected_by_city = (rows.groupby("city")["y"].mean() for rows in (drawn, table))
    np.testing.assert_allclose(by_city, expected_by_city, rtol=0.05)


@pytest.mark.parametrize("step", [None, 0.5])
def test_quantiles_invert_the_distribution_function(step: float | None) -> None:
    numbers = Numbers(
        np.array([0.0, 3.0]), np.array([0.3, 0.1]), np.array([[1.0, 2.0], [2.0, 4.0], [8.0, 9.0]]),
        np.array([0.2, 0.2, 0.2]), step, 0.0,
    )  # fmt: skip
    u = np.array([0.01, 0.29, 0.4, 0.5, 0.65, 0.78, 0.85, 0.99])
    x = numbers.quantile(u)
    expected = np.array([0.0, 0.0, 1.5, 2.0, 3.0, 3.8, 8.25, 8.95])
    np.testing.assert_allclose(x, expected if step is None else [0.0, 0.0, 1.5, 2.0, 3.0, 4.0, 8.0, 9.0], atol=1e-9)
    if step is None:
        continuous = [2, 3, 5, 6, 7]
        np.testing.assert_allclose(numbers.cdf(x)[continuous], u[continuous], atol=1e-9)


def test_types_are_kept() -> None:
    random = np.random.default_rng(0)
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(random.integers(0, 300, 1_500), unit="D")
    table = pd.DataFrame({
        "day": pd.Series(days),
        "zoned": pd.Series(days).dt.tz_localize("Europe/Rome"),
        "wait": pd.to_timedelta(random.integers(0, 90, 1_500), unit="min"),
        "truth": random.random(1_500) < 0.3,
        "objects": random.choice(np.array([True, False, None], dtype=object), 1_500),
        "whole": pd.array(np.where(random.random(1_500) < 0.2, None, 3), dtype="Int64"),
        "codes": pd.Categorical(random.choice([1, 2], 1_500)),
        "short": random.normal(size=1_500).astype(np.float32),
        "size": pd.Categorical(random.choice(["S", "M", "L"], 1_500), ["S", "M", "L", "XL"], ordered=True),
        "gaps": np.where(random.random(1_500) < 0.2, np.nan, random.normal(size=1_500)),
    })  # fmt: skip
    drawn = statistics_of(table).draw(2_000, random)
    assert list(drawn.dtypes)[:8] == list(table.dtypes)[:8]
    assert set(drawn["objects"]) == {True, False, None}
    assert drawn["codes"].cat.categories.tolist() == [1, 2]
    assert list(drawn["size"].cat.categories) == ["S", "M", "L"]
    assert set(drawn["day"].dt.hour) == {0}
    assert drawn["day"].between(table["day"].min(), table["day"].max() + pd.Timedelta(days=1)).all()
    assert float(drawn["gaps"].isna().mean()) == pytest.approx(0.2, abs=0.03)
    assert float(drawn["truth"].mean()) == pytest.approx(0.3, abs=0.03)


def test_columns_of_which_nothing_can_be_released_are_named() -> None:
    table = pd.DataFrame({"id": [f"n{i}" for i in range(500)], "also": [f"m{i}" for i in range(500)], "x": 1.0})
    with pytest.raises(ValueError, match=r"column 'id' \(also 'also'\): no value is common enough"):
        statistics_of(table, 1.0)


def test_rows_may_be_few_complete_or_many(monkeypatch: pytest.MonkeyPatch) -> None:
    table = small_table(4_000).assign(gaps=lambda rows: rows["x"].mask(rows["y"] > rows["y"].median()))
    found = statistics_of(table)
    assert found.draw(1, np.random.default_rng(0)).shape == (1, 5)
    assert found.draw(0, np.random.default_rng(0)).shape == (0, 5)
    assert not found.draw(500, np.random.default_rng(0), gaps=False).isna().any(axis=None)
    monkeypatch.setattr(statistics, "_MOST_DRAWN", 1_300)
    monkeypatch.setattr(statistics, "_LEAST_DRAWN", 1)
    drawn = found.draw(4_001, np.random.default_rng(0), progress=True)
    assert len(drawn) == 4_001
    assert not drawn.duplicated().any()
    for part in (drawn[:1_000], drawn[-1_000:]):
        assert float(part["gaps"].isna().mean()) == pytest.approx(0.5, abs=0.06)


def test_noise_has_a_new_source_without_a_seed_unless_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    table, sources = small_table(1_000), [np.random.default_rng(seed) for seed in (0, 0, 1)]
    given = PrivateStatistics.release(table, 1.0, 1e-6, sources[0])
    with monkeypatch.context() as patch:
        patch.setattr(np.random, "default_rng", lambda: sources.pop(1))
        first, second = (PrivateStatistics.release(table, 1.0, 1e-6) for _ in range(2))
    np.testing.assert_array_equal(first.moments, given.moments)
    assert not np.array_equal(first.moments, second.moments)
    assert len(sources) == 1


def test_bad_tables_are_named() -> None:
    with pytest.raises(TypeError, match="table: expected a pandas DataFrame, got ndarray"):
        PrivateStatistics.release(np.zeros((9, 2)), 1.0, 1e-6)
    with pytest.raises(ValueError, match="column 'y': expected finite numbers or missing values, got infinity"):
        statistics_of(small_table(100).assign(y=np.inf))


def test_many_names_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_MOST_LOGITS", 1)  # a thousand rows at a time
    random = np.random.default_rng(0)
    table = pd.DataFrame({name: random.choice([f"{name}{k}" for k in range(60)], 1_500) for name in "mn"})
    found = PrivateStatistics.release(table, ALMOST_NO_NOISE, 1e-6, random)
    assert found.moments.shape == (100, 100)  # of fifty names each
    assert found.draw(2_500, random)["n"].nunique() == 60


def test_types_and_cells_hold_no_rare_names() -> None:
    names = np.array([*["a", "b"] * 1_000, "rare"])
    table = pd.DataFrame({"x": pd.Categorical(names), "y": names})
    found = statistics_of(table, 1.0)
    assert "rare" not in repr([found.cells, found.columns, *(list(d.categories) for d in found.dtypes[:1])])


def test_more_rows_than_delta_allows_are_an_error() -> None:
    with pytest.raises(ValueError, match="delta: expected much less than one over the rows, about"):
        PrivateStatistics.release(small_table(400), 1.0, 0.01, np.random.default_rng(0))
