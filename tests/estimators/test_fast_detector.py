"""A detector with closed forms: the scores, ranks and explanations of the detector that it learned them from."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from arcsm import CategoricalHead, DistilConfig, ScoreHead, SplineHead
from arcsm.estimators import ScoreOutlierDetector, table_distillation
from arcsm.estimators.table_distillation import distilled_table
from small_tables import QUICK, use_small_models


def table(rows: int, seed: int) -> pd.DataFrame:
    """Return numbers that depend on a name, a whole number, and gaps."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, 3, rows)
    a = kind + 0.5 * random.normal(size=rows)
    b = a**2 + 0.3 * random.normal(size=rows)
    frame = pd.DataFrame({"kind": np.array(["x", "y", "z"])[kind], "a": a, "b": b, "n": random.poisson(50.0, rows)})
    frame.loc[::9, "b"] = np.nan
    return frame


@pytest.mark.slow
def test_scores_are_nearly_those_of_the_slow_detector() -> None:
    plain, fast = (
        ScoreOutlierDetector(max_steps=300, n_estimators=2, random_state=0, fast=fast).fit(table(500, 0))
        for fast in (False, True)
    )
    usual, odd = table(400, 1), table(400, 2)
    odd["b"] += np.linspace(1.0, 30.0, 400)
    for rows in (usual, odd):
        scores = plain.score_samples(rows), fast.score_samples(rows)
        assert stats.spearmanr(*scores).statistic > 0.99
    difference = plain.score_samples(usual) - fast.score_samples(usual)
    assert abs(difference.mean()) < 0.1
    assert (plain.predict(odd) == fast.predict(odd)).mean() > 0.95
    rows = table(100, 3)
    others = [one.explain(rows, given="others") for one in (plain, fast)]
    assert float((others[0] - others[1]).abs().mean().mean()) < 0.2
    low, high = fast.expected(rows)
    inside = (low["b"] <= rows["b"]) & (rows["b"] <= high["b"])
    assert inside[rows["b"].notna()].mean() == pytest.approx(0.9, abs=0.1)


def test_closed_forms_explain_rows_and_leave_the_slow_detector_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    monkeypatch.setattr(table_distillation, "MUCH_LOST", 0.0)
    plain = ScoreOutlierDetector(**QUICK).fit(table(100, 0))
    rows = table(30, 4)
    before = plain.score_samples(rows)
    config = DistilConfig(steps=3, conditionals=200, report_rows=50, device="cpu")
    with pytest.warns(UserWarning, match="use fast=False"):
        model = distilled_table(plain.model_, plain.encode_rows(table(100, 0))[0], config)
    np.testing.assert_array_equal(plain.score_samples(rows), before)
    heads = [type(one) for one, _ in model.model.head.parts(model.model.features)]
    assert SplineHead in heads
    assert CategoricalHead in heads
    assert ScoreHead not in heads
    fast = copy.copy(plain)
    fast.model_ = model
    np.testing.assert_allclose(fast.explain(rows).sum(axis=1), fast.score_samples(rows), rtol=1e-9)
    sigma = plain.model_.sigmas[-1]
    assert list(fast.all_scores(rows).columns) == [f"likelihood {sigma:.3g}", f"score norm {sigma:.3g}", "tails"]
    assert bool(np.isfinite(fast.all_scores(rows)).all().all())


def test_a_table_of_names_has_closed_forms_already() -> None:
    names = table(100, 0)[["kind"]].assign(other=table(100, 1)["kind"])
    plain, fast = (ScoreOutlierDetector(max_steps=5, random_state=0, fast=fast).fit(names) for fast in (False, True))
    np.testing.assert_array_equal(plain.score_samples(names), fast.score_samples(names))
