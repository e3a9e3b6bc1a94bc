"""After calibration, each level has its share of the training rows."""

import numpy as np
import pandas as pd
import pytest

from arcsm.estimators import ScoreDensity


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
