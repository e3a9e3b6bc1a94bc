"""Runs on images: classes, samples as files, bad files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arcsm import load
from arcsm.cli.model_rows import images_for
from arcsm.data import read_images
from arcsm.data.images import save_images
from arcsm.data.pixels import stretch_images
from arcsm.errors import SkippedWarning
from small_reports import use_small_reports
from small_runs import ON_DATA, call

CLASSES = """
name: tiny
data: {kind: digits}
model:
  context: {kind: MADE, hidden_features: [8], context_features: 4, classes: 10}
  head: {kind: ScoreHead, hidden_features: [8]}
  noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 3}
train: {steps: 10, learning_rate: 0.1, batch_size: 16, device: cpu, validation_rows: 16, standardise: none}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    (folder / "tiny.yaml").write_text(CLASSES)
    assert call("train", folder / "tiny.yaml", "--out", folder / "run") == 0
    return folder / "run"


def test_a_model_with_classes_draws_a_class_and_reports(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("sample", run, "-n", 4, "--class", 3, "--out", tmp_path / "threes.npy", "--device", "cpu") == 0
    assert call("sample", run, "-n", 4, "--out", tmp_path / "turns.npy", "--device", "cpu") == 0
    threes, turns = (np.load(tmp_path / name) for name in ("threes.npy", "turns.npy"))
    assert np.array_equal(threes[3], turns[3])  # the fourth in turn is a three, drawn with the same randomness
    assert not np.array_equal(threes[0], turns[0])
    assert call("sample", run, "--class", 10, "--out", "x.npy") == 1
    assert "this model has classes 0 to 9" in capsys.readouterr().err
    use_small_reports(monkeypatch)
    assert call("report", run, "--samples", 4, "--device", "cpu") == 0


def test_labels_that_do_not_fit_the_classes_are_rejected_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.yaml").write_text(CLASSES)
    assert call("train", tmp_path / "few.yaml", "--set", "model.context.classes=5", "--out", tmp_path / "run") == 1
    assert "a label 9" in capsys.readouterr().err
    images = np.zeros((40, 8, 8), np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=np.arange(40) % 10, x_test=images[:4])
    change = f"data={{kind: images, path: {tmp_path / 'd.npz'}, key: x_train, test_key: x_test}}"
    assert call("train", tmp_path / "few.yaml", "--set", change, "--out", tmp_path / "run") == 1
    assert "no labels (test)" in capsys.readouterr().err


def test_scoring_and_denoising_use_the_class_of_images_that_were_drawn(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("sample", run, "-n", 2, "--out", tmp_path / "images", "--device", "cpu") == 0
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["0.png", "1.png"]
    assert Image.open(tmp_path / "images" / "0.png").size == (8, 8)
    assert call("sample", run, "-n", 2, "--out", tmp_path / "images") == 1
    assert "already exists" in capsys.readouterr().err
    scoring = ("score", run, tmp_path / "images", "--out", tmp_path / "scores.csv", "--device", "cpu")
    assert call(*scoring) == 1
    assert "give the class of the rows" in capsys.readouterr().err
    tables = []
    for label in (3, 4):
        assert call(*scoring, "--class", label) == 0
        tables.append((tmp_path / "scores.csv").read_text())
    assert tables[0] != tables[1]
    single = ("score", run, tmp_path / "images" / "0.png", "--out", tmp_path / "one.csv", "--class", 4)
    assert call(*single, "--device", "cpu") == 0
    assert (tmp_path / "one.csv").read_text().splitlines() == tables[1].splitlines()[:2]
    denoising = ("denoise", run, tmp_path / "images", "--sigma", 0.5, "--device", "cpu")
    assert call(*denoising, "--out", tmp_path / "3") == 1
    for label in (3, 4):
        assert call(*denoising, "--class", label, "--out", tmp_path / f"{label}") == 0
    images = [read_images(tmp_path / f"{label}").pixels for label in (3, 4)]
    assert len(images[0]) == 2
    assert not torch.equal(*images)


def test_samples_written_as_rows_are_scored_unchanged(run: Path, tmp_path: Path) -> None:
    samples, scores = tmp_path / "samples.csv", tmp_path / "scores.npy"
    assert call("sample", run, "-n", 3, "--class", 3, "--out", samples, "--device", "cpu") == 0
    assert call("score", run, samples, "--out", scores, "--class", 3, "--device", "cpu") == 0
    rows = np.loadtxt(samples, delimiter=",", skiprows=1)
    expected = load(run).log_prob(torch.from_numpy(rows).float(), condition=torch.tensor(3)).detach()
    np.testing.assert_allclose(np.load(scores)[:, 1], expected, rtol=1e-5)


def test_images_are_read_with_the_grey_levels_of_the_model(run: Path, tmp_path: Path) -> None:
    model = load(run)
    pixels = (torch.arange(128).view(2, 1, 8, 8) % 17).to(torch.uint8)  # scikit-learn's digits have 17 levels
    for index, image in enumerate(stretch_images(pixels, 17)):
        save_images(tmp_path / f"{index}.png", image[None], padding=0)
    read = images_for(model, tmp_path)
    assert read.levels == 17
    assert torch.equal(read.pixels, pixels)


def test_bad_files_are_skipped_on_request(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sample", run, "-n", 3, "--out", tmp_path / "images", "--device", "cpu") == 0
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    save_images(tmp_path / "images" / "large.png", torch.zeros(1, 1, 9, 9, dtype=torch.uint8), padding=0)
    scoring = ("score", run, tmp_path / "images", "--class", 3, "--out", tmp_path / "scores.csv", "--device", "cpu")
    assert call(*scoring) == 1
    assert "1.png: cannot be read" in capsys.readouterr().err
    with pytest.warns(SkippedWarning, match=r"left out 2 of 4 images \(1\.png: .*large\.png: expected 8 x 8"):
        assert call(*scoring, "--skip-bad") == 0
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert [line.split(",")[-1] for line in lines] == ["file", "0.png", "2.png"]
    assert call("score", run, tmp_path / "images", "--class", 3, "--out", tmp_path / "s.npy", "--skip-bad") == 1
    assert "cannot list the skipped images" in capsys.readouterr().err
    noise = ("--sigma", 0.5, "--class", 3, "--skip-bad", "--device", "cpu")
    with pytest.warns(SkippedWarning):
        assert call("denoise", run, tmp_path / "images", "--out", tmp_path / "restored", *noise) == 0
    assert sorted(path.name for path in (tmp_path / "restored").iterdir()) == ["0.png", "2.png"]


def test_a_run_that_resized_its_images_resizes_those_to_score_whatever_their_names(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(20):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16 + 4 * (index % 2)), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{index:02d}.png")
    os.rename(images / "00.png", os.fsencode(images) + b"/\xff\xfe.png")
    (tmp_path / "run.yaml").write_text(ON_DATA % f"{{kind: images, path: {images}, size: 4}}")
    assert call("train", tmp_path / "run.yaml", "--out", tmp_path / "out") == 0
    assert call("score", tmp_path / "out", images, "--out", tmp_path / "s.csv") == 0
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 21
    assert "\\xff\\xfe.png" in (tmp_path / "s.csv").read_text()
