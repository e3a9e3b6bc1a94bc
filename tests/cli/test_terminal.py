"""What commands write to standard error: progress of every phase, and no warnings whatever the columns are called."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import arcsm
from arcsm._runtime import progress
from arcsm.cli import application
from small_tables import correlated_table, normal, run

#: Names that are formulas, have no glyph, hide a line of a legend, are markup, or do not fit.
NAMES = ("$x_1$", "年齢", "_hidden", "a\\frac{b", "<b>bold</b>", "two\nlines", "%s {x}", "x" * 200)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcsm.reports.detection._MAX_PICTURES", 2)
    monkeypatch.setattr(progress, "monotonic", lambda: 0.0)  # that a busy machine is slow changes no output


def write_tables(folder: Path, table: pd.DataFrame) -> None:
    """Write a table, its last rows with a value far out and one not seen before, and one with missing values."""
    new = table.tail(15).astype(object)
    new.iloc[0, 0], new.iloc[1, -1] = 1e9, "未知 $a_b$"
    table.head(-15).to_csv(folder / "normal.csv", index=False)
    new.to_csv(folder / "new.csv", index=False)
    table.mask(normal(table.size).reshape(table.shape) > 1.2).to_csv(folder / "gaps.csv", index=False)


TABLE_COMMANDS = (
    ("detect", "normal.csv", "new.csv", "--out", "scores.csv", "--report", "page.html"),
    ("synthesize", "normal.csv", "--out", "rows.csv", "--report", "page.html"),
    ("impute", "gaps.csv", "--out", "filled.csv"),
)


@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # also those of other packages, but of earlier tests
def test_no_name_of_a_column_or_category_causes_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    number = np.arange(80)
    columns: dict[str, object] = {name: normal(80, seed) for seed, name in enumerate(NAMES[:-2])}
    columns |= {NAMES[-2]: number % 4, NAMES[-1]: np.array(["_a", "$\\foo", "大阪", "🙂"])[number % 4]}
    write_tables(tmp_path, pd.DataFrame(columns))
    for command in TABLE_COMMANDS:
        assert run(*command) == 0
        assert capsys.readouterr().err == ""


def phases_of(error: str) -> dict[str, list[int]]:
    """Return the percentages that each phase printed, after checking that nothing else was printed."""
    phases: dict[str, list[int]] = {}
    for line in error.splitlines():
        found = re.fullmatch(r"arcsm: ([a-z ]+) (\d+) %(?:, about .* left)?", line)
        assert found, line
        phases.setdefault(found[1], []).append(int(found[2]))
    return phases


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every look at the clock be 100 seconds after the one before."""
    monkeypatch.setattr(progress, "monotonic", itertools.count(0.0, 100.0).__next__)


@pytest.mark.usefixtures("slow_clock")
def test_each_phase_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tables(tmp_path, correlated_table(415)[["a", "b", "visits", "city"]])
    expected = {
        "detect": ["fitting", "scoring fitted rows", "scoring", "drawing the report"],
        "synthesize": ["fitting", "weighing orders", "sampling", "comparing", "drawing the report"],
        "impute": ["fitting", "filling"],
    }
    for command in TABLE_COMMANDS:
        assert run(*command) == 0
        phases = phases_of(capsys.readouterr().err)
        assert list(phases) == expected[command[0]]
        for shares in phases.values():
            assert shares == sorted(shares)
            assert shares[-1] == 100


HOSTILE = "\x1b[2Jx\x07\x9b31m\u202e"


@pytest.mark.parametrize(
    "command",
    [
        ("train", "key.yaml"),
        ("train", "toy-rings", "--set", f"train.{HOSTILE}=1"),
        ("detect", "arrays.npz", "arrays.npz", "--out", "scores.csv"),
        ("detect", "named.csv", "named.csv", "--out", "scores.csv"),
        ("impute", f"gaps{HOSTILE}.csv", "--out", f"filled{HOSTILE}.csv"),
    ],
)
def test_no_name_changes_the_terminal(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", application.warn_in_one_line)
    Path("key.yaml").write_text('name: x\n"\\e]0;title\\a": 1\n')
    np.savez("arrays.npz", **{f"a{HOSTILE}": np.eye(3), "b": np.eye(3)})
    table = correlated_table(60)[["a", "b", "visits", "city"]]
    table.assign(**{f"id{HOSTILE}": [f"key {i}" for i in range(60)]}).to_csv("named.csv", index=False)
    table.mask(normal(table.size).reshape(table.shape) > 1.2).to_csv(f"gaps{HOSTILE}.csv", index=False)
    run(*command)
    output = "".join(capsys.readouterr())
    assert "x1b" in output
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", output)


def test_what_a_model_file_holds_does_not_change_the_terminal(
    table_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = arcsm.load(table_run)
    model.metadata["columns"] = [f"a{HOSTILE}", "b", "c"]
    arcsm.save(model, tmp_path / "model.safetensors")
    assert run("info", tmp_path / "model.safetensors") == 0
    output = capsys.readouterr().out
    assert "u001b" in output
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", output)
