"""The command ``arcsm denoise``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import arcsm
from arcsm.data import digits, read_images
from small_runs import call
from small_web_models import image_model

IMPULSES = ("--noise", "salt-and-pepper", "--probability")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of images of 4 x 4 pixels."""
    path = tmp_path_factory.mktemp("denoise") / "model.safetensors"
    arcsm.save(image_model((1, 4, 4), levels=256), path)
    return path


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """Write three digits with salt-and-pepper noise, one of them in a subfolder."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "noisy"
    (folder / "more").mkdir(parents=True)
    pictures = digits().pixels[:3, 0, ::2, ::2].numpy() * 15
    for name, picture in zip(("a.png", "b.bmp", "more/c.png"), pictures, strict=True):
        corrupted = np.where(generator.random((4, 4)) < 0.1, 255 * generator.integers(0, 2, (4, 4)), picture)
        Image.fromarray(corrupted.astype(np.uint8)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ["--sigma", "0.5"],
        ["--sigma", "0.05", "--method", "langevin"],
        [*IMPULSES, "0.1"],
        [*IMPULSES, "0.1", "--method", "particles"],
        [*IMPULSES, "0.1", "--method", "langevin"],
    ],
)
def test_images_are_restored_under_their_names(
    options: list[str], run: Path, noisy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in noisy.rglob("*.*")}
    for out in ("first", "second"):
        assert call("denoise", run, noisy, "--out", tmp_path / out, "--device", "cpu", *options) == 0
    assert "3 images in" in capsys.readouterr().out
    first, second = read_images(tmp_path / "first"), read_images(tmp_path / "second")
    assert first.names == ("a.png", "b.png", "more/c.png")
    assert first.pixels.shape == (3, 1, 4, 4)
    assert torch.equal(first.pixels, second.pixels)
    inputs = read_images(noisy).pixels
    assert not torch.equal(first.pixels, inputs)
    if "salt-and-pepper" in options:
        between = (inputs > 0) & (inputs < 255)
        assert torch.equal(first.pixels[between], inputs[between])
    assert {path: path.read_bytes() for path in noisy.rglob("*.*")} == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--sigma", "0.5", "--out", "NOISY/restored"], 1, "expected a folder outside of"),
        (["--sigma", "0.5", "--out", "TAKEN"], 1, "a.png: exists already"),
        (["--sigma", "0.5", "--noise", "salt-and-pepper", "--out", "x"], 1, "expected --probability and no --sigma"),
        (["--sigma", "0.5", "--probability", "0.1", "--out", "x"], 1, "expected --sigma and no --probability"),
        ([*IMPULSES, "0.1", "--method", "tweedie", "--out", "x"], 1, "expected gaussian"),
        (["--noise", "snow", "--sigma", "1", "--out", "x"], 2, "--noise"),
    ],
)  # fmt: skip
def test_invalid_calls_of_the_command_print_one_line(
    arguments: list[str], code: int, message: str, run: Path, noisy: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a.png").write_bytes(b"kept")
    inputs = [a.replace("NOISY", str(noisy)).replace("TAKEN", str(tmp_path / "taken")) for a in arguments]
    capsys.readouterr()
    assert call("denoise", run, noisy, *inputs) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("arcsm: ")
    assert message in captured.err
    assert (tmp_path / "taken" / "a.png").read_bytes() == b"kept"
    assert not (tmp_path / "x").exists()


def test_unsuitable_folders_of_images_are_rejected(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "large").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "large" / "a.png")
    (tmp_path / "twice").mkdir()
    for suffix in ("png", "bmp"):
        Image.new("L", (4, 4)).save(tmp_path / "twice" / f"a.{suffix}")
    (tmp_path / "empty").mkdir()
    options = ["--sigma", "0.5", "--out", tmp_path / "x"]
    for name, message in (
        ("large", "expected images of 1x4x4, got 1x9x9"),
        ("twice", "expected names that differ"),
        ("empty", "expected images"),
        ("nowhere", "expected a folder of images"),
    ):
        assert call("denoise", run, tmp_path / name, *options) == 1
        assert message in capsys.readouterr().err
