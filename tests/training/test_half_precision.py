"""Mixed precision: losses are scaled so that gradients do not vanish, and clipping and errors are about true ones."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, TrainConfig, fit
from arcsm.training import TrainingDiverged
from arcsm.training.callbacks import TrainingState


def rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3000, 6, generator=generator) @ torch.randn(6, 6, generator=generator)


def density(seed: int = 0) -> AutoregressiveModel:
    torch.manual_seed(seed)
    return AutoregressiveModel(MADE(6, 16, (64, 64)), GaussianHead(16))


def config(precision: str, **changes: Any) -> TrainConfig:
    return TrainConfig(objective="mle", device="cpu", precision=precision, **{"steps": 200, **changes})


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_steps_with_gradients_beyond_half_precision_are_left_out(seed: int) -> None:
    x = rows()
    losses = {}
    for precision in ("32-true", "16-mixed"):
        result = fit(density(seed), x[:2500], x[2500:], config(precision, steps=400, validate_every=50, seed=seed))
        losses[precision] = result.best_loss
    assert losses["16-mixed"] == pytest.approx(losses["32-true"], abs=0.05)


@pytest.mark.parametrize("clip_norm", [None, 10.0, 0.1])
def test_gradients_are_clipped_in_their_own_units(clip_norm: float | None) -> None:
    x, moved = 0.1 * rows()[:64], dict[str, Tensor]()
    for precision in ("32-true", "16-mixed"):
        model = density()
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        settings = config(precision, steps=4, warmup_steps=0, clip_norm=clip_norm, ema=0.0, schedule="constant")
        fit(model, x, config=_without_rate(settings), optimizer=partial(torch.optim.SGD, lr=1e-3))
        moved[precision] = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before
    difference = (moved["16-mixed"] - moved["32-true"]).norm() / moved["32-true"].norm()
    assert float(difference) < 0.05


def _without_rate(settings: TrainConfig) -> TrainConfig:
    return TrainConfig(**settings.model_dump(exclude={"learning_rate", "weight_decay"}, exclude_unset=True))


def test_a_resumed_run_has_the_scale_of_its_losses(tmp_path: Path) -> None:
    x, settings = rows(), config("16-mixed", steps=60)

    class Interrupted:
        def on_step(self, state: TrainingState) -> None:
            if state.step == 30:
                raise KeyboardInterrupt

    whole, parts = density(), density()
    fit(whole, x, config=settings, run=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(parts, x, config=settings.model_copy(update={"checkpoint_seconds": 0.0}), run=tmp_path / "parts",
            callbacks=[Interrupted()])  # fmt: skip
    fit(parts, x, config=settings, run=tmp_path / "parts", resume=True)
    for first, second in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(first, second)


def test_gradients_that_are_never_finite_end_the_training() -> None:
    def objective(model: AutoregressiveModel, x: Tensor, **_: Any) -> Tensor:
        return 0.0 * model.log_prob(x).mean() + _Broken.apply(next(model.parameters()).sum())

    with pytest.raises(TrainingDiverged, match="norm of the gradient is nan"):
        fit(density(), rows(), config=config("16-mixed", steps=100), objective=objective)


class _Broken(torch.autograd.Function):
    """Zero, with a gradient that is not a number."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return 0.0 * x

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.nan
