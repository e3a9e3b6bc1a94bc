"""Runs on images: classes, PixelCNN++, samples as files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from arcsm import load
from arcsm.cli.model_rows import images_for, shared_class
from arcsm.cli.restoration import restored as restored_rows
from arcsm.data.images import save_images
from arcsm.data.pixels import stretch_images
from arcsm.denoise import GaussianNoise
from arcsm.errors import SkippedWarning
from small_reports import use_small_reports
from small_runs import call

CLASSES = """
name: tiny
data: {kind: digits}
model:
  context: {kind: PixelCNNPP, nr_filters: 4, nr_resnet: 1, context_features: 4, classes: 10, dropout: 0.1}
  head: {kind: ScoreHead, hidden_features: [8]}
  noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 3}
train: {steps: 3, batch_size: 16, device: cpu, validate_every: 3, validation_rows: 16, standardise: none}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    (folder / "tiny.yaml").write_text(CLASSES)
    assert call("train", folder / "tiny.yaml", "--out", folder / "run") == 0
    return folder / "run"


def test_a_model_with_classes_trains_samples_and_reports(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("sample", run, "-n", 4, "--class", 3, "--out", tmp_path / "threes.npy", "--device", "cpu") == 0
    assert call("sample", run, "-n", 4, "--out", tmp_path / "turns.npy", "--device", "cpu") == 0
    threes, turns = (np.load(tmp_path / name) for name in ("threes.npy", "turns.npy"))
    assert np.array_equal(threes[3], turns[3])  # the fourth in turn is a three, drawn with the same randomness
    assert not np.array_equal(threes[0], turns[0])
    use_small_reports(monkeypatch)
    assert call("report", run, "--samples", 4, "--device", "cpu") == 0


def test_an_unknown_class_is_rejected(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sample", run, "--class", 10, "--out", "x.npy") == 1
    assert "this model has classes 0 to 9" in capsys.readouterr().err


def test_samples_are_written_as_files_in_a_new_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("sample", run, "-n", 11, "--out", tmp_path / "files", "--device", "cpu") == 0
    names = sorted(path.name for path in (tmp_path / "files").iterdir())
    assert names == [f"{index:02d}.png" for index in range(11)]
    assert Image.open(tmp_path / "files" / "00.png").size == (8, 8)
    assert call("sample", run, "-n", 2, "--out", tmp_path / "files") == 1
    assert "already exists" in capsys.readouterr().err


def test_labels_that_do_not_fit_the_classes_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "few.yaml").write_text(CLASSES)
    assert call("train", tmp_path / "few.yaml", "--set", "model.context.classes=5", "--out", tmp_path / "run") == 1
    assert "a label 9" in capsys.readouterr().err
    images = np.zeros((30, 8, 8), np.uint8)
    np.save(tmp_path / "unlabelled.npy", images)
    changes = ("--set", f"data={{kind: images, path: {tmp_path / 'unlabelled.npy'}}}")
    assert call("train", tmp_path / "few.yaml", *changes, "--out", tmp_path / "run") == 1
    assert "no labels" in capsys.readouterr().err


def test_scoring_and_denoising_use_the_class(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sample", run, "-n", 2, "--out", tmp_path / "images", "--device", "cpu") == 0
    scoring = ("score", run, tmp_path / "images", "--out", tmp_path / "scores.csv", "--device", "cpu")
    assert call(*scoring) == 1
    assert "give the class of the rows" in capsys.readouterr().err
    tables = []
    for label in (3, 4):
        assert call(*scoring, "--class", label) == 0
        tables.append((tmp_path / "scores.csv").read_text())
    assert tables[0] != tables[1]
    denoising = ("denoise", run, tmp_path / "images", "--sigma", 0.5, "--device", "cpu")
    assert call(*denoising, "--out", tmp_path / "a") == 1
    assert call(*denoising, "--class", 3, "--out", tmp_path / "a") == 0
    assert len(list((tmp_path / "a").iterdir())) == 2


def test_a_single_image_is_scored_as_in_its_folder(run: Path, tmp_path: Path) -> None:
    assert call("sample", run, "-n", 2, "--out", tmp_path / "images", "--device", "cpu") == 0
    for name, path in (("all", tmp_path / "images"), ("one", tmp_path / "images" / "0.png")):
        out = tmp_path / f"{name}.csv"
        assert call("score", run, path, "--out", out, "--class", 3, "--device", "cpu") == 0
    both, one = ((tmp_path / f"{name}.csv").read_text().splitlines() for name in ("all", "one"))
    assert len(one) == 2
    assert one == both[:2]


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_samples_written_as_rows_are_scored_unchanged(run: Path, tmp_path: Path, suffix: str) -> None:
    samples, scores = tmp_path / f"samples{suffix}", tmp_path / "scores.npy"
    assert call("sample", run, "-n", 3, "--class", 3, "--out", samples, "--device", "cpu") == 0
    assert call("score", run, samples, "--out", scores, "--class", 3, "--device", "cpu") == 0
    rows = np.load(samples) if suffix == ".npy" else np.loadtxt(samples, delimiter=",", skiprows=1)
    expected = load(run).log_prob(torch.from_numpy(rows).float(), condition=torch.tensor(3)).detach()
    np.testing.assert_allclose(np.load(scores)[:, 1], expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["tweedie", "posterior", "langevin"])
def test_denoised_images_depend_on_the_class(run: Path, method: Literal["tweedie", "posterior", "langevin"]) -> None:
    model = load(run)

    def restored(label: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        of_class = shared_class(model, label)
        return restored_rows(model, torch.zeros(2, 64), GaussianNoise(0.5), method, of_class, generator)

    assert not torch.equal(restored(3), restored(4))


def test_images_are_read_with_the_grey_levels_of_the_model(run: Path, tmp_path: Path) -> None:
    model = load(run)
    pixels = (torch.arange(128).view(2, 1, 8, 8) % 17).to(torch.uint8)  # scikit-learn's digits have 17 levels
    for index, image in enumerate(stretch_images(pixels, 17)):
        save_images(tmp_path / f"{index}.png", image[None], padding=0)
    read = images_for(model, tmp_path)
    assert read.levels == 17
    assert torch.equal(read.pixels, pixels)


def test_a_run_does_not_resume_with_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.zeros((40, 8, 8), np.uint8))
    (tmp_path / "tiny.yaml").write_text(CLASSES.replace("classes: 10, ", ""))

    def train(name: str, *more: object) -> int:
        change = f"data={{kind: images, path: {tmp_path / name}.npy}}"
        return call("train", tmp_path / "tiny.yaml", "--set", change, "--out", tmp_path / "run", *more)

    assert train("a") == 0
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert train("b", "--resume") == 1
    assert "started with another data section" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text() == config
    assert train("a", "--resume") == 0


def test_a_test_set_without_labels_is_rejected_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.zeros((40, 8, 8), np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=np.arange(40) % 10, x_test=images[:4])
    (tmp_path / "tiny.yaml").write_text(CLASSES)
    change = f"data={{kind: images, path: {tmp_path / 'd.npz'}, key: x_train, test_key: x_test}}"
    assert call("train", tmp_path / "tiny.yaml", "--set", change, "--out", tmp_path / "run") == 1
    assert "no labels (test)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.head={kind: DiscretisedLogisticMixtureHead, components: 2, levels: 256}", "the data have 17"),
        ("train.standardise=columns", "must stay in"),
    ],
)
def test_a_discretised_head_must_fit_the_data(
    change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CLASSES.replace(
        "{kind: ScoreHead, hidden_features: [8]}", "{kind: DiscretisedLogisticMixtureHead, levels: 17}"
    )
    text = text.replace("noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 3}", "noise: null")
    (tmp_path / "grey.yaml").write_text(text.replace("train: {", "train: {objective: mle, "))
    assert call("train", tmp_path / "grey.yaml", "--out", tmp_path / "good") == 0
    assert call("train", tmp_path / "grey.yaml", "--set", change, "--out", tmp_path / "run") == 1
    assert message in capsys.readouterr().err


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
