"""The command, as a person runs it: results on disk, one-line errors, exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from arcsm.cli import application, model_rows
from arcsm.data import digits, read_table

TINY = """
name: tiny
data: {kind: %s}
model:
  context: {kind: MADE, hidden_features: [16], context_features: 4}
  head: {kind: ScoreHead, hidden_features: [16]}
  noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 4}
train: {steps: 20, batch_size: 64, device: cpu, validate_every: 10, standardise: %s}
"""


def call(*arguments: object) -> int:
    return application.run([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "tiny.yaml").write_text(TINY % ("digits", "none"))
    assert call("train", folder / "tiny.yaml", "--out", folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def table_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    table = np.random.default_rng(0).normal(size=(300, 3))
    np.savetxt(folder / "data.csv", table, delimiter=",", header="a,b,c", comments="")
    (folder / "tiny.yaml").write_text(TINY % (f"table, path: {folder / 'data.csv'}", "columns"))
    assert call("train", folder / "tiny.yaml", "--out", folder / "run") == 0
    return folder / "run"


VAE = """
kind: vae
name: tiny-vae
data: {kind: digits}
model: {encoder: autoregressive, latents: 2, hidden_features: [8]}
train: {method: csm, steps: 4, batch_size: 8, score_hidden: [8], head_hidden: [8], validate_every: 2,
        validation_rows: 8, validation_samples: 4, device: cpu}
"""


@pytest.fixture(scope="module")
def vae_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    (folder / "tiny.yaml").write_text(VAE)
    assert call("train", folder / "tiny.yaml", "--out", folder / "run") == 0
    return folder / "run"


def test_an_autoencoder_is_trained_drawn_from_and_reported(
    vae_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("sample", vae_run, "-n", 4, "--out", tmp_path / "s.png", "--device", "cpu") == 0
    assert Image.open(tmp_path / "s.png").size[0] > 16
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
    assert call("train", vae_run.parent / "tiny.yaml", "--out", vae_run, "--resume") == 0


def test_a_report_on_one_image_has_no_standard_error(
    vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcsm.reports.vae._IMAGES", 1)
    assert call("report", vae_run, "--out", tmp_path / "page.html") == 0
    assert (tmp_path / "page.html").read_text().count('<td class="number"></td>') == 3  # of as many estimates


def test_a_file_of_an_autoencoder_is_enough(vae_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = vae_run / "model.safetensors"
    assert call("sample", weights, "-n", 2, "--out", tmp_path / "s.png", "--device", "cpu") == 0
    assert call("info", weights) == 0
    assert '"latents": 2' in capsys.readouterr().out


def test_a_refused_configuration_leaves_the_folder_free(vae_run: Path, tmp_path: Path) -> None:
    source = vae_run.parent / "tiny.yaml"
    assert call("train", source, "--set", "train.method=elbo", "--out", tmp_path / "r") == 1
    wanted = ("--set", "train.method=elbo", "--set", "model.encoder=gaussian")
    assert call("train", source, *wanted, "--out", tmp_path / "r") == 0


def test_what_an_autoencoder_cannot_do_is_one_line(
    vae_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digit = tmp_path / "digits"
    digit.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(digit / "a.png")
    for arguments, message in (
        (("score", vae_run, digit, "--out", tmp_path / "s.csv"), "holds a vae, not an autoregressive model"),
        (("sample", vae_run, "--sampler", "langevin", "--out", tmp_path / "s.png"), "this is an autoencoder"),
        (("report", vae_run, "--sampler", "langevin"), "this is an autoencoder"),
        (("train", vae_run.parent / "tiny.yaml", "--out", vae_run), "holds a run already"),
        (("train", "vae-mnist", "--set", "train.method=cms"), "train.method: input should be 'elbo'"),
        (("train", "vae-mnist", "--set", "train.metod=csm"), "train.metod: unknown key; did you mean method?"),
    ):
        assert call(*arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_table_is_trained_by_its_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{n % 7 + 0.5},{n / 9.0}\n" for n in range(90)))
    command = ["train", "table", "--set", "train.steps=2", "--out", str(run)]
    assert application.run([*command, "--set", f"data.path={tmp_path / 'none.csv'}"]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert application.run([*command, "--set", f"data.path={tmp_path / 't.csv'}"]) == 0
    assert application.run(["sample", str(run), "-n", "3", "--out", str(tmp_path / "s.csv")]) == 0
    assert (tmp_path / "s.csv").read_text().startswith("a,b\n")


def test_samples_come_as_picture_array_and_table(image_run: Path, table_run: Path, tmp_path: Path) -> None:
    assert call("sample", image_run, "-n", 4, "--out", tmp_path / "s.png", "--device", "cpu") == 0
    assert Image.open(tmp_path / "s.png").size[0] > 16
    for sampler in ("langevin", "probability_flow", "fast_flow", "inverse_cdf"):
        assert call("sample", table_run, "-n", 6, "--sampler", sampler, "--out", tmp_path / "s.csv") == 0
        table = read_table(tmp_path / "s.csv")
        assert table.columns == ("a", "b", "c")
        assert table.values.shape == (6, 3)
    assert call("sample", table_run, "-n", 6, "--out", tmp_path / "s.parquet") == 0
    assert list(pd.read_parquet(tmp_path / "s.parquet").columns) == ["a", "b", "c"]
    assert call("sample", table_run, "-n", 6, "--seed", 1, "--denoise", "--out", tmp_path / "a.npy") == 0
    assert call("sample", table_run, "-n", 6, "--seed", 1, "--denoise", "--out", tmp_path / "b.npy") == 0
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_scores_of_a_table_and_of_a_folder_of_images(
    image_run: Path, table_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = table_run.parent / "data.csv"
    assert call("score", table_run, data, "--out", tmp_path / "scores.csv") == 0
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert list(scores.columns) == ["row", "log_prob", "least_likely_column", "its_log_prob"]
    assert scores["row"].tolist() == list(range(300))
    assert set(scores["least_likely_column"]) <= {"a", "b", "c"}
    assert np.isfinite(scores[["log_prob", "its_log_prob"]]).all(axis=None)
    mixed = pd.read_csv(data)[["c", "a", "b"]].assign(other=1.0)  # names say what belongs where
    mixed.to_csv(tmp_path / "mixed.csv", index=False)
    assert call("score", table_run, tmp_path / "mixed.csv", "--out", tmp_path / "again.parquet") == 0
    again = pd.read_parquet(tmp_path / "again.parquet")
    np.testing.assert_allclose(again["log_prob"], scores["log_prob"], rtol=1e-5)
    assert (again["least_likely_column"] == scores["least_likely_column"]).mean() > 0.99
    assert call("score", table_run, data, "--out", tmp_path / "scores.npy") == 0  # numbers alone: places, from 0
    places = np.load(tmp_path / "scores.npy")[:, 2].astype(int)
    assert (np.array(["a", "b", "c"])[places] == scores["least_likely_column"]).all()
    mixed.drop(columns=["b"]).to_csv(tmp_path / "fewer.csv", index=False)
    assert call("score", table_run, tmp_path / "fewer.csv", "--out", tmp_path / "none.csv") == 1
    assert "fewer.csv: columns b are missing" in capsys.readouterr().err
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = digits().pixels[:3, 0].numpy() * 15
    for index, picture in enumerate(pixels):
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{index}.png")
    assert call("score", image_run, folder, "--out", tmp_path / "images.csv") == 0
    scored = pd.read_csv(tmp_path / "images.csv")
    assert list(scored.columns) == ["row", "log_prob", "least_likely_column", "its_log_prob", "file"]
    assert list(scored["file"]) == ["0.png", "1.png", "2.png"]
    assert np.isfinite(scored["log_prob"]).all()


def test_a_table_scored_in_parts_keeps_its_columns_if_asked(
    table_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pd.read_csv(table_run.parent / "data.csv")
    data.insert(1, "name", [f"row {i}" for i in range(len(data))])
    data["count"] = range(len(data))
    data.to_parquet(tmp_path / "t.parquet")
    assert call("score", table_run, tmp_path / "t.parquet", "--out", tmp_path / "whole.csv") == 0
    said = capsys.readouterr().out.replace("whole", "parts")
    monkeypatch.setattr(model_rows, "_PART_ROWS", 70)
    assert call("score", table_run, tmp_path / "t.parquet", "--out", tmp_path / "parts.csv") == 0
    assert capsys.readouterr().out == said  # the mean and its error, too
    whole, parts = pd.read_csv(tmp_path / "whole.csv"), pd.read_csv(tmp_path / "parts.csv")
    pd.testing.assert_frame_equal(parts, whole, rtol=1e-5)
    assert parts["row"].tolist() == list(range(len(data)))

    kept = ("score", table_run, tmp_path / "t.parquet", "--with-data", "--out", tmp_path / "kept.parquet")
    assert call(*kept) == 0
    found = pd.read_parquet(tmp_path / "kept.parquet")
    pd.testing.assert_frame_equal(found[list(data.columns)], data)
    np.testing.assert_allclose(found["log_prob"], whole["log_prob"], rtol=1e-5)
    assert call("score", table_run, tmp_path / "t.parquet", "--out", tmp_path / "scores.npy") == 0
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy")[:, 1], whole["log_prob"], rtol=1e-5)


def test_mistakes_in_a_table_to_score_are_one_line_and_leave_nothing(
    table_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_rows, "_PART_ROWS", 70)
    data = pd.read_csv(table_run.parent / "data.csv")
    out, gap = tmp_path / "s.csv", data.copy()
    gap.loc[123, "a"] = np.nan
    for name, changed, message in (
        ("gap", gap, "line 125, column 'a': nan"),
        ("own", data.assign(log_prob=0.0), "has a column 'log_prob' already"),
    ):
        changed.to_csv(tmp_path / f"{name}.csv", index=False)
        assert call("score", table_run, tmp_path / f"{name}.csv", "--with-data", "--out", out) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not out.exists()
    arguments = ("score", table_run, table_run.parent / "data.csv", "--with-data", "--out", tmp_path / "s.npy")
    assert call(*arguments) == 1
    assert "keeps the columns of a table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n9,1,2,3\n9,1,2,3\n", "line 2: expected 3 cells like the first row, got 4"),
        ("1,2,3,4\n1,2,3,4\n", "expected 3 columns, got 4"),
        ("a,b,a\n1,2,3\n", "expected different column names, got 'a' more than once"),
        ("a,b,c\n1,2\n", "line 2: expected 3 cells like the first row, got 2"),
        ("a,b,c\n1,2,3\n1,x,3\n2,3,4\n", "line 3, column 'b': expected a number, got 'x'"),
    ],
)
def test_a_csv_file_is_read_strictly(
    text: str, message: str, table_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert call("score", table_run, tmp_path / "t.csv", "--out", tmp_path / "s.csv") == 1
    assert message in capsys.readouterr().err


def test_what_is_kept_of_a_csv_file_is_its_text(table_run: Path, tmp_path: Path) -> None:
    rows = ["a ,id, b,c,when", "1.50,00123,2,3,2020-01-01", "1,NA,2,3.0,2021-02-03"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    out = tmp_path / "new" / "s.csv"  # whose folder is made
    assert call("score", table_run, tmp_path / "t.csv", "--with-data", "--out", out) == 0
    lines = [line.rsplit(",", 4)[0] for line in out.read_text().splitlines()]
    assert lines == ["a,id,b,c,when", *rows[1:]]
    (tmp_path / "truth.csv").write_text("1.5,True,0\n1,False,2\n")  # no header
    assert call("score", table_run, tmp_path / "truth.csv", "--out", out) == 0
    assert len(pd.read_csv(out)) == 2


def test_scores_of_images_as_an_array(image_run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index, picture in enumerate(digits().pixels[:3, 0].numpy() * 15):
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "images" / f"{index}.png")
    assert call("score", image_run, tmp_path / "images", "--out", tmp_path / "s.npy") == 0
    assert np.load(tmp_path / "s.npy").shape == (3, 4)


def test_a_report_is_one_self_contained_page(image_run: Path, table_run: Path, tmp_path: Path) -> None:
    for run in (image_run, table_run):
        page = tmp_path / f"{run.parent.name}.html"
        assert call("report", run, "--out", page, "--samples", 4) == 0
        text = page.read_text()
        assert text.count("data:image/png;base64,") >= 3
        assert not re.search(r"(src|href)=[\"']?(http|//)", text)
        assert "Gaussian mixture" in text
        assert "kind: MADE" in text


def test_info_says_what_a_model_is(image_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("info", image_run) == 0
    out = capsys.readouterr().out
    assert "features    64" in out
    assert "ScoreHead" in out


def test_a_run_is_not_overwritten_but_resumed(image_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (image_run / "model.safetensors").read_bytes()
    source = image_run.parent / "tiny.yaml"
    assert call("train", source, "--out", image_run) == 1
    assert "--resume" in capsys.readouterr().err
    assert call("train", source, "--out", image_run, "--resume") == 0
    assert (image_run / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "digit"], 1, "did you mean digits"),
        (["train", "digits", "--set", "train.stepz=1"], 1, "did you mean steps"),
        (["train", "mnist-made", "--set", "data.path=nowhere", "--out", "RUN"], 1, "download=true"),
        (["train"], 2, "missing argument"),
        (["trai"], 2, "no such command"),
        (["sample", "nowhere", "--out", "x.png"], 1, "no such file"),
        (["sample", "MODEL", "--out", "x.txt"], 1, "expected a .png, .csv, .parquet or .npy file"),
        (["sample", "MODEL", "--out", "x.png", "--sampler", "magic"], 1, "expected one of langevin"),
        (["sample", "MODEL", "--out", "x.png", "-n", "0"], 2, "-n"),
        (["sample", "MODEL", "--out", "x.png", "--device", "warp"], 1, "device"),
        (["score", "MODEL", "nowhere.csv", "--out", "x.csv"], 1, "nowhere.csv"),
        (["report", "nowhere"], 1, "not a run"),
        (["info", "nowhere"], 1, "no such file"),
    ],
)
def test_mistakes_are_one_line_on_standard_error(
    arguments: list[str], code: int, message: str, image_run: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    names = {"MODEL": str(image_run), "RUN": str(tmp_path / "run")}
    assert call(*(names.get(argument, argument) for argument in arguments)) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("arcsm: ")
    assert message.lower() in captured.err.lower()


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    listed = capsys.readouterr().out
    for name in ("quickstart", "train", "sample", "score", "report", "info"):
        assert name in listed
        assert call(name, "--help") == 0
        text = capsys.readouterr().out
        assert f"arcsm {name}" in text
        assert "Example" in text


def test_the_installed_command_runs_and_prints_no_bar_into_a_pipe(image_run: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "arcsm.cli", "sample", str(image_run), "-n", "2", "--out", str(tmp_path / "s.png")],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "FORCE_COLOR": "1"},
    )  # fmt: skip
    assert result.returncode == 0
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1


def test_an_interruption_that_the_parser_takes_for_itself_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(application, "app", lambda **_: 130)
    assert application.run(["info", "x"]) == 130
    assert capsys.readouterr().err == "arcsm: interrupted\n"


def test_an_interrupted_training_says_once_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("interrupted after step 7")

    monkeypatch.setattr("arcsm.cli.training.train_run", stopped)
    assert application.run(["train", "digits", "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "arcsm: interrupted after step 7\n"
