"""Random rows of tables: which are drawn, with which probability, and how errors name them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcsm.data import SampledFile, read_frame, row_samples, sample_rows

ROWS = 1_200


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
    elif path.name == "table.csv.gz":
        frame.to_csv(path)  # with an index
    elif path.suffix == ".parquet":
        typed = frame.astype({"b": "Int64", "c": "category"}).set_axis([f"r{row}" for row in range(ROWS)])
        typed.to_parquet(path, row_group_size=300)
    else:
        np.save(path, numbers.astype(np.float32))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of guesses and of the index
@pytest.mark.parametrize("name", ["european.csv", "table.csv.gz", "table.parquet", "table.npy"])
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
    assert len(rows.columns) == (2 if name.endswith("npy") else 5)
    monkeypatch.setattr(row_samples, "_PART_ROWS", 177)
    pd.testing.assert_frame_equal(sample_rows(path, 500, seed=1), rows)
    assert not sample_rows(path, 500, seed=2).equals(rows)


def test_every_row_is_drawn_with_the_same_probability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_samples, "_PART_ROWS", 7)
    path, draws = tmp_path / "table.npy", 100
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
    for rows in (None, ROWS, ROWS + 1):
        file = SampledFile(path, rows)
        pd.testing.assert_frame_equal(file.read(set_aside=True), read_frame(path))
        assert file.file.sample is None or len(file.file.sample.numbers) == ROWS


def test_bad_input_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="rows=0"):
        sample_rows(path, 0)
    path.write_text("a,b\n" + "1,2\n" * 50 + "1,2,3\n" + "1,2\n" * 50, encoding="utf-8")
    with pytest.raises(ValueError, match="line 52: expected 2 cells like the first row, got 3"):
        sample_rows(path, 10)


def test_the_header_and_the_index_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    pd.concat([table()[["a", "b"]].head(300)] * 2).to_csv(path)  # the index starts again
    assert list(sample_rows(path, 100).columns) == ["a", "b"]
    names = ["x"] * 150 + [""] * 450
    path.write_text("0,1,2\n" + "".join(f"{name},{row % 7},1.5\n" for row, name in enumerate(names)), encoding="utf-8")
    rows = sample_rows(path, 100)
    assert list(rows.columns) == ["0", "1", "2"]
    assert len(rows) == 100
