"""Table 1 at smoke size, on small images in the format of the real files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

from arcsm.cli import application
from arcsm.experiments import base, image_models, table1
from arcsm.experiments.base import Study
from arcsm.experiments.table1 import CHOSEN, COLOUR, GREY_LEVEL, PRESETS, QUOTED, SVHN, TABLE1, UNIFORM
from arcsm.training import density
from small_experiments import command

MADE_SCORES, MADE_PAPER, PIXEL_SCORES, PIXEL_PAPER, PIXEL_MLE = PRESETS["cpu"].models
CONTROL = "cifar-pixelcnn, untrained"
CIFAR = [f"changes={json.dumps(list(image_models.TINY))}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth colour images of 4 x 4 pixels in the place of CIFAR-10, and others in that of SVHN's test set."""
    rng = np.random.default_rng(0)

    def drawn(count: int, contrast: float) -> np.ndarray:
        coarse = rng.normal(128.0, contrast, (count, 2, 2, 3)).repeat(2, 1).repeat(2, 2)
        return (coarse + rng.normal(0.0, 8.0, coarse.shape)).clip(0, 255).astype(np.uint8)

    folder = tmp_path_factory.mktemp("table1")
    labels = {"y_train": np.arange(120) % 10, "y_test": np.arange(30) % 10}
    np.savez(folder / "cifar10.npz", x_train=drawn(120, 50.0), x_test=drawn(30, 50.0), **labels)
    np.savez(folder / "svhn.npz", x_test=drawn(30, 15.0), y_test=np.arange(30) % 10)
    return folder


@pytest.fixture
def small_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARCSM_DATA", str(folder))
    return folder


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    """Return the record of one run, with work and results in the folder of the images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCSM_DATA", str(folder))
        return run(folder)


def study(tmp_path: Path, changes: dict[str, Any] | None = None) -> Study[table1.Table1]:
    settings = PRESETS["smoke"].model_copy(update={"changes": image_models.TINY, **(changes or {})})
    return Study("table1", "smoke", settings, torch.device("cpu"), tmp_path / "out", tmp_path / "work")


def run(tmp_path: Path, changes: Sequence[str] = CIFAR) -> dict[str, Any]:
    return TABLE1.run("smoke", tmp_path / "results", tmp_path / "runs", changes, "cpu", None)


def test_the_record_has_every_score_of_every_model_on_every_set(record: dict[str, Any], folder: Path) -> None:
    assert str(folder) not in json.dumps(record)
    metrics = record["metrics"]
    assert metrics["quoted"] == QUOTED
    assert metrics["averaged"] == [SVHN, COLOUR, UNIFORM]
    assert list(metrics["models"]) == [*PRESETS["cpu"].models, CONTROL]
    for name, model in metrics["models"].items():
        assert model.get("training_steps") == (None if name == CONTROL else 2)
        expected = {"h, 0.04", "|s|, 0.04", "h, 0.04, no noise"}
        expected |= {"-log q, closed_form"} if name == PIXEL_MLE else {"h, 0.2"}
        if name not in (MADE_PAPER, PIXEL_PAPER, PIXEL_MLE):
            expected |= {"-log q, flow", "-log q, quadrature"}
        assert expected <= model["as_is"].keys()
        assert any("log q" in score for score in model["as_is"]) == (name not in (MADE_PAPER, PIXEL_PAPER))
        assert model["as_is"].keys() == model["two_sided"].keys()
        for sets in (*model["as_is"].values(), *model["two_sided"].values(), model[CHOSEN]):
            assert list(sets) == [SVHN, COLOUR, GREY_LEVEL, UNIFORM, "average"]
            assert all(0.0 <= sets[images]["mean"] <= 1.0 for images in sets)
            assert all(0.0 <= sets[images]["standard_error"] < 0.5 for images in sets if images != "average")
            assert sets["average"]["mean"] == pytest.approx(fmean(sets[i]["mean"] for i in metrics["averaged"]))
    assert (folder / "results" / "table1" / metrics["figure"]).stat().st_size > 1000


def test_the_nearest_statistic_is_the_best_of_both_signs(record: dict[str, Any]) -> None:
    model = record["metrics"]["models"][MADE_SCORES]
    wanted = {SVHN: 0.68, COLOUR: 0.57, UNIFORM: 0.95}
    gaps = {}
    for name, sets in model["as_is"].items():
        if name.startswith("h,"):
            gaps["+" + name] = fmean(abs(sets[i]["mean"] - w) for i, w in wanted.items())
            gaps["-" + name] = fmean(abs(1.0 - sets[i]["mean"] - w) for i, w in wanted.items())
    assert model["nearest_to_the_paper"]["mean_gap"] == pytest.approx(min(gaps.values()))
    assert gaps[model["nearest_to_the_paper"]["score"]] == pytest.approx(min(gaps.values()))


def test_sign_and_noise_are_chosen_on_changed_validation_images() -> None:
    normal = torch.randn(500, dtype=torch.float64)
    validation = {"h, 0.2": normal, "h, 0.04": normal, "|s|, 0.2": normal}
    lower, same = (normal - 2.0).tolist(), normal.tolist()
    changed = {kind: {"h, 0.2": lower, "h, 0.04": same, "|s|, 0.2": lower} for kind in ("mutated", "blurred")}
    as_is = {name: {SVHN: {"mean": 0.4}, "average": {"mean": 0.3}} for name in validation}
    chosen = table1._chosen_on_validation({"validation": validation}, changed, as_is)
    assert chosen["score"] == "-h, 0.2"
    assert chosen["auroc"] == pytest.approx({SVHN: 0.6, "average": 0.7})
    assert chosen["on_validation"] > 0.9


@pytest.mark.usefixtures("small_images")
def test_changed_images_differ_as_they_should(tmp_path: Path) -> None:
    images = table1.image_sets(study(tmp_path), 0)
    validation, mutated, blurred = (images.rows(kind, 0) for kind in ("validation", "mutated", "blurred"))
    same = ((mutated - validation).abs() < 1.0 / 128).double().mean()
    assert 0.75 <= float(same) <= 0.9  # a fifth has other values
    assert float(blurred.std()) < float(validation.std())
    assert float((blurred - validation).abs().mean()) > 0.0


def test_only_missing_cells_are_computed_again(
    record: dict[str, Any], small_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "as_png", lambda figure, dpi: b"")  # the fixture has drawn it
    cells = {path: path.stat().st_mtime_ns for path in (small_images / "runs").rglob("*-*.json")}
    missing = next(path for path in cells if "densities-svhn" in path.name)
    missing.unlink()
    assert run(small_images)["metrics"] == record["metrics"]
    again = {path: path.stat().st_mtime_ns for path in (small_images / "runs").rglob("*-*.json")}
    assert again.keys() == cells.keys()
    assert [path for path in cells if again[path] != cells[path]] == [missing]


def test_experiments_share_models_with_the_same_configuration(
    small_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = image_models.train_model(study(tmp_path), PIXEL_SCORES)
    other = study(tmp_path, {"rows": 20, "resamples": 5})
    other.work = tmp_path / "another-experiment"

    def fail(trainer: Any) -> float:
        raise AssertionError("trained twice")

    # private: the only place where every training step passes
    monkeypatch.setattr(density.DensityTask, "advance", fail)
    assert image_models.train_model(other, PIXEL_SCORES) == first


def test_different_configurations_have_different_folders(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"pixelcnn_changes": (*image_models.TINY_PIXELCNN, "train.learning_rate=0.1")},
        {"changes": (*image_models.TINY, "data.validation=0.2")},
        {"first_seed": 1},
    ]
    folders = {image_models.model_folder(study(tmp_path, change), PIXEL_SCORES) for change in changes}
    assert len(folders) == len(changes)
    assert image_models.model_folder(study(tmp_path, {"made_changes": (), "rows": 9}), PIXEL_SCORES) in folders


def test_the_control_has_the_initial_weights(small_images: Path, tmp_path: Path) -> None:
    still = study(tmp_path, {"changes": (*image_models.TINY, "train.learning_rate=1e-12", "train.ema=0.0")})
    image_models.train_model(still, PIXEL_SCORES)
    assert not image_models.initial_model(still, PIXEL_SCORES, 0).training  # no dropout
    pairs = zip(
        image_models.load_model(still, PIXEL_SCORES).parameters(),
        image_models.initial_model(still, PIXEL_SCORES, 0).parameters(),
        strict=True,
    )
    assert all(torch.allclose(a, b, rtol=0.0, atol=1e-9) for a, b in pairs)


def test_models_of_different_images_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="models: expected models of the same images"):
        table1.image_sets(study(tmp_path, {"models": (PIXEL_SCORES, "mnist-made")}), 0)


def test_synthetic_images_are_uniform_on_the_grey_levels(small_images: Path) -> None:
    data = table1.image_sets(study(small_images, {"rows": 500}), 0)
    flat = {images: data.rows(images, 0) for images in (COLOUR, GREY_LEVEL, UNIFORM)}
    width = data.dataset.dequantise
    assert width == 2.0 / 256.0
    for rows in flat.values():
        assert rows.shape == (500, 48)
        assert float(rows.min()) >= -1.0
        assert float(rows.max()) <= 1.0
        assert float(rows.std()) == pytest.approx(1.0 / 3.0**0.5, abs=0.03)
    cells = {images: torch.floor((rows.double() + 1.0) / width).view(-1, 3, 16) for images, rows in flat.items()}
    # single precision rounds a few values up to the next grey level
    assert float((cells[COLOUR] == cells[COLOUR][..., :1]).double().mean()) > 0.999
    assert float((cells[GREY_LEVEL] == cells[GREY_LEVEL][:, :1, :1]).double().mean()) > 0.999
    assert float((cells[COLOUR][:, 0] == cells[COLOUR][:, 1]).double().mean()) < 0.05
    assert float((cells[UNIFORM][..., 1:] == cells[UNIFORM][..., :1]).double().mean()) < 0.05
    assert torch.equal(data.rows(UNIFORM, 0), flat[UNIFORM])
    assert not torch.equal(data.rows(UNIFORM, 1), flat[UNIFORM])


def test_validation_images_are_neither_training_nor_test_images(small_images: Path) -> None:
    data = table1.image_sets(study(small_images), 0)
    held_out = {tuple(row) for row in data.dataset.valid.tolist()}
    assert len(held_out) == 12
    assert not held_out & {tuple(row) for row in data.dataset.train.tolist()}
    assert not held_out & {tuple(row) for row in data.dataset.test.tolist()}


def test_the_baseline_differs_only_in_head_ladder_and_objective(tmp_path: Path) -> None:
    run = Study("table1", "cpu", PRESETS["cpu"], torch.device("cpu"), tmp_path, tmp_path / "work")
    scores, mle = (image_models.model_config(run, name) for name in (PIXEL_SCORES, PIXEL_MLE))
    assert scores.model.context == mle.model.context
    assert scores.data == mle.data
    assert mle.model.head["kind"] == "LogisticMixtureHead"
    assert scores.model.noise is not None
    assert mle.model.noise is not None
    assert scores.model.noise["sigma_min"] == mle.model.noise["sigma_min"] == mle.model.noise["sigma_max"]
    assert (scores.train.objective, mle.train.objective) == ("csm", "mle")
    of_scores = {"objective": "mle", "mix": mle.train.mix}  # maximum likelihood ignores the mix
    assert scores.train.model_copy(update=of_scores) == mle.train


def test_quoted_averages_match_quoted_figures() -> None:
    for row in QUOTED["auroc"].values():
        assert row["average"] == pytest.approx(fmean([row["SVHN"], row["constant"], row["uniform"]]), abs=0.007)


def test_images_of_another_size_are_a_one_line_error(
    small_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cifar10.npz").symlink_to(small_images / "cifar10.npz")
    np.savez(tmp_path / "svhn.npz", x_test=np.zeros((5, 8, 8, 3), np.uint8))
    monkeypatch.setenv("ARCSM_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"svhn\.npz: expected images \[3, 4, 4\], got \[3, 8, 8\]"):
        table1.image_sets(study(tmp_path), 0).rows(SVHN, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [("models=[Glow]", "Glow"), ("rows=1", "rows"), ("densityrows=3", "did you mean density_rows")],
)
def test_an_invalid_setting_is_an_error(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, [change])


def test_missing_images_are_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARCSM_DATA", str(tmp_path / "nothing"))
    assert application.run(command("table1", tmp_path, CIFAR[0])) == 1
    error = capsys.readouterr().err
    assert "cifar10" in error
    assert len(error.strip().splitlines()) == 1
