"""The command fit, and the commands that use what it fitted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import arcsm
from arcsm import MADE, AutoregressiveModel, GaussianHead
from arcsm.cli.fitted_tables import FittedTable
from small_runs import call
from small_tables import correlated_table, run, use_small_models

ROWS = 240


def shop_table(seed: int) -> pd.DataFrame:
    """Return a table with an id, numbers in a format, words for truth values and dates."""
    table, random = correlated_table(ROWS, seed), np.random.default_rng(seed)
    days = pd.Timestamp("2026-01-01") + pd.to_timedelta(random.integers(0, 300, ROWS), "D")
    return pd.DataFrame(
        {
            "order": np.arange(1000 * (seed + 1), 1000 * (seed + 1) + ROWS),
            "width": table["a"].round(2),
            "price": [f"${price:,.2f}" for price in random.exponential(2_000.0, ROWS)],
            "city": table["city"],
            "visits": table["visits"],
            "paid": np.where(random.random(ROWS) < 0.5, "TRUE", "FALSE"),
            "day": days.strftime("%d.%m.%Y"),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a table, another with gaps, and the model of the first."""
    folder = tmp_path_factory.mktemp("shop")
    shop_table(0).to_csv(folder / "table.csv", index=False)
    other = shop_table(1).head(30)
    other.to_csv(folder / "new.csv", index=False)
    other.loc[3:9, "width"] = np.nan
    other.loc[5:7, ["city", "day"]] = np.nan
    other.to_csv(folder / "gaps.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        assert run("fit", folder / "table.csv", "--out", folder / "model") == 0
    return folder


def test_the_fitted_table_holds_no_pickles_and_says_what_it_is_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {path.name for path in (folder / "model").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert f"- fitted to table\\.csv\\, {ROWS} rows\n" in card
    assert "arcsm detect new.csv --model FOLDER" in card
    assert "- whole numbers: visits\n" in card
    fitted = FittedTable.read(folder / "model")
    assert (fitted.source, fitted.rows, fitted.labels) == ("table.csv", ROWS, ("order",))
    assert fitted.density is not None
    assert fitted.detector is not None
    assert list(fitted.forms.types) == ["width", "price", "city", "visits", "paid", "day"]
    assert run("info", folder / "model") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"fitted to   table.csv, {ROWS} rows", "labels      order"]
    assert [line.split()[0] for line in lines[2:]] == ["density", "detector"]


def test_a_part_of_the_rows_can_be_fitted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", folder / "table.csv", "--rows", 100, "--for", "values", "--out", tmp_path / "part") == 0
    assert f"table.csv  100 rows of {ROWS}, drawn at random, 6 columns" in capsys.readouterr().out
    model, table, out = tmp_path / "part", folder / "table.csv", tmp_path / "rows.csv"
    assert run("synthesize", table, "--model", model, "-n", 5, "--out", out) == 0
    assert "quality not measured: 100 random rows of table.csv were fitted, not all" in capsys.readouterr().out


def test_detect_with_a_model_gives_the_verdicts_of_fitting_anew(folder: Path, tmp_path: Path) -> None:
    assert run("detect", folder / "new.csv", "--model", folder / "model", "--out", tmp_path / "a.csv") == 0
    assert run("detect", folder / "table.csv", folder / "new.csv", "--out", tmp_path / "b.csv") == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv"), pd.read_csv(tmp_path / "b.csv"))
    assert pd.read_csv(tmp_path / "a.csv")["order"].tolist() == list(range(2000, 2030))
    options = ["--model", folder / "model", "--contamination", "0.4", "--with-data"]
    assert run("detect", folder / "new.csv", *options, "--out", tmp_path / "c.parquet") == 0
    found = pd.read_parquet(tmp_path / "c.parquet")
    assert found["outlier"].sum() > pd.read_csv(tmp_path / "a.csv")["outlier"].sum()
    assert "price" in found.columns


def test_impute_with_a_model_fills_like_fitting_the_table(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "filled.csv"
    assert run("impute", folder / "gaps.csv", "--model", folder / "model", "--out", out) == 0
    filled, gaps = pd.read_csv(out, dtype=str), pd.read_csv(folder / "gaps.csv", dtype=str)
    assert not filled.isna().any(axis=None)
    known = gaps.notna()
    pd.testing.assert_frame_equal(filled.where(known), gaps)
    assert filled["day"].str.fullmatch(r"\d\d\.\d\d\.2026").all()
    assert set(filled["city"]) == {"Rome", "Oslo"}
    assert run("impute", folder / "new.csv", "--model", folder / "model", "--out", out) == 0
    assert out.read_text() == (folder / "new.csv").read_text()


def test_rows_without_a_known_cell_are_filled_in_the_form_of_the_fitted_table(folder: Path, tmp_path: Path) -> None:
    new = pd.read_csv(folder / "new.csv", dtype=str).head(3)
    new[["width", "paid", "price"]] = ""
    new.to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "filled.csv"
    assert run("impute", tmp_path / "new.csv", "--model", folder / "model", "--out", out) == 0
    filled = pd.read_csv(out, dtype=str)
    assert filled["width"].str.fullmatch(r"-?\d+\.\d{1,2}").any()
    assert set(filled["paid"]) <= {"TRUE", "FALSE"}
    assert filled["price"].str.fullmatch(r"-?\$[\d,]+\.\d\d").all()


def test_fit_replaces_fitted_tables_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = AutoregressiveModel(MADE(2, 2, (4,)), GaussianHead(2))
    arcsm.save(model, tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert run("fit", folder / "table.csv", "--out", tmp_path / "model") == 1
    assert "holds something else than a fitted table" in capsys.readouterr().err
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    shutil.copy(folder / "model" / "model.safetensors", tmp_path / "m.safetensors")
    part = ("--rows", 60, "--for", "outliers")
    assert run("fit", folder / "table.csv", *part, "--out", tmp_path / "m.safetensors") == 0
    assert FittedTable.read(tmp_path / "m.safetensors").density is None


def test_synthesize_with_a_model_needs_no_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = folder / "model", tmp_path / "rows.csv"
    assert run("synthesize", "--model", model, "--out", out) == 0
    rows = pd.read_csv(out, dtype=str)
    assert rows["order"].tolist() == [str(order) for order in range(1000 + ROWS, 1000 + 2 * ROWS)]
    assert rows["price"].str.fullmatch(r"-?\$\d{1,3}(,\d{3})*\.\d\d").all()
    assert set(rows["paid"]) == {"TRUE", "FALSE"}
    assert run("synthesize", folder / "table.csv", "--out", tmp_path / "anew.csv") == 0
    assert (tmp_path / "anew.csv").read_text() == out.read_text()
    given = ["--given", "city=Rome", "--given", "day=05.03.2026", "--given", "price=$900"]
    assert run("synthesize", "--model", model, "-n", "5", *given, "--out", out) == 0
    rows = pd.read_csv(out, dtype=str)
    assert rows[["city", "day", "price"]].drop_duplicates().to_numpy().tolist() == [["Rome", "05.03.2026", "$900.00"]]
    capsys.readouterr()
    assert run("synthesize", folder / "table.csv", "--model", model, "--out", out) == 0
    assert "copies of training rows" in capsys.readouterr().out
    assert run("synthesize", folder / "new.csv", "--model", model, "--out", out) == 0
    assert "quality not measured: it needs table.csv as it was fitted" in capsys.readouterr().out
    assert len(pd.read_csv(out)) == 30
    assert run("synthesize", "--model", model, "--given", "city=Paris", "--out", out) == 1
    assert "city has no 'Paris'; it has Oslo, Rome" in capsys.readouterr().err


def test_score_with_a_model_writes_log_densities(folder: Path, tmp_path: Path) -> None:
    out, model, table = tmp_path / "scores.csv", folder / "model", folder / "new.csv"
    assert run("score", model, table, "--out", out) == 0
    scores = pd.read_csv(out)
    assert run("score", table, "--model", model, "--out", out) == 0
    pd.testing.assert_frame_equal(pd.read_csv(out), scores)
    fitted = FittedTable.read(folder / "model")
    assert fitted.density is not None
    new = shop_table(1).head(30)
    new["price"] = new["price"].str.strip("$").str.replace(",", "").astype(float)
    new["paid"], new["day"] = new["paid"] == "TRUE", pd.to_datetime(new["day"], format="%d.%m.%Y")
    rows = new.drop(columns="order")
    np.testing.assert_allclose(scores["log_prob"], fitted.density.score_samples(rows), rtol=1e-9)
    terms = fitted.density.explain(rows)
    assert scores["least_likely_column"].tolist() == terms.idxmin(axis=1).tolist()
    np.testing.assert_allclose(scores["its_log_prob"], terms.min(axis=1), rtol=1e-9)


def test_a_table_fitted_for_one_purpose_says_what_it_lacks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outliers, values, out = tmp_path / "o.safetensors", tmp_path / "v.safetensors", tmp_path / "out.csv"
    assert run("fit", folder / "table.csv", "--for", "outliers", "--out", outliers) == 0
    assert "for arcsm detect, with --model" in capsys.readouterr().out
    assert run("fit", folder / "table.csv", "--for", "values", "--ignore", "city", "--out", values) == 0
    assert run("impute", folder / "gaps.csv", "--model", outliers, "--out", out) == 1
    assert f"{outliers}: was fitted with --for outliers; arcsm impute needs" in capsys.readouterr().err
    assert run("detect", folder / "new.csv", "--model", values, "--out", out) == 1
    assert f"{values}: was fitted with --for values; arcsm detect needs" in capsys.readouterr().err


WRONG: list[tuple[list[Any], str]] = [
    (["detect", "new.csv", "--out", "x.csv"], "expected TRAIN and TEST, or TEST and --model"),
    (["detect", "new.csv", "--model", "model", "--numeric", "city", "--out", "x.csv"], "--numeric: has no effect with"),
    (
        ["impute", "other.csv", "--model", "model", "--out", "x.csv"],
        "other.csv: columns width, price, city, visits, paid, day are missing",
    ),
    (["synthesize", "--out", "x.csv"], "expected a TABLE, or --model"),
    (["score", "new.csv", "--out", "x.csv"], "expected RUN and DATA, or DATA and --model"),
    (["score", "new.csv", "--model", "model", "--devices", "2", "--out", "x.csv"], "--devices: a fitted table"),
    (["report", "model"], "holds a fitted table; look at it with arcsm serve"),
    (["sample", "model", "--out", "x.csv"], "holds a fitted table, not an autoregressive model; the option --model of"),
    (["detect", "new.csv", "--model", "model", "--ignore", "city", "--out", "x.csv"], "column 'city': is modelled in"),
    (["fit", "table.csv", "--out", "x.pkl"], "--out x.pkl: expected a folder or a .safetensors file"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_uses_are_rejected_in_one_line(
    arguments: list[Any],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    Path("other.csv").write_text("a,b\n1,2\n3,4\n")
    assert call(*arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
