"""The model of a table: its configuration, its orders, levels and density."""

from __future__ import annotations

import pickle

import numpy as np

from arcsm.estimators import ScoreDensity


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
    assert density.model_.orders[:2] == [(0, 1, 2), (2, 1, 0)]
    terms = density._contributions(*density.encode_rows(x))  # private: the public methods return the mixture
    np.testing.assert_allclose(density.score_samples(x), np.log(np.exp(terms.sum(-1)).mean(0)), rtol=1e-9)
    u = density.cdf(x[:5])
    np.testing.assert_allclose(density.quantile(u), x[:5], atol=1e-3)


def test_the_copy_in_single_precision_is_not_pickled() -> None:
    density = ScoreDensity(max_steps=10, n_estimators=1, random_state=0).fit(
        np.random.default_rng(0).normal(size=(40, 2))
    )
    gaps = np.array([[0.5, np.nan]])
    before, size = density.impute(gaps), len(pickle.dumps(density))
    loaded = pickle.loads(pickle.dumps(density))
    assert loaded.model_._single is None
    assert size < 1.1 * len(pickle.dumps(loaded))
    np.testing.assert_array_equal(loaded.impute(gaps), before)
