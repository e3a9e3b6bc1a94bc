"""Hidden values, how well they are filled, and a peer that fills them."""

from __future__ import annotations

import gzip
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from arcsm.experiments import imputers
from arcsm.experiments.gaps import MECHANISMS, Mechanism, hide, quality
from arcsm.experiments.imputers import fill_by_chained_trees, fill_by_forests
from arcsm.experiments.outside import run_outside
from arcsm.experiments.tables import Table, read_rows
from small_experiments import stand_in_for_peer

NUMBERS = ((),) * 4


def table(rows: int = 4_000, seed: int = 0) -> Table:
    """Return correlated numbers, and a name that the first of them decides."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, 1)) + 0.3 * random.normal(size=(rows, 4))
    return Table(np.column_stack([values, values[:, 0] > 0.0]).astype(float), (*NUMBERS, ("low", "high")))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_share_of_the_values_is_hidden_and_no_gap_is(mechanism: Mechanism) -> None:
    whole = table()
    gaps = np.random.default_rng(1).random(whole.values.shape) < 0.1
    hidden = hide(whole.without(gaps), mechanism, 0.3, seed=0)
    assert not (hidden & gaps).any()
    shares = hidden.sum(0) / (~gaps).sum(0)
    with_gaps = shares[shares > 0.0]
    assert len(with_gaps) == (3 if mechanism == "mar" else 5)
    np.testing.assert_allclose(with_gaps, 0.3, atol=0.04)
    assert (hidden == hide(whole.without(gaps), mechanism, 0.3, seed=0)).all()
    assert (hidden != hide(whole.without(gaps), mechanism, 0.3, seed=1)).any()


def dependence(hidden: NDArray[np.bool_], cause: NDArray[np.float64]) -> float:
    """Return how far the mean of a standardised cause differs between hidden and other values."""
    cause = (cause - cause.mean()) / cause.std()
    return abs(float(cause[hidden].mean() - cause[~hidden].mean()))


def test_gaps_depend_on_what_their_mechanism_says() -> None:
    random = np.random.default_rng(0)
    independent = Table(random.normal(size=(4_000, 4)), NUMBERS)
    by_mechanism = {mechanism: hide(independent, mechanism, 0.3, seed=0) for mechanism in MECHANISMS}
    own = {
        mechanism: [dependence(hidden[:, m], independent.values[:, m]) for m in range(4) if hidden[:, m].any()]
        for mechanism, hidden in by_mechanism.items()
    }
    assert max(own["mcar"]) < 0.1
    assert max(own["mar"]) < 0.1
    assert min(own["mnar"]) > 1.0
    hidden = by_mechanism["mar"]
    [known] = [m for m in range(4) if not hidden[:, m].any()]
    assert min(dependence(hidden[:, m], independent.values[:, known]) for m in range(4) if m != known) > 1.0


def test_the_score_of_draws_is_that_of_their_distribution_whatever_their_number() -> None:
    random = np.random.default_rng(0)
    truth = Table(random.normal(size=(20_000, 1)), ((),))
    hidden = np.ones_like(truth.values, dtype=bool)
    unit = truth.values.std()
    for n in (2, 20):
        draws = random.normal(size=(n, 20_000, 1))
        found = quality(truth, hidden, draws.mean(0), draws)
        assert found["crps"] == pytest.approx(1.0 / np.sqrt(np.pi) / unit, abs=0.01)
        assert found["coverage"] == pytest.approx((n - 1.0) / (n + 1.0), abs=0.01)
        assert found["rmse"] == pytest.approx(np.sqrt(1.0 + 1.0 / n) / unit, abs=0.02)
    certain = quality(truth, hidden, truth.values, truth.values[None])
    assert certain == {"rmse": 0.0, "error": None, "crps": 0.0, "coverage": None}


def test_the_score_of_names_is_their_probability_of_being_wrong_less_half_that_of_differing() -> None:
    random = np.random.default_rng(0)
    truth = Table((random.random((20_000, 1)) < 0.2).astype(float), (("no", "yes"),))
    hidden = np.ones_like(truth.values, dtype=bool)
    draws = (random.random((5, 20_000, 1)) < 0.4).astype(float)
    found = quality(truth, hidden, np.zeros_like(truth.values), draws)
    wrong = 0.4 * 0.8 + 0.6 * 0.2
    assert found["error"] == pytest.approx(0.2, abs=0.01)
    assert found["crps"] == pytest.approx(wrong - 0.5 * 2 * 0.4 * 0.6, abs=0.01)
    assert found["rmse"] is None


def test_a_table_keeps_its_names_and_gaps_as_a_frame(small_data: Path) -> None:
    whole = table(50)
    gapped = whole.without(np.random.default_rng(0).random(whole.values.shape) < 0.3)
    np.testing.assert_array_equal(gapped.codes(gapped.frame()), gapped.values)
    assert gapped.frame().x4.dropna().unique().tolist() in (["low", "high"], ["high", "low"])
    assert read_rows("wine", 100, 0).values.shape == (100, 3)
    with pytest.raises(ValueError, match="no such table"):
        read_rows("absent", 100, 0)


def test_a_table_with_names_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCSM_DATA", str(tmp_path))
    (tmp_path / "mixed").mkdir()
    text = "a,b,c,d\n1,yes,True,0\n2,,False,0\n3,no,True,0\n"
    (tmp_path / "mixed" / "small.csv.gz").write_bytes(gzip.compress(text.encode()))
    found = read_rows("small", 10, 0)
    assert found.names == ((), ("no", "yes"), ("False", "True"))
    assert np.isnan(found.values[:, 1]).sum() == 1


@pytest.mark.skipif(sys.platform == "win32", reason="the interpreter of the test is a shell script")
def test_a_peer_runs_in_an_environment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCSM_PEERS", str(tmp_path))
    with pytest.raises(ValueError, match=r"miceforest: needs an environment of its own: python -m venv"):
        run_outside("miceforest", {}, {})
    code = (
        "import json, sys\nimport numpy as np\n"
        "given, options = np.load(sys.argv[1]), json.loads(sys.argv[3])\n"
        "filled = np.nan_to_num(given['values'], nan=float(options['seed']))\n"
        "np.savez(sys.argv[2], filled=np.stack([filled] * options['draws']), versions=np.array('peer 1.0'))\n"
    )
    script = stand_in_for_peer("miceforest", code, tmp_path, monkeypatch)
    gapped = Table(np.array([[1.0, np.nan], [np.nan, 0.0]]), ((), ("no", "yes")))
    filled = fill_by_chained_trees(gapped, 4, seed=1)
    assert filled.draws.shape == (4, 2, 2)
    assert filled.estimates.tolist() == [[1.0, 1.0], [1.0, 0.0]]
    assert filled.versions == "peer 1.0"
    script.write_text("raise RuntimeError('no luck')\n")
    with pytest.raises(ValueError, match="miceforest: its script failed: RuntimeError: no luck"):
        run_outside("miceforest", {}, {})


def test_forests_fill_numbers_and_names_better_than_means(monkeypatch: pytest.MonkeyPatch) -> None:
    for forest in ("RandomForestRegressor", "RandomForestClassifier"):
        monkeypatch.setattr(imputers, forest, partial(getattr(imputers, forest), n_estimators=10))
    whole = table(300)
    hidden = hide(whole, "mcar", 0.2, seed=0)
    filled = fill_by_forests(whole.without(hidden), 1, seed=0).estimates
    np.testing.assert_array_equal(filled[~hidden], whole.values[~hidden])
    error = (filled - whole.values)[:, :4][hidden[:, :4]]
    assert np.square(error).mean() < 0.5 * whole.values[:, :4][hidden[:, :4]].var()
    assert (filled[:, 4] == whole.values[:, 4])[hidden[:, 4]].mean() > 0.8
