"""What people get wrong with conditions, configurations, runs and images: one line, and nothing silently wrong."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from arcsm import (
    MADE,
    AutoregressiveModel,
    Context,
    DiscretisedLogisticMixtureHead,
    GaussianHead,
    LogisticMixtureHead,
    NoiseLadder,
    PixelCNNPP,
    ScoreHead,
    TrainConfig,
    fit,
    load,
    objectives,
    registry,
    samplers,
    save,
    serialization,
)
from arcsm._runtime.files import atomic_path
from arcsm.anomaly.statistics import negative_log_prob
from arcsm.cli import application
from arcsm.data import read_images
from arcsm.data.datasets import ImageData, load_dataset
from arcsm.denoise.restoration import GaussianNoise, particles
from arcsm.implicit import GaussianEntropy, ScoreNetwork
from arcsm.interop.export import export_scorer
from arcsm.interop.torch_distribution import AutoregressiveDistribution
from arcsm.training.log import read_metrics
from arcsm.training.run_config import load_config, parse_config
from arcsm.training.runs import load_run, warn_if_data_changed
from small_runs import ON_DATA


def run(*arguments: object) -> int:
    return application.run([str(argument) for argument in arguments])


def conditional(**condition: int) -> AutoregressiveModel:
    return AutoregressiveModel(MADE(2, 4, (8,), **condition), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4))


def quick(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 4, "batch_size": 16, "device": "cpu", "validate_every": 2, **changes})


# Conditions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "context", [MADE(4, 2, (8,), classes=3), PixelCNNPP((1, 2, 2), 2, nr_filters=4, nr_resnet=1, classes=3)]
)
@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (torch.zeros(5, 1, dtype=torch.long), r"expected one for each row \(5,\), or one for all, got \(5, 1\)"),
        (torch.zeros(3, dtype=torch.long), r"expected one for each row \(5,\), or one for all, got \(3,\)"),
        (torch.zeros(5), "expected integer labels from 0 to 2"),
        (torch.full((5,), 3), "expected integer labels from 0 to 2"),
        ([0] * 5, "expected a torch.Tensor, got list"),
        (None, "this model needs labels below 3, got None"),
    ],
)
def test_labels_must_be_one_for_each_row(context: Context, condition: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"condition: {message}"):
        context(torch.zeros(5, 4), condition)
    with pytest.raises(ValueError, match=f"condition: {message}"):
        context.begin((5,), condition)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_all_whole_types(dtype: torch.dtype) -> None:
    model, x = conditional(classes=3), torch.randn(6, 2)
    labels = torch.arange(6) % 3
    expected = model.log_prob(x, condition=labels)
    assert torch.equal(model.log_prob(x, condition=labels.to(dtype)), expected)
    assert torch.equal(model.score(x, condition=labels.to(dtype))[0], model.score(x, condition=labels)[0])
    assert len(fit(model, x, config=quick(), condition_train=labels.to(dtype)).history) == 2


def test_vectors_of_another_precision_and_vectors_that_are_none() -> None:
    model, x = conditional(condition_features=2), torch.randn(6, 2)
    given = torch.randn(6, 2)
    torch.testing.assert_close(model.score(x, condition=given.double()), model.score(x, condition=given))
    torch.testing.assert_close(model.log_prob(x, condition=given.double()), model.log_prob(x, condition=given))
    for wrong, message in (
        (given[:, None], r"expected one for each row \(6, 2\)"),
        (given[:4], r"expected one for each row \(6, 2\)"),
        (given[:, :1], r"expected floats of shape \(\*, 2\)"),
        (torch.full((6, 2), math.nan), "holds NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=f"condition: {message}"):
            model.score(x, condition=wrong)


@pytest.mark.parametrize("which", ["condition_train", "condition_valid"])
@pytest.mark.parametrize("shape", [(32, 1), (31,), ()])
def test_conditions_are_looked_at_before_training(which: str, shape: tuple[int, ...]) -> None:
    model, x = conditional(classes=3), torch.randn(32, 2)
    conditions = {"condition_train": torch.zeros(32).long(), "condition_valid": torch.zeros(32).long()}
    with pytest.raises(ValueError, match="condition: expected one for each"):
        fit(model, x, x, quick(), **{**conditions, which: torch.zeros(shape).long()})


# Numbers at the ends ------------------------------------------------------------------------------------------------


def test_the_lower_tail_of_a_gaussian_is_exact() -> None:
    model = AutoregressiveModel(MADE(1, 4, (8,)), GaussianHead(4))
    with torch.no_grad():
        mean, variance = model.head.moments(model.head.project(model.context(torch.zeros(1, 1))))
    z = torch.tensor([-3.0, -5.0, -6.0, -8.0, -12.0])
    x = mean.flatten() + z * variance.sqrt().flatten()
    exact = torch.special.log_ndtr(z.double())
    assert torch.allclose(model.cdf(x[:, None]).log().flatten().double(), exact, rtol=1e-5)
    u = torch.tensor([[1e-8], [1e-10]])
    assert torch.allclose(model.cdf(model.icdf(u)), u, rtol=1e-3)


@pytest.mark.parametrize("noise", [None, NoiseLadder(1.0, 0.1, 4)])
def test_what_rounds_to_one_is_the_last_number_below(noise: NoiseLadder | None) -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(1, 4, (8,)), ScoreHead(4, (8,)), noise)
    x = torch.zeros(1, 1)
    near, nearer = (float(model.quantile(x, u)) for u in (1.0 - 1e-7, 1.0 - 1e-9))
    assert near <= nearer < near + 1.0
    assert float(model.icdf(torch.tensor([[1.0 - 2e-9]], dtype=torch.float64))) == pytest.approx(nearer)
    with pytest.raises(ValueError, match="inside"):
        model.icdf(torch.ones(1, 1))


@pytest.mark.parametrize("options", [{"langevin_steps": 0}, {"langevin_steps": -3}, {"step_size": -1.0}])
def test_langevin_refuses_steps_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="steps, step_size: expected at least 1 and a positive number"):
        conditional().sample(3, "langevin", **options)
    assert registry.find("sampler", "langevin") is samplers.langevin


def test_shapes_of_entropy_gradients_must_fit() -> None:
    gaussian = GaussianEntropy(lambda condition: (torch.zeros(2, 3), torch.zeros(2, 3)))
    assert float(gaussian.surrogate(torch.zeros(2, 5, 3))) == pytest.approx(1.5 * math.log(2.0 * math.pi * math.e))
    for z in (torch.zeros(2, 5, 4), torch.zeros(3, 5, 3)):
        with pytest.raises(ValueError, match="parameters: expected log standard deviations for z"):
            gaussian.surrogate(z)
    with pytest.raises(ValueError, match="z, condition: expected"):
        ScoreNetwork(3, condition_features=2)(torch.zeros(5, 4), torch.zeros(5, 2))


# Configurations and runs --------------------------------------------------------------------------------------------

TINY = """
name: tiny
data: {{kind: toy, name: rings, rows: {rows}}}
model:
  context: {{kind: MADE, hidden_features: [8], context_features: 2, residual: "no"}}
  head: {{kind: ScoreHead, hidden_features: [4], data_std: 5e-1}}
  noise: {{sigma_max: 1, sigma_min: 5e-2, levels: 3}}
train: {{steps: {steps}, batch_size: 16, device: cpu}}
"""


def test_numbers_that_yaml_takes_for_text_are_numbers() -> None:
    config = parse_config(TINY.format(rows=100, steps=2), "tiny")
    model = config.model.build(2)
    assert model.noise is not None
    assert model.noise.sigma_min == 0.05
    assert model.head.config()["data_std"] == 0.5
    assert model.context.config()["residual"] is False
    with pytest.raises(ValueError, match=r"model\.noise\.sigma_min: .* got 'tiny'"):
        parse_config(TINY.format(rows=100, steps=2).replace("5e-2", "tiny"), "tiny")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("train.epochs=.inf", "epochs"),
        ("train.mix=.nan", "mix"),
        ("train.mix=7", "mix"),
        ("train.steps=true", "steps"),
        ("train.learning_rate=.inf", "learning_rate"),
        ("train.seed=99999999999999999999", "seed"),
        ("train.precision=64-true", "precision"),
    ],
)
def test_values_without_a_meaning_are_named_by_their_key(change: str, key: str) -> None:
    with pytest.raises(ValueError, match=rf"train\.{key}"):
        load_config("toy-rings", [change])


@pytest.mark.parametrize(
    ("content", "message"), [(b"name: caf\xe9\n", "not text in UTF-8"), (b"[" * 5000, "nested too deeply")]
)
def test_files_that_are_no_configurations_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    assert run("train", tmp_path / "run.yaml", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error
    assert "run.yaml" in error
    assert error.count("\n") == 1


def test_a_run_goes_on_with_the_data_that_it_began_with(tmp_path: Path) -> None:
    x = torch.randn(64, 2)
    fit(conditional(), x, config=quick(), run=tmp_path)
    with pytest.raises(ValueError, match="already holds a run; give resume=True"):
        fit(conditional(), x, config=quick(), run=tmp_path)
    for other in (x[:60], x + 1.0):
        with pytest.raises(ValueError, match=rf"started with other data \(64 rows then, {len(other)} now\)"):
            fit(conditional(), other, config=quick(), run=tmp_path, resume=True)
    assert fit(conditional(), x.clone(), config=quick(), run=tmp_path, resume=True).steps == 4


def test_a_report_needs_rows_that_were_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(TINY.format(rows=100, steps=2))
    assert run("train", tmp_path / "run.yaml", "--set", "data.test=0", "--out", tmp_path / "out") == 0
    assert run("report", tmp_path / "out") == 1
    assert "data.test: a report needs at least 2 test rows, but this run has 0" in capsys.readouterr().err


# Images -------------------------------------------------------------------------------------------------------------


def picture(seed: int, shape: tuple[int, ...] = (8, 8)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_wide_pixels_that_hold_bytes_are_bytes(tmp_path: Path) -> None:
    grey = picture(0)
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "a.tif")
    Image.fromarray(grey).save(tmp_path / "b.png")
    pixels = read_images(tmp_path).pixels
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0, 0], torch.from_numpy(grey))


def test_images_of_other_suffixes_and_behind_links_are_read(tmp_path: Path) -> None:
    for folder in ("own", "other"):
        (tmp_path / folder).mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "own" / "a.gif")
    Image.fromarray(picture(1)).save(tmp_path / "own" / "b.ppm")
    Image.fromarray(picture(2)).save(tmp_path / "other" / "c.png")
    (tmp_path / "own" / "linked").symlink_to(tmp_path / "other", target_is_directory=True)
    (tmp_path / "own" / "round").symlink_to(tmp_path / "own", target_is_directory=True)
    assert read_images(tmp_path / "own").names == ("a.gif", "b.ppm", "linked/c.png")


def test_a_run_that_resized_its_images_scores_them(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index in range(20):
        Image.fromarray(picture(index, (16, 16 + 4 * (index % 2)))).save(tmp_path / "images" / f"{index:02d}.png")
    (tmp_path / "run.yaml").write_text(ON_DATA % f"{{kind: images, path: {tmp_path / 'images'}, size: 4}}")
    assert run("train", tmp_path / "run.yaml", "--out", tmp_path / "out") == 0
    assert run("score", tmp_path / "out", tmp_path / "images", "--out", tmp_path / "s.csv") == 0
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 21


@pytest.mark.parametrize("command", [("info",), ("sample", "--out", "x.csv"), ("score", "x.csv", "--out", "y.csv")])
def test_a_run_without_a_model_says_how_to_finish_it(
    tmp_path: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("name: begun\n")
    assert run(command[0], tmp_path, *command[1:]) == 1
    assert "has no model yet; finish it with: arcsm train" in capsys.readouterr().err


def test_draws_in_half_precision_are_as_fine_as_densities() -> None:
    model = AutoregressiveModel(MADE(1, 4, (8,)), GaussianHead(4), NoiseLadder(1.0, 0.05, 8)).eval()
    for sampler in ("inverse_cdf", "probability_flow", "fast_flow"):
        with torch.autocast("cpu", torch.bfloat16):
            drawn = model.sample(5_000, sampler, generator=torch.Generator().manual_seed(0))
        assert len(drawn.unique()) > 4_500
        assert float(((drawn - drawn.mean()) / drawn.std()).abs().max()) < 4.8


def test_quantiles_of_the_lower_tail_come_back() -> None:
    for head in (GaussianHead(4), LogisticMixtureHead(4, 3)):
        model = AutoregressiveModel(MADE(1, 4, (8,)), head).double()
        x = torch.tensor([[-35.0], [-15.0], [0.3]], dtype=torch.float64)
        torch.testing.assert_close(model.icdf(model.cdf(x)), x, rtol=1e-9, atol=1e-9)


def test_far_rows_leave_no_gradient_of_cells_undefined() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4))
    x = torch.tensor([[0.0, 0.0], [12.0, 12.0]], requires_grad=True)
    model.log_prob(x, cells=[0.1, 0.1]).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("objective", [objectives.sm, objectives.ssm])
def test_probabilities_of_levels_have_no_joint_score(objective: Any) -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), DiscretisedLogisticMixtureHead(4, 2))
    with pytest.raises(ValueError, match="has no score"):
        objective(model, torch.zeros(3, 2))


def test_missing_values_have_no_slope_and_no_posterior() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,), missing=True), GaussianHead(4), NoiseLadder(1.0, 0.1, 4))
    x = torch.tensor([[math.nan, 0.0]])
    s, ds = model.score(x)
    assert s.isnan().tolist() == ds.isnan().tolist() == [[True, False]]
    with pytest.raises(ValueError, match="y: holds missing values; fill them first"):
        particles(model, x, GaussianNoise(0.5), 4)


def test_weights_that_are_no_real_numbers_are_refused(tmp_path: Path) -> None:
    save(AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4)), tmp_path)
    tensors, header = serialization.read_module(tmp_path)
    whole = {**tensors, "shift": tensors["shift"].long()}
    serialization.write_tensors(tmp_path / "whole.safetensors", whole, header)
    with pytest.raises(ValueError, match=r"expected weights that are real numbers, got torch\.int64"):
        load(tmp_path / "whole.safetensors")


# Runs and files, again ----------------------------------------------------------------------------------------------


def test_a_refused_resume_leaves_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    quick = (
        "--set",
        "train.batch_size=8",
        "--set",
        "train.validation_rows=8",
        "--set",
        "model.head.hidden_features=[8]",
    )
    assert run("train", "toy-rings", *quick, "--set", "train.steps=2", "--out", out) == 0
    before = (out / "config.yaml").read_text()
    assert run("train", "toy-rings", *quick, "--set", "train.steps=3", "--out", out, "--resume") == 1
    assert (out / "config.yaml").read_text() == before
    assert run("report", out, "--out", out / "model.safetensors") == 1
    assert "expected an .html file" in capsys.readouterr().err


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    quick = ("--set", "train.batch_size=8", "--set", "train.validation_rows=8", "--set", "train.steps=2")
    with FileLock(out / ".lock"):
        assert run("train", "toy-rings", *quick, "--out", out) == 1
    assert "another process trains there" in capsys.readouterr().err
    assert run("train", "toy-rings", *quick, "--out", out) == 0
    assert not (out / ".lock").exists()


def test_a_report_says_that_the_data_have_changed(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 2))
    np.save(tmp_path / "t.npy", rows)
    (tmp_path / "run.yaml").write_text(ON_DATA % f"{{kind: table, path: {tmp_path / 't.npy'}}}")
    assert run("train", tmp_path / "run.yaml", "--out", tmp_path / "run") == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_run_and_warn(tmp_path / "run")
    np.save(tmp_path / "t.npy", rows[::-1])
    with pytest.warns(UserWarning, match="the data have changed since the training"):
        load_run_and_warn(tmp_path / "run")


def load_run_and_warn(folder: Path) -> None:
    config = load_run(folder).config
    warn_if_data_changed(folder, load_dataset(config.data, config.train.seed))


def test_a_log_that_a_crash_has_cut_is_read(tmp_path: Path) -> None:
    whole = "step,loss,valid,learning_rate,seconds\n1,0.5,,0.1,2.0\n"
    for cut in ("", "\0\0\0\0", "2\n", "2,0.4,,x"):
        (tmp_path / "metrics.csv").write_text(whole + cut)
        assert [row["step"] for row in read_metrics(tmp_path)] == [1.0]
    (tmp_path / "metrics.csv").write_text(whole.replace("0.5", "x") + "2,0.4,,0.1,3.0\n")
    with pytest.raises(ValueError, match=r"metrics\.csv: row 1 is not a row of a training log"):
        read_metrics(tmp_path)


def test_images_in_hidden_folders_take_nothing_from_others(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name in ("real/a.png", "b.png"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name)
    (tmp_path / ".hidden").symlink_to(tmp_path / "real")
    (tmp_path / "also").symlink_to(tmp_path / "real")
    assert read_images(tmp_path).names == ("b.png", "real/a.png")


def test_dark_pixels_of_sixteen_bits_stay_dark(tmp_path: Path) -> None:
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 2 65535\n" + b"\x00\xc8" * 4)
    assert int(read_images(tmp_path / "dark.pgm").pixels.max()) == 1


def test_test_sets_of_another_shape_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x_train=np.zeros((20, 4, 4), np.uint8), x_test=np.zeros((5, 5, 5), np.uint8))
    data = ImageData(kind="images", path=str(tmp_path / "t.npz"), key="x_train", test_key="x_test")
    with pytest.raises(ValueError, match=r"to train on of \[1, 4, 4\] and to test on of \[1, 5, 5\]"):
        load_dataset(data, 0)


def test_names_of_any_bytes_and_lengths(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((1, 2), np.uint8))
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images" / "a.png")
    os.rename(tmp_path / "images" / "a.png", os.fsencode(tmp_path / "images") + b"/\xff\xfe.png")
    made, head = MADE(2, 4, (8,)), ScoreHead(4, (8,))
    metadata = {"image_shape": [1, 1, 2], "levels": 256}
    save(AutoregressiveModel(made, head, NoiseLadder(1.0, 0.1, 4), metadata=metadata), tmp_path / "run")
    assert run("score", tmp_path / "run", tmp_path / "images", "--out", tmp_path / "s.csv") == 0
    assert "\\xff\\xfe.png" in (tmp_path / "s.csv").read_text()
    long = tmp_path / f"{'x' * 240}.csv"
    with atomic_path(long) as temporary:
        temporary.write_text("1")
    assert long.read_text() == "1"


@pytest.mark.parametrize("text", ["a: 2024-13-45", "a: 0x_", "a: !!timestamp x", "a: !!bool x"])
def test_yaml_that_means_nothing_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"^run\.yaml: not YAML: "):
        parse_config(text, "run.yaml")


def test_rows_with_gaps_have_no_outlier_score() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,), missing=True), GaussianHead(4))
    found = negative_log_prob(model, torch.tensor([[0.0, math.nan], [0.0, 1.0]]))
    assert found.isnan().tolist() == [True, False]


def test_a_program_of_scores_leaves_the_modes_of_all_modules() -> None:
    model = conditional().train()
    model.context.eval()
    export_scorer(model)
    assert model.training
    assert not model.context.training


def test_labels_are_no_dense_conditions() -> None:
    model = conditional(condition_features=2)
    with pytest.raises(ValueError, match=r"condition: expected \(\*, 2\), got \(5, 3\)"):
        AutoregressiveDistribution(model, torch.zeros(5, 3, dtype=torch.long))
