"""Commands on tables as they come: dates, currency, ids, European files, standard input, types of Parquet."""

from __future__ import annotations

import gc
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcsm import save
from arcsm.errors import SkippedWarning
from small_tables import model_of_columns, normal, run, use_small_models


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)


def shop(count: int = 70) -> pd.DataFrame:
    """Return a table of text as a European shop would export it, with an empty cell in each column but the first."""
    random = np.random.default_rng(0)
    days = pd.to_datetime("2024-01-20") + pd.to_timedelta(random.integers(0, 99, count), unit="D")
    prices = [f"{price:,.2f} €".translate({44: ".", 46: ","}) for price in random.lognormal(7.0, 1.0, count)]
    clock = [f"{minute // 60:02d}:{minute % 60:02d}" for minute in random.integers(0, 1440, count)]
    table = pd.DataFrame({
        "Nr": np.arange(count) + 11,
        "Preis": prices,
        "Wert": [f"{value:.3f}".replace(".", ",") for value in random.normal(size=count)],
        "Tag": days.strftime("%d.%m.%Y"),
        "Zeit": clock,
    }).astype(object)  # fmt: skip
    for place, name in enumerate(table.columns[1:]):
        table.loc[3 + place, name] = ""
    return table


FORMS = {
    "Preis": r"\d{1,3}(\.\d{3})*,\d{2} €",
    "Wert": r"-?\d+(,\d{1,3})?",
    "Tag": r"\d{2}\.\d{2}\.2024",
    "Zeit": r"\d{2}:\d{2}",
}


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ";"), (".tsv", "\t")])
def test_european_files_are_filled_and_drawn_in_their_own_form(tmp_path: Path, suffix: str, separator: str) -> None:
    path, out = tmp_path / f"t{suffix}", tmp_path / f"o{suffix}"
    table = shop()
    table.to_csv(path, index=False, sep=separator)
    with pytest.warns(SkippedWarning, match=r"set aside, not modelled: 'Nr' \(a different whole number in every row\)"):
        assert run("impute", path, "--out", out) == 0
    filled = pd.read_csv(out, sep=separator, dtype=str)
    for name in table.columns:
        known = table[name] != ""
        assert filled[name][known].tolist() == table[name][known].astype(str).tolist()
    assert run("synthesize", path, "--out", out, "-n", 5, "--given", "Tag=01.02.2024") == 0
    drawn = pd.read_csv(out, sep=separator, dtype=str)
    assert drawn["Nr"].tolist() == [str(number) for number in range(81, 86)]
    assert (drawn["Tag"] == "01.02.2024").all()
    for name, form in FORMS.items():
        for rows in (filled, drawn):
            assert rows[name].str.fullmatch(form).all()


def test_detect_copies_ids_and_counts_rows_from_one(tmp_path: Path) -> None:
    path, out = tmp_path / "t.csv", tmp_path / "o.csv"
    shop().assign(Kunde="x").to_csv(path, index=False, sep=";")
    chosen = ("--id", "Kunde", "--n-estimators", 1, "--sep", ";", "--decimal", ",", "--encoding", "utf-8")
    assert run("detect", path, path, "--out", out, *chosen) == 0
    found = pd.read_csv(out)
    assert list(found.columns[:4]) == ["row", "Nr", "Kunde", "score"]
    assert found["row"].tolist() == list(range(1, 71))
    assert found["Nr"].tolist() == list(range(11, 81))
    shop().rename(columns={"Nr": "row"}).to_csv(path, index=False, sep=";")
    assert run("detect", path, path, "--out", out) == 0
    assert pd.read_csv(out)["row"].tolist() == list(range(11, 81))


def test_score_copies_the_index_and_ids(tmp_path: Path) -> None:
    save(model_of_columns("a", "b"), tmp_path / "run")
    table = pd.DataFrame({"a": normal(9), "b": normal(9, 1), "who": list("abcdefghi")}, index=pd.RangeIndex(100, 109))
    table.to_csv(tmp_path / "t.csv")
    assert run("score", tmp_path / "run", tmp_path / "t.csv", "--id", "who", "--out", tmp_path / "s.csv") == 0
    found = pd.read_csv(tmp_path / "s.csv")
    assert list(found.columns[:3]) == ["index", "who", "row"]
    assert found["index"].tolist() == list(range(100, 109))
    assert found["row"].tolist() == list(range(1, 10))


def test_tables_come_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = shop().to_csv(index=False, sep=";").encode()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for command in (("impute", "-"), ("detect", "-", "-"), ("synthesize", "-", "-n", 5)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert run(*command, "--out", tmp_path / "o.csv") == 0
    gc.collect()
    assert not list((tmp_path / "temporary").glob("arcsm-*"))


def test_parquet_keeps_the_types_of_pandas(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({
        "k": pd.array(random.integers(0, 9, 60), dtype="Int64"),
        "b": pd.array(random.random(60) < 0.5, dtype="boolean"),
        "t": pd.date_range("2024-01-01", periods=60, tz="Europe/Rome"),
        "d": pd.to_timedelta(random.integers(0, 999, 60), unit="min"),
        "z": normal(60).astype(np.float32),
    })  # fmt: skip
    table.loc[3, ["k", "b", "t"]] = None
    table.to_parquet(tmp_path / "t.parquet")
    for command in ("impute", "synthesize"):
        assert run(command, tmp_path / "t.parquet", "--out", tmp_path / "o.parquet") == 0
        assert pd.read_parquet(tmp_path / "o.parquet").dtypes.tolist() == table.dtypes.tolist()
    both = tmp_path / "t.parquet", tmp_path / "t.parquet"
    assert run("detect", *both, "--with-data", "--out", tmp_path / "o.parquet") == 0
    found = pd.read_parquet(tmp_path / "o.parquet")
    assert found[table.columns].dtypes.tolist() == table.dtypes.tolist()


def test_reports_show_dates(tmp_path: Path) -> None:
    days = pd.to_datetime("2024-01-20") + pd.to_timedelta(np.arange(70) % 40, unit="D")
    pd.DataFrame({"day": days, "month": days.strftime("%Y-%m"), "z": normal(70)}).to_csv(
        tmp_path / "t.csv", index=False
    )
    t, out, page = tmp_path / "t.csv", tmp_path / "o.csv", tmp_path / "page.html"
    for command in (("detect", t, t, "--contamination", "0.1"), ("synthesize", t)):
        assert run(*command, "--out", out, "--report", page) == 0
        assert "2024-0" in page.read_text()
