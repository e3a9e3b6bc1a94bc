"""Columns as levels: known, unknown and rare numbers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from arcsm.estimators import ScoreDensity
from arcsm.estimators.column_levels import ColumnLevels
from arcsm.estimators.column_types import Categories, Grid, Identity, infer_column
from small_tables import QUICK, normal

NAN = math.nan
MANY = Categories(tuple("abcde"), 100, rarest=(3, 2, 1))  # c, d and e share a level
KINDS = [Identity(0.0, 1.0, -3.0, 3.0), MANY, Grid(2.0, 10.0, 3, True, (), 98), Grid(1.0, 0.0, 90, True)]
LEVELS = ColumnLevels.of_columns(KINDS)


def test_few_valued_columns_have_levels() -> None:
    assert LEVELS.counts == (0, 3, 3, 0)
    assert LEVELS.known == (0, 5, 3, 0)
    assert LEVELS.widths == (0.0, 0.0, 0.0, 1.0)
    assert LEVELS.nominal == [False, True, True, False]


def test_numbers_become_levels() -> None:
    x = torch.tensor([[0.3, 0.0, 1.0, 7.0], [NAN, 4.0, 2.4, NAN], [-9.5, 5.0, 3.0, 200.0], [1.0, NAN, -1.0, 0.0]])
    expected = [[0.3, 0.0, 1.0, 7.0], [NAN, 2.0, 2.0, NAN], [-9.5, NAN, NAN, 200.0], [1.0, NAN, NAN, 0.0]]
    torch.testing.assert_close(LEVELS.merged(x), torch.tensor(expected), equal_nan=True)


def test_probabilities_of_numbers_given_their_levels_sum_to_one() -> None:
    x = torch.full((6, 4), NAN, dtype=torch.float64)
    x[:, 1] = torch.arange(6.0)
    shares = LEVELS.log_shares(x).exp()
    unseen = 1.0 / 102.0
    np.testing.assert_allclose(shares[:, 1], [*[1.0 - unseen] * 2, *(1.0 - unseen) * np.array([3, 2, 1]) / 6, unseen])
    assert shares[2:5, 1].sum() + unseen == pytest.approx(1.0)
    assert bool((shares[:, [0, 2, 3]] == 1.0).all())  # numbers, and missing values


def test_rare_levels_are_drawn_in_proportion_to_their_frequency() -> None:
    rows = torch.zeros(6000, 4)
    rows[:, 1] = 2.0
    drawn = LEVELS.separated(rows, torch.Generator().manual_seed(0))[:, 1]
    np.testing.assert_allclose(np.bincount(drawn.long(), minlength=5)[2:] / 6000, [1 / 2, 1 / 3, 1 / 6], atol=0.02)


def test_the_rarest_of_many_categories_share_a_level() -> None:
    random = np.random.default_rng(0)
    codes = np.concatenate([np.arange(400), np.minimum(random.geometric(0.02, 3000), 399)])
    names = np.array([f"n{code}" for code in codes], dtype=object)
    kind = infer_column(names, categorical=True)
    assert kind.levels_in_model == 256
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
    with pytest.raises(ValueError, match="given: column 'name' has 145 rare categories that are modelled as one"):
        density.conditional({"name": {kind.names[0], kind.names[-1]}})


def test_unknown_levels_have_a_probability_of_their_own() -> None:
    table = pd.DataFrame({"city": ["Rome", "Oslo", "Rome", "Bern"] * 20, "z": normal(80), "k": np.arange(80) % 4})
    density = ScoreDensity(**QUICK).fit(table)
    rows = pd.DataFrame({"city": ["Paris", "Rome"], "z": [0.1, 0.1], "k": [9, 9]})
    unseen = -math.log(82.0)
    np.testing.assert_allclose(density.score_samples(rows, columns=["k"]), unseen, rtol=1e-9)
    others = density.score_samples(rows, columns=["z"])
    np.testing.assert_allclose(density.score_samples(rows)[0], 2.0 * unseen + others[0], rtol=1e-6)
    rows["city"] = ["Paris", "Rome"]
    known = density.encode_rows(rows)[0]
    columns, orders = torch.tensor([0, 2]), torch.tensor([0, 0])
    numbers = torch.tensor([[3.0, 0.0], [9.0, 1.0]]).double()
    found = density.model_.conditional_log_density(known, columns, orders, numbers)
    np.testing.assert_allclose(found[:, 0], unseen, rtol=1e-9)
    assert bool((found[:, 1] > unseen).all())
