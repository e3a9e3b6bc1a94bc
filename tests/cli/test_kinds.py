"""Commands on runs of autoencoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcsm.implicit import Annealing
from small_runs import call

VAE = """
kind: vae
name: tiny-vae
data: {kind: digits}
model: {encoder: autoregressive, latents: 2, hidden_features: [8]}
train: {method: csm, steps: 4, batch_size: 8, score_hidden: [8], head_hidden: [8], validate_every: 2,
        validation_rows: 8, validation_samples: 4, device: cpu}
"""


@pytest.fixture(autouse=True)
def short_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcsm.reports.vae._ANNEALING", Annealing(temperatures=5, chains=2))
    monkeypatch.setattr("arcsm.reports.vae._SAMPLES", 50)


@pytest.fixture(scope="module")
def vae_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    (folder / "tiny.yaml").write_text(VAE)
    assert call("train", folder / "tiny.yaml", "--out", folder / "run") == 0
    return folder / "run"


def test_an_autoencoder_is_trained_sampled_and_reported(
    vae_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("sample", vae_run, "-n", 3, "--out", tmp_path / "a.npy") == 0
    assert np.load(tmp_path / "a.npy").shape == (3, 64)
    assert call("report", vae_run, "--out", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert "importance weighted bound" in page
    assert "annealed importance sampling" in page
    assert "<td>evidence lower bound</td>" in page
    assert "annealing from above and from below differ" in page
    assert "% of what the true one would" in page
    assert page.count("data:image/png;base64,") == 5  # four pictures and the curve
    assert "https://" not in page
    capsys.readouterr()
    assert call("info", vae_run) == 0
    assert "encoder: autoregressive" in capsys.readouterr().out
    assert call("info", vae_run / "model.safetensors") == 0
    assert '"latents": 2' in capsys.readouterr().out
    assert call("train", vae_run.parent / "tiny.yaml", "--out", vae_run, "--resume") == 0


def test_unsupported_options_are_one_line(vae_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digit = tmp_path / "digits"
    digit.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(digit / "a.png")
    for arguments, message in (
        (("score", vae_run, digit, "--out", tmp_path / "s.csv"), "holds a vae, not an autoregressive model"),
        (("sample", vae_run, "--sampler", "langevin", "--out", tmp_path / "s.png"), "not supported for autoencoders"),
        (("report", vae_run, "--sampler", "langevin"), "not supported for autoencoders"),
        (("train", "vae-mnist", "--set", "train.method=cms"), "train.method: input should be 'elbo'"),
        (("train", "vae-mnist", "--set", "train.metod=csm"), "train.metod: unknown key; did you mean method?"),
    ):
        assert call(*arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
