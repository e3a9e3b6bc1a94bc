"""Arguments that no call can serve: the error names the argument, what is expected and what was given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arcsm import MADE, AutoregressiveModel, GaussianHead
from arcsm.anomaly import Combination
from arcsm.data import TOYS, read_images
from arcsm.estimators import ScoreClassifier, ScoreDensity
from arcsm.implicit import DenseTrunk
from arcsm.queries import Intervals, Levels

ROWS = np.random.default_rng(0).normal(size=(30, 2))
SCORES = {"a": torch.arange(8.0), "b": torch.arange(8.0).square()}


def model() -> AutoregressiveModel:
    return AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Combination(knots=1).fit(SCORES), "knots: expected at least 2, got 1"),
        (lambda: Combination().fit({"a": torch.zeros(2)}), "inliers: expected at least 3 rows, got 2"),
        (lambda: Combination().fit({**SCORES, "b": torch.zeros(5)}), "inliers: expected columns of one length"),
        (lambda: Combination().score(SCORES), "not fitted yet"),
        (lambda: TOYS["rings"].sample(0, torch.Generator()), "n: expected a positive integer, got 0"),
        (lambda: TOYS["rings"].log_prob(torch.zeros(4, 3)), r"x: expected floating-point points of shape \(\*, 2\)"),
        (lambda: read_images(Path(), channels=2), "channels: expected 1, 3 or None, got 2"),
        (lambda: read_images(Path(), key="x"), "key: expected None for a folder of images, got 'x'"),
        (lambda: read_images(Path(), size=0), "size: expected a positive integer or None, got 0"),
        (lambda: model().icdf(torch.zeros(3, 5)), r"u: expected shape \(\*, 2\), got \(3, 5\)"),
        (lambda: Intervals([]), "bounds: expected at least one interval, got none"),
        (lambda: Levels([]), "levels: expected at least one, got none"),
        (lambda: DenseTrunk(2, ()), "hidden_features: expected at least one layer, got none"),
        (lambda: ScoreDensity(hidden_features=(0,)).fit(ROWS), "hidden_features: expected whole numbers of at least 1"),
        (lambda: ScoreDensity(validation_fraction=1.0).fit(ROWS), "validation_fraction: expected a number between 0"),
        (lambda: ScoreDensity().fit(np.zeros((0, 2))), "0 sample"),
        (lambda: ScoreClassifier().fit(ROWS, None), "y: expected labels; ScoreClassifier requires y to be passed"),
    ],
)
def test_the_error_names_the_argument(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
