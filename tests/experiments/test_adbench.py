"""The split of tables with outliers, of which some may be fitted."""

from pathlib import Path

import numpy as np
import pytest

from arcsm.experiments.adbench import split_outliers


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Return the file of 100 normal rows and 20 outliers, whose first column is their number."""
    numbers = np.arange(120.0)
    path = tmp_path / "table.npz"
    np.savez(path, X=np.stack([numbers, (numbers >= 100) * 50.0 + numbers % 7], 1), y=(numbers >= 100).astype(int))
    return path


@pytest.mark.parametrize(("share", "fitted"), [(0.0, 0), (0.1, 6), (0.4, 10)])
def test_fitted_outliers_are_not_in_the_test(table: Path, share: float, fitted: int) -> None:
    train, test, anomalous = split_outliers(table, 0, 1000, 1000, share)
    assert len(train) == 50 + fitted
    assert anomalous.sum() == 20 - fitted
    assert len(test) == 50 + 20 - fitted
    every = np.concatenate([train, test])[:, 0]
    assert len(np.unique(every.round(9))) == 120
