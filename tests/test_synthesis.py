"""Synthetic rows: as the table has them, and told from it or copies of it where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import parquet

from arcsm.cli import application
from arcsm.estimators import ScoreDensity, density
from arcsm.estimators.ensemble import Ensemble, Plan
from arcsm.reports import synthesis
from arcsm.reports.synthesis import SynthesisQuality, as_precise_as

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
    return application.run([str(argument) for argument in arguments])


# How like the table they are ----------------------------------------------------------------------------------------


def likeness(table: pd.DataFrame, synthetic: pd.DataFrame) -> SynthesisQuality:
    return SynthesisQuality.of(ScoreDensity(**QUICK).fit(table), table, synthetic)


def surprise(found: SynthesisQuality) -> float:
    """By how many standard deviations more rows are nearest to a fitted one than are expected to."""
    assert found.nearest is not None
    return (found.nearest.fitted - found.nearest.expected) / found.nearest.error


def test_rows_of_the_same_distribution_are_not_told_apart() -> None:
    found = likeness(rows(2_000), rows(2_000, seed=1))
    assert found.held_out == 300
    assert abs(number(found.auc) - 0.5) < 3.0 * number(found.auc_error)
    assert found.copies == found.held_out_copies == 0.0
    assert found.nearest is not None
    assert found.nearest.expected == 0.85
    assert abs(surprise(found)) < 3.0
    assert len(found.lines()) == 3


def test_rows_whose_columns_do_not_go_together_are_told_apart() -> None:
    synthetic = rows(2_000, seed=1)
    synthetic["b"] = synthetic["b"].to_numpy()[::-1]
    assert number(likeness(rows(2_000), synthetic).auc) > 0.9


@pytest.mark.parametrize("gaps", [0.0, 0.2])
def test_rows_learned_by_heart_are_found(gaps: float) -> None:
    whole = rows(2_000)
    table = whole.copy()
    table.loc[np.random.default_rng(2).random(2_000) < gaps, ["b"]] = None
    density = ScoreDensity(**QUICK).fit(table)
    fitted = whole.drop(index=density.held_out_rows_)
    share = SynthesisQuality.of(density, table, fitted.sample(500, random_state=0)).copies
    assert share == 1.0 if gaps == 0.0 else 0.7 < share < 0.9
    nearly = fitted.sample(500, random_state=0)
    nearly["a"] += 1e-6
    found = SynthesisQuality.of(density, table, nearly)
    assert found.copies == 0.0
    assert surprise(found) > 5.0


def test_a_table_that_repeats_itself_is_not_called_learned_by_heart() -> None:
    kept = ["city", "visits", "same"]
    found = likeness(rows(2_000)[kept], rows(2_000, seed=1)[kept])
    assert found.copies > 0.99
    assert number(found.held_out_copies) > 0.99
    assert abs(surprise(found)) < 3.0


def test_the_error_of_nearest_rows_is_what_they_vary_by() -> None:
    table, synthetic = rows(600), rows(400, seed=1)
    density = ScoreDensity(**QUICK).fit(table)
    shares, errors = [], []
    for seed in range(200):  # which rows were held out is chosen anew
        density.held_out_rows_ = np.random.default_rng(seed).permutation(600)[:90]
        held = np.isin(np.arange(600), density.held_out_rows_)
        numbers = [density.columns_.encode(one) for one in (table, synthetic)]
        found = synthesis._nearest(density.columns_, numbers[0], held, numbers[1], np.random.default_rng(seed))
        shares.append(found.fitted)
        errors.append(found.error)
    assert np.mean(shares) == pytest.approx(0.85, abs=3.0 * np.std(shares) / 200**0.5)
    assert np.std(shares) == pytest.approx(np.mean(errors), rel=0.2)


def test_gaps_of_the_table_do_not_tell_it_from_synthetic_rows() -> None:
    table = rows(2_000)
    table.loc[np.random.default_rng(2).random(2_000) < 0.4, ["b", "city"]] = None
    found = likeness(table, rows(2_000, seed=1))
    assert abs(number(found.auc) - 0.5) < 3.0 * number(found.auc_error)
    assert "gaps of the table" in found.lines()[0]


def test_columns_with_hardly_a_value_are_compared_as_far_as_they_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "_COMPARED", 60)
    monkeypatch.setattr(synthesis, "_SEARCHED", 80)
    table = rows(2_000).assign(rare=np.where(np.arange(2_000) < 3, np.arange(2_000) + 0.5, np.nan))
    density = ScoreDensity(**QUICK).fit(table)
    for seed in range(5):
        found = SynthesisQuality.of(density, table, density.sample(500), seed)
        assert found.nearest is not None
        assert np.isfinite([number(found.auc), found.nearest.fitted, found.nearest.expected]).all()
    assert "fitted rows without gaps" in found.lines()[1]
    gone = table.assign(
        rare=np.where(np.arange(2_000) % 2, table["rare"] + 1.0, np.nan), a=table["a"].where(table.index % 2 == 0)
    )
    assert "not known, there is none" in likeness(gone, rows(500).assign(rare=1.0)).lines()[1]


def test_values_on_a_grid_are_compared_as_the_grid_has_them() -> None:
    random = np.random.default_rng(0)
    table, new = (pd.DataFrame({"k": random.poisson(5.0, 2_000) * 0.1, "c": random.normal(size=2_000)}) for _ in "ab")
    new["k"] += 1e-9
    found = likeness(table, new)
    assert abs(number(found.auc) - 0.5) < 3.0 * number(found.auc_error)


@pytest.mark.parametrize(("fitted", "drawn"), [(200, 200), (3, 60), (2_000, 10)])
def test_too_few_rows_say_nothing(fitted: int, drawn: int) -> None:
    found = likeness(rows(fitted), rows(drawn, seed=1))
    assert (found.auc, found.auc_error, found.nearest) == (None, None, None)
    assert f"({found.held_out} here)" in found.lines()[0]


def test_a_rare_value_is_learned_from_and_not_held_out() -> None:
    table = rows(400)
    place = int(ScoreDensity(**QUICK).fit(table).held_out_rows_[5])
    table["rare"] = np.arange(400) == place
    table["gone"] = np.where(np.arange(400) == place, 2.5, np.where(np.arange(400) == place - 1, 3.5, np.nan))
    density = ScoreDensity(**QUICK).fit(table)
    assert place not in density.held_out_rows_
    assert 55 < len(density.held_out_rows_) < 60


# As the table has them ----------------------------------------------------------------------------------------------


def test_values_have_as_many_decimals_as_those_of_the_table() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"cents": np.round(random.lognormal(4, 1, 200), 2), "all": rows(200)["a"]})
    table["small"] = table["cents"] * 1e-7
    table["thirds"] = np.round(random.poisson(9.0, 200) / 3.0, 2)
    table["tenths"] = random.poisson(9.0, 200) * 0.1  # 0.30000000000000004 among them
    table["single"] = table["cents"].astype(np.float32)
    density = ScoreDensity(**QUICK).fit(table)
    drawn = density.sample(50)
    found = as_precise_as(table, density.columns_, drawn, given=["all"])
    assert set(found["thirds"]) <= set(table["thirds"])
    assert (found["tenths"].isin(table["tenths"]) | ~found["tenths"].round(1).isin(table["tenths"].round(1))).all()
    for name in ("cents", "single"):
        assert (found[name] == found[name].round(2)).all()
        assert not found[name].equals(drawn[name])
    assert found["single"].dtype == np.float32
    pd.testing.assert_frame_equal(found[["all", "small"]], drawn[["all", "small"]])
    kept = as_precise_as(table, density.columns_, drawn, given=["cents"])
    assert kept["cents"].equals(drawn["cents"])


def test_decimals_are_those_of_all_rows_whatever_their_order() -> None:
    halves = np.sort(np.concatenate([np.zeros(30_000), np.random.default_rng(0).poisson(4.0, 1_000) / 2.0]))
    table = pd.DataFrame({"a": halves})
    density = ScoreDensity(**QUICK).fit(table)
    drawn = pd.DataFrame({"a": [0.0, 0.5, 1.5, 2.0, -0.0]})
    assert as_precise_as(table, density.columns_, drawn, as_text=True)["a"].tolist() == [0.0, 0.5, 1.5, 2.0, 0.0]


def test_extreme_numbers_survive_rounding() -> None:
    for kind, values in ((np.float16, [60_000.0, 1e-4]), (np.float32, [1e37, 0.25]), (np.float64, [1e301, 1e-7])):
        column = pd.Series(values * 20, dtype=kind)
        found = synthesis._rounded(column, 8)
        assert found.dtype == kind
        assert np.isfinite(found).all()
        np.testing.assert_allclose(np.asarray(found, dtype=float), np.asarray(column, dtype=float), rtol=1e-3)
    assert synthesis._decimals(pd.Series([np.nan])) == 0


def test_whole_numbers_with_gaps_are_written_whole(tmp_path: Path) -> None:
    table = pd.DataFrame({"wide": np.random.default_rng(0).integers(0, 10**6, 100).astype(float), "a": rows(100)["a"]})
    table.loc[3, "wide"] = np.nan
    table.to_csv(tmp_path / "t.csv", index=False)
    assert run("synthesize", tmp_path / "t.csv", "--out", tmp_path / "o.csv") == 0
    assert pd.read_csv(tmp_path / "o.csv")["wide"].dtype == np.int64


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
    table = rows(100).assign(yes=np.arange(100) % 2 == 0)
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
    said = capsys.readouterr()
    assert "told from" not in said.out
    assert f"{len(drawn.drop_duplicates())} of them different" in said.out
    assert "not like the whole table" in page.read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("town=Rome", "COLUMN=VALUE"),
        ("city", "COLUMN=VALUE"),
        ("city=Paris", "has no 'Paris'; it has Oslo"),
        ("b=much", "expected a number"),
        ("b=1e9", "was never"),
        ("visits=2.5", "expected a whole number"),
        ("gone=1", "nothing but missing values"),
        ("same=8", "was never"),
    ],
)
def test_wrong_given_values_are_said_in_a_line(
    given: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = rows(100).assign(gone=np.nan) if given.startswith("gone") else rows(100)
    table.to_csv(tmp_path / "table.csv", index=False)
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


def test_draws_given_some_values_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(density, "_DRAWN_AT_ONCE", 7)
    drawn = ScoreDensity(**QUICK).fit(rows(300)).conditional(["city"], ["Rome"], draws=30)
    assert len(drawn) == 30
    assert (drawn["city"] == "Rome").all()
    assert not drawn.duplicated().any()


def test_draws_that_are_few_different_ones_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = ScoreDensity(**QUICK).fit(rows(300))
    fill = Ensemble.fill

    def unequal(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        candidates, weights = fill(*arguments)
        weights = torch.zeros_like(weights)
        weights[:, :3] = 1.0 / 3.0
        return candidates, weights

    monkeypatch.setattr(Ensemble, "fill", unequal)
    with pytest.warns(UserWarning, match="about 3 different ones"):
        drawn = fitted.conditional(["city"], ["Rome"], draws=100)
    assert len(drawn.drop_duplicates()) == 3
