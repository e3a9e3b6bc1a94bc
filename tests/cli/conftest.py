"""Small runs on images and on a table, a fitted table, and small models of all other tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arcsm.cli.fitted_tables import FittedTable
from small_fitted_tables import fitted_table
from small_runs import call
from small_tables import use_small_models

RUN = """
name: tiny
data: {kind: %s}
model:
  context: {kind: MADE, hidden_features: [16], context_features: 4}
  head: {kind: ScoreHead, hidden_features: [16]}
  noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 4}
train: {steps: 20, batch_size: 64, device: cpu, validate_every: 10, standardise: %s}
"""


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)


@pytest.fixture(scope="session")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of a model of digits; its configuration file is beside it."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "tiny.yaml").write_text(RUN % ("digits", "none"))
    assert call("train", folder / "tiny.yaml", "--out", folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="session")
def table_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of a model of a table, which is beside it."""
    folder = tmp_path_factory.mktemp("table")
    table = np.random.default_rng(0).normal(size=(300, 3))
    np.savetxt(folder / "data.csv", table, delimiter=",", header="a,b,c", comments="")
    (folder / "tiny.yaml").write_text(RUN % (f"table, path: {folder / 'data.csv'}", "columns"))
    assert call("train", folder / "tiny.yaml", "--out", folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[FittedTable, Path]:
    """Return a fitted table, and its file."""
    path = tmp_path_factory.mktemp("fitted") / "rows.csv"
    return fitted_table(path), path
