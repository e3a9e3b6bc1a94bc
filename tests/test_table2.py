"""Table 2: what is made of the likelihoods of several seeds."""

from __future__ import annotations

import pytest

from arcsm.experiments.table2 import MNIST, _behind, _over_annealed


def _cell(*nll_of_each: float) -> dict[str, object]:
    mean = sum(nll_of_each) / len(nll_of_each)
    return {"nll_of_each": list(nll_of_each), "nll": mean, "standard_error": 9.0, "images": len(nll_of_each),
            "less_importance_weighted": [mean, 0.0], "upper_less_lower_on_simulated": [2.0 * mean, 0.0]}  # fmt: skip


def test_annealed_likelihoods_are_means_over_the_seeds() -> None:
    found = _over_annealed({0: _cell(1.0, 3.0), 4: _cell(3.0, 7.0)})["annealed"]
    assert found["nll"] == pytest.approx(3.5)
    assert found["standard_error"] == pytest.approx(1.5)  # of 2 and 5, the digits' means over the seeds
    assert found["sd_over_seeds"] == pytest.approx(4.5**0.5)  # of 2 and 5, the seeds' means over the digits
    assert found["of_each_seed"] == [2.0, 5.0]
    assert found["less_importance_weighted"][0] == pytest.approx(3.5)
    assert found["upper_less_lower_on_simulated"][0] == pytest.approx(7.0)
    assert _over_annealed({0: _cell(1.0, 3.0)})["annealed"]["sd_over_seeds"] is None
    assert _over_annealed({}) == {}


def test_methods_are_held_against_the_best_with_the_seeds_that_both_have() -> None:
    rows = {
        "best": _over_annealed({0: _cell(1.0, 3.0), 1: _cell(2.0, 2.0), 2: _cell(0.0, 1.0)}),
        "without its second seed": _over_annealed({0: _cell(2.0, 4.0), 2: _cell(3.0, 5.0)}),
        "first seed alone": _over_annealed({0: _cell(5.0, 5.0)}),
    }
    found = _behind(MNIST, rows)
    assert found["best"] == "best"
    assert found["annealed_behind_the_best"]["best"] == [0.0, 0.0]
    assert found["behind_with_each_seed"]["without its second seed"] == pytest.approx([1.0, 3.5])
    assert found["annealed_behind_the_best"]["without its second seed"] == pytest.approx(
        [2.25, (0.25**2 + 1.25**2) ** 0.5]  # digits differ by 0.5 after the seeds' mean, seeds by 2.5 after the digits'
    )
    assert found["behind_with_each_seed"]["first seed alone"] == pytest.approx([3.0])
    assert found["annealed_behind_the_best"]["first seed alone"] == pytest.approx([3.0, 1.0])
    assert all("nll_of_each" not in row["annealed"] for row in rows.values())  # not for the record


def test_nobody_is_the_best_of_none() -> None:
    assert _behind(MNIST, {}) == {"best": None}


def test_a_lucky_single_seed_does_not_beat_the_mean_of_many() -> None:
    many = _over_annealed({0: _cell(91.0, 91.0), 1: _cell(97.0, 97.0), 2: _cell(97.0, 97.0)})  # a mean of 95
    found = _behind(MNIST, {"one": _over_annealed({0: _cell(94.0, 94.0)}), "many": many})
    assert found["best"] == "many"
    assert found["annealed_behind_the_best"]["one"] == pytest.approx([3.0, 0.0])
