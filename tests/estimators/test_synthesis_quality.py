"""The quality of synthetic rows: separable rows and copies are detected, others are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from arcsm.estimators import SynthesisQuality, synthesis_quality
from arcsm.estimators.encoder import Columns
from arcsm.estimators.synthesis_quality import UnseenPairs
from small_tables import correlated_table


def density_of(table: pd.DataFrame) -> Any:
    """Return what a measurement takes from a density of the table: its columns, and which rows are held out."""
    held_out = np.random.default_rng(3).permutation(len(table))[: round(0.15 * len(table))]
    return SimpleNamespace(columns_=Columns.infer(table), held_out_rows_=held_out, verbose=False)


def number(found: float | None) -> float:
    assert found is not None
    return found


def quality(table: pd.DataFrame, synthetic: pd.DataFrame) -> SynthesisQuality:
    return SynthesisQuality.measure(density_of(table), table, synthetic)


def excess(found: SynthesisQuality) -> float:
    """Return by how many standard deviations the share of nearest training rows exceeds its mean."""
    assert found.nearest is not None
    return (found.nearest.training - found.nearest.expected) / found.nearest.error


def test_rows_of_the_same_distribution_are_indistinguishable() -> None:
    found = quality(correlated_table(1_000), correlated_table(1_000, seed=1))
    assert found.held_out == 150
    assert abs(number(found.auc) - 0.5) < 3.0 * number(found.auc_error)
    assert found.copies == found.held_out_copies == 0.0
    assert found.nearest is not None
    assert found.nearest.expected == 0.85
    assert abs(excess(found)) < 3.0
    assert len(found.lines()) == 4


def test_rows_with_shuffled_columns_are_distinguished() -> None:
    synthetic = correlated_table(1_000, seed=1)
    synthetic["b"] = synthetic["b"].to_numpy()[::-1]
    assert number(quality(correlated_table(1_000), synthetic).auc) > 0.9


def test_memorised_rows_are_detected() -> None:
    table = correlated_table(1_000)
    density = density_of(table)
    fitted = table.drop(index=density.held_out_rows_)
    assert SynthesisQuality.measure(density, table, fitted.sample(500, random_state=0)).copies == 1.0
    nearly_copied = fitted.sample(500, random_state=0)
    nearly_copied["a"] += 1e-6
    found = SynthesisQuality.measure(density, table, nearly_copied)
    assert found.copies == 0.0
    assert excess(found) > 5.0


def test_the_error_of_the_nearest_training_rows_is_their_standard_deviation() -> None:
    table, synthetic = correlated_table(600), correlated_table(400, seed=1)
    density = density_of(table)
    shares, errors = [], []
    for seed in range(100):  # each with other held-out rows
        density.held_out_rows_ = np.random.default_rng(seed).permutation(600)[:90]
        held_out = np.isin(np.arange(600), density.held_out_rows_)
        numbers = [density.columns_.encode(one) for one in (table, synthetic)]
        found = synthesis_quality._nearest_rows(  # private: without the slow classifier
            density.columns_, numbers[0], held_out, numbers[1], np.random.default_rng(seed)
        )
        shares.append(found.training)
        errors.append(found.error)
    assert np.mean(shares) == pytest.approx(0.85, abs=3.0 * np.std(shares) / 100**0.5)
    assert np.std(shares) == pytest.approx(np.mean(errors), rel=0.2)


def test_missing_values_do_not_distinguish_synthetic_rows() -> None:
    table = correlated_table(1_000)
    table.loc[np.random.default_rng(2).random(1_000) < 0.4, ["b", "city"]] = None
    found = quality(table, correlated_table(1_000, seed=1))
    assert abs(number(found.auc) - 0.5) < 3.0 * number(found.auc_error)
    assert "missing values that depend" in found.lines()[0]


def test_almost_empty_columns_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis_quality, "_MAX_CLASSIFIED", 60)
    monkeypatch.setattr(synthesis_quality, "_MAX_REAL_NEIGHBOURS", 80)
    table = correlated_table(1_000).assign(rare=np.where(np.arange(1_000) < 3, np.arange(1_000) + 0.5, np.nan))
    density = density_of(table)
    found = SynthesisQuality.measure(density, table, correlated_table(500, seed=1).assign(rare=1.5))
    assert found.nearest is not None
    assert np.isfinite([number(found.auc), found.nearest.training, found.nearest.expected]).all()
    assert "training rows among complete rows" in found.lines()[1]
    incomplete = table.assign(
        rare=np.where(np.arange(1_000) % 2, table["rare"] + 1.0, np.nan), a=table["a"].where(table.index % 2 == 0)
    )
    assert "every row has missing values" in quality(incomplete, correlated_table(500).assign(rare=1.0)).lines()[1]


def test_broken_rules_are_measured() -> None:
    random = np.random.default_rng(0)
    nation = random.permutation(np.arange(1_000) % 4)
    table = pd.DataFrame(
        {"nation": np.array(list("abcd"))[nation], "zone": nation // 2, "a": random.normal(size=1_000)}
    )
    synthetic = table.copy()
    synthetic.loc[:49, "zone"] = 1 - synthetic.loc[:49, "zone"]
    found = quality(table, synthetic)
    assert found.unseen_pairs == UnseenPairs(0.05, 0.0)
    assert "no training row has: 5.0% (0.0% of held-out rows" in found.lines()[3]
    gaps = table.assign(zone=table["zone"].where(random.random(1_000) < 0.5))
    halved = quality(gaps, synthetic).unseen_pairs
    assert halved is not None
    assert 0.01 < halved.synthetic < 0.04  # as many values are missing as in the table
    assert quality(table[["zone", "a"]], synthetic[["zone", "a"]]).unseen_pairs is None


@pytest.mark.parametrize(("fitted", "drawn"), [(200, 200), (1_000, 10)])
def test_quality_is_not_measured_on_few_rows(fitted: int, drawn: int) -> None:
    found = quality(correlated_table(fitted), correlated_table(drawn, seed=1))
    assert (found.auc, found.auc_error, found.nearest) == (None, None, None)
    assert f"(got {drawn if drawn == 10 else found.held_out})" in found.lines()[0]
