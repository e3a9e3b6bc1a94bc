"""Reports on few rows, for the tests of commands and pages that write one."""

from __future__ import annotations

import pytest
from torch import Tensor

from arcsm import metrics
from arcsm.implicit.evidence.annealing import Annealing
from arcsm.reports import plots, run, vae


def use_small_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reports draw and measure less than a reader needs."""
    sizes = {
        run: {"_MAX_TEST_ROWS": 20, "_MAX_PIT_VALUES": 500, "_TABLE_SAMPLES": 100},
        plots: {"_GRID_POINTS": 10},
        vae: {"_IMAGES": 10, "_SAMPLES": 20, "_SIMULATED_IMAGES": 4, "_ANNEALING": Annealing(temperatures=5, chains=2)},
    }
    for module, values in sizes.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    scores = metrics.gaussian_mixture_scores

    def of_few_rows(train: Tensor, *rest: object) -> dict[str, float]:
        return scores(train[:200], *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(metrics, "gaussian_mixture_scores", of_few_rows)
