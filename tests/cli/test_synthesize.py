"""The command synthesize."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from arcsm.cli import private_rows
from arcsm.estimators import PrivateDensity
from small_tables import correlated_table, run, seed_private_noise


@pytest.fixture
def seeded_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    seed_private_noise(monkeypatch)


def test_synthesize_writes_reproducible_rows_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = correlated_table(400).assign(id=range(400))
    table["visits"] = table["visits"].astype(float).where(table.index % 9 > 0)
    table.to_csv(tmp_path / "table.csv", index=False)
    out, page = tmp_path / "rows.csv", tmp_path / "page.html"
    assert run("synthesize", tmp_path / "table.csv", "--ignore", "id", "--out", out, "--report", page) == 0
    drawn = pd.read_csv(out)
    assert list(drawn.columns) == ["a", "b", "city", "visits", "same"]
    assert len(drawn) == 400
    assert (drawn["visits"] % 1 == 0).all()
    assert set(drawn["city"]) == {"Rome", "Oslo"}
    assert (drawn["b"] == drawn["b"].round(2)).all()
    assert page.stat().st_size > 10_000
    assert "AUC of a classifier of synthetic rows against 60 held-out rows" in capsys.readouterr().out
    again = tmp_path / "again.csv"
    assert run("synthesize", tmp_path / "table.csv", "--ignore", "id", "--out", again) == 0
    assert again.read_bytes() == out.read_bytes()


def test_synthesize_keeps_the_types_of_parquet(tmp_path: Path) -> None:
    table = correlated_table(100).assign(yes=np.arange(100) % 2 == 0)
    table["visits"] = table["visits"].astype("Int64").where(table.index > 4)
    table["city"] = pd.Categorical(table["city"], ["Oslo", "Rome", "never"], ordered=True)
    table["a"] = table["a"].astype(np.float32)
    table.to_parquet(tmp_path / "table.parquet", index=False)
    assert run("synthesize", tmp_path / "table.parquet", "-n", 7, "--out", tmp_path / "rows.parquet") == 0
    drawn, before = (parquet.read_table(tmp_path / f"{name}.parquet") for name in ("rows", "table"))
    assert drawn.schema.types == before.schema.types
    assert drawn.column("city").chunk(0).dictionary.to_pylist() == ["Oslo", "Rome", "never"]
    assert set(drawn.column("city").to_pylist()) <= {"Oslo", "Rome"}
    assert drawn.column_names == before.column_names
    assert drawn.num_rows == 7


def test_synthesize_holds_given_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = correlated_table(100).assign(yes=np.arange(100) % 2 == 0)
    table["x=y"] = np.arange(100) % 3
    table.to_csv(tmp_path / "table.csv", index=False)
    page = tmp_path / "page.html"
    pairs = ("city=oslo", "yes=true", "a=0.25", "b=52.123", "x=y=2")
    chosen = [part for pair in pairs for part in ("--given", pair)]
    command = ("synthesize", tmp_path / "table.csv", "-n", 20, "--out", tmp_path / "rows.csv")
    assert run(*command, *chosen, "--report", page) == 0
    drawn = pd.read_csv(tmp_path / "rows.csv")
    for name, value in (("city", "Oslo"), ("yes", True), ("a", 0.25), ("b", 52.123), ("x=y", 2)):
        assert (drawn[name] == value).all()
    printed = capsys.readouterr()
    assert "AUC" not in printed.out
    assert f"{len(drawn.drop_duplicates())} of them different" in printed.out
    assert "not like the whole table" in page.read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("city", "COLUMN=VALUE"),
        ("city=Paris", "has no 'Paris'; it has Oslo"),
        ("b=1e9", "--given b=1e9: b has no such value, nor one near it; its values range from "),
        ("visits=2.5", "expected a whole number"),
        ("gone=1", "nothing but missing values"),
    ],
)
def test_wrong_given_values_are_rejected_in_one_line(
    given: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = correlated_table(100).assign(gone=np.nan) if given.startswith("gone") else correlated_table(100)
    table.to_csv(tmp_path / "table.csv", index=False)
    out = tmp_path / "rows.csv"
    assert run("synthesize", tmp_path / "table.csv", "--out", out, "--given", given) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_given_times_are_read_in_the_form_of_their_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    days = pd.date_range("2026-01-05", periods=60, freq="W-MON")
    table = pd.DataFrame({"day": days.strftime("%d.%m.%Y"), "share": [f"{share}.5%" for share in range(20, 80)]})
    table.to_csv(tmp_path / "t.csv", index=False)
    pd.DataFrame({"month": days.to_period("M")}).to_parquet(tmp_path / "t.parquet")
    out = tmp_path / "o.csv"
    cases = {
        "day=07.01.2019": (".csv", "--given day=07.01.2019: day has no such value.* from 05.01.2026 to 22.02.2027"),
        "share=9999": (".csv", "--given share=9999: share has .* range from 20.5% to 79.5%"),
        "month=x": (".parquet", "--given month=x: expected a value such as 2026-01, got 'x'"),
    }
    for given, (suffix, message) in cases.items():
        assert run("synthesize", tmp_path / f"t{suffix}", "--out", out, "--given", given) == 1
        assert re.search(message, capsys.readouterr().err)
    assert run("synthesize", tmp_path / "t.parquet", "-n", 5, "--out", out, "--given", "month=2026-03") == 0
    assert set(pd.read_csv(out)["month"]) == {"2026-03"}


@pytest.mark.usefixtures("seeded_noise")
def test_private_rows_have_the_form_of_the_table_and_neither_ids_nor_its_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random, table, out = np.random.default_rng(0), tmp_path / "table.csv", tmp_path / "out.csv"
    prices = [f"${price:,.2f}" for price in random.normal(5_000.0, 500.0, 3_000)]
    kinds = random.choice(["a", "b"], 3_000)
    pd.DataFrame({"id": range(3_000), "price": prices, "kind": kinds}).to_csv(table, index=False)
    assert run("synthesize", table, "--epsilon", 2, "--out", out) == 0
    rows = pd.read_csv(out)
    assert list(rows.columns) == ["price", "kind"]
    assert rows["price"].str.fullmatch(r"\$\d,\d{3}\.\d\d").mean() > 0.9
    assert set(rows["kind"]) == {"a", "b"}
    assert len(rows) != 3_000
    printed = capsys.readouterr().out
    assert "private: epsilon 2, delta 1e-06; quality not measured" in printed
    assert "3000" not in printed


@pytest.mark.usefixtures("seeded_noise")
def test_private_rows_have_gaps_if_wanted_and_need_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrivateDensity, "fit", None)
    random, table, out = np.random.default_rng(0), tmp_path / "table.csv", tmp_path / "out.csv"
    x = random.normal(size=3_000).round(2)
    pd.DataFrame({"x": np.where(random.random(3_000) < 0.3, np.nan, x), "y": x}).to_csv(table, index=False)
    command = ("synthesize", table, "--epsilon", 2, "-n", 1_000, "--out", out)
    assert run(*command) == 0
    assert not pd.read_csv(out).isna().any(axis=None)
    assert run(*command, "--gaps") == 0
    assert 0.2 < pd.read_csv(out)["x"].isna().mean() < 0.4


@pytest.mark.usefixtures("seeded_noise")
def test_private_rows_in_parquet_have_no_levels_that_are_rare(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).choice(["Rome", "Oslo"], 3_000).astype(object)
    levels[0] = "Vaduz"
    pd.DataFrame({"city": pd.Categorical(levels), "n": np.arange(3_000) % 5}).to_parquet(tmp_path / "t.parquet")
    assert run("synthesize", tmp_path / "t.parquet", "--epsilon", 2, "--out", tmp_path / "o.parquet") == 0
    assert b"Vaduz" not in (tmp_path / "o.parquet").read_bytes()
    assert set(parquet.read_table(tmp_path / "o.parquet").column("city").to_pylist()) == {"Rome", "Oslo"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--delta", "0.001"], "--delta: has no effect without --epsilon"),
        (["--gaps", "--given", "x=1"], "--gaps: rows with given values are complete; leave out --gaps or --given"),
        (["--epsilon", "1", "--report", "page.html"], "--report: shows rows of the table, which --epsilon protects"),
        (["--epsilon", "1", "--n-estimators", "2"], "--n-estimators: has no effect with --epsilon, unless --given"),
    ],
)
def test_options_that_exclude_each_other_are_errors(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.DataFrame({"x": np.random.default_rng(0).normal(size=50)}).to_csv(tmp_path / "t.csv", index=False)
    arguments = [str(tmp_path / one) if one.endswith(".html") else one for one in arguments]
    assert run("synthesize", tmp_path / "t.csv", "--out", tmp_path / "o.csv", *arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("seeded_noise")
def test_given_values_are_those_that_are_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(private_rows, "PrivateDensity", partial(PrivateDensity, max_steps=5, random_state=0))
    cities = [*["Rome", "Oslo"] * 1_500, "Vaduz"]
    pd.DataFrame({"city": cities, "n": np.arange(3_001) % 5}).to_csv(tmp_path / "t.csv", index=False)
    command = ("synthesize", tmp_path / "t.csv", "--epsilon", 2, "-n", 9, "--out", tmp_path / "o.csv", "--given")
    assert run(*command, "city=Rome") == 0
    assert set(pd.read_csv(tmp_path / "o.csv")["city"]) == {"Rome"}
    capsys.readouterr()
    assert run(*command, "city=Vaduz") == 1
    of_rare = capsys.readouterr().err
    assert run(*command, "city=Paris") == 1
    assert capsys.readouterr().err.replace("Paris", "Vaduz").splitlines()[-1] == of_rare.splitlines()[-1]
