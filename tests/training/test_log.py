"""The log of a training run: metrics.csv, TensorBoard and Lightning loggers."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.logger import Logger

from arcsm import fit
from arcsm.training.log import find_breakdown, read_metrics
from small_runs import before_step, correlated_rows, interrupt, short_config, small_density


def test_tensorboard_needs_a_run() -> None:
    with pytest.raises(ValueError, match="tensorboard: expected a folder for the event files; give fit a run"):
        fit(small_density(), correlated_rows(), config=short_config(tensorboard=True))


def test_metrics_are_logged_to_csv_and_tensorboard(tmp_path: Path) -> None:
    fit(small_density(), correlated_rows(), correlated_rows(seed=3), short_config(tensorboard=True), run=tmp_path)
    found = read_metrics(tmp_path)
    assert [row["step"] for row in found] == [10, 20, 30]
    assert {"loss", "valid", "learning_rate", "seconds"} <= found[0].keys()
    board = tmp_path / "tensorboard"
    assert events(next(board.glob("events*")))[1].step == 1  # voids what an earlier process has logged
    (file,) = board.glob("events*")
    assert [(step, value) for name, step, value in scalars(file) if name == "loss"] == [
        (int(row["step"]), pytest.approx(row["loss"])) for row in found
    ]
    assert {name for name, _, _ in scalars(file)} == {"loss", "valid", "learning_rate", "seconds"}


def events(file: Path) -> list[Any]:
    """Return the TensorBoard events of a file: each follows its length and precedes its checksum."""
    event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    data, found = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("Q", data[:8])
        found.append(event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def scalars(file: Path) -> list[tuple[str, int, float]]:
    return [(value.tag, event.step, value.simple_value) for event in events(file) for value in event.summary.value]


class RecordingLogger(Logger):
    """A logger that records all calls."""

    name, version = "recording", 0

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        self.status = ""

    def log_hyperparams(self, params: Mapping[str, Any], *_: Any, **__: Any) -> None:
        self.settings = dict(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.metrics.append((step, dict(metrics)))

    def finalize(self, status: str) -> None:
        self.status = status


def test_loggers_receive_the_rows_of_the_log_and_are_finalised_after_an_interruption(tmp_path: Path) -> None:
    logger, aborted, x = RecordingLogger(), RecordingLogger(), torch.randn(64, 2)
    numbers_only = CSVLogger(tmp_path, name="log", version="one")
    config = short_config(steps=6, batch_size=8, validate_every=2)
    result = fit(small_density(), x, x[:16], config, loggers=[logger])
    assert (logger.settings["steps"], logger.status) == (6, "success")
    assert [step for step, _ in logger.metrics] == [2, 4, 6]
    for (_, metrics), row in zip(logger.metrics, result.history, strict=True):
        assert metrics == {name: value for name, value in row.items() if name != "step"}
    with before_step(4, interrupt), pytest.raises(KeyboardInterrupt):
        fit(small_density(), x, x, config, loggers=[numbers_only, aborted])
    assert aborted.status == "aborted"
    assert len((tmp_path / "log" / "one" / "metrics.csv").read_text().splitlines()) == 1 + 2


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_no_breakdown(seed: int) -> None:
    losses = np.random.default_rng(seed).normal(size=40).tolist()
    falling = [{"step": 50.0 * (i + 1), "loss": loss - 0.1 * i} for i, loss in enumerate(losses)]
    assert find_breakdown(falling) is None
    assert find_breakdown(falling[:7]) is None  # too few losses
    rising = [{"step": row["step"], "loss": -row["loss"]} for row in falling]
    breakdown = find_breakdown(rising)
    assert breakdown is not None
    assert breakdown.last > breakdown.best
    assert breakdown.step <= 1000
