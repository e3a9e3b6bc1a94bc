"""Models as exported programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from arcsm import (
    MADE,
    AnyOrder,
    AutoregressiveModel,
    LogisticMixtureHead,
    NoiseLadder,
    PixelCNNPP,
    ScoreHead,
)
from arcsm.interop.export import export_scorer

EXPORTED = {
    "both conditions": lambda: AutoregressiveModel(
        MADE(3, 4, (8,), classes=5, condition_features=2), ScoreHead(4, (8,)), shift=2.0, scale=3.0
    ),
    "classes": lambda: AutoregressiveModel(MADE(3, 4, (8,), classes=5), LogisticMixtureHead(4, 3)),
    "every order": lambda: AutoregressiveModel(
        AnyOrder(3, 4, (8, 8), 6, small_sets=1, linear_features=True), ScoreHead(4, (8,), 3), NoiseLadder(1.0, 0.1, 4)
    ),
    "images": lambda: AutoregressiveModel(PixelCNNPP((1, 2, 2), 4, nr_filters=4, nr_resnet=1), ScoreHead(4, (8,))),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_scorer_gives_the_same_after_a_round_trip(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EXPORTED[name]().eval()
    torch.export.save(export_scorer(model), tmp_path / "scorer.pt2")
    scorer = torch.export.load(tmp_path / "scorer.pt2").module()
    for rows in (1, 7):
        labels, vectors = torch.randint(5, (rows,)), torch.randn(rows, 2)
        given: tuple[Any, ...] = {
            "classes": (labels,),
            "both conditions": ({"classes": labels, "vector": vectors},),
        }.get(name, ())
        x = 2.0 + 3.0 * torch.randn(rows, model.features)
        with torch.no_grad():
            torch.testing.assert_close(scorer(x, *given), model.score(x, -1, *given), rtol=1e-5, atol=1e-5)
