"""The command synthesize."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from arcsm.estimators import PrivateDensity
from small_tables import correlated_table, run, use_small_models


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)


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


def test_synthetic_truth_values_have_the_words_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = np.arange(100) % 2 == 0
    table = correlated_table(100).assign(on=np.where(truth, "true", "false"), yes=np.where(truth, "FALSE", "TRUE"))
    table.to_csv(tmp_path / "t.csv", index=False)
    assert run("synthesize", tmp_path / "t.csv", "--out", tmp_path / "o.csv") == 0
    drawn = pd.read_csv(tmp_path / "o.csv", dtype=str)
    assert set(drawn["on"]) == {"true", "false"}
    assert set(drawn["yes"]) == {"TRUE", "FALSE"}
    listed = capsys.readouterr().out.splitlines()[1:6]
    assert [line.strip() for line in listed if "numbers" not in line.partition(":")[0]] == [
        "categorical: city", "constant: same", "truth values: on, yes",
    ]  # fmt: skip
    assert sorted(", ".join(line.partition(": ")[2] for line in listed if "numbers" in line).split(", ")) == [
        "a", "b", "visits",
    ]  # fmt: skip
    assert run("synthesize", tmp_path / "t.csv", "--given", "on=ja", "--out", tmp_path / "o.csv") == 1
    assert "on has no 'ja'; it has false, true" in capsys.readouterr().err


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


def test_given_values_that_never_occur_together_warn(tmp_path: Path) -> None:
    table = correlated_table(100).assign(zone=np.arange(100) % 4)
    table["city"] = np.array(["Oslo", "Rome"])[table["zone"] // 2]
    table.to_csv(tmp_path / "t.csv", index=False)
    command = ("synthesize", tmp_path / "t.csv", "-n", 20, "--out", tmp_path / "o.csv", "--given", "city=oslo")
    with pytest.warns(UserWarning, match="city = 'Oslo' and zone = 3 never occur together"):
        assert run(*command, "--given", "zone=3") == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("town=Rome", "COLUMN=VALUE"),
        ("city", "COLUMN=VALUE"),
        ("city=Paris", "has no 'Paris'; it has Oslo"),
        ("b=much", "expected a number"),
        ("b=1e9", "--given b=1e9: b has no such value, nor one near it; its values range from "),
        ("visits=2.5", "expected a whole number"),
        ("gone=1", "nothing but missing values"),
        ("same=8", "its values range from 7 to 7"),
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
    typed = {"month": days.to_period("M"), "span": pd.to_timedelta(range(60), unit="h")}
    pd.DataFrame(typed).to_parquet(tmp_path / "t.parquet")
    out = tmp_path / "o.csv"
    cases = {
        "day=07.01.2019": (".csv", "--given day=07.01.2019: day has no such value.* from 05.01.2026 to 22.02.2027"),
        "share=9999": (".csv", "--given share=9999: share has .* range from 20.5% to 79.5%"),
        "month=2031-01": (".parquet", "--given month=2031-01: month has no such .* range from 2026-01 to 2027-02"),
        "month=x": (".parquet", "--given month=x: expected a value such as 2026-01, got 'x'"),
        "span=900h": (".parquet", "--given span=900h: span has no such value"),
    }
    for given, (suffix, message) in cases.items():
        assert run("synthesize", tmp_path / f"t{suffix}", "--out", out, "--given", given) == 1
        assert re.search(message, capsys.readouterr().err)
    for given, suffix in (("share=30.5", ".csv"), ("month=2026-03", ".parquet"), ("span=5h", ".parquet")):
        assert run("synthesize", tmp_path / f"t{suffix}", "-n", 5, "--out", out, "--given", given) == 0


def test_repeated_given_values_and_wrong_outputs_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    correlated_table(100).to_csv(tmp_path / "t.csv", index=False)
    command = ("synthesize", tmp_path / "t.csv", "--out", tmp_path / "o.csv", "--given", "a=1", "--given", "a=2")
    assert run(*command) == 1
    assert "given already" in capsys.readouterr().err
    assert run("synthesize", tmp_path / "t.csv", "--out", tmp_path / "t.csv") == 1
    assert run("synthesize", tmp_path / "t.csv", "--out", tmp_path / "o.npy") == 1


@pytest.mark.parametrize(("written", "form"), [("{:.0f}", r"-?\d+"), ("{:.1f}", r"-?\d+\.0"), ("{:.2f}", r"-?\d+\.00")])
def test_whole_numbers_have_the_decimals_of_the_file(written: str, form: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"a": correlated_table(100)["a"]})
    table["few"] = [written.format(number) for number in np.arange(100) % 7]
    table["wide"] = [written.format(number) for number in np.random.default_rng(0).integers(0, 10**6, 100)]
    table.loc[3, ["few", "wide"]] = None
    table.to_csv(tmp_path / "t.csv", index=False)
    assert run("synthesize", tmp_path / "t.csv", "--out", tmp_path / "o.csv") == 0
    drawn = pd.read_csv(tmp_path / "o.csv", dtype=str)
    for name in ("few", "wide"):
        assert drawn[name].str.fullmatch(form).all()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_synthetic_rows_have_gaps_if_asked(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = correlated_table(400)
    table["visits"] = table["visits"].astype("Int64").where(table.index % 4 > 0)
    table["city"] = table["city"].where(table.index % 3 > 0)
    source, out, page = tmp_path / f"table{suffix}", tmp_path / f"rows{suffix}", tmp_path / "page.html"
    write, read = (table.to_csv, pd.read_csv) if suffix == ".csv" else (table.to_parquet, pd.read_parquet)
    write(source, index=False)
    assert run("synthesize", source, "--gaps", "--out", out, "--report", page) == 0
    drawn = read(out)
    assert drawn["visits"].isna().mean() == pytest.approx(0.25, abs=0.1)
    assert drawn["city"].isna().mean() == pytest.approx(0.33, abs=0.1)
    assert not drawn[["a", "b"]].isna().any().any()
    assert (drawn["visits"].dropna() % 1 == 0).all()
    assert page.stat().st_size > 10_000
    capsys.readouterr()
    assert run("synthesize", source, "--gaps", "--given", "city=Rome", "--out", tmp_path / f"o{suffix}") == 1
    assert "--gaps: rows with given values are complete; leave out --gaps or --given" in capsys.readouterr().err


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
        (["--epsilon", "1", "--report", "page.html"], "--report: shows rows of the table, which --epsilon protects"),
        (["--epsilon", "0"], "epsilon: expected a positive number"),
        (["--epsilon", "1", "--n-estimators", "2"], "--n-estimators: has no effect with --epsilon, unless --given"),
    ],
)
def test_private_rows_without_a_budget_or_with_a_report_are_errors(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.DataFrame({"x": np.random.default_rng(0).normal(size=50)}).to_csv(tmp_path / "t.csv", index=False)
    arguments = [str(tmp_path / one) if one.endswith(".html") else one for one in arguments]
    assert run("synthesize", tmp_path / "t.csv", "--out", tmp_path / "o.csv", *arguments) == 1
    assert message in capsys.readouterr().err


def test_given_values_are_those_that_are_released(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
