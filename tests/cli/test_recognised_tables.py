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

from arcsm.errors import SkippedWarning
from small_tables import normal, run


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


def test_european_files_are_filled_and_drawn_in_their_own_form(tmp_path: Path) -> None:
    path, out = tmp_path / "t.csv", tmp_path / "o.csv"
    table = shop()
    table.to_csv(path, index=False, sep=";")
    with pytest.warns(SkippedWarning, match=r"set aside, not modelled: 'Nr' \(a different whole number in every row\)"):
        assert run("impute", path, "--out", out) == 0
    filled = pd.read_csv(out, sep=";", dtype=str)
    for name in table.columns:
        known = table[name] != ""
        assert filled[name][known].tolist() == table[name][known].astype(str).tolist()
    assert run("synthesize", path, "--out", out, "-n", 5, "--given", "Tag=01.02.2024") == 0
    drawn = pd.read_csv(out, sep=";", dtype=str)
    assert drawn["Nr"].tolist() == [str(number) for number in range(81, 86)]
    assert (drawn["Tag"] == "01.02.2024").all()
    for name, form in FORMS.items():
        for rows in (filled, drawn):
            assert rows[name].str.fullmatch(form).all()


def test_tables_come_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = shop().to_csv(index=False, sep=";").encode()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for command in (("impute", "-"), ("detect", "-", "-")):
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
    assert run("impute", tmp_path / "t.parquet", "--out", tmp_path / "o.parquet") == 0
    assert pd.read_parquet(tmp_path / "o.parquet").dtypes.tolist() == table.dtypes.tolist()
    both = tmp_path / "t.parquet", tmp_path / "t.parquet"
    assert run("detect", *both, "--with-data", "--out", tmp_path / "o.parquet") == 0
    found = pd.read_parquet(tmp_path / "o.parquet")
    assert found[table.columns].dtypes.tolist() == table.dtypes.tolist()
