"""Callbacks and the log by steps: what is called when, what it sees, and how it ends the training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.optim.lr_scheduler import ReduceLROnPlateau

from arcsm import FitResult, TrainConfig, fit
from arcsm.training import TrainingState
from arcsm.training.log import read_metrics
from small_runs import before_step, correlated_rows, have_same_weights, interrupt, short_config, small_density


class Recorder:
    """Records the events of a training, and may stop it."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[tuple[str, int]] = []
        self.stop_at = stop_at

    def on_step(self, state: TrainingState) -> None:
        assert state.model.training
        state.model.eval()
        if state.step == self.stop_at:
            state.stop()

    def on_log(self, state: TrainingState) -> None:
        assert state.metrics["step"] == state.step
        self.events.append(("log", state.step))

    def on_validation(self, state: TrainingState) -> None:
        assert "valid" in state.metrics
        assert not state.averaged_model.training
        self.events.append(("validation", state.step))

    def on_checkpoint(self, state: TrainingState) -> None:
        self.events.append(("checkpoint", state.step))


def train(callbacks: Sequence[Any] = (), config: TrainConfig | None = None, **options: Any) -> tuple[Any, FitResult]:
    model = small_density()
    config = config or short_config(validate_every=4, steps=8)
    return model, fit(model, correlated_rows(), correlated_rows(90, seed=5), config, callbacks=callbacks, **options)


def test_callbacks_are_called_after_steps_rows_validations_and_checkpoints(tmp_path: Path) -> None:
    recorder, losses = Recorder(), []
    train([recorder, lambda state: losses.append(state.loss)], run=tmp_path / "run")
    assert recorder.events == [("log", 4), ("validation", 4), ("log", 8), ("validation", 8), ("checkpoint", 8)]
    assert len(losses) == 8
    assert len(set(losses)) == 8


def test_callbacks_leave_the_weights_as_they_are() -> None:
    assert have_same_weights(train([Recorder()])[0], train()[0])


@pytest.mark.parametrize("stop_at", [4, 6])
def test_a_callback_ends_the_training_with_a_validation(stop_at: int, tmp_path: Path) -> None:
    result = train([Recorder(stop_at)], run=tmp_path / "run")[1]
    assert (result.steps, result.stopped_early) == (stop_at, True)
    assert [row["step"] for row in result.history] == sorted({4, stop_at})
    resumed, finished = train(run=tmp_path / "run", resume=True)
    assert (finished.steps, finished.stopped_early) == (8, False)
    assert have_same_weights(resumed, train()[0])


@pytest.mark.parametrize("patience", [None, 2])
def test_the_validation_at_a_stop_counts_neither_for_the_scheduler_nor_for_patience(
    patience: int | None, tmp_path: Path
) -> None:
    scheduler = partial(ReduceLROnPlateau, patience=0, factor=0.5, threshold=10.0, threshold_mode="abs")
    config = short_config(steps=12, validate_every=4, learning_rate=0.05, patience=patience)
    options: dict[str, Any] = {"config": config, "scheduler": None if patience else scheduler}
    whole, expected = train(**options)
    stopped = train([Recorder(6)], run=tmp_path / "run", **options)[1]
    resumed, finished = train(run=tmp_path / "run", resume=True, **options)
    assert [row["step"] for row in stopped.history] == [4, 6]
    assert (finished.steps, finished.best_step) == (expected.steps, expected.best_step)
    for column in ("step", "valid", "learning_rate"):
        assert [row[column] for row in finished.history] == [row[column] for row in expected.history]
    assert have_same_weights(resumed, whole)


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (3, "callbacks: expected a sequence of functions or objects, got int"),
        ([3], "callbacks: expected a function or an object with on_step, .*, got int"),
        ([Recorder], "callbacks: expected an instance, got the class Recorder"),
    ],
)
def test_other_callbacks_are_rejected(callbacks: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        train(callbacks)


@pytest.mark.parametrize("cut", [5, 6, 10])
def test_the_log_has_rows_between_validations_and_keeps_them(cut: int, tmp_path: Path) -> None:
    config = short_config(steps=12, validate_every=4, log_every=3, checkpoint_seconds=0)
    expected = train(config=config, run=tmp_path / "whole")[1]
    with before_step(cut, interrupt), pytest.raises(KeyboardInterrupt):
        train(config=config, run=tmp_path / "cut")
    train(config=config, run=tmp_path / "cut", resume=True)
    logs = [read_metrics(tmp_path / name) for name in ("whole", "cut")]
    for log in logs:
        assert [(row["step"], "valid" in row) for row in log] == [
            (3, False), (4, True), (6, False), (8, True), (9, False), (12, True)
        ]  # fmt: skip
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    assert [row["step"] for row in expected.history] == [4, 8, 12]
