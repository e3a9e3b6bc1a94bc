"""Orders of columns: mixtures of random ones, and intervals over seeds."""

from __future__ import annotations

import numpy as np
import pytest

from arcsm.experiments.orders import SINGLE, _by_name, _interval  # private: a record has their results alone


def test_mixtures_average_the_densities_of_disjoint_groups() -> None:
    log_densities = np.random.default_rng(0).normal(size=(6, len(SINGLE) + 5))
    found = _by_name(log_densities, (1, 2, 4))
    random = log_densities[:, len(SINGLE) :]
    assert list(found) == [*SINGLE, "mixture of 1", "mixture of 2", "mixture of 4"]
    np.testing.assert_array_equal(found["learned"], log_densities[:, SINGLE.index("learned")])
    np.testing.assert_allclose(found["mixture of 1"], random.mean(1))
    pairs = [np.log(np.exp(random[:, [k, k + 1]]).mean(1)) for k in (0, 2)]
    np.testing.assert_allclose(found["mixture of 2"], np.mean(pairs, 0))
    assert bool((found["mixture of 4"] > random[:, :4].mean(1)).all())


def test_an_interval_covers_the_rows_and_the_seeds() -> None:
    assert _interval([[0.3, 0.1]]) == pytest.approx([0.3, 1.96 * 0.1])
    assert _interval([[0.3, 0.1], [0.3, 0.1]]) == pytest.approx([0.3, 1.96 * 0.1 / 2.0**0.5])
    assert _interval([[0.2, 0.0], [0.4, 0.0]]) == pytest.approx([0.3, 1.96 * 0.1])
