"""Callbacks and the log by steps: what is called when, what it sees, and how it ends the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

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


def test_a_callback_ends_the_training_with_a_validation(tmp_path: Path) -> None:
    result = train([Recorder(6)], run=tmp_path / "run")[1]
    assert (result.steps, result.stopped_early) == (6, True)
    assert [row["step"] for row in result.history] == [4, 6]
    resumed, finished = train(run=tmp_path / "run", resume=True)
    assert (finished.steps, finished.stopped_early) == (8, False)
    assert have_same_weights(resumed, train()[0])


@pytest.mark.parametrize(("callbacks", "message"), [(3, "a sequence of .*, got int"), ([Recorder], "got the class")])
def test_other_callbacks_are_rejected(callbacks: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"callbacks: expected .*{message}"):
        train(callbacks)


def test_the_log_has_rows_between_validations_and_keeps_them(tmp_path: Path) -> None:
    config = short_config(steps=12, validate_every=4, log_every=3, checkpoint_seconds=0)
    expected = train(config=config, run=tmp_path / "whole")[1]
    with before_step(5, interrupt), pytest.raises(KeyboardInterrupt):
        train(config=config, run=tmp_path / "cut")
    train(config=config, run=tmp_path / "cut", resume=True)
    logs = [read_metrics(tmp_path / name) for name in ("whole", "cut")]
    for log in logs:
        assert [(row["step"], "valid" in row) for row in log] == [
            (3, False), (4, True), (6, False), (8, True), (9, False), (12, True)
        ]  # fmt: skip
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    assert [row["step"] for row in expected.history] == [4, 8, 12]
