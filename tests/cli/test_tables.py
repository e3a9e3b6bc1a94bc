"""The commands detect, impute and synthesize on messy tables: mixed types, missing values, outputs that clash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcsm import save
from arcsm.data import read_frame, write_frame
from small_tables import model_of_columns, normal, run


@pytest.fixture
def no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcsm.estimators.density_estimator.DensityEstimator._fit_table", None)


@pytest.mark.usefixtures("no_fit")
def test_a_table_without_missing_values_is_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = pd.DataFrame({"a": normal(60), "day": ["01.02.2026", "02.03.2026"] * 30}), tmp_path / "o.csv"
    write_frame(tmp_path / "t.csv", table)
    assert run("impute", tmp_path / "t.csv", "--out", out) == 0
    assert f"{out}  no value is missing: a copy, nothing fitted" in capsys.readouterr().out
    assert out.read_text() == (tmp_path / "t.csv").read_text()


def test_filled_numbers_have_the_form_of_the_known_ones(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": normal(60).round(2), "runs": [7.0, 20.0, None] * 20, "size": [5.27e8, None, 1e7] * 20})
    forms = {"a": r"-?\d+\.\d\d", "runs": r"\d+\.0", "size": r"\d\.\d{3}e\+\d\d"}
    table.loc[3, "a"] = np.nan
    texts = {"a": "{:.2f}".format, "size": "{:.3e}".format}
    written = table.assign(**{name: table[name].map(text, na_action="ignore") for name, text in texts.items()})
    written.to_csv(tmp_path / "t.csv", index=False)
    assert run("impute", tmp_path / "t.csv", "--out", tmp_path / "o.csv") == 0
    filled = pd.read_csv(tmp_path / "o.csv", dtype=str)
    assert all(filled[name].str.fullmatch(form).all() for name, form in forms.items())


def test_labels_of_rows_are_kept_whatever_the_files(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": normal(60), "index": [1.0, 2.0, None] * 20}, index=[f"car{n}" for n in range(60)])
    path, out, parquet = tmp_path / "t.parquet", tmp_path / "o.csv", tmp_path / "o.parquet"
    table.to_parquet(path)
    assert run("impute", path, "--out", parquet) == 0
    assert list(pd.read_parquet(parquet).index) == list(table.index)
    table.to_csv(tmp_path / "t.csv")
    assert run("impute", tmp_path / "t.csv", "--out", parquet) == 0
    assert list(pd.read_parquet(parquet)["level_0"]) == list(table.index)
    assert run("detect", path, path, "--out", out) == 0
    assert pd.read_csv(out)["level_0"].tolist() == list(table.index)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_ids_and_postcodes_keep_their_leading_zeros(suffix: str, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).permutation(9_999)[:60]
    path, out = tmp_path / f"t{suffix}", tmp_path / "o.parquet"
    table = pd.DataFrame({
        "customer_id": [f"{number:06d}" for number in numbers],
        "order": [str(10**19 + number) for number in numbers.tolist()],  # more digits than numbers have
        "zip": [f"{number:05d}" for number in numbers[::-1]],
        "a": normal(60),
    })  # fmt: skip
    table.loc[[2, 7], "zip"] = None
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    assert run("impute", path, "--ignore", "order", "--out", out) == 0
    filled = pd.read_parquet(out)
    for name in ("customer_id", "order", "zip"):
        known = table[name].notna()
        assert filled[name][known].tolist() == table[name][known].tolist()
        assert filled[name].str.fullmatch(r"\d+").all()
    assert (filled["zip"].str.len() == 5).all()
    assert filled["a"].dtype == float
    first = int(table["customer_id"].max()) + 1
    assert run("synthesize", path, "--ignore", "order", "-n", 5, "--out", tmp_path / "o.csv") == 0
    drawn = pd.read_csv(tmp_path / "o.csv", dtype=str)
    assert drawn["customer_id"].tolist() == [f"{number:06d}" for number in range(first, first + 5)]
    assert drawn["zip"].str.fullmatch(r"\d{5}").all()


def test_ignored_columns_are_only_left_out_of_the_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame({"id": [f"A{n}" for n in range(80)], "a": normal(80), "b": normal(80, 1)})
    table.loc[3, "a"] = np.nan
    path, out = tmp_path / "t.csv", tmp_path / "o.csv"
    write_frame(path, table)
    assert run("detect", path, path, "--ignore", "id", "--with-data", "--out", out) == 0
    assert read_frame(out)["id"].tolist() == table["id"].tolist()
    assert run("impute", path, "--ignore", "id", "--out", out) == 0
    assert read_frame(out)["id"].tolist() == table["id"].tolist()
    assert np.isfinite(read_frame(out)["a"]).all()
    assert run("detect", path, path, "--ignore", "ids", "--out", out) == 1
    assert "has no column 'ids'; it has id, a, b" in capsys.readouterr().err


def test_outputs_never_replace_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(model_of_columns("a", "b"), tmp_path / "run")
    table = pd.DataFrame({"a": normal(60), "b": normal(60, 1)})
    write_frame(tmp_path / "t.csv", table)
    before = (tmp_path / "t.csv").read_bytes()
    t, o = tmp_path / "t.csv", tmp_path / "o.csv"
    assert run("detect", t, t, "--out", t) == 1
    assert run("detect", t, t, "--out", o, "--report", o) == 1
    assert run("score", tmp_path / "run", t, "--out", tmp_path / "." / "t.csv") == 1
    assert run("impute", t, "--out", t) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert "--report" in errors[1]
    assert "is what --out writes, too; give another file" in errors[1]
    assert (tmp_path / "t.csv").read_bytes() == before
    assert not o.exists()


@pytest.mark.usefixtures("no_fit")
def test_mistakes_are_found_before_the_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame({"a": normal(60), "b": [1.0, 2.0, None] * 20})
    write_frame(tmp_path / "t.csv", table)
    t = tmp_path / "t.csv"
    assert run("impute", t, "--out", tmp_path / "o.npy") == 1
    assert run("detect", t, t, "--out", tmp_path / "o.csv", "--p-value", 0.001) == 1
    errors = capsys.readouterr().err
    assert "--out" in errors
    assert "p-value: expected at least 0.0625 (of 15 held-out rows)" in errors
    assert run("detect", t, t, "--out", tmp_path / "o.csv", "--seed", 2**32) == 2
    write_frame(t, table.assign(score=np.arange(60)))
    assert run("detect", t, t, "--out", tmp_path / "o.csv", "--id", "score") == 1
    assert "has a column 'score' already, a name that the output uses" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["detect", "impute", "synthesize"])
def test_safe_csv_files_hold_no_formulas(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame(
        {"=a": normal(60), "b": np.array(["=cmd", "@x", "-1 y"])[np.arange(60) % 3], "c": normal(60, 1)}
    )
    table.loc[3, "c"] = None
    table.to_csv(tmp_path / "a.csv", index=False)
    inputs = [tmp_path / "a.csv"] * (2 if command == "detect" else 1)
    more = ["--with-data"] * (command == "detect")
    assert run(command, *inputs, *more, "--safe-csv", "--out", tmp_path / "out.csv") == 0
    written = pd.read_csv(tmp_path / "out.csv")
    assert pd.api.types.is_float_dtype(written["'=a"])
    assert set(written["b"]) == {"'=cmd", "'@x", "'-1 y"}
    capsys.readouterr()
    assert run(command, *inputs, "--safe-csv", "--out", tmp_path / "out.parquet") == 1
    assert "--safe-csv: expected --out to be a .csv or .tsv file" in capsys.readouterr().err
