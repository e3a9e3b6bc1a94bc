"""The commands that apply a model: sample and score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import arcsm
from arcsm.cli import model_rows
from arcsm.data import digits, read_table
from small_runs import call
from small_tables import model_of_columns


def test_samples_are_written_as_picture_array_and_table(image_run: Path, table_run: Path, tmp_path: Path) -> None:
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


def test_samples_do_not_replace_the_training_table(table_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table_run.parent / "data.csv"
    before = data.read_bytes()
    assert call("sample", table_run, "-n", 6, "--out", data) == 1
    assert f"--out {data}: is read, too; give another file" in capsys.readouterr().err.replace("\n", " ")
    assert data.read_bytes() == before


def test_samples_and_scores_hold_no_formulas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = tmp_path / "model.safetensors", tmp_path / "data.csv"
    arcsm.save(model_of_columns("=1+1", "b"), model)
    pd.DataFrame({"=1+1": [1.0, 2.0], "b": [3.0, -4.0], "@id": ["=cmd()", "x"]}).to_csv(data, index=False)
    for option, mark in (((), ""), (("--safe-csv",), "'")):
        assert call("sample", model, "-n", 2, *option, "--out", tmp_path / "samples.csv") == 0
        assert list(pd.read_csv(tmp_path / "samples.csv").columns) == [f"{mark}=1+1", "b"]
        assert call("score", model, data, "--id", "@id", *option, "--out", tmp_path / "scores.csv") == 0
        scores = pd.read_csv(tmp_path / "scores.csv")
        assert scores[f"{mark}@id"].tolist() == [f"{mark}=cmd()", "x"]
        assert set(scores["least_likely_column"]) <= {f"{mark}=1+1", "b"}
    for command in (("sample", model), ("score", model, data)):
        assert call(*command, "--safe-csv", "--out", tmp_path / "out.npy") == 1
        assert "--safe-csv: expected --out to be a .csv or .tsv file" in capsys.readouterr().err


def test_tables_and_folders_of_images_are_scored(
    image_run: Path, table_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = table_run.parent / "data.csv"
    assert call("score", table_run, data, "--out", tmp_path / "scores.csv") == 0
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert list(scores.columns) == ["row", "log_prob", "least_likely_column", "its_log_prob"]
    assert scores["row"].tolist() == list(range(1, 301))
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
    assert "fewer.csv: column b is missing" in capsys.readouterr().err
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


def test_a_table_scored_in_parts_keeps_its_columns_on_request(
    table_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pd.read_csv(table_run.parent / "data.csv")
    data.insert(1, "name", [f"row {i}" for i in range(len(data))])
    data["count"] = range(len(data))
    data.to_parquet(tmp_path / "t.parquet")
    assert call("score", table_run, tmp_path / "t.parquet", "--out", tmp_path / "whole.csv") == 0
    output = capsys.readouterr().out.replace("whole", "parts")
    monkeypatch.setattr(model_rows, "_PART_ROWS", 70)
    assert call("score", table_run, tmp_path / "t.parquet", "--out", tmp_path / "parts.csv") == 0
    assert capsys.readouterr().out == output  # the mean and its error, too
    whole, parts = pd.read_csv(tmp_path / "whole.csv"), pd.read_csv(tmp_path / "parts.csv")
    pd.testing.assert_frame_equal(parts, whole, rtol=1e-5)
    assert parts["row"].tolist() == list(range(1, len(data) + 1))

    kept = ("score", table_run, tmp_path / "t.parquet", "--with-data", "--out", tmp_path / "kept.parquet")
    assert call(*kept) == 0
    found = pd.read_parquet(tmp_path / "kept.parquet")
    pd.testing.assert_frame_equal(found[list(data.columns)], data)
    np.testing.assert_allclose(found["log_prob"], whole["log_prob"], rtol=1e-5)
    assert call("score", table_run, tmp_path / "t.parquet", "--out", tmp_path / "scores.npy") == 0
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy")[:, 1], whole["log_prob"], rtol=1e-5)


def test_mistakes_in_a_table_are_one_line_and_write_nothing(
    table_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_rows, "_PART_ROWS", 70)
    data = pd.read_csv(table_run.parent / "data.csv")
    out, gap = tmp_path / "s.csv", data.copy()
    gap.loc[123, "a"] = np.nan
    for name, changed, message in (
        ("gap", gap, "row 124 (line 125), column 'a': nan"),
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
    assert "copies the columns of a table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n9,1,2,3\n9,1,2,3\n", "line 2: expected 3 cells like the first row, got 4"),
        ("1,2,3,4\n1,2,3,4\n", "expected 3 columns, got 4"),
        ("a,b,a\n1,2,3\n", "expected different column names, got 'a' more than once"),
        ("a,b,c\n1,2\n", "line 2: expected 3 cells like the first row, got 2"),
        ("a,b,c\n1,2,3\n1,x,3\n2,3,4\n", "row 2 (line 3), column 'b': expected a number, got 'x'"),
    ],
)
def test_a_csv_file_is_read_strictly(
    text: str, message: str, table_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert call("score", table_run, tmp_path / "t.csv", "--out", tmp_path / "s.csv") == 1
    assert message in capsys.readouterr().err


def test_kept_columns_of_a_csv_file_are_unchanged_text(table_run: Path, tmp_path: Path) -> None:
    rows = ["a ,id, b,c,when", "1.50,00123,2,3,2020-01-01", "1,NA,2,3.0,2021-02-03"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    out = tmp_path / "new" / "s.csv"  # whose folder is made
    assert call("score", table_run, tmp_path / "t.csv", "--with-data", "--out", out) == 0
    lines = [line.rsplit(",", 4)[0] for line in out.read_text().splitlines()]
    assert lines == ["a,id,b,c,when", *rows[1:]]
    (tmp_path / "truth.csv").write_text("1.5,True,0\n1,False,2\n")  # no header
    assert call("score", table_run, tmp_path / "truth.csv", "--out", out) == 0
    assert len(pd.read_csv(out)) == 2


def test_scores_of_images_are_written_as_an_array(image_run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index, picture in enumerate(digits().pixels[:3, 0].numpy() * 15):
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "images" / f"{index}.png")
    assert call("score", image_run, tmp_path / "images", "--out", tmp_path / "s.npy") == 0
    assert np.load(tmp_path / "s.npy").shape == (3, 4)
