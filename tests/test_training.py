"""The training loop: it learns, resumes exactly, stops in time and loses nothing."""

from __future__ import annotations

import copy
import math
import re
import signal
import struct
import subprocess
import sys
import textwrap
import time
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

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
    objectives,
    serialization,
)
from arcsm.data.toys import toy
from arcsm.errors import TrainingWarning
from arcsm.training import density, log
from arcsm.training.checkpoint import STATE_NAME
from arcsm.training.log import find_breakdown
from small_runs import PATIENCE, at_work, wait_until


def build(features: int = 2, seed: int = 0, noise: bool = True) -> AutoregressiveModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        context, head = MADE(features, 4, (16,)), ScoreHead(4, (16, 16))
    return AutoregressiveModel(context, head, NoiseLadder(1.0, 0.1, 5) if noise else None)


def rows(n: int = 300, seed: int = 1) -> Tensor:
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return torch.stack([3.0 + 2.0 * z[:, 0], 5.0 * z[:, 0] + z[:, 1]], 1)


def config(**changes: object) -> TrainConfig:
    return TrainConfig(**{"steps": 30, "batch_size": 64, "device": "cpu", "validate_every": 10, **changes})


def test_a_mix_needs_a_ladder() -> None:
    model, x = AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4, (8,))), torch.randn(20, 2)
    with pytest.raises(ValueError, match=r"mix: a model without a noise ladder is trained with mix=1, got 0\.5"):
        fit(model, x, config=TrainConfig(steps=1, mix=0.5))
    losses = [fit(copy.deepcopy(model), x, x, TrainConfig(steps=2, **mix)).best_loss for mix in ({}, {"mix": 1.0})]
    assert losses[0] == losses[1]


def test_conditions_of_another_type_are_refused() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,), condition_features=1), GaussianHead(4))
    with pytest.raises(ValueError, match=r"condition: expected a torch\.Tensor, got ndarray"):
        fit(model, torch.randn(20, 2), config=TrainConfig(steps=1), condition_train=np.zeros((20, 1)))  # type: ignore[arg-type]


def same_weights(a: AutoregressiveModel, b: AutoregressiveModel) -> bool:
    other = b.state_dict()
    return all(torch.equal(t, other[name]) for name, t in a.state_dict().items())


def test_it_learns_a_correlated_gaussian() -> None:
    x = rows(4000)
    model = AutoregressiveModel(MADE(2, 4, (16,)), ScoreHead(4, (32, 32)), NoiseLadder(1.5, 0.1, 8))
    fit(model, x[:3500], x[3500:], config(steps=600, batch_size=256, learning_rate=3e-3, ema=0.98))
    held_out = rows(1000, seed=2)
    noise = 0.1 * model.scale * torch.randn(held_out.shape, generator=torch.Generator().manual_seed(3))
    true = torch.distributions.MultivariateNormal(
        torch.tensor([3.0, 0.0]),
        torch.tensor([[4.0, 10.0], [10.0, 26.0]]) + torch.diag((0.1 * model.scale) ** 2),
    )
    gap = (true.log_prob(held_out + noise) - model.log_prob(held_out + noise)).mean()
    assert -0.02 < gap < 0.05


def test_centring_moves_all_columns_alike_and_scales_none() -> None:
    model, x = build(), rows()
    fit(model, x, config=config(steps=1, standardise="centre", dequantise=2.0))
    torch.testing.assert_close(model.shift, x.mean().expand(2) + 1.0)  # half a step more: values are spread upwards
    assert torch.equal(model.scale, torch.ones(2))


@pytest.mark.parametrize("objective", ["csm", "dsm", "ssm", "sm", "mle"])
def test_every_objective_trains_and_gets_better(objective: str) -> None:
    model = AutoregressiveModel(MADE(2, 4, (16,)), GaussianHead(4), NoiseLadder(1.0, 0.3, 3))
    x = rows(500)
    result = fit(model, x, x[:200], config(objective=objective, steps=120, learning_rate=1e-2, ema=0.0))
    assert result.history[-1]["valid"] < result.history[0]["valid"]


def test_an_objective_of_ones_own_trains(tmp_path: Path) -> None:
    calls = []

    def twice(model: AutoregressiveModel, x: Tensor, **arguments: object) -> Tensor:
        calls.append(len(x))
        return 2.0 * objectives.csm(model, x, 0.3, **arguments)  # type: ignore[arg-type]

    own, known = build(), build()
    found = fit(own, rows(), rows(seed=5), config(clip_norm=None), run=tmp_path, objective=twice)
    expected = fit(known, rows(), rows(seed=5), config(clip_norm=None, mix=0.3))
    assert len(calls) == 30 + 3  # steps, and one batch of each validation
    assert found.best_loss == pytest.approx(2.0 * expected.best_loss, rel=1e-3)
    for ours, theirs in zip(own.parameters(), known.parameters(), strict=True):  # Adam does not see a factor
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", [{"objective": "ssm"}, {"objective": "sm"}, {"objective": "dsm", "sigma": 0.1}])
def test_objectives_of_one_noise_level_say_that_they_leave_the_others_untrained(changes: dict[str, object]) -> None:
    with pytest.warns(TrainingWarning, match="trains one noise level of the model's 5"):
        fit(build(), rows(), config=config(steps=1, **changes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(build(noise=False), rows(), config=config(steps=1, **changes))
        fit(build(), rows(), config=config(steps=1, objective="dsm"))


def test_half_precision_is_for_products_and_not_for_rows() -> None:
    seen: dict[str, Tensor] = {}

    def spy(model: AutoregressiveModel, x: Tensor, **arguments: object) -> Tensor:
        seen[str(torch.is_autocast_enabled("cpu"))] = x
        return objectives.csm(model, x, 1.0, **arguments)  # type: ignore[arg-type]

    x = torch.randn(64, 2) + 1000.0
    fit(build(), x, config=config(steps=1, precision="bf16-mixed"), objective=spy)
    assert seen["True"].dtype == torch.float32
    assert torch.equal(seen["True"].sort(0).values, x.sort(0).values)


def test_held_out_rows_that_no_model_can_judge_end_the_training() -> None:
    model, x = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4)), torch.randn(100, 2)
    with pytest.raises(TrainingDiverged, match="the objective of held-out rows is inf; one of them may be far"):
        fit(model, x, torch.cat([x, x.new_full((1, 2), 1e25)]), config(objective="mle"))


def test_columns_that_single_precision_cannot_tell_apart_are_refused() -> None:
    x = torch.randn(100, 2, dtype=torch.float64)
    x[:, 1] = 1.7e9 + 100.0 * x[:, 1]
    with pytest.raises(ValueError, match=r"x_train: column '1' varies by .* too little for single precision"):
        fit(build(), x, config=config(steps=1))
    fit(build().double(), x, config=config(steps=1))


def test_rows_with_a_graph_or_of_inference_are_rows() -> None:
    raw = torch.randn(64, 2, requires_grad=True)
    fit(build(), raw * 2.0, config=config(steps=3))
    assert raw.grad is None
    with torch.inference_mode():
        rows = torch.randn(64, 2)
    fit(build(noise=False), rows, config=config(steps=2, objective="ssm"))


def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    sizes, ladder = (np.int64(16),), NoiseLadder(np.float32(1.0), 0.1, np.int64(5))
    model = AutoregressiveModel(MADE(np.int64(2), np.int64(4), sizes), ScoreHead(np.int64(4), sizes), ladder)
    fit(model, rows(), config=config(steps=2), run=tmp_path)
    assert load(tmp_path).noise == NoiseLadder(1.0, 0.1, 5)


@pytest.mark.parametrize("layer", [torch.nn.Dropout1d(0.5), torch.nn.AlphaDropout(0.5), torch.nn.RReLU()])
def test_all_random_layers_are_seeded(layer: torch.nn.Module) -> None:
    class Noisy(MADE):
        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            contexts: Tensor = self.layer(super().forward(x, condition))
            return contexts

    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made = Noisy(2, 4, (16,))
        made.load_state_dict(build().context.state_dict())
        made.layer = copy.deepcopy(layer)
        models.append(AutoregressiveModel(made, copy.deepcopy(build().head), NoiseLadder(1.0, 0.1, 5)))
        fit(models[-1], rows(), config=config(steps=3))
    assert same_weights(*models)


def test_a_head_with_a_score_of_its_own_is_trained_and_integrated_by_it() -> None:
    class Narrower(ScoreHead):
        def projected_score_and_derivative(
            self, projection: Tensor, x: Tensor, sigma: object = None
        ) -> tuple[Tensor, Tensor]:
            s, ds = super().projected_score_and_derivative(projection, x, sigma)  # type: ignore[arg-type]
            return s - 3.0 * x, ds - 3.0

        def projected_score(self, projection: Tensor, x: Tensor, sigma: object = None) -> Tensor:
            return self.projected_score_and_derivative(projection, x, sigma)[0]

    model = AutoregressiveModel(MADE(1, 4, (8,)), Narrower(4, (8,))).double()
    x = torch.linspace(-6.0, 6.0, 4001, dtype=torch.float64)[:, None]
    log_p = model.log_prob(x).detach()
    assert float(torch.logsumexp(log_p, 0)) + math.log(float(x[1] - x[0])) == pytest.approx(0.0, abs=1e-5)
    slope = (log_p[2:] - log_p[:-2]) / float(x[2] - x[0])
    torch.testing.assert_close(slope, model.score(x[1:-1])[0][:, 0].detach(), rtol=1e-3, atol=1e-3)
    s, ds = (t.detach() for t in model.score(x))
    by_hand = (0.5 * s.square() + ds).mean()
    assert float(objectives.csm(model, x, 1.0).detach()) == pytest.approx(float(by_hand), rel=1e-9)


def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    models = [build() for _ in range(3)]
    state = torch.get_rng_state()
    for model, seed in zip(models, (0, 0, 1), strict=True):
        fit(model, rows(), config=config(seed=seed))
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_resuming_gives_the_weights_of_the_run_never_stopped(tmp_path: Path, cut: int, monkeypatch: object) -> None:
    whole = build()
    expected = fit(whole, rows(), rows(seed=5), config(), run=tmp_path / "whole")

    advance = density.DensityTask.advance

    def stop_at_cut(self: density.DensityTask) -> float:
        if self.step == cut:
            raise KeyboardInterrupt
        return advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density.DensityTask, "advance", stop_at_cut)
        with pytest.raises(KeyboardInterrupt):
            fit(build(), rows(), rows(seed=5), config(checkpoint_seconds=0), run=tmp_path / "cut")
    resumed = build(seed=9)  # its first weights must not matter
    result = fit(resumed, rows(), rows(seed=5), config(), run=tmp_path / "cut", resume=True)
    assert same_weights(whole, resumed)
    assert (result.best_step, result.best_loss) == (expected.best_step, expected.best_loss)
    assert [row["valid"] for row in result.history] == [row["valid"] for row in expected.history]
    logs = [log.read_metrics(tmp_path / name) for name in ("whole", "cut")]
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]]


_SCRIPT = """
    import sys, torch
    sys.path.insert(0, {here!r})
    torch.set_num_threads(1)
    from test_training import build, config, rows
    from arcsm import fit
    fit(build(), rows(), rows(seed=5), config(steps=400, checkpoint_seconds=0), run={run!r}, resume=True)
"""


def test_kill_9_loses_nothing(tmp_path: Path) -> None:
    def start(run: Path) -> AbstractContextManager[subprocess.Popen[str]]:
        script = textwrap.dedent(_SCRIPT.format(here=str(Path(__file__).parent), run=str(run)))
        return at_work(sys.executable, "-c", script)

    def finish(run: Path) -> None:
        with start(run) as process:
            said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said

    finish(tmp_path / "whole")
    state = tmp_path / "killed" / STATE_NAME
    for attempt in range(2):
        before = state.stat().st_mtime_ns if state.exists() else 0
        with start(tmp_path / "killed") as process:
            wait_until(lambda before=before: state.exists() and state.stat().st_mtime_ns != before, process)  # type: ignore[misc]
            time.sleep(0.05 * attempt)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    finish(tmp_path / "killed")
    assert same_weights(load(tmp_path / "whole"), load(tmp_path / "killed"))


def test_early_stopping_keeps_the_best_weights() -> None:
    model = build(noise=False)
    x = rows(40)
    result = fit(model, x, rows(400, seed=7), config(steps=4000, learning_rate=2e-2, ema=0.0, patience=3))
    assert result.stopped_early
    assert result.steps < 4000
    assert result.best_loss == min(row["valid"] for row in result.history)
    assert result.best_step == result.steps - 3 * 10


def test_divergence_stops_with_step_and_cause_and_keeps_good_weights(tmp_path: Path) -> None:
    model = build()
    advance = density.DensityTask.advance

    def break_weights(self: density.DensityTask) -> float:
        if self.step == 15:
            with torch.no_grad():
                next(self.model.head.parameters())[0, 0] = math.nan
        return advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density.DensityTask, "advance", break_weights)
        with pytest.raises(TrainingDiverged, match=r"step 15: .*head\.hidden\.0\.weight is not finite.*step 10"):
            fit(model, rows(), rows(seed=3), config(), run=tmp_path)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert same_weights(model, load(tmp_path))


def test_divergence_before_any_validation_keeps_the_weights_of_the_start(tmp_path: Path) -> None:
    model = build()
    before = copy.deepcopy(model)
    changes = {"learning_rate": 1e38, "warmup_steps": 0, "clip_norm": None, "standardise": "none"}
    with pytest.raises(TrainingDiverged, match="holds the weights of step 0"):
        fit(model, rows(), config=config(validate_every=1000, **changes), run=tmp_path)
    assert same_weights(model, before)
    assert same_weights(model, load(tmp_path))
    assert not model.training


def test_standardisation_belongs_to_the_model() -> None:
    model, x = build(), rows()
    fit(model, x, config=config(steps=1))
    assert torch.allclose(model.shift, x.mean(0), atol=1e-4)
    assert torch.allclose(model.scale, x.std(0, unbiased=False), rtol=1e-4)
    fit(model, x, config=config(steps=1, standardise="global"))
    assert torch.allclose(model.scale, x.std(unbiased=False).expand(2), rtol=1e-4)


def test_metrics_are_logged_to_csv_and_tensorboard(tmp_path: Path) -> None:
    fit(build(), rows(), rows(seed=3), config(tensorboard=True), run=tmp_path)
    found = log.read_metrics(tmp_path)
    assert [row["step"] for row in found] == [10, 20, 30]
    assert {"loss", "valid", "learning_rate", "seconds"} <= found[0].keys()
    board = tmp_path / "tensorboard"
    assert events(next(board.glob("events*")))[1].step == 1  # whatever an earlier process had logged is void
    (file,) = board.glob("events*")
    assert [(step, value) for name, step, value in scalars(file) if name == "loss"] == [
        (int(row["step"]), pytest.approx(row["loss"])) for row in found
    ]
    assert {name for name, _, _ in scalars(file)} == {"loss", "valid", "learning_rate", "seconds"}
    file.rename(board / "first")
    log_resumed(tmp_path, found)
    (later,) = board.glob("events*")
    assert (events(later)[1].session_log.status, events(later)[1].step) == (1, 31)  # later steps are of this file
    assert scalars(later) == [("loss", 40, 1.5)]


def events(file: Path) -> list[Any]:
    """Of TensorBoard: each behind its length and before its checksum."""
    event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    data, found = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("Q", data[:8])
        found.append(event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def scalars(file: Path) -> list[tuple[str, int, float]]:
    return [(value.tag, event.step, value.simple_value) for event in events(file) for value in event.summary.value]


def test_epochs_and_dequantisation() -> None:
    model = build()
    x = torch.randint(0, 4, (256, 2), generator=torch.Generator().manual_seed(0)).float()
    result = fit(model, x, config=config(epochs=3, dequantise=1.0))
    assert result.steps == 12
    assert torch.allclose(model.shift, x.mean(0) + 0.5)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 2), "at least one row"),
        (torch.zeros(5, 3), r"expected a tensor \(N, 2\), got \(5, 3\)"),
        ([[1.0, 2.0]], r"expected a tensor \(N, 2\), got list"),
        (torch.tensor([[1.0, 2.0], [math.inf, 0.0]]), "1 values are NaN or infinite, the first in row 1, column 0"),
        (torch.tensor([[1.0, 2.0], [1.0, 0.0]]), "column 0 is constant"),
    ],
)
def test_bad_data_are_named(x: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(build(), x, config=config(steps=1))  # type: ignore[arg-type]


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    fit(build(), rows(), config=config(), run=tmp_path)
    with pytest.raises(ValueError, match="another train configuration"):
        fit(build(), rows(), config=config(learning_rate=0.5), run=tmp_path, resume=True)


def test_a_run_of_an_older_version_goes_on_after_settings_were_added(tmp_path: Path) -> None:
    fit(build(), rows(), config=config(), run=tmp_path)
    path = tmp_path / STATE_NAME
    tensors, header = serialization.read_tensors(path, "cpu")
    whole = copy.deepcopy(header)
    for part, name in (("context", "missing"), ("context", "hide"), ("head", "residual")):
        del header["model"][part][name]
    del header["train"]["dequantise"]
    serialization.write_tensors(path, tensors, header)
    assert fit(build(), rows(), config=config(), run=tmp_path, resume=True).steps == config().steps

    whole["model"]["context"]["hide"] = 0.25  # a setting that is written counts, whatever its default
    serialization.write_tensors(path, tensors, whole)
    with pytest.raises(ValueError, match="another model configuration"):
        fit(build(), rows(), config=config(), run=tmp_path, resume=True)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    fit(build(), rows(), config=config(), run=tmp_path)
    state = tmp_path / STATE_NAME
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        fit(build(), rows(), config=config(), run=tmp_path, resume=True)


def test_unknown_keys_and_wrong_types_are_refused() -> None:
    with pytest.raises(ValueError, match="stepz"):
        TrainConfig(stepz=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="steps"):
        TrainConfig(steps="many")  # type: ignore[arg-type]


@pytest.mark.parametrize("learning_rate", [1e-2, 0.5])  # where the warm-up, all of the run, ends
def test_a_run_that_breaks_down_without_becoming_infinite_is_said(learning_rate: float) -> None:
    x = toy("two_moons").sample(2000, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    head = ScoreHead(8, (32, 32), sinusoids=8, residual=True)
    model = AutoregressiveModel(MADE(2, 8, (32,)), head, NoiseLadder(2.0, 0.05, 20))
    settings = config(
        steps=800,
        batch_size=128,
        learning_rate=learning_rate,
        warmup_steps=800,
        schedule="constant",
        validate_every=50,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(model, x, config=settings).history
    said = [str(warning.message) for warning in caught if warning.category is TrainingWarning]
    if learning_rate == 1e-2:
        assert said == []
    else:
        assert len(said) == 1
        assert re.search(r"broke down after step \d+: .* lower learning_rate \(0\.5\)", said[0])
        assert history[-1]["loss"] > min(row["loss"] for row in history)


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_breakdown(seed: int) -> None:
    losses = np.random.default_rng(seed).normal(size=40).tolist()
    falling = [{"step": 50.0 * (i + 1), "loss": loss - 0.1 * i} for i, loss in enumerate(losses)]
    assert find_breakdown(falling) is None
    assert find_breakdown(falling[:7]) is None  # too few to say
    rising = [{"step": row["step"], "loss": -row["loss"]} for row in falling]
    worse = find_breakdown(rising)
    assert worse is not None
    assert worse.last > worse.best
    assert worse.step <= 1000
