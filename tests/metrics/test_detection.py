"""AUROC and its standard error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from arcsm.metrics import auroc, auroc_standard_error


def test_outliers_with_higher_scores_have_an_auroc_of_one() -> None:
    low, high = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert auroc(low, high) == 1.0
    assert auroc(high, low) == 0.0
    assert auroc(low, low) == 0.5


def test_the_bootstrap_error_matches_the_spread_over_new_samples() -> None:
    rng = torch.Generator().manual_seed(0)

    def drawn() -> tuple[Tensor, Tensor]:
        return torch.randn(80, generator=rng), torch.randn(60, generator=rng) + 0.7

    spread = float(np.std([auroc(*drawn()) for _ in range(200)]))
    found = float(np.mean([auroc_standard_error(*drawn(), seed=seed) for seed in range(10)]))
    assert found == pytest.approx(spread, rel=0.15)
    assert auroc_standard_error(torch.zeros(5), torch.ones(4)) == 0.0


@pytest.mark.parametrize("scores", [torch.tensor([]), torch.tensor([math.nan]), torch.zeros(2, 2)])
def test_invalid_scores_raise(scores: Tensor) -> None:
    with pytest.raises(ValueError, match="outliers: expected finite scores"):
        auroc(torch.zeros(2), scores)
