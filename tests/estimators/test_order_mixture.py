"""The mixture of orders: its weights, and which orders it has."""

from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

from arcsm.estimators import ScoreDensity
from arcsm.estimators.order_mixture import choose_orders, mixture_weights


def mean_log_density(log_densities: np.ndarray, weights: np.ndarray) -> float:
    return float(logsumexp(log_densities + np.log(weights), axis=1).mean())


def test_weights_maximise_the_density_of_the_rows() -> None:
    log_densities = np.random.default_rng(0).normal([0.0, 0.3, -1.0, 0.1], 1.0, (500, 4))
    weights = mixture_weights(log_densities)
    assert weights.sum() == pytest.approx(1.0)
    best, random = mean_log_density(log_densities, weights), np.random.default_rng(1)
    others = [mean_log_density(log_densities, random.dirichlet(np.ones(4))) for _ in range(50)]
    assert best > max(others) - 1e-3  # the pseudo-rows cost a little


def test_the_weights_of_orders_with_rows_of_their_own_are_their_shares() -> None:
    log_densities = np.where(np.arange(100)[:, None] < 30, [0.0, -50.0], [-50.0, 0.0])
    np.testing.assert_allclose(mixture_weights(log_densities), [31 / 102, 71 / 102], rtol=1e-9)


def test_orders_are_chosen_that_complement_each_other() -> None:
    random = np.random.default_rng(0)
    first_half = np.arange(200) < 100
    good_in_first, good_in_second = np.where(first_half, 0.0, -6.0), np.where(first_half, -6.1, 0.0)
    middling = np.full((200, 3), -2.5) + 0.01 * random.normal(size=(200, 3))
    log_densities = np.column_stack([good_in_first, middling, good_in_second])
    chosen, weights = choose_orders(log_densities, 3)
    assert len(chosen) == len(weights) == 3
    assert {0, 4} <= {*chosen}  # alone, both are worse than the middling ones
    assert len(choose_orders(log_densities, 9)[0]) == 5
    assert choose_orders(log_densities, 1)[0][0] in (1, 2, 3)


def test_rows_that_are_drawn_one_at_a_time_come_from_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(0).normal(size=(60, 2))
    density = ScoreDensity(max_steps=10, random_state=0).fit(table)
    model = density.model_
    assert model is not None
    drawn = list[tuple[int, tuple[int, ...]]]()
    sample = model.model.sample

    def recorded(n: int, order: Any, **options: Any) -> Any:
        drawn.append((n, tuple(order)))
        return sample(n, order=order, **options)

    monkeypatch.setattr(model.model, "sample", recorded)
    for seed in range(20):
        density.sample(1, random_state=seed)
    shares = {order: sum(n for n, of_order in drawn if of_order == order) / 20 for order in ((0, 1), (1, 0))}
    assert min(shares.values()) > 0.1
    drawn.clear()
    density.sample(1001, random_state=0)
    assert sum(n for n, _ in drawn) == 1001


def test_rows_with_gaps_do_not_choose_orders() -> None:
    random = np.random.default_rng(0)
    table = np.column_stack([random.normal(size=200), random.normal(size=200), random.integers(0, 2, 200)])
    table[table[:, 2] == 0.0, 1] = np.nan  # a value of the second column gives the third away
    density = ScoreDensity(max_steps=10, random_state=0).fit(table)
    assert density.order_weights_.tolist() == [0.5] * 2
    assert density.orders_ == [(0, 2, 1), (2, 0, 1)]
