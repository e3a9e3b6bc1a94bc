"""Mixed precision: losses are scaled so that gradients do not vanish, and clipping and errors are about true ones."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, TrainConfig, fit
from arcsm.training import TrainingDiverged
from small_runs import before_step, have_same_weights, interrupt


def rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3000, 6, generator=generator) @ torch.randn(6, 6, generator=generator)


def density() -> AutoregressiveModel:
    torch.manual_seed(0)
    return AutoregressiveModel(MADE(6, 16, (64, 64)), GaussianHead(16))


def config(precision: str, **changes: Any) -> TrainConfig:
    return TrainConfig(objective="mle", device="cpu", precision=precision, **{"steps": 200, **changes})


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_gradients_are_clipped_in_their_own_units(clip_norm: float | None) -> None:
    x, moved = 0.1 * rows()[:64], dict[str, Tensor]()
    for precision in ("32-true", "16-mixed"):
        model = density()
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        settings = config(precision, steps=4, warmup_steps=0, clip_norm=clip_norm, ema=0.0, schedule="constant")
        fit(model, x, config=settings, optimizer=partial(torch.optim.SGD, lr=1e-3))
        moved[precision] = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before
    difference = (moved["16-mixed"] - moved["32-true"]).norm() / moved["32-true"].norm()
    assert float(difference) < 0.05


def test_a_resumed_run_has_the_scale_of_its_losses(tmp_path: Path) -> None:
    x, settings = rows()[:500], config("16-mixed", steps=20)

    whole, parts = density(), density()
    fit(whole, x, config=settings)
    with before_step(10, interrupt), pytest.raises(KeyboardInterrupt):
        fit(parts, x, config=settings.model_copy(update={"checkpoint_seconds": 0.0}), run=tmp_path / "parts")
    fit(parts, x, config=settings, run=tmp_path / "parts", resume=True)
    assert have_same_weights(whole, parts)


def test_gradients_that_are_never_finite_end_the_training() -> None:
    def objective(model: AutoregressiveModel, x: Tensor, **_: Any) -> Tensor:
        return model.log_prob(x).mean() + (0.0 * next(model.parameters()).sum()).sqrt()  # of infinite slope

    with pytest.raises(TrainingDiverged, match="norm of the gradient is nan"):
        fit(density(), rows()[:100], config=config("16-mixed", steps=100), objective=objective)
