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


@pytest.mark.slow
def test_frequent_levels_have_their_share() -> None:
    random = np.random.default_rng(0)
    names = random.choice(list("abcdefgh"), 3000, p=[0.6, *[0.4 / 7] * 7])
    table = pd.DataFrame({"name": names, "x": random.normal(size=3000), "y": random.normal(size=3000)})
    density = ScoreDensity(max_steps=400, random_state=0).fit(table)
    rows = table.drop(index=density.held_out_rows_)
    share = (rows["name"] == "a").mean()
    assert density.probability({"name": "a"}).value == pytest.approx(share, abs=0.012)  # dropout leaves 0.02 to 0.03
    drawn = (density.sample(6000, random_state=0)["name"] == "a").mean()
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


def test_a_mixed_head_learns_less_from_a_row_that_breaks_a_rule() -> None:
    head = CategoricalHead(4, 6).double()
    context, levels = torch.zeros(6, 4, dtype=torch.float64), torch.arange(6.0, dtype=torch.float64)
    with torch.no_grad():
        head.logits.bias[0] = 8.0  # the rule

    def gradients() -> torch.Tensor:
        return torch.stack(
            [torch.autograd.grad(one, head.logits.bias, retain_graph=True)[0] for one in head.log_prob(context, levels)]
        )

    plain = gradients()
    head.smooth(share=0.1)
    mixed, softmax = gradients(), torch.softmax(head.logits.bias.detach(), 0)
    responsibility = 0.9 * softmax / (0.9 * softmax + 0.1 * head.prior)  # of the softmax, for each level
    assert torch.allclose(mixed, responsibility[:, None] * plain, rtol=1e-12, atol=1e-15)
    assert responsibility[0] > 0.98
    assert responsibility[1] < 0.02
