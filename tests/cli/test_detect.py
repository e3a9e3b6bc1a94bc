"""The commands detect and impute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcsm.data import read_frame, write_frame
from arcsm.errors import SkippedWarning
from small_tables import correlated_table, mixed_table, run


def test_detect_and_impute_write_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = mixed_table(200)
    write_frame(tmp_path / "normal.parquet", table.head(150))
    new = table.tail(50)[list(reversed(table.columns))].copy()
    new.loc[new.index[0], "height"] = np.nan
    new.loc[new.index[1], ["visits", "income"]] = [np.nan, 1e9]
    new.loc[new.index[2], "city"] = None
    write_frame(tmp_path / "new.parquet", new)
    monkeypatch.setattr("arcsm.cli.outliers._PART_ROWS", 20)
    normal, rows, scores, filled = (tmp_path / f"{name}.parquet" for name in ("normal", "new", "scores", "filled"))
    assert run("detect", normal, rows, "--out", scores) == 0
    assert read_frame(scores)["row"].tolist() == list(range(1, 51))
    assert run("impute", rows, "--out", filled) == 0
    assert list(read_frame(filled).columns) == list(new.columns)
    assert not read_frame(filled).isna().any(axis=None)


def test_columns_that_only_the_scored_table_has_get_a_warning(tmp_path: Path) -> None:
    table = mixed_table(80)
    normal, new, out = (tmp_path / f"{name}.csv" for name in ("normal", "new", "scores"))
    write_frame(normal, table)
    write_frame(new, table.head(9).assign(extra=1, id=2, more="a"))
    with pytest.warns(SkippedWarning, match=r"new\.csv: not in .*normal\.csv, so left out: extra, id, more"):
        assert run("detect", normal, new, "--out", out) == 0


def test_each_table_may_have_its_own_encoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = correlated_table(60).rename(columns={"a": "Größe"}).to_csv(index=False)
    train, test, out = tmp_path / "train.csv", tmp_path / "test.csv", tmp_path / "o.csv"
    train.write_bytes(text.encode("cp1252"))
    test.write_bytes(text.encode("utf-8"))
    command = ("detect", train, test, "--out", out)
    assert run(*command, "--encoding", "cp1252", "--encoding", "utf-8") == 0
    assert run(*command, "--encoding", "utf-16") == 1
    assert run(*command, *("--encoding", "utf-8") * 3) == 1
    errors = capsys.readouterr().err
    assert "is not in utf-16; give its encoding, such as --encoding utf-8, or for two tables both of theirs" in errors
    assert "--encoding: expected one, or those of TRAIN and of TEST, got utf-8, utf-8, utf-8" in errors


def test_detect_reads_named_arrays_of_an_archive(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(150, 2))
    np.savez(tmp_path / "tables.npz", normal=numbers[:120], new=numbers[120:])
    archive, out = str(tmp_path / "tables.npz"), str(tmp_path / "scores.csv")
    assert run("detect", f"{archive}:normal", f"{archive}:new", "--with-data", "--out", out) == 0
    found = read_frame(out)
    np.testing.assert_allclose(found[["x0", "x1"]].to_numpy(), numbers[120:])
    assert found["row"].tolist() == list(range(1, 31))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("a,b\n1,2\n3,4\n", "a,c\n1,2\n", "column b is missing; it has c instead"),
        ("a,b\n1,2\n3,4\n", "a,b\n1,2\nx,4\n", "row 2 (line 3), column 'a': expected a number, got 'x'"),
        ("a,b\n1,2\n", "a,b\n1,2\n", "at least 2 samples"),
        ("a,b\n1,\n2,\n", "a,b\n1,2\n", "column 'b' holds nothing but missing values"),
    ],
)
def test_detect_rejects_a_malformed_table_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], train: str, test: str, message: str
) -> None:
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "test.csv").write_text(test)
    assert run("detect", tmp_path / "train.csv", tmp_path / "test.csv", "--out", tmp_path / "s.csv") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_detect_bounds_the_share_of_false_outliers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("arcsm.cli.outliers._PART_ROWS", 20)
    table = mixed_table(400)
    write_frame(tmp_path / "normal.csv", table.head(350))
    new = table.tail(50).copy()
    new.loc[new.index[:10], "income"] = 1e9
    write_frame(tmp_path / "new.csv", new)
    tables, out = [tmp_path / "normal.csv", tmp_path / "new.csv"], tmp_path / "scores.csv"
    assert run("detect", *tables, "--fdr", "0.2", "--out", out) == 0
    lines = pd.read_csv(out)
    p, count = np.sort(lines["p_value"]), len(lines)
    below = p[p <= 0.2 * np.arange(1, count + 1) / count]
    assert lines["outlier"].tolist() == (lines["p_value"] <= below.max(initial=0.0)).tolist()
    assert lines["outlier"].head(10).all()
    capsys.readouterr()
    for options, message in (
        (("--fdr", "0.001"), "fdr: expected at least"),
        (("--fdr", "2"), "--fdr 2.0: expected a number between 0 and 1"),
        (("--fdr", "0.1", "--p-value", "0.1"), "expected one of --contamination, --p-value and --fdr, got several"),
    ):
        assert run("detect", *tables, *options, "--out", out) == 1
        assert message in capsys.readouterr().err
