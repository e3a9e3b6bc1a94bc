"""Runs on images by the command: classes, PixelCNN++, archives with their own test set, samples as files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from arcsm import load
from arcsm.cli import application
from arcsm.cli.model_rows import images_for, shared_class
from arcsm.cli.restoration import restored as restored_rows
from arcsm.data.datasets import ImageData, NamedImageData, load_dataset
from arcsm.data.images import save_images
from arcsm.data.pixels import stretch_images
from arcsm.denoise import GaussianNoise
from arcsm.errors import SkippedWarning

CLASSES = """
name: tiny
data: {kind: digits}
model:
  context: {kind: PixelCNNPP, nr_filters: 4, nr_resnet: 1, context_features: 4, classes: 10, dropout: 0.1}
  head: {kind: ScoreHead, hidden_features: [8]}
  noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 3}
train: {steps: 3, batch_size: 16, device: cpu, validate_every: 3, validation_rows: 16, standardise: none}
"""


def call(*arguments: object) -> int:
    return application.run([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    (folder / "tiny.yaml").write_text(CLASSES)
    assert call("train", folder / "tiny.yaml", "--out", folder / "run") == 0
    return folder / "run"


def test_a_model_with_classes_trains_samples_and_reports(run: Path, tmp_path: Path) -> None:
    assert call("sample", run, "-n", 4, "--class", 3, "--out", tmp_path / "threes.npy", "--device", "cpu") == 0
    assert call("sample", run, "-n", 4, "--out", tmp_path / "turns.npy", "--device", "cpu") == 0
    threes, turns = (np.load(tmp_path / name) for name in ("threes.npy", "turns.npy"))
    assert np.array_equal(threes[3], turns[3])  # the fourth in turn is a three, drawn with the same randomness
    assert not np.array_equal(threes[0], turns[0])
    assert call("report", run, "--samples", 4, "--device", "cpu") == 0


def test_a_class_that_the_model_has_not_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sample", run, "--class", 10, "--out", "x.npy") == 1
    assert "this model has classes 0 to 9" in capsys.readouterr().err


def test_samples_as_files_in_a_folder_of_their_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("sample", run, "-n", 11, "--out", tmp_path / "files", "--device", "cpu") == 0
    names = sorted(path.name for path in (tmp_path / "files").iterdir())
    assert names == [f"{index:02d}.png" for index in range(11)]
    assert Image.open(tmp_path / "files" / "00.png").size == (8, 8)
    assert call("sample", run, "-n", 2, "--out", tmp_path / "files") == 1
    assert "exists already" in capsys.readouterr().err


def test_data_without_enough_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "few.yaml").write_text(CLASSES)
    assert call("train", tmp_path / "few.yaml", "--set", "model.context.classes=5", "--out", tmp_path / "run") == 1
    assert "a label 9" in capsys.readouterr().err
    images = np.zeros((30, 8, 8), np.uint8)
    np.save(tmp_path / "unlabelled.npy", images)
    changes = ("--set", f"data={{kind: images, path: {tmp_path / 'unlabelled.npy'}}}")
    assert call("train", tmp_path / "few.yaml", *changes, "--out", tmp_path / "run") == 1
    assert "no labels" in capsys.readouterr().err


def test_scores_and_restored_images_of_a_class(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sample", run, "-n", 2, "--out", tmp_path / "images", "--device", "cpu") == 0
    scoring = ("score", run, tmp_path / "images", "--out", tmp_path / "scores.csv", "--device", "cpu")
    assert call(*scoring) == 1
    assert "say which one" in capsys.readouterr().err
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
def test_samples_kept_as_rows_are_scored_as_they_are(run: Path, tmp_path: Path, suffix: str) -> None:
    samples, scores = tmp_path / f"samples{suffix}", tmp_path / "scores.npy"
    assert call("sample", run, "-n", 3, "--class", 3, "--out", samples, "--device", "cpu") == 0
    assert call("score", run, samples, "--out", scores, "--class", 3, "--device", "cpu") == 0
    rows = np.load(samples) if suffix == ".npy" else np.loadtxt(samples, delimiter=",", skiprows=1)
    expected = load(run).log_prob(torch.from_numpy(rows).float(), condition=torch.tensor(3)).detach()
    np.testing.assert_allclose(np.load(scores)[:, 1], expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["tweedie", "posterior", "langevin"])
def test_what_is_restored_depends_on_the_class(run: Path, method: Literal["tweedie", "posterior", "langevin"]) -> None:
    model = load(run)

    def restored(label: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        of_class = shared_class(model, label)
        return restored_rows(model, torch.zeros(2, 64), GaussianNoise(0.5), method, of_class, generator)

    assert not torch.equal(restored(3), restored(4))


def test_images_come_back_to_the_grey_levels_of_the_model(run: Path, tmp_path: Path) -> None:
    model = load(run)
    pixels = (torch.arange(128).view(2, 1, 8, 8) % 17).to(torch.uint8)  # scikit-learn's digits have 17 levels
    for index, image in enumerate(stretch_images(pixels, 17)):
        save_images(tmp_path / f"{index}.png", image[None], padding=0)
    read = images_for(model, tmp_path)
    assert read.levels == 17
    assert torch.equal(read.pixels, pixels)


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.zeros((40, 8, 8), np.uint8))
    (tmp_path / "tiny.yaml").write_text(CLASSES.replace("classes: 10, ", ""))

    def train(name: str, *more: object) -> int:
        change = f"data={{kind: images, path: {tmp_path / name}.npy}}"
        return call("train", tmp_path / "tiny.yaml", "--set", change, "--out", tmp_path / "run", *more)

    assert train("a") == 0
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert train("b", "--resume") == 1
    assert "began with another data" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text() == config
    assert train("a", "--resume") == 0


def test_a_test_set_without_labels_is_refused_before_training(
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
def test_a_head_of_grey_levels_must_fit_the_data(
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


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path / "cifar10.npz"
    np.savez(
        path,
        x_train=random.integers(0, 256, (20, 4, 4, 3), np.uint8),
        y_train=np.arange(20) % 10,
        x_test=random.integers(0, 256, (6, 4, 4, 3), np.uint8),
        y_test=np.arange(6),
    )
    return path


def test_an_archive_stands_for_a_named_set(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCSM_DATA", str(archive.parent))
    for config in (NamedImageData(kind="cifar10"), NamedImageData(kind="cifar10", path=str(archive))):
        dataset = load_dataset(config)
        assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (18, 2, 6)
        assert dataset.metadata["image_shape"] == [3, 4, 4]
        assert dataset.labels["test"].tolist() == list(range(6))
        both = sorted([*dataset.labels["train"].tolist(), *dataset.labels["valid"].tolist()])
        assert both == sorted(np.arange(20) % 10)


def test_an_image_file_may_have_its_own_test_set(archive: Path) -> None:
    own = load_dataset(ImageData(kind="images", path=str(archive), key="x_train", test_key="x_test"))
    assert (len(own.train), len(own.valid), len(own.test)) == (18, 2, 6)
    named = load_dataset(ImageData(kind="images", path=f"{archive}:x_test"))
    assert len(named.train) + len(named.valid) + len(named.test) == 6
    assert load_dataset(ImageData(kind="images", path=str(archive), key="x_train")).labels["test"].shape == (2,)


def test_labels_stay_with_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    pixels = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    np.savez(path, x_train=pixels, y_train=np.arange(40))
    dataset = load_dataset(ImageData(kind="images", path=str(path), key="x_train"), seed=3)
    for part, rows in (("train", dataset.train), ("valid", dataset.valid), ("test", dataset.test)):
        assert ((rows[:, 0] + 1.0) * 128.0).round().long().tolist() == dataset.labels[part].tolist()


def test_one_bad_file_does_not_lose_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert "cannot say which images were left out" in capsys.readouterr().err
    noise = ("--sigma", 0.5, "--class", 3, "--skip-bad", "--device", "cpu")
    with pytest.warns(SkippedWarning):
        assert call("denoise", run, tmp_path / "images", "--out", tmp_path / "restored", *noise) == 0
    assert sorted(path.name for path in (tmp_path / "restored").iterdir()) == ["0.png", "2.png"]
