"""Random rows of tables: which are drawn, with which probability, and how errors name them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcsm.data import ReadOptions, SampledFile, read_frame, row_samples, sample_rows
from arcsm.data.csv_files import CSVFile

ROWS = 3_000


def table() -> pd.DataFrame:
    random = np.random.default_rng(0)
    names = random.choice(["x", "y; z", 'q"uote', "é\nü"], ROWS)
    frame = pd.DataFrame(
        {
            "a": np.where(random.random(ROWS) < 0.05, np.nan, random.normal(size=ROWS)),
            "b": random.integers(0, 9, ROWS),
            "c": np.where(random.random(ROWS) < 0.1, None, names),
            "d": pd.date_range("2020-01-01", periods=ROWS, freq="h"),
            "t": random.random(ROWS) < 0.5,
        }
    )
    return frame.sample(frac=1.0, random_state=0, ignore_index=True)


def write(frame: pd.DataFrame, path: Path) -> None:
    numbers = frame[["a", "b"]].fillna(0.5).to_numpy()
    if path.name == "european.csv":
        frame.to_csv(path, sep=";", decimal=",", index=False, encoding="utf-16")
    elif path.name == "named.csv":
        path.write_text("sep=|\n" + frame.to_csv(sep="|", index=False), encoding="utf-8")
    elif path.name == "table.csv.gz":
        frame.to_csv(path)  # with an index
    elif path.suffix == ".tsv":
        frame.to_csv(path, sep="\t", index=False)
    elif path.suffix == ".parquet":
        typed = frame.astype({"b": "Int64", "c": "category"}).set_axis([f"r{row}" for row in range(ROWS)])
        typed.to_parquet(path, row_group_size=700)
    elif path.suffix == ".npy":
        np.save(path, numbers.astype(np.float32))
    else:
        np.savez(path, numbers)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of guesses and of the index
@pytest.mark.parametrize(
    "name", ["european.csv", "named.csv", "table.csv.gz", "table.tsv", "table.parquet", "table.npy", "table.npz"]
)
def test_a_sample_holds_rows_of_the_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_samples, "_PART_ROWS", 400)
    path = tmp_path / name
    write(table(), path)
    file = SampledFile(path, 500, seed=1)
    rows, sample = file.read(set_aside=True), file.file.sample
    assert sample is not None
    assert sample.total == ROWS
    numbers = sample.numbers
    assert len(rows) == len(numbers) == 500
    assert bool((np.diff(numbers) > 0).all())
    expected = read_frame(path)[list(rows.columns)].iloc[numbers].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, expected)
    assert len(rows.columns) == (2 if name.endswith(("npy", "npz")) else 5)
    monkeypatch.setattr(row_samples, "_PART_ROWS", 77)
    pd.testing.assert_frame_equal(sample_rows(path, 500, seed=1), rows)
    assert not sample_rows(path, 500, seed=2).equals(rows)


def test_every_row_is_drawn_with_the_same_probability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_samples, "_PART_ROWS", 7)
    path, draws = tmp_path / "table.npy", 600
    np.save(path, np.arange(40.0))
    counts = np.zeros(40)
    for seed in range(draws):
        counts[sample_rows(path, 10, seed)["x0"].to_numpy().astype(int)] += 1
    share, pairs = counts / draws, draws * 0.25 * 0.75
    assert share.mean() == pytest.approx(0.25)
    chi2 = float(((counts - 0.25 * draws) ** 2).sum() / pairs) * 39 / 40  # exactly 10 of 40: one degree less
    assert 15.0 < chi2 < 75.0


def test_a_small_table_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    table()[["a", "b"]].to_csv(path, index=False)
    for rows in (None, ROWS, ROWS + 1, 10 * ROWS):
        file = SampledFile(path, rows)
        pd.testing.assert_frame_equal(file.read(set_aside=True), read_frame(path))
        assert file.file.sample is None or len(file.file.sample.numbers) == ROWS


def test_wide_tables_have_smaller_samples_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_samples, "MOST_CELLS", 100)
    path = tmp_path / "table.npy"
    np.save(path, np.random.default_rng(0).normal(size=(50, 4)))
    assert sample_rows(path).shape == (25, 4)
    monkeypatch.setattr(row_samples, "MOST_ROWS", 10)
    assert sample_rows(path).shape == (10, 4)


def has_row(number: int, sample: SampledFile) -> bool:
    assert sample.file.sample is not None
    return number in sample.file.sample.numbers


def test_errors_name_the_row_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    cells = ["1.5"] * 5_000
    cells[4_000] = "what"
    path.write_text("size\n" + "\n".join(cells), encoding="utf-8")
    seed = next(seed for seed in range(20) if has_row(4_000, SampledFile(path, 2_500, seed)))
    with pytest.raises(ValueError, match=r"table\.csv: .*row 4001"):
        sample_rows(path, 2_500, seed)


def test_bad_input_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="rows=0"):
        sample_rows(path, 0)
    path.write_text("a,b\n" + "1,2\n" * 50 + "1,2,3\n" + "1,2\n" * 50, encoding="utf-8")
    with pytest.raises(ValueError, match="line 52: expected 2 cells like the first row, got 3"):
        sample_rows(path, 10)
    path.write_text("a,b,c\n" + "1.5,2\n" * 200, encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: expected 3 cells like the first row, got 2"):
        sample_rows(path, 100)
    with pytest.raises(ValueError, match="does not exist"):
        sample_rows(tmp_path / "none.csv")


def test_the_header_and_the_index_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    pd.concat([table()[["a", "b"]].head(300)] * 2).to_csv(path)  # the index starts again
    assert list(sample_rows(path, 100).columns) == ["a", "b"]
    names = ["x"] * 150 + [""] * 450
    path.write_text("0,1,2\n" + "".join(f"{name},{row % 7},1.5\n" for row, name in enumerate(names)), encoding="utf-8")
    rows = sample_rows(path, 100)
    assert list(rows.columns) == ["0", "1", "2"]
    assert len(rows) == 100


def test_cells_and_options_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("size,name\n" + '1.5," x"\n2.5,x\n' * 500, encoding="utf-8")
    assert set(sample_rows(path, 200)["name"]) == {" x", "x"}
    path.write_bytes(b"a,b\r" + b"1.5,2\r2.5,3\r" * 100)  # as old programs end lines
    assert len(sample_rows(path, 160)) == 160
    path = tmp_path / "table.parquet"
    labels = pd.Index([f"r{row}" for row in range(ROWS)], name="key")
    table()[["a", "b"]].set_axis(labels).to_parquet(path)
    with pytest.warns(UserWarning, match="its index only labels the rows: not modelled \\('key'\\)"):
        assert list(sample_rows(path, 100, options=ReadOptions(ignore=["key"])).columns) == ["a", "b"]
    with pytest.raises(ValueError, match="has no column 'other'"):
        sample_rows(path, 100, options=ReadOptions(ignore=["other"]))


def test_lengths_of_rows_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, checks = tmp_path / "table.csv", []
    path.write_text("a,b\n" + "1.5,2\n2.5,\n" * 200, encoding="utf-8")
    monkeypatch.setattr(CSVFile, "check_lengths", lambda _: checks.append(1))
    monkeypatch.setattr(row_samples, "_PART_ROWS", 20)
    assert len(sample_rows(path, 100)) == 100
    assert len(checks) == 2  # of the file in parts, and of the sample


_MEASURE = """
import resource, sys
from arcsm.data import sample_rows
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
sample_rows(sys.argv[1], 1_000)
before = peak()
rows = sample_rows(sys.argv[1], 50_000)
print(len(rows), peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the peak memory this way")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path, random = tmp_path / "table.csv", np.random.default_rng(0)
    for part in range(20):
        frame = pd.DataFrame(random.normal(size=(100_000, 6)).round(3)).assign(name="a name of some length")
        frame.to_csv(path, mode="a", header=part == 0, index=False)
    command = [sys.executable, "-c", _MEASURE, str(path)]
    rows, mebibytes = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert rows == 50_000
    assert mebibytes < 150
