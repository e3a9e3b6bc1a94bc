"""Files as releases write them, which later versions must read.

``python tests/released_files.py`` writes those of the current version to ``tests/released``, before it is released.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

import arcsm
from arcsm.cli.fitted_tables import FittedTable
from arcsm.data import FrameFile
from arcsm.estimators import (
    ScoreClassifier,
    ScoreDensity,
    ScoreImputer,
    ScoreOutlierDetector,
    ScoreRegressor,
    forest,
    hinted_density,
)

FOLDER = Path(__file__).with_name("released")
ROWS = 130  # enough for a regressor to grow trees
SMALL: dict[str, Any] = {"max_steps": 3, "n_estimators": 1, "hidden_features": (6,), "random_state": 0}

Numbers = list[float]


def scores_of_model(path: Path, rows: pd.DataFrame) -> Numbers:
    x = torch.tensor(rows[["width", "fee"]].head(5).to_numpy(), dtype=torch.float32)
    return [float(value) for value in arcsm.load(path).log_prob(x)]


def scores_of_density(path: Path, rows: pd.DataFrame) -> Numbers:
    return ScoreDensity.load(path).score_samples(rows.head(5)).tolist()


def scores_of_detector(path: Path, rows: pd.DataFrame) -> Numbers:
    detector = ScoreOutlierDetector.load(path)
    return [*detector.score_samples(rows.head(5)).tolist(), *detector.p_values(rows.head(5)).tolist()]


def means_of_regressor(path: Path, rows: pd.DataFrame) -> Numbers:
    return ScoreRegressor.load(path).predict(rows.drop(columns="fee").head(5)).tolist()


def probabilities_of_classifier(path: Path, rows: pd.DataFrame) -> Numbers:
    return ScoreClassifier.load(path).predict_proba(rows.drop(columns="city").head(3)).flatten().tolist()


def imputed_numbers(path: Path, rows: pd.DataFrame) -> Numbers:
    gaps = rows.head(5).assign(fee=np.nan)
    return pd.DataFrame(ScoreImputer.load(path).transform(gaps))["fee"].tolist()


def scores_of_fitted_table(path: Path, rows: pd.DataFrame) -> Numbers:
    fitted = FittedTable.read(path)
    assert fitted.density is not None
    assert fitted.detector is not None
    scores = fitted.detector.score_samples(rows.head(5))
    return [*scores.tolist(), *fitted.density.score_samples(rows.head(5)).tolist()]


#: By the name of a file: what it says of rows.
ANSWERS: dict[str, Callable[[Path, pd.DataFrame], Numbers]] = {
    "model": scores_of_model,
    "density": scores_of_density,
    "detector": scores_of_detector,
    "fast_detector": scores_of_detector,
    "regressor": means_of_regressor,
    "classifier": probabilities_of_classifier,
    "imputer": imputed_numbers,
    "fitted_table": scores_of_fitted_table,
}


def write_table(path: Path) -> None:
    random = np.random.default_rng(0)
    width = random.normal(size=ROWS).round(3)
    table = pd.DataFrame(
        {
            "width": np.where(np.arange(ROWS) % 11 == 7, np.nan, width),
            "fee": (10.0 + 2.0 * width + random.exponential(size=ROWS)).round(2),
            "visits": random.poisson(3.0, ROWS),
            "city": np.where(width + random.normal(size=ROWS) > 0.0, "Rome", "Turin"),
            "day": pd.Timestamp("2026-01-01") + pd.to_timedelta(random.integers(0, 300, ROWS), "D"),
        }
    )
    table.to_csv(path, index=False)


@torch.no_grad()
def change_weights(network: torch.nn.Module, scale: float = 0.3) -> None:
    """Change the weights at random, as few steps of training leave some without effect."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.add_(scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))


def write_files(folder: Path) -> None:
    """Write a file of each kind, and what they say now."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "table.csv")
    file = FrameFile(folder / "table.csv")
    rows = file.read()
    complete, numbers = rows.dropna(), rows[["width", "fee"]].dropna()
    torch.manual_seed(0)
    model = arcsm.AutoregressiveModel(
        arcsm.MADE(2, 4, (8,)), arcsm.ScoreHead(4, (8,), sinusoids=2), arcsm.NoiseLadder(2.0, 0.1, 5)
    )
    x = torch.tensor(numbers.to_numpy(), dtype=torch.float32)
    arcsm.fit(model, x, config=arcsm.TrainConfig(steps=20, batch_size=32, seed=0))
    change_weights(model)
    arcsm.save(model, folder / "model.safetensors")
    density, detector = ScoreDensity(**SMALL).fit(rows), ScoreOutlierDetector(**SMALL).fit(rows)
    fast = ScoreOutlierDetector(fast=True, **SMALL).fit(rows)
    with patch.object(forest, "_LEAST_TREES", 2), patch.object(forest, "_ROWS_OF_ALL_TREES", 1), \
            patch.object(hinted_density, "_TREES_OF_FOLD", 2):  # fmt: skip
        regressor = ScoreRegressor(**SMALL).fit(complete.drop(columns="fee"), complete["fee"])
    classifier = ScoreClassifier(**SMALL).fit(complete.drop(columns="city"), complete["city"])
    imputer = ScoreImputer(**SMALL).fit(rows)
    for estimator in (density, detector, regressor, classifier, imputer.density_):
        change_weights(estimator.model_.model)
    change_weights(fast.model_.model, 0.03)  # far from its training, its tails are steep
    estimators = {
        "density": density, "detector": detector, "fast_detector": fast, "regressor": regressor,
        "classifier": classifier, "imputer": imputer,
    }  # fmt: skip
    for name, estimator in estimators.items():
        estimator.save(folder / f"{name}.safetensors")
    FittedTable.of_file(file, rows, density, detector).write(folder / "fitted_table.safetensors")
    found = {name: answer(folder / f"{name}.safetensors", rows) for name, answer in ANSWERS.items()}
    (folder / "answers.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    write_files(FOLDER / arcsm.__version__)
