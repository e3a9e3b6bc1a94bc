"""The training loop: it resumes exactly, stops at the end of a step and loses nothing."""

from __future__ import annotations

import math
import random
import signal
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from arcsm import (
    MADE,
    AutoregressiveModel,
    GaussianHead,
    NoiseLadder,
    ScoreHead,
    TrainConfig,
    TrainingDiverged,
    fit,
    load,
)
from arcsm.data.toys import toy
from arcsm.errors import TrainingWarning
from arcsm.training.checkpoint import STATE_NAME
from arcsm.training.density import DensityTask
from arcsm.training.log import read_metrics
from small_runs import (
    COMMAND,
    PATIENCE,
    TINY,
    at_work,
    before_step,
    correlated_rows,
    have_same_weights,
    interrupt,
    short_config,
    small_density,
)


@pytest.mark.parametrize("cut", [1, 20])
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, cut: int) -> None:
    x, held_out = correlated_rows(), correlated_rows(seed=5)
    whole = small_density()
    expected = fit(whole, x, held_out, short_config(), run=tmp_path / "whole")
    with before_step(cut, interrupt), pytest.raises(KeyboardInterrupt):
        fit(small_density(), x, held_out, short_config(checkpoint_seconds=0), run=tmp_path / "cut")
    resumed = small_density(seed=9)  # its initial weights must not matter
    result = fit(resumed, x, held_out, short_config(), run=tmp_path / "cut", resume=True)
    assert have_same_weights(whole, resumed)
    assert (result.best_step, result.best_loss) == (expected.best_step, expected.best_loss)
    for column in ("step", "loss", "valid", "learning_rate"):
        assert [row[column] for row in result.history] == [row[column] for row in expected.history]
    logs = [read_metrics(tmp_path / name) for name in ("whole", "cut")]
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]]


def test_early_stopping_keeps_the_best_weights_and_a_resumed_run_stays_stopped(tmp_path: Path) -> None:
    x, held_out = correlated_rows(40), correlated_rows(400, seed=7)
    config = short_config(steps=4000, learning_rate=2e-2, ema=0.0, patience=3)
    models = [small_density(noise=False) for _ in range(2)]
    result = fit(models[0], x, held_out, config, run=tmp_path)
    assert result.stopped_early
    assert result.steps < 4000
    assert result.best_loss == min(row["valid"] for row in result.history)
    assert result.best_step == result.steps - 3 * 10
    again = fit(models[1], x, held_out, config, run=tmp_path, resume=True)
    assert (again.steps, again.stopped_early) == (result.steps, True)
    assert have_same_weights(*models)


def test_a_signal_stops_after_the_step_and_keeps_it(tmp_path: Path) -> None:
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(steps=9, batch_size=8, device="cpu", checkpoint_seconds=1e9)
    whole, resumed = small_density(), small_density()
    fit(whole, x, x, config)
    before = signal.getsignal(signal.SIGTERM)
    interrupted = pytest.raises(KeyboardInterrupt, match="after step 5")
    with before_step(4, lambda _: signal.raise_signal(signal.SIGTERM)), interrupted:
        fit(small_density(), x, x, config, run=tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before
    fit(resumed, x, x, config, run=tmp_path, resume=True)
    assert have_same_weights(whole, resumed)


@pytest.mark.slow
def test_thirty_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY % (6000, 0.0))  # a checkpoint after every step: most kills hit one
    moments = random.Random(0)

    def start(folder: str) -> AbstractContextManager[subprocess.Popen[str]]:
        return at_work(*COMMAND, "train", tmp_path / "tiny.yaml", "--out", tmp_path / folder, "--resume")

    state = tmp_path / "killed" / STATE_NAME
    killed = 0
    while killed < 30:
        before = state.stat().st_mtime_ns if state.exists() else 0
        with start("killed") as process:
            while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
                time.sleep(0.01)
            time.sleep(moments.uniform(0.0, 0.4))
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
        killed += 1
    assert killed == 30
    for folder in ("killed", "whole"):
        with start(folder) as process:
            output = process.communicate(timeout=4 * PATIENCE)
        assert process.returncode == 0, output
    assert have_same_weights(load(tmp_path / "killed"), load(tmp_path / "whole"))


def test_divergence_reports_step_and_cause_and_keeps_good_weights(tmp_path: Path) -> None:
    def break_weights(task: DensityTask) -> None:
        with torch.no_grad():
            next(task.model.head.parameters())[0, 0] = math.nan

    model, message = small_density(), r"step 15: .*head\.hidden\.0\.weight is not finite.*step 10"
    with before_step(15, break_weights), pytest.raises(TrainingDiverged, match=message):
        fit(model, correlated_rows(), correlated_rows(seed=3), short_config(), run=tmp_path)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert have_same_weights(model, load(tmp_path))


def test_held_out_rows_without_a_finite_loss_end_training() -> None:
    model, x = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4)), torch.randn(100, 2)
    with pytest.raises(TrainingDiverged, match="the objective on held-out rows is inf; one of them may be far"):
        fit(model, x, torch.cat([x, x.new_full((1, 2), 1e25)]), short_config(objective="mle"))


def test_a_breakdown_with_finite_losses_warns() -> None:
    x = toy("two_moons").sample(2000, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    head = ScoreHead(8, (16, 16), sinusoids=8, residual=True)
    model = AutoregressiveModel(MADE(2, 8, (16,)), head, NoiseLadder(2.0, 0.05, 5))
    settings = short_config(  # the warm-up takes the whole run
        steps=400, learning_rate=1.0, warmup_steps=400, schedule="constant", validate_every=50
    )
    with pytest.warns(TrainingWarning, match=r"broke down after step \d+: .* lower learning_rate \(1\)"):
        history = fit(model, x, config=settings).history
    assert history[-1]["loss"] > min(row["loss"] for row in history)
