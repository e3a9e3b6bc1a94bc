"""Rows of a table in commands that use a trained model: columns by name, extreme values, output folders."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcsm import save
from arcsm.data import read_frame, write_frame
from arcsm.errors import AccuracyWarning, SkippedWarning
from arcsm.estimators import ScoreDensity
from small_runs import ON_DATA
from small_tables import QUICK, model_of_columns, normal, run, use_small_models


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)


def test_score_matches_columns_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(model_of_columns("a", "b"), tmp_path / "run")
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
            assert run("score", tmp_path / "run", tmp_path / name, "--out", tmp_path / "s.csv") == 0
        scores[name] = read_frame(tmp_path / "s.csv")["log_prob"].to_numpy()
        np.testing.assert_allclose(scores[name], scores["plain.parquet"], rtol=1e-5)
    capsys.readouterr()
    assert run("score", tmp_path / "run", tmp_path / "other.parquet", "--out", tmp_path / "s.csv") == 1
    assert "columns a, b are missing; it has A, B instead" in capsys.readouterr().err


def test_score_clamps_values_beyond_single_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(model_of_columns("a", "b"), tmp_path / "run")
    table = pd.DataFrame({"a": [0.0, 1e20, -1e30], "b": 0.0})
    write_frame(tmp_path / "t.csv", table)
    with pytest.warns(AccuracyWarning, match=r"2 rows have values more than 1e\+06 standard deviations from the mean"):
        assert run("score", tmp_path / "run", tmp_path / "t.csv", "--out", tmp_path / "s.csv") == 0
    found = read_frame(tmp_path / "s.csv")["log_prob"]
    assert np.isfinite(found).all()
    assert (found[1:] < -1e9).all()
    write_frame(tmp_path / "t.csv", table.replace(1e20, 1e300))
    assert run("score", tmp_path / "run", tmp_path / "t.csv", "--out", tmp_path / "s.csv") == 1
    assert "row 2 (line 3), column 'a': 1e+300 is too large for single precision" in capsys.readouterr().err


def test_missing_output_folders_are_made(tmp_path: Path) -> None:
    save(model_of_columns("a", "b"), tmp_path / "run")
    for name in ("new/s.csv", "newer/s.npy"):
        assert run("sample", tmp_path / "run", "-n", 3, "--out", tmp_path / name) == 0
        assert (tmp_path / name).exists()
    assert run("score", tmp_path / "run", tmp_path / "new/s.csv", "--out", tmp_path / "newest/s.npy") == 0


def test_report_needs_the_folder_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(model_of_columns("a", "b"), tmp_path / "run")
    assert run("report", tmp_path / "run" / "model.safetensors") == 1
    assert "expected the folder of a run, whose data the page needs, got a file" in capsys.readouterr().err


def test_a_run_rejected_for_its_data_leaves_no_folder(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": normal(60), "b": np.ones(60)})
    write_frame(tmp_path / "bad.csv", table)
    write_frame(tmp_path / "good.csv", table.assign(b=normal(60, 1)))
    (tmp_path / "t.yaml").write_text(ON_DATA % f"{{kind: table, path: {tmp_path / 'bad.csv'}}}")
    assert run("train", tmp_path / "t.yaml", "--out", tmp_path / "run") == 1
    assert not (tmp_path / "run").exists()
    good = f"data.path={tmp_path / 'good.csv'}"
    assert run("train", tmp_path / "t.yaml", "--set", good, "--out", tmp_path / "run") == 0


def test_train_rejects_columns_that_single_precision_cannot_resolve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.DataFrame({"z": normal(100), "t": 1.7e9 + 30.0 * normal(100, 1)})
    write_frame(tmp_path / "t.csv", table)
    (tmp_path / "run.yaml").write_text(ON_DATA % f"{{kind: table, path: {tmp_path / 't.csv'}}}")
    assert run("train", tmp_path / "run.yaml", "--out", tmp_path / "run") == 1
    assert "column 't' varies by 26 around 1.7e+09, too little for single precision" in capsys.readouterr().err
    assert np.isfinite(ScoreDensity(**QUICK).fit(table).score_samples(table)).all()  # its maps are in double precision
