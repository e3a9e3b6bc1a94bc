"""Measures of predictive distributions, and the peers that predict them."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from arcsm.experiments.comparisons import Array
from arcsm.experiments.outside import NGBoost_script
from arcsm.experiments.regression import _INTERVAL, PRESETS, Split, _compared, quality, split
from arcsm.experiments.regressors import PROBABILITIES, Predicted, predict_by_natural_boosting
from arcsm.experiments.regressors import predict_by_quantile_boosting as boosted
from small_experiments import stand_in_for_peer


def normal(mean: Array, scale: float) -> Predicted:
    distribution = stats.norm(mean, scale)
    return Predicted(mean, distribution.ppf(PROBABILITIES[:, None]).T, distribution.cdf)


def rows(count: int, seed: int = 0) -> tuple[Array, Array]:
    """Return features and targets with noise of standard deviation 0.5."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, 2))
    return x, 3.0 * x[:, 0] + 0.5 * random.normal(size=count)


def test_the_interval_holds_90_percent() -> None:
    assert PROBABILITIES[_INTERVAL].tolist() == pytest.approx([0.05, 0.95])


def test_the_measures_of_the_true_distribution_are_known() -> None:
    x, y = rows(20_000)
    data = Split(x, y, x, y, 0.001)
    found = quality(normal(3.0 * x[:, 0], 0.5), data)
    unit = math.sqrt(9.25)
    assert np.mean(found["nll"]) == pytest.approx(
        0.5 * math.log(2 * math.pi * math.e * 0.25) - math.log(unit), abs=0.02
    )
    assert np.mean(found["crps"]) == pytest.approx(0.5 / math.sqrt(math.pi) / unit, rel=0.02)
    assert found["rmse"] == pytest.approx(0.5 / unit, rel=0.02)
    assert found["coverage"] == pytest.approx(0.9, abs=0.01)
    for mean, scale in ((0.1 + 3.0 * x[:, 0], 0.5), (3.0 * x[:, 0], 0.7)):  # proper: others are worse
        other = quality(normal(mean, scale), data)
        assert np.mean(other["nll"]) > np.mean(found["nll"])
        assert np.mean(other["crps"]) > np.mean(found["crps"])


def test_a_density_is_the_mean_over_a_step() -> None:
    y = np.array([0.0, 1.0, 2.0])
    data = Split(np.zeros((3, 1)), y, np.zeros((3, 1)), y, 1.0)
    cdf = stats.rv_discrete(values=([0, 1, 2], [0.5, 0.25, 0.25])).cdf
    found = quality(Predicted(y, np.tile(PROBABILITIES, (3, 1)), cdf), data)
    assert found["nll"] == pytest.approx(-np.log(np.array([0.5, 0.25, 0.25]) * y.std()), abs=1e-5)
    assert quality(Predicted(y, np.tile(PROBABILITIES, (3, 1))), data)["nll"] is None


def test_methods_are_compared_row_by_row() -> None:
    def cell(crps: list[float], nll: list[float] | None) -> dict[str, object]:
        return {"crps": crps, "nll": nll, "rmse": 1.0, "coverage": 0.9, "seconds": 1.0, "rows": 9, "columns": 2}

    ours, peer = [cell([1.0, 3.0], [0.0, 0.0]), cell([2.0, 2.0], [0.0, 0.0])], [cell([0.0, 2.0], None)] * 2
    found = _compared({"arcsm": ours, "peer": peer})["methods"]
    assert found["arcsm"]["crps"]["mean"] == 2.0
    assert found["arcsm"]["crps"]["behind_best"] == [1.0, 0.0]  # both splits have the same mean difference
    assert found["peer"]["crps"]["behind_best"] == [0.0, 0.0]
    ours[1]["crps"] = [4.0, 4.0]
    difference = np.array([1.0, 3.0])  # of the splits; two rows are held out for nine fitted ones
    expected = [2.0, difference.std(ddof=1) * math.sqrt(1 / 2 + 2 / 9)]
    assert _compared({"arcsm": ours, "peer": peer})["methods"]["arcsm"]["crps"]["behind_best"] == pytest.approx(
        expected
    )
    assert found["peer"]["nll"] == {"mean": None, "behind_best": None}


def test_splits_are_disjoint_and_of_the_asked_for_sizes(small_data: Path) -> None:
    settings = PRESETS["smoke"].model_copy(update={"most_rows": 30, "most_held_out": 12})
    data = split(settings, "wine", 0)
    assert len(data.y) <= 30
    assert 0 < len(data.truth) <= 12
    few = split(settings.model_copy(update={"most_held_out": 1, "share": 0.5}), "wine", 0)
    assert len(few.truth) == 1
    both = np.concatenate([np.column_stack([data.x, data.y]), np.column_stack([data.held_out, data.truth])])
    assert len(np.unique(both, axis=0)) == len(both)
    assert not np.array_equal(split(settings, "wine", 1).truth, data.truth)


def test_quantile_boosting_predicts_ascending_quantiles_that_cover() -> None:
    x, y = rows(1_000)
    x_test, y_test = rows(500, 1)
    predicted = boosted(x, y, x_test, 0)
    assert (np.diff(predicted.quantiles, axis=1) >= 0.0).all()
    found = quality(predicted, Split(x, y, x_test, y_test, 0.01))
    assert found["rmse"] < 0.3
    assert 0.75 < found["coverage"] < 0.95


@pytest.mark.skipif(sys.platform == "win32", reason="the interpreter of the test is a shell script")
def test_natural_boosting_is_a_normal_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys\nimport numpy as np\n"
        "given = np.load(sys.argv[1])\n"
        "mean = given['rows'][:, 0] + given['y'].mean()\n"
        "np.savez(sys.argv[2], mean=mean, scale=np.full(len(mean), 2.0), versions=np.array('peer 1.0'))\n"
    )
    stand_in_for_peer("NGBoost", code, tmp_path, monkeypatch)
    found = predict_by_natural_boosting(np.zeros((3, 1)), np.array([1.0, 2.0, 3.0]), np.array([[0.0], [5.0]]), 0)
    assert found.mean.tolist() == [2.0, 7.0]
    assert found.quantiles[:, len(PROBABILITIES) // 2].tolist() == pytest.approx([2.0, 7.0])
    assert found.cdf is not None
    assert found.cdf(np.array([4.0, 7.0])) == pytest.approx([stats.norm.cdf(1.0), 0.5])
    assert found.versions == "peer 1.0"


def test_the_script_of_natural_boosting_writes_mean_and_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    class NGBRegressor:
        def __init__(self, **arguments: object) -> None:
            seen.update(arguments)

        def fit(self, x: Array, y: Array) -> NGBRegressor:
            seen.update(rows=len(x), targets=len(y))
            return self

        def pred_dist(self, rows: Array) -> SimpleNamespace:
            return SimpleNamespace(params={"loc": rows[:, 0], "scale": np.ones(len(rows))})

    monkeypatch.setitem(sys.modules, "ngboost", SimpleNamespace(NGBRegressor=NGBRegressor))
    monkeypatch.setattr(NGBoost_script, "version", lambda name: "1.0")
    given, found = tmp_path / "given.npz", tmp_path / "found.npz"
    np.savez(given, x=np.zeros((4, 2)), y=np.zeros(4), rows=np.array([[3.0, 0.0], [5.0, 0.0]]))
    NGBoost_script.main(str(given), str(found), {"seed": 7})
    with np.load(found) as arrays:
        assert arrays["mean"].tolist() == [3.0, 5.0]
        assert arrays["scale"].tolist() == [1.0, 1.0]
        assert str(arrays["versions"]) == "ngboost 1.0, scikit-learn 1.0"
    assert seen == {"verbose": False, "random_state": 7, "rows": 4, "targets": 4}
