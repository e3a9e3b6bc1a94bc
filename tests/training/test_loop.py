"""The training loop: it resumes exactly, stops at the end of a step and loses nothing."""

from __future__ import annotations

import copy
import math
import multiprocessing
import random
import re
import signal
import subprocess
import time
import warnings
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


@pytest.mark.parametrize("cut", [1, 7, 20])
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


def fit_with_a_checkpoint_after_every_step(run: Path) -> None:
    torch.set_num_threads(1)
    config = short_config(steps=400, checkpoint_seconds=0)
    fit(small_density(), correlated_rows(), correlated_rows(seed=5), config, run=run, resume=True)


def test_sigkill_loses_nothing(tmp_path: Path) -> None:
    def finish(run: Path) -> None:
        fit(small_density(), correlated_rows(), correlated_rows(seed=5), short_config(steps=400), run=run, resume=True)

    state = tmp_path / "killed" / STATE_NAME
    for attempt in range(2):
        before = state.stat().st_mtime_ns if state.exists() else 0
        fork = multiprocessing.get_context("fork")  # saves the seconds of the imports
        process = fork.Process(target=fit_with_a_checkpoint_after_every_step, args=(tmp_path / "killed",), daemon=True)
        process.start()
        while not state.exists() or state.stat().st_mtime_ns == before:
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(0.05 * attempt)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the forks
    try:
        finish(tmp_path / "killed")
        finish(tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert have_same_weights(load(tmp_path / "whole"), load(tmp_path / "killed"))


def test_early_stopping_keeps_the_best_weights() -> None:
    model = small_density(noise=False)
    x = correlated_rows(40)
    result = fit(
        model, x, correlated_rows(400, seed=7), short_config(steps=4000, learning_rate=2e-2, ema=0.0, patience=3)
    )
    assert result.stopped_early
    assert result.steps < 4000
    assert result.best_loss == min(row["valid"] for row in result.history)
    assert result.best_step == result.steps - 3 * 10


def test_a_run_that_stopped_early_stays_stopped(tmp_path: Path) -> None:
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(
        steps=4000, batch_size=8, learning_rate=5e-2, validate_every=2, patience=2, ema=0.0, device="cpu"
    )
    first, second = small_density(), small_density()
    result = fit(first, x, x[:8], config, run=tmp_path)
    assert result.stopped_early
    again = fit(second, x, x[:8], config, run=tmp_path, resume=True)
    assert (again.steps, again.stopped_early) == (result.steps, True)
    assert have_same_weights(first, second)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_after_the_step_and_keeps_it(number: signal.Signals, tmp_path: Path) -> None:
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(steps=9, batch_size=8, device="cpu", checkpoint_seconds=1e9)
    whole, resumed = small_density(), small_density()
    fit(whole, x, x, config)
    signal.signal(number, signal.default_int_handler)  # also where the tests were started to ignore it
    before = signal.getsignal(number)
    with before_step(4, lambda _: signal.raise_signal(number)), pytest.raises(KeyboardInterrupt, match="after step 5"):
        fit(small_density(), x, x, config, run=tmp_path)
    assert signal.getsignal(number) == before
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


def test_divergence_before_any_validation_keeps_the_initial_weights(tmp_path: Path) -> None:
    model = small_density()
    before = copy.deepcopy(model)
    changes = {"learning_rate": 1e38, "warmup_steps": 0, "clip_norm": None, "standardise": "none"}
    with pytest.raises(TrainingDiverged, match="holds the weights of step 0"):
        fit(model, correlated_rows(), config=short_config(validate_every=1000, **changes), run=tmp_path)
    assert have_same_weights(model, before)
    assert have_same_weights(model, load(tmp_path))
    assert not model.training


def test_held_out_rows_without_a_finite_loss_end_training() -> None:
    model, x = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4)), torch.randn(100, 2)
    with pytest.raises(TrainingDiverged, match="the objective on held-out rows is inf; one of them may be far"):
        fit(model, x, torch.cat([x, x.new_full((1, 2), 1e25)]), short_config(objective="mle"))


@pytest.mark.parametrize("learning_rate", [1e-2, 1.0])  # the warm-up takes the whole run
def test_a_breakdown_with_finite_losses_warns(learning_rate: float) -> None:
    x = toy("two_moons").sample(2000, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    head = ScoreHead(8, (16, 16), sinusoids=8, residual=True)
    model = AutoregressiveModel(MADE(2, 8, (16,)), head, NoiseLadder(2.0, 0.05, 5))
    settings = short_config(
        steps=400, learning_rate=learning_rate, warmup_steps=400, schedule="constant", validate_every=50
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(model, x, config=settings).history
    messages = [str(warning.message) for warning in caught if warning.category is TrainingWarning]
    if learning_rate == 1e-2:
        assert messages == []
    else:
        assert len(messages) == 1
        assert re.search(r"broke down after step \d+: .* lower learning_rate \(1\)", messages[0])
        assert history[-1]["loss"] > min(row["loss"] for row in history)
