"""Table 1 at smoke size, on small images in the format of the real files."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

from arcsm.experiments import image_models, table1
from arcsm.experiments.base import Study
from arcsm.experiments.table1 import CHOSEN, COLOUR, GREY_LEVEL, PRESETS, SVHN, TABLE1, UNIFORM
from arcsm.training import density

MADE_SCORES, MADE_PAPER, MADE_MLE = MODELS = ("cifar-made", "cifar-made-paper", "cifar-made-mle")
CHANGES = [f"changes={json.dumps(list(image_models.TINY))}", f"models={json.dumps(MODELS)}", "methods=[flow]", "rows=6",
           "density_rows=3"]  # fmt: skip


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


def study(tmp_path: Path, changes: dict[str, Any] | None = None) -> Study[table1.Table1]:
    settings = PRESETS["smoke"].model_copy(update={"changes": image_models.TINY, **(changes or {})})
    return Study("table1", "smoke", settings, torch.device("cpu"), tmp_path / "out", tmp_path / "work")


def test_the_record_has_every_score_of_every_model_on_every_set(small_images: Path, tmp_path: Path) -> None:
    record = TABLE1.run("smoke", tmp_path / "results", tmp_path / "runs", CHANGES, "cpu", None)
    assert str(small_images) not in json.dumps(record)
    metrics = record["metrics"]
    assert metrics["averaged"] == [SVHN, COLOUR, UNIFORM]
    assert list(metrics["models"]) == list(MODELS)
    for name, model in metrics["models"].items():
        assert model["training_steps"] == 2
        expected = {"h, 0.04", "|s|, 0.04", "h, 0.04, no noise"}
        expected |= {"-log q, closed_form"} if name == MADE_MLE else {"h, 0.2"}
        assert expected <= model["as_is"].keys()
        assert model["as_is"].keys() == model["two_sided"].keys()
        assert any("log q" in score for score in model["as_is"]) == (name != MADE_PAPER)
        for sets in (*model["as_is"].values(), *model["two_sided"].values(), model[CHOSEN]):
            assert list(sets) == [SVHN, COLOUR, GREY_LEVEL, UNIFORM, "average"]
            assert all(0.0 <= sets[images]["mean"] <= 1.0 for images in sets)
            assert sets["average"]["mean"] == pytest.approx(fmean(sets[i]["mean"] for i in metrics["averaged"]))
    assert (tmp_path / "results" / "table1" / metrics["figure"]).stat().st_size > 1000


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


def test_experiments_share_models_with_the_same_configuration(
    small_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = image_models.train_model(study(tmp_path), MADE_SCORES)
    other = study(tmp_path, {"rows": 20, "resamples": 5})
    other.work = tmp_path / "another-experiment"

    def fail(trainer: Any) -> float:
        raise AssertionError("trained twice")

    # private: the only place where every training step passes
    monkeypatch.setattr(density.DensityTask, "advance", fail)
    assert image_models.train_model(other, MADE_SCORES) == first


def test_synthetic_images_are_uniform_on_the_grey_levels(small_images: Path) -> None:
    data = table1.image_sets(study(small_images, {"rows": 500}), 0)
    flat = {images: data.rows(images, 0) for images in (COLOUR, GREY_LEVEL, UNIFORM)}
    for rows in flat.values():
        assert rows.shape == (500, 48)
        assert float(rows.abs().max()) <= 1.0
        assert float(rows.std()) == pytest.approx(1.0 / 3.0**0.5, abs=0.03)
    cells = {images: torch.floor((rows.double() + 1.0) * 128.0).view(-1, 3, 16) for images, rows in flat.items()}
    # single precision rounds a few values up to the next grey level
    assert float((cells[COLOUR] == cells[COLOUR][..., :1]).double().mean()) > 0.999
    assert float((cells[GREY_LEVEL] == cells[GREY_LEVEL][:, :1, :1]).double().mean()) > 0.999
    assert float((cells[COLOUR][:, 0] == cells[COLOUR][:, 1]).double().mean()) < 0.05
    assert float((cells[UNIFORM][..., 1:] == cells[UNIFORM][..., :1]).double().mean()) < 0.05


def test_images_of_another_size_are_a_one_line_error(
    small_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cifar10.npz").symlink_to(small_images / "cifar10.npz")
    np.savez(tmp_path / "svhn.npz", x_test=np.zeros((5, 8, 8, 3), np.uint8))
    monkeypatch.setenv("ARCSM_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"svhn\.npz: expected images \[3, 4, 4\], got \[3, 8, 8\]"):
        table1.image_sets(study(tmp_path), 0).rows(SVHN, 0)
