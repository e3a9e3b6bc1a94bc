"""How far beyond the training values a continuum goes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from arcsm.estimators import ScoreDensity
from arcsm.estimators.column_inference import infer_column
from arcsm.estimators.continua import Continuous
from arcsm.estimators.range_ends import hard_ends
from small_targets import ROUGH, use_one_model

Draw = Callable[[np.random.Generator, int], Any]


def ends_of(draw: Draw, count: int, repeats: int = 40) -> Any:
    draws = [draw(np.random.default_rng(seed), count) for seed in range(repeats)]
    return np.array([hard_ends(x, x) for x in draws])


@pytest.mark.parametrize(
    ("draw", "low", "high"),
    [
        (lambda r, n: 5.0 + r.random(n), 5.0, 6.0),
        (lambda r, n: -3000.0 * r.random(n), -3000.0, 0.0),
        (lambda r, n: 5.0 + r.exponential(size=n), 5.0, math.inf),
        (lambda r, n: -r.exponential(size=n), -math.inf, 0.0),
    ],
)
def test_a_continuum_ends_where_its_values_do_not_thin_out(draw: Draw, low: float, high: float) -> None:
    found = ends_of(draw, 1000)
    assert (found[:, 0] == low).mean() >= 0.8  # the true end is a round number, within three gaps in 19 of 20
    assert (found[:, 1] == high).mean() >= 0.8


@pytest.mark.parametrize("count", [30, 500])
@pytest.mark.parametrize(
    "draw",
    [
        lambda r, n: r.normal(size=n),
        lambda r, n: r.standard_t(3, n),
        lambda r, n: np.append(r.normal(size=n - 1), 1e6),  # a gross error hides no end
    ],
)
def test_tails_have_no_hard_end(draw: Draw, count: int) -> None:
    assert np.isinf(ends_of(draw, count)).mean() >= 0.93


def test_values_that_are_never_negative_end_at_zero_unless_they_are_far_from_it() -> None:
    values = np.random.default_rng(0).lognormal(0.0, 1.0, 100)
    assert hard_ends(values, values) == (0.0, math.inf)
    assert hard_ends(values + 1000.0, values + 1000.0) == (-math.inf, math.inf)


def test_a_continuum_ends_with_a_spike() -> None:
    random = np.random.default_rng(0)
    values = np.clip(random.normal(size=1000), -1.5, 2.0)
    column = infer_column(values, categorical=False)
    assert isinstance(column, Continuous)
    assert column.spikes == column.hard_ends == (-1.5, 2.0)
    assert column.decode(np.array([-9.0, 9.0])).tolist() == [-1.5, 2.0]


def test_a_density_fills_the_range_and_stays_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_model(monkeypatch, **ROUGH)
    random = np.random.default_rng(0)
    u, v = random.random(600), 5.0 + random.random(600)
    table = pd.DataFrame({"u": u, "v": v, "w": u - v + 0.2 * random.normal(size=600)})
    density = ScoreDensity(random_state=0).fit(table)
    draws = density.sample(2000)
    for name, low in (("u", 0.0), ("v", 5.0)):
        assert draws[name].between(low, low + 1.0).all()
        shares = np.histogram(draws[name], 10, (low, low + 1.0))[0] / 2000
        assert np.abs(shares - 0.1).max() < 0.045  # four standard errors of 600 rows and 2,000 draws
        assert density.probability({name: (None, low + 0.05)}).value == pytest.approx(0.05, abs=0.03)
        assert density.probability({name: (low + 1.02, None)}).value == 0.0
    beyond = table[:2].assign(u=[-0.1, 3.0])
    assert (density.score_samples(beyond) < density.score_samples(table[:2]) - 3.0).all()


@pytest.mark.slow
def test_probabilities_at_hard_ends_are_those_farther_in() -> None:
    """A model rounds off an edge: these weeks had 0.48 and 0.77 of their probability when nothing was reflected."""
    random = np.random.default_rng(1)
    table = pd.DataFrame({"day": random.integers(1, 366, 1500), "z": random.normal(size=1500)})
    density = ScoreDensity(random_state=0).fit(table)
    weeks = [density.probability({"day": week}).value for week in ((1, 7), (359, 365))]
    assert np.mean(weeks) == pytest.approx(7.0 / 365.0, rel=0.2)
