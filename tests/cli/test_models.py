"""The commands that apply a model: sample and score."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import arcsm
from arcsm.cli import model_rows
from arcsm.data import digits, read_frame, read_table, write_frame
from arcsm.errors import AccuracyWarning, SkippedWarning
from small_runs import call
from small_tables import model_of_columns, normal


def test_samples_are_written_as_picture_array_and_table(image_run: Path, table_run: Path, tmp_path: Path) -> None:
    assert call("sample", image_run, "-n", 4, "--out", tmp_path / "s.png", "--device", "cpu") == 0
    assert Image.open(tmp_path / "s.png").size[0] > 16
    for sampler in ("langevin", "fast_flow"):
        assert call("sample", table_run, "-n", 6, "--sampler", sampler, "--out", tmp_path / "s.csv") == 0
        table = read_table(tmp_path / "s.csv")
        assert table.columns == ("a", "b", "c")
        assert table.values.shape == (6, 3)
    assert call("sample", table_run, "-n", 6, "--seed", 1, "--denoise", "--out", tmp_path / "a.npy") == 0
    assert call("sample", table_run, "-n", 6, "--seed", 1, "--denoise", "--out", tmp_path / "b.npy") == 0
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_samples_and_scores_hold_no_formulas(tmp_path: Path) -> None:
    model, data = tmp_path / "model.safetensors", tmp_path / "data.csv"
    arcsm.save(model_of_columns("=1+1", "b"), model)
    pd.DataFrame({"=1+1": [1.0, 2.0], "b": [3.0, -4.0], "@id": ["=cmd()", "x"]}).to_csv(data, index=False)
    assert call("sample", model, "-n", 2, "--safe-csv", "--out", tmp_path / "samples.csv") == 0
    assert list(pd.read_csv(tmp_path / "samples.csv").columns) == ["'=1+1", "b"]
    assert call("score", model, data, "--id", "@id", "--safe-csv", "--out", tmp_path / "scores.csv") == 0
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert scores["'@id"].tolist() == ["'=cmd()", "x"]
    assert set(scores["least_likely_column"]) <= {"'=1+1", "b"}


def test_tables_and_folders_of_images_are_scored(image_run: Path, table_run: Path, tmp_path: Path) -> None:
    data = table_run.parent / "data.csv"
    assert call("score", table_run, data, "--out", tmp_path / "scores.csv") == 0
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert list(scores.columns) == ["row", "log_prob", "least_likely_column", "its_log_prob"]
    assert scores["row"].tolist() == list(range(1, 301))
    assert set(scores["least_likely_column"]) <= {"a", "b", "c"}
    assert np.isfinite(scores[["log_prob", "its_log_prob"]]).all(axis=None)
    assert call("score", table_run, data, "--out", tmp_path / "scores.npy") == 0  # numbers alone: places, from 0
    places = np.load(tmp_path / "scores.npy")[:, 2].astype(int)
    assert (np.array(["a", "b", "c"])[places] == scores["least_likely_column"]).all()
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = digits().pixels[:3, 0].numpy() * 15
    for index, picture in enumerate(pixels):
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{index}.png")
    assert call("score", image_run, folder, "--out", tmp_path / "images.csv") == 0
    scored = pd.read_csv(tmp_path / "images.csv")
    assert list(scored.columns) == ["row", "log_prob", "least_likely_column", "its_log_prob", "file"]
    assert list(scored["file"]) == ["0.png", "1.png", "2.png"]
    assert call("score", image_run, folder, "--out", tmp_path / "images.npy") == 0
    np.testing.assert_allclose(np.load(tmp_path / "images.npy")[:, 1], scored["log_prob"], rtol=1e-5)


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


def test_mistakes_in_a_table_are_one_line_and_write_nothing(
    table_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_rows, "_PART_ROWS", 70)
    data = pd.read_csv(table_run.parent / "data.csv")
    data.loc[123, "a"] = np.nan
    data.to_csv(tmp_path / "gap.csv", index=False)
    assert call("score", table_run, tmp_path / "gap.csv", "--with-data", "--out", tmp_path / "s.csv") == 1
    error = capsys.readouterr().err
    assert "row 124 (line 125), column 'a': nan" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "s.csv").exists()
    arguments = ("score", table_run, table_run.parent / "data.csv", "--with-data", "--out", tmp_path / "s.npy")
    assert call(*arguments) == 1
    assert "copies the columns of a table" in capsys.readouterr().err


def test_kept_columns_of_a_csv_file_are_unchanged_text(table_run: Path, tmp_path: Path) -> None:
    rows = ["a ,id, b,c,when", "1.50,00123,2,3,2020-01-01", "1,NA,2,3.0,2021-02-03"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    out = tmp_path / "new" / "s.csv"  # whose folder is made
    assert call("score", table_run, tmp_path / "t.csv", "--with-data", "--out", out) == 0
    lines = [line.rsplit(",", 4)[0] for line in out.read_text().splitlines()]
    assert lines == ["a,id,b,c,when", *rows[1:]]


def test_score_matches_columns_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arcsm.save(model_of_columns("a", "b"), tmp_path / "run")
    table = pd.DataFrame({"a": normal(40), "b": 3.0 + normal(40, 1)})
    extra = table.assign(when=pd.Timestamp("2020-01-01"), id=["1"] * 39 + ["A1"], x=np.inf)
    for name, rows in (
        ("plain", table), ("turned", table[["b", "a"]]), ("more", extra), ("other", table.rename(columns=str.upper)),
    ):  # fmt: skip
        rows.to_parquet(tmp_path / f"{name}.parquet")
    np.save(tmp_path / "bare.npy", table.to_numpy())
    scores = {}
    for name in ("plain.parquet", "turned.parquet", "more.parquet", "bare.npy"):
        with (
            nullcontext() if name != "more.parquet" else pytest.warns(SkippedWarning, match=r"no such .*: when, id, x$")
        ):
            assert call("score", tmp_path / "run", tmp_path / name, "--out", tmp_path / "s.csv") == 0
        scores[name] = read_frame(tmp_path / "s.csv")["log_prob"].to_numpy()
        np.testing.assert_allclose(scores[name], scores["plain.parquet"], rtol=1e-5)
    capsys.readouterr()
    assert call("score", tmp_path / "run", tmp_path / "other.parquet", "--out", tmp_path / "s.csv") == 1
    assert "columns a, b are missing; it has A, B instead" in capsys.readouterr().err


def test_score_clamps_values_beyond_single_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arcsm.save(model_of_columns("a", "b"), tmp_path / "run")
    table = pd.DataFrame({"a": [0.0, 1e20, -1e30], "b": 0.0})
    write_frame(tmp_path / "t.csv", table)
    with pytest.warns(AccuracyWarning, match=r"2 rows have values more than 1e\+06 standard deviations from the mean"):
        assert call("score", tmp_path / "run", tmp_path / "t.csv", "--out", tmp_path / "s.csv") == 0
    found = read_frame(tmp_path / "s.csv")["log_prob"]
    assert np.isfinite(found).all()
    assert (found[1:] < -1e9).all()
    write_frame(tmp_path / "t.csv", table.replace(1e20, 1e300))
    assert call("score", tmp_path / "run", tmp_path / "t.csv", "--out", tmp_path / "s.csv") == 1
    assert "row 2 (line 3), column 'a': 1e+300 is too large for single precision" in capsys.readouterr().err
