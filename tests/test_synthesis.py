"""Synthetic rows: as the table has them, and told from it or copies of it where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from arcsm import cli
from arcsm.data import read_frame
from arcsm.estimators import ScoreDensity
from arcsm.estimators.ensemble import Plan
from arcsm.estimators.synthesis import Likeness, as_precise_as

QUICK: dict[str, Any] = {"max_steps": 10, "n_estimators": 1, "hidden_features": (8,), "random_state": 0}


@pytest.fixture(autouse=True)
def small_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Plan, "of", classmethod(lambda cls, *_: Plan(1, 8, (16,), (16,), 0, 0.3, 4, 5e-2, 30, 64, 5e-3, True))
    )


def rows(count: int, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    a = random.normal(size=count)
    return pd.DataFrame(
        {
            "a": a,
            "b": np.round(50.0 + 20.0 * (a + 0.2 * random.normal(size=count)), 2),
            "city": random.choice(["Rome", "Oslo"], count),
            "visits": random.poisson(3.0, count),
            "same": 7,
        }
    )


def number(found: float | None) -> float:
    assert found is not None
    return found


def run(*arguments: object) -> int:
    return cli._run([str(argument) for argument in arguments])


# How like the table they are ----------------------------------------------------------------------------------------


def test_rows_of_the_same_distribution_are_not_told_apart() -> None:
    table = rows(2_000)
    found = Likeness.of(ScoreDensity(**QUICK).fit(table), table, rows(2_000, seed=1))
    assert found.held_out == 300
    assert abs(number(found.auc) - 0.5) < 3.0 * number(found.auc_error)
    assert found.copies == found.held_out_copies == 0.0
    assert 0.01 < number(found.near) < 0.1
    assert len(found.lines()) == 3


def test_rows_whose_columns_do_not_go_together_are_told_apart() -> None:
    table, synthetic = rows(2_000), rows(2_000, seed=1)
    synthetic["b"] = synthetic["b"].to_numpy()[::-1]
    found = Likeness.of(ScoreDensity(**QUICK).fit(table), table, synthetic)
    assert number(found.auc) > 0.9


def test_rows_learned_by_heart_are_found() -> None:
    table = rows(2_000)
    density = ScoreDensity(**QUICK).fit(table)
    fitted = table.drop(index=density.held_out_rows_)
    assert Likeness.of(density, table, fitted.sample(500, random_state=0)).copies == 1.0
    nearly = fitted.sample(500, random_state=0)
    nearly["a"] += 1e-6
    found = Likeness.of(density, table, nearly)
    assert found.copies == 0.0
    assert number(found.near) > 0.9


def test_gaps_of_the_table_do_not_tell_it_from_synthetic_rows() -> None:
    table = rows(2_000)
    table.loc[np.random.default_rng(2).random(2_000) < 0.4, ["b", "city"]] = None
    found = Likeness.of(ScoreDensity(**QUICK).fit(table), table, rows(2_000, seed=1))
    assert abs(number(found.auc) - 0.5) < 3.0 * number(found.auc_error)


@pytest.mark.parametrize(("fitted", "drawn"), [(200, 200), (3, 60), (2_000, 10)])
def test_too_few_rows_say_nothing(fitted: int, drawn: int) -> None:
    table = rows(fitted)
    found = Likeness.of(ScoreDensity(**QUICK).fit(table), table, rows(drawn, seed=1))
    assert (found.auc, found.auc_error, found.near) == (None, None, None)
    assert "too few" in found.lines()[0]


# As the table has them ----------------------------------------------------------------------------------------------


def test_values_have_as_many_decimals_as_those_of_the_table() -> None:
    table = pd.DataFrame({"cents": np.round(np.random.default_rng(0).lognormal(4, 1, 200), 2), "all": rows(200)["a"]})
    table["small"] = table["cents"] * 1e-7
    density = ScoreDensity(**QUICK).fit(table)
    drawn = density.sample(50)
    found = as_precise_as(table, density.columns_, drawn)
    assert (found["cents"] == found["cents"].round(2)).all()
    pd.testing.assert_frame_equal(found[["all", "small"]], drawn[["all", "small"]])
    assert not found["cents"].equals(drawn["cents"])


# The command --------------------------------------------------------------------------------------------------------


def test_synthesize_draws_rows_and_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = rows(400).assign(id=range(400))
    table["visits"] = table["visits"].astype(float).where(table.index % 9 > 0)
    table.to_csv(tmp_path / "table.csv", index=False)
    out, page = tmp_path / "rows.csv", tmp_path / "page.html"
    assert run("synthesize", tmp_path / "table.csv", "--ignore", "id", "--out", out, "--report", page) == 0
    drawn = pd.read_csv(out)
    assert list(drawn.columns) == ["a", "b", "city", "visits", "same"]
    assert len(drawn) == 400
    assert drawn["visits"].dtype == np.int64
    assert set(drawn["city"]) == {"Rome", "Oslo"}
    assert (drawn["b"] == drawn["b"].round(2)).all()
    assert page.stat().st_size > 10_000
    assert "told from 60 held-out rows by trees" in capsys.readouterr().out
    again = tmp_path / "again.csv"
    assert run("synthesize", tmp_path / "table.csv", "--ignore", "id", "--out", again) == 0
    assert again.read_bytes() == out.read_bytes()


def test_synthesize_keeps_the_types_of_parquet(tmp_path: Path) -> None:
    table = rows(100).assign(yes=np.arange(100) % 2 == 0)
    table.to_parquet(tmp_path / "table.parquet", index=False)
    assert run("synthesize", tmp_path / "table.parquet", "-n", 7, "--out", tmp_path / "rows.parquet") == 0
    drawn = read_frame(tmp_path / "rows.parquet")
    assert drawn.dtypes.to_dict() == read_frame(tmp_path / "table.parquet").dtypes.to_dict()
    assert len(drawn) == 7


def test_synthesize_holds_given_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = rows(100).assign(yes=np.arange(100) % 2 == 0)
    table["x=y"] = np.arange(100) % 3
    table.to_csv(tmp_path / "table.csv", index=False)
    page = tmp_path / "page.html"
    chosen = ["--given", "city=oslo", "--given", "yes=true", "--given", "a=0.25", "--given", "x=y=2"]
    command = ("synthesize", tmp_path / "table.csv", "-n", 20, "--out", tmp_path / "rows.csv")
    assert run(*command, *chosen, "--report", page) == 0
    drawn = pd.read_csv(tmp_path / "rows.csv")
    for name, value in (("city", "Oslo"), ("yes", True), ("a", 0.25), ("x=y", 2)):
        assert (drawn[name] == value).all()
    assert drawn["b"].nunique() > 1
    assert "told from" not in capsys.readouterr().out
    assert "not like the whole table" in page.read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("town=Rome", "COLUMN=VALUE"),
        ("city", "COLUMN=VALUE"),
        ("city=Paris", "has no 'Paris'; it has Oslo"),
        ("b=much", "expected a number"),
        ("b=1e9", "was never"),
        ("same=8", "was never"),
    ],
)
def test_wrong_given_values_are_said_in_a_line(
    given: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(100).sort_values("city").to_csv(tmp_path / "table.csv", index=False)
    out = tmp_path / "rows.csv"
    assert run("synthesize", tmp_path / "table.csv", "--out", out, "--given", given) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_value_is_given_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows(100).to_csv(tmp_path / "t.csv", index=False)
    command = ("synthesize", tmp_path / "t.csv", "--out", tmp_path / "o.csv", "--given", "a=1", "--given", "a=2")
    assert run(*command) == 1
    assert "given already" in capsys.readouterr().err
    assert run("synthesize", tmp_path / "t.csv", "--out", tmp_path / "t.csv") == 1
    assert run("synthesize", tmp_path / "t.csv", "--out", tmp_path / "o.npy") == 1


def test_given_rows_are_not_drawn_twice_without_need() -> None:
    table = rows(300)
    drawn = ScoreDensity(**QUICK).fit(table).conditional(["city"], ["Rome"], draws=100)
    assert not drawn.duplicated().any()
