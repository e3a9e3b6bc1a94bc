"""Models of images and tables, with random weights, for the tests of the commands and the web page."""

from __future__ import annotations

import numpy as np
import torch

from arcsm import MADE, AutoregressiveModel, GaussianHead, NoiseLadder, ScoreHead


def image_model(shape: tuple[int, int, int] = (1, 4, 6), classes: int = 0, levels: int = 17) -> AutoregressiveModel:
    torch.manual_seed(0)
    size = int(np.prod(shape))
    made, metadata = MADE(size, 4, (16,), classes=classes), {"image_shape": list(shape), "levels": levels}
    return AutoregressiveModel(made, ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 6), metadata=metadata).eval()


def table_model() -> AutoregressiveModel:
    torch.manual_seed(0)
    return AutoregressiveModel(
        MADE(3, 4, (8,)),
        GaussianHead(4),
        shift=[10.0, 0.0, -5.0],
        scale=[2.0, 1.0, 0.1],
        metadata={"columns": list("abc")},
    ).eval()
