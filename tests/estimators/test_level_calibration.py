"""A share of each level's frequency is mixed in while a model trains; after calibration, levels have their shares."""

import numpy as np
import pandas as pd
import pytest
import torch

from arcsm.contexts import AnyOrder
from arcsm.estimators import ScoreDensity
from arcsm.estimators.level_calibration import mix_levels
from arcsm.heads import CategoricalHead, MixedHead, ScoreHead
from arcsm.model import AutoregressiveModel
from arcsm.noise import NoiseLadder


@pytest.mark.parametrize("seed", [0, 1])
def test_frequent_levels_have_their_share(seed: int) -> None:
    random = np.random.default_rng(seed)
    names = random.choice(list("abcdefgh"), 3000, p=[0.6, *[0.4 / 7] * 7])
    table = pd.DataFrame({"name": names, "x": random.normal(size=3000), "y": random.normal(size=3000)})
    density = ScoreDensity(max_steps=400, random_state=seed).fit(table)
    rows = table.drop(index=density.held_out_rows_)
    share = (rows["name"] == "a").mean()
    assert density.probability({"name": "a"}).value == pytest.approx(share, abs=0.012)  # dropout leaves 0.02 to 0.03
    drawn = (density.sample(6000, random_state=seed)["name"] == "a").mean()
    assert drawn == pytest.approx(share, abs=0.015 + 3.0 * 0.5 / np.sqrt(6000))


def test_frequencies_are_mixed_in() -> None:
    own, shared = CategoricalHead(16, 3), CategoricalHead(16, 2)
    context = AnyOrder(4, 16, levels=(3, 0, 2, 2))
    model = AutoregressiveModel(
        context, MixedHead([own, ScoreHead(16), shared], [0, 1, 2, 2]), NoiseLadder(3.0, 0.1, 4)
    )
    rows = torch.tensor([[0.0, 1.5, 1.0, 0.0], [0.0, 2.5, 1.0, 1.0], [2.0, 3.5, 0.0, 1.0], [torch.nan, 4.5, 1.0, 1.0]])
    mix_levels(model, rows)
    assert own.prior.tolist() == pytest.approx([2.5 / 4.5, 0.5 / 4.5, 1.5 / 4.5])
    assert shared.prior.tolist() == [0.5, 0.5]  # of two columns, whose frequencies differ
    likely = own.log_prob(torch.zeros(1, 16), torch.tensor([0.0])).exp().item()
    assert likely == pytest.approx(0.9 / 3 + 0.1 * 2.5 / 4.5, abs=1e-6)


@pytest.mark.slow
def test_rows_that_break_a_rule_are_not_memorised() -> None:
    random = np.random.default_rng(0)
    first = random.integers(0, 6, 2000)
    second = np.where(random.random(2000) < 0.9, (first + 1) % 6, random.integers(0, 6, 2000))
    names = pd.DataFrame({"first": first, "second": second}).map("n{}".format)
    table = names.assign(x=first % 2 + 0.3 * random.normal(size=2000))
    drawn = ScoreDensity(random_state=0).fit(table).sample(8000, random_state=0)
    first, second = (drawn[column].str[1:].astype(int) for column in ("first", "second"))
    assert ((first + 1) % 6 == second).mean() > 0.9  # 0.89 if the softmax explains every row
