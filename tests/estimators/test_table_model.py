"""The model of a table: its configuration, its orders, levels and density."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from arcsm.estimators import ScoreDensity
from small_tables import use_small_models


@pytest.mark.slow
def test_held_out_rows_choose_the_configuration() -> None:
    random = np.random.default_rng(0)
    clustered = np.repeat(random.normal(size=(80, 3)), 10, 0) + 0.002 * random.normal(size=(800, 3))
    spread = random.normal(size=(800, 2))
    sharp = ScoreDensity(n_estimators=1, max_steps=300, random_state=0).fit(clustered)
    plain = ScoreDensity(n_estimators=1, max_steps=300, random_state=0).fit(spread)
    assert (sharp.config_.sinusoids > 0, plain.config_.sinusoids > 0) == (True, False)
    assert len(sharp.model_.orders) == len(plain.model_.orders) == 1
    assert sharp.model_.model.noise.sigma_min == sharp.config_.sigma_min < plain.config_.sigma_min


def test_the_density_is_the_mixture_of_all_orders() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    density = ScoreDensity(max_steps=30, n_estimators=3, random_state=0).fit(x)
    assert len({*density.model_.orders}) == 3
    assert density.order_weights_.sum() == pytest.approx(1.0)
    terms = density._contributions(*density.encode_rows(x))  # private: the public methods return the mixture
    expected = np.log(np.exp(terms.sum(-1)).T @ density.order_weights_)
    np.testing.assert_allclose(density.score_samples(x), expected, rtol=1e-9)
    u = density.cdf(x[:5])
    np.testing.assert_allclose(density.quantile(u), x[:5], atol=1e-3)


def table_with_a_spike(count: int = 160) -> pd.DataFrame:
    """Return dependent columns: numbers, numbers of which a third are 0, names, and one value alone."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=count)
    hours = np.where(rng.random(count) < 0.3, 0.0, 40.0 + 5.0 * x + rng.normal(size=count))
    names = np.where(x + rng.normal(size=count) > 0.0, "a", "b")
    return pd.DataFrame({"x": x, "same": 1, "hours": hours, "name": names})


def test_a_learned_order_is_the_single_one_in_which_held_out_rows_are_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    table = table_with_a_spike()
    density = ScoreDensity(random_state=0, order="learned").fit(table)
    assert clone(density).get_params()["order"] == "learned"
    (order,) = density.model_.orders
    assert density.orders_ == [tuple((0, 2, 3)[m] for m in order)]
    assert density.model_.columns.spikes
    np.testing.assert_allclose(density.quantile(density.cdf(table.head())).x, table.x.head(), atol=1e-3)
    rows, _ = density.encode_rows(table.iloc[density.held_out_rows_])
    every = replace(density.model_, orders=list(permutations(range(3))))
    means = dict(zip(every.orders, every.log_conditionals(rows).sum(-1).mean(1).tolist(), strict=True))
    assert means[order] > max(means.values()) - 1e-3 > means[0, 1, 2]  # the search is less accurate
    again = clone(density).fit(table)
    assert again.orders_ == density.orders_
    np.testing.assert_array_equal(again.score_samples(table), density.score_samples(table))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": "best"}, "order: expected one of mixture, learned, got 'best'"),
        ({"order": "learned", "n_estimators": 2}, 'n_estimators: expected 1 or "auto" with order="learned", got 2'),
    ],
)
def test_impossible_orders_are_errors_of_fit(arguments: dict[str, Any], message: str) -> None:
    density = ScoreDensity(**arguments)
    with pytest.raises(ValueError, match=message):
        density.fit(np.random.default_rng(0).normal(size=(20, 2)))
