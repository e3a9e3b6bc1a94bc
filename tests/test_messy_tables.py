"""Tables as people have them: odd cells, mixed types, files cut short, names of other tables, outputs on inputs."""

from __future__ import annotations

import datetime
import decimal
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, save
from arcsm.cli import application
from arcsm.data import read_frame, write_frame
from arcsm.data.arrays import check_precision, read_table
from arcsm.errors import AccuracyWarning, SkippedWarning
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from arcsm.estimators.ensemble_config import EnsembleConfig
from small_runs import ON_DATA

QUICK: dict[str, Any] = {"max_steps": 20, "n_estimators": 1, "hidden_features": (16,), "random_state": 0}


@pytest.fixture(autouse=True)
def small_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        EnsembleConfig,
        "for_table",
        classmethod(lambda cls, *_: EnsembleConfig(1, 8, (16,), (16,), 0, 0.3, 4, 5e-2, 30, 64, 5e-3, True)),
    )


def run(*arguments: object) -> int:
    return application.run([str(argument) for argument in arguments])


def normal(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=count)


def model(*columns: str) -> AutoregressiveModel:
    torch.manual_seed(0)
    made, head = MADE(len(columns), 4, (8,)), ScoreHead(4, (8,))
    return AutoregressiveModel(made, head, NoiseLadder(1.0, 0.1, 4), metadata={"columns": list(columns)})


# What a column is ---------------------------------------------------------------------------------------------------


def test_one_odd_cell_among_truth_values_is_one_odd_row(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": normal(80), "t": np.arange(80) % 3 == 0})
    table.to_csv(tmp_path / "train.csv", index=False)
    odd = table.astype({"t": object})
    odd.loc[7, "t"] = "unknown"
    odd.loc[8, "t"] = None
    odd.to_csv(tmp_path / "test.csv", index=False)
    like = read_frame(tmp_path / "train.csv")
    read = read_frame(tmp_path / "test.csv", like)
    assert like["t"].dtype == bool
    assert read["t"].tolist()[:7] == table["t"].tolist()[:7]
    assert read["t"][7] == "unknown"
    assert run("detect", tmp_path / "train.csv", tmp_path / "test.csv", "--out", tmp_path / "s.csv") == 0
    because = read_frame(tmp_path / "s.csv")["because"].fillna("")
    assert not because.str.contains("saw True|saw False").any()
    gaps = read_frame(tmp_path / "test.csv")["t"]
    assert set(gaps.dropna()) == {"True", "False", "unknown"}


def test_truth_values_with_gaps_stay_truth_values(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": normal(60), "t": [True, False, None] * 20})
    table.to_csv(tmp_path / "t.csv", index=False)
    assert {type(cell) for cell in read_frame(tmp_path / "t.csv")["t"].dropna()} == {bool}
    assert run("impute", tmp_path / "t.csv", "--out", tmp_path / "o.csv") == 0
    assert set((tmp_path / "o.csv").read_text().split()[1:][0].split(",")[1:]) <= {"True", "False"}
    assert read_frame(tmp_path / "o.csv")["t"].dtype == bool


def test_a_warning_where_all_values_are_of_another_type() -> None:
    table = pd.DataFrame({"z": normal(60), "t": np.arange(60) % 2 == 0})
    density = ScoreDensity(**QUICK).fit(table)
    with pytest.warns(
        UserWarning, match="column 't': none of its values occurs .* expected values of type bool, got str"
    ):
        density.score_samples(table.astype({"t": object}).assign(t=lambda frame: frame["t"].map(str)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density.score_samples(table)


def test_codes_far_down_a_file_make_all_of_its_column_names(tmp_path: Path) -> None:
    codes = ["1", "2", "3"] * 60_000 + ["A", "B"] * 30_000
    pd.DataFrame({"code": codes, **{f"z{d}": "0.123456789012" for d in range(9)}}).to_csv(
        tmp_path / "t.csv", index=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(read_frame(tmp_path / "t.csv")["code"]) == {"1", "2", "3", "A", "B"}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1,450", "600", "2,100"], r"row \d+: expected a number, got '\d,\d+' \(numbers are written without commas\)"),
        (["-", "17"], r"row \d+: expected a number, got '-'"),
    ],
)
def test_numbers_that_are_spoilt_are_no_names(tmp_path: Path, cells: list[str], message: str) -> None:
    random = np.random.default_rng(0)
    column = [str(random.integers(100, 900)) if random.random() < 0.75 else random.choice(cells) for _ in range(200)]
    if "," in cells[0]:
        column = [f"{int(cell.replace(',', '')) + 1000:,}" for cell in column]
    pd.DataFrame({"price": column, "z": normal(200)}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=f"column 'price', {message}"):
        read_frame(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)], "dates or times"),
        ([datetime.time(1), datetime.time(2)], "dates or times"),
        (pd.period_range("2020-01", periods=2, freq="M"), "dates or times"),
        (pd.Categorical(pd.to_datetime(["2020-01-01", "2020-01-02"])), "dates or times"),
        ([[1, 2], [3]], "lists, not single values"),
        ([{"a": 1}, {"a": 2}], "lists, not single values"),
        ([1.0 + 2.0j, 3.0], "complex numbers"),
    ],
)
def test_cells_that_no_table_may_hold(cells: Any, message: str) -> None:
    table = pd.DataFrame({"d": pd.Series(cells).repeat(30).reset_index(drop=True), "z": normal(60)})
    with pytest.raises(ValueError, match=f"column 'd' holds {message}"):
        ScoreDensity(**QUICK).fit(table)


def test_lists_and_dates_in_parquet_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for cells, message in (([[1, 2], [3]] * 30, "lists"), ([datetime.date(2020, 1, 1)] * 60, "dates or times")):
        pd.DataFrame({"d": cells, "z": normal(60)}).to_parquet(tmp_path / "t.parquet")
        assert run("detect", tmp_path / "t.parquet", tmp_path / "t.parquet", "--out", tmp_path / "o.csv") == 1
        assert f"column 'd' holds {message}" in capsys.readouterr().err


def test_decimals_are_numbers() -> None:
    table = pd.DataFrame({"d": [decimal.Decimal(f"{value:.3f}") for value in normal(60)], "z": normal(60, 1)})
    assert np.isfinite(ScoreDensity(**QUICK).fit(table).score_samples(table)).all()


# Whole numbers, gaps and conditions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint16", "UInt32", "Int64"])
def test_whole_numbers_stay_within_their_type(dtype: str) -> None:
    limit = float(np.iinfo(dtype.lower()).max)
    values = limit - np.random.default_rng(0).exponential(0.2 * limit, 200).clip(0, 0.8 * limit)
    if dtype.lower().startswith("u"):
        values = limit - values  # at the lower end, which is zero
    whole = np.array([int(value) for value in values.clip(0, np.nextafter(limit, 0))], dtype=object)
    table = pd.DataFrame({"a": pd.Series(whole).astype(dtype), "z": normal(200)})
    density = ScoreDensity(**QUICK).fit(table)
    drawn = density.sample(500)
    assert str(drawn["a"].dtype) == dtype
    assert int(drawn["a"].min()) >= 0.0 or dtype.lower().startswith("i")
    ends = density.quantile([[1e-4, 0.5], [0.9999, 0.5]])["a"]
    assert int(ends.iloc[0]) <= int(ends.iloc[1])


def test_filling_changes_nothing_that_was_known() -> None:
    random = np.random.default_rng(0)
    fitted = pd.DataFrame(
        {"name": pd.Categorical(random.choice(["p", "q"], 80)), "whole": random.integers(0, 9, 80), "z": normal(80)}
    )
    fitted["key"] = pd.Series([2**53 + 1 + int(i) for i in random.integers(0, 9, 80)], dtype="Int64")
    density = ScoreDensity(**QUICK, missing=True).fit(fitted)
    gaps = pd.DataFrame(
        {
            "name": pd.Categorical(["new", None, "p"]),
            "whole": [2.7, np.nan, 3.0],
            "z": [0.1, 0.2, np.nan],
            "key": pd.Series([2**53 + 1, None, 2**53 + 3], dtype="Int64"),
        }
    )
    filled = density.impute(gaps)
    assert not filled.isna().any(axis=None)
    for name in gaps:
        known = gaps[name].notna()
        assert filled[name][known].tolist() == gaps[name][known].tolist()
    assert float(filled["whole"][1]).is_integer()
    assert filled["name"][1] in ("p", "q")


def test_filling_a_file_leaves_all_else_to_the_letter(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    lines = [f"{'' if i % 9 == 0 else '00' + str(100 + i)},{value:.3f},x y" for i, value in enumerate(normal(60))]
    lines = [f"{line},{random.choice(['1', '2', ''])}" for line in lines]
    (tmp_path / "t.csv").write_text("zip,value,words,count\n" + "\n".join(lines) + "\n")
    assert run("impute", tmp_path / "t.csv", "--out", tmp_path / "o.csv") == 0
    filled = (tmp_path / "o.csv").read_text().splitlines()[1:]
    for before, after in zip(lines, filled, strict=True):
        for known, cell in zip(before.split(","), after.split(","), strict=True):
            assert cell == known or (known == "" and cell.isdigit())


def test_an_index_that_is_a_column_is_kept(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": normal(60), "b": [1.0, 2.0, None] * 20}, index=pd.Index(range(60), name="customer"))
    table["key"] = pd.Series([2**53 + 1, None, 2**53 + 3] * 20, dtype="Int64")  # more digits than a float has
    table.to_parquet(tmp_path / "t.parquet")
    assert run("impute", tmp_path / "t.parquet", "--out", tmp_path / "o.parquet") == 0
    filled = pd.read_parquet(tmp_path / "o.parquet")
    assert filled["customer"].tolist() == list(range(60))
    assert filled["key"].tolist()[::3] == [2**53 + 1] * 20
    assert not filled.isna().any(axis=None)
    both = tmp_path / "t.parquet", tmp_path / "t.parquet"
    assert run("detect", *both, "--out", tmp_path / "s.csv", "--with-data") == 0
    assert read_frame(tmp_path / "s.csv")["customer"].tolist() == list(range(60))


def test_arrays_and_frames_may_take_turns() -> None:
    x = np.c_[normal(60), normal(60, 1), np.full(60, 3.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of names
        gaps = x[:4].copy()
        gaps[[0, 1], [1, 2]] = np.nan
        by_array = ScoreDensity(**QUICK, missing=True).fit(x)
        assert not by_array.impute(pd.DataFrame(gaps)).isna().any(axis=None)
        by_frame = ScoreDensity(**QUICK, missing=True).fit(pd.DataFrame(x, columns=["a", "b", "c"]))
        filled = by_frame.impute(gaps)
    assert isinstance(filled, np.ndarray)
    assert np.isfinite(filled).all()
    assert filled[1, 2] == 3.0


def test_a_condition_is_kept_to_the_letter_or_refused() -> None:
    table = pd.DataFrame({"f": normal(80), "k": np.arange(80) % 4, "n": np.array(["u", "v"])[np.arange(80) % 2]})
    density = ScoreDensity(**QUICK).fit(table)
    given = density.conditional(["f", "k", "n"], [1.23456789, 2, "v"], 5)
    assert given["f"].tolist() == [1.23456789] * 5
    assert given["k"].tolist() == [2] * 5
    assert given["n"].tolist() == ["v"] * 5
    assert given.dtypes.tolist() == table.dtypes.tolist()
    with pytest.raises(ValueError, match=r"'f' was never 20\.0, nor near it"):
        density.conditional(["f"], [20.0])
    with pytest.raises(ValueError, match="'f' more than once"):
        density.conditional(["f", "f"], [1.0, 2.0])
    with pytest.raises(ValueError, match="1 for 2 values"):
        density.conditional(["f"], [1.0, 2.0])
    with pytest.raises(ValueError, match="draws: expected at least 1"):
        density.conditional(["f"], [1.0], draws=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_estimators": "3"}, "n_estimators: expected a whole number of at least 1, or \"auto\", got '3'"),
        ({"n_estimators": 2.0}, "n_estimators"),
        ({"n_estimators": None}, "n_estimators"),
        ({"max_steps": 10.5}, "max_steps"),
        ({"hidden_features": "32"}, "hidden_features"),
        ({"hidden_features": 32}, "hidden_features"),
        ({"hidden_features": (16, 0)}, "hidden_features"),
        ({"missing": "no"}, "missing: expected True, False or"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreDensity(**{**QUICK, **arguments}).fit(normal(60)[:, None])


def test_the_distribution_function_and_quantiles_are_of_one_interval() -> None:
    density = ScoreDensity(**QUICK).fit(np.c_[normal(60), normal(60, 1)])
    u = density.cdf(np.array([[1e9, 0.0], [-1e9, 0.0]]))
    assert ((u > 0.0) & (u < 1.0)).all()
    assert np.isfinite(density.quantile(u)).all()
    with pytest.raises(ValueError, match=r"U: expected values inside \(0, 1\)"):
        density.quantile([[0.0, 0.5]])
    with pytest.raises(ValueError, match="n_samples: expected at least 1, got 0"):
        density.sample(0)
    with pytest.raises(ValueError, match="0 feature"):
        ScoreDensity(**QUICK).fit(pd.DataFrame(index=range(5)))


def test_a_constant_is_the_same_in_single_precision() -> None:
    table = pd.DataFrame({"c": np.full(60, 0.1), "z": normal(60)})
    density = ScoreDensity(**QUICK).fit(table)
    single = table.assign(c=table["c"].astype(np.float32))
    np.testing.assert_allclose(density.score_samples(single), density.score_samples(table))


def test_a_constant_whole_number_is_no_other_one() -> None:
    table = pd.DataFrame({"day": np.full(60, 20230101), "z": normal(60)})
    detector = ScoreOutlierDetector(**QUICK).fit(table)
    found = detector.explain(table.head(3).assign(day=[20230101, 20230115, 20230102]))[:, 0]
    assert found[0] > -0.1
    assert (found[1:] < -4.0).all()


def test_values_on_a_grid_come_back_as_they_were() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({
        "milliseconds": 1.7e9 + random.integers(0, 1_000, 300) / 1_000,
        "eighths": 1e12 + random.integers(0, 8, 300) / 8,
        "tenths": (random.integers(0, 50, 300) / 10).astype(np.float32),
        "z": normal(300),
    })  # fmt: skip
    density = ScoreDensity(**QUICK).fit(table)
    drawn = density.sample(200)
    for name in ("eighths", "tenths"):
        assert set(drawn[name]) <= set(table[name])
    thousandths = (drawn["milliseconds"] - 1.7e9) * 1_000
    assert np.abs(thousandths - thousandths.round()).max() < 1e-3
    assert set(np.round(drawn["milliseconds"], 3)) == set(drawn["milliseconds"])


def test_an_interrupted_fit_leaves_what_was_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    rows = np.c_[normal(60), normal(60, 1)]
    detector, new = ScoreOutlierDetector(**QUICK).fit(rows), ScoreDensity(**QUICK)
    before = detector.score_samples(rows + 50.0)
    monkeypatch.setattr("arcsm.estimators.ensemble.fit", interrupted)
    for estimator in (detector, new):
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(rows + 1.0)
    np.testing.assert_array_equal(detector.score_samples(rows + 50.0), before)
    with pytest.raises(NotFittedError):
        new.score_samples(rows)
    with pytest.raises(ValueError, match="row 3, column 1, but missing=False"):
        ScoreDensity(**QUICK, missing=False).fit(np.where(np.arange(120).reshape(60, 2) == 7, np.nan, rows))


def test_gaps_and_numbers_of_all_types() -> None:
    table = pd.DataFrame({"a": normal(60), "b": normal(60, 1)})
    density = ScoreDensity(**QUICK, missing=True).fit(table)
    gaps = table.head(3).copy()
    gaps["a"] = pd.NA
    assert np.isfinite(pd.DataFrame(density.impute(gaps)).to_numpy(dtype=float)).all()
    for none in (None, pd.NA):
        with pytest.raises(ValueError, match="'a' was never"):
            density.conditional(["a"], [none])
    fractions = table.assign(a=[Fraction(place, 7) for place in range(60)])
    steps = {**QUICK, "max_steps": np.int64(5), "n_estimators": np.int64(1), "hidden_features": np.array([8])}
    assert np.isfinite(ScoreDensity(**steps).fit(fractions).score_samples(fractions)).all()
    dummies = pd.get_dummies(pd.Series(list("abc") * 20), sparse=True, dtype=int).assign(z=normal(60))
    assert set(np.unique(ScoreDensity(**QUICK).fit(dummies).sample(9)[list("abc")])) <= {0, 1}
    half = pd.DataFrame({"a": (60_000.0 * normal(200)).clip(-65_000, 65_000).astype(np.float16), "z": normal(200)})
    drawn = ScoreDensity(**QUICK).fit(half).sample(300)
    assert drawn["a"].dtype == np.float16
    assert np.isfinite(drawn["a"]).all()
    small = np.c_[1e-200 * normal(60), normal(60)]
    drawn = ScoreDensity(**QUICK).fit(small).sample(60)
    assert 1e-201 < np.std(drawn[:, 0] * 1e100) * 1e-100 < 1e-199


def test_tuples_are_names() -> None:
    density = ScoreDensity(**QUICK).fit(pd.DataFrame({"t": [("x", 1)] * 60, "z": normal(60)}))
    assert density.sample(2)["t"].tolist() == [("x", 1)] * 2


# Files and commands -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a;b;c\n" + "1;2;3\n" * 40, "expected cells separated by commas, but here ';'"),
        ("a\tb\n" + "1\t2\n" * 40, r"expected cells separated by commas, but here '\\t'"),
        ("a,b,c\n1,2,3\n4,5\n6,7,8\n", "line 3: expected 3 cells like the first row, got 2"),
        ("a,b\n1,2\n3,4\n5", "line 4: expected 2 cells like the first row, got 1"),
        ("a,b,\n" + "1,2,\n" * 40, "column 3 has no name; put one above it, or take away the comma"),
    ],
)
def test_files_that_are_no_tables_of_commas(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_frame(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("header", "rows", "names"),
    [
        ("0,1,2", "0.5,1.25,3", ["0", "1", "2"]),  # what pandas writes of an array
        ("2019,2020,2021", "0.5,1.25,3.5", ["2019", "2020", "2021"]),
        ("2019,2020,2021", "0.5,1,3.5", None),  # a table of counts and fractions may begin so
        ("0.5,1,3", "0.25,1,3", None),
        ("1,1,3", "0.25,1.5,3.5", None),
        ("0,1", "1,0", None),
    ],
)
def test_first_rows_of_numbers_may_be_names(tmp_path: Path, header: str, rows: str, names: list[str] | None) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n" + f"{rows}\n" * 5)
    width = header.count(",") + 1
    for read in (lambda: list(read_frame(path).columns), lambda: list(read_table(path).columns)):
        if names is None:
            assert read() == [f"x{place}" for place in range(width)]
            continue
        with pytest.warns(UserWarning, match="its first row was taken for names of columns"):
            assert read() == names


def test_numbers_above_a_column_of_text_are_names(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("2019,2020,2021\n" + "1,b,3\n" * 5)
    assert list(read_frame(path).columns) == ["2019", "2020", "2021"]


@pytest.mark.parametrize("first", ["0,1,2", "2019,2020,2021"])
def test_a_first_row_that_counts_is_said_where_it_is_data(tmp_path: Path, first: str) -> None:
    (tmp_path / "t.csv").write_text(f"{first}\n3,4,5\n6,7,9\n")
    with pytest.warns(UserWarning, match="was taken for data; if it is names of columns, give them letters"):
        assert len(read_frame(tmp_path / "t.csv")) == 3


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_the_index_that_pandas_writes_is_no_column(tmp_path: Path, name: str) -> None:
    table = pd.DataFrame({"a": normal(90), "b": normal(90, 1)}, index=pd.RangeIndex(200, 290, name=name or None))
    path = tmp_path / "t.csv"
    table.to_csv(path)
    for read in (lambda: list(read_frame(path).columns), lambda: list(read_table(path).columns)):
        with pytest.warns(SkippedWarning, match="its first column has no name and tells rows apart: left out"):
            assert read() == ["a", "b"]
    with pytest.warns(SkippedWarning):
        assert run("detect", path, path, "--with-data", "--out", tmp_path / "o.csv") == 0
    kept = pd.read_csv(tmp_path / "o.csv")  # to the letter
    assert kept.iloc[:, 0].tolist() == list(range(200, 290))
    for labels in (np.arange(90)[::-1], [f"row {place}" for place in range(90)]):
        table.set_axis(labels).rename_axis(name or None).to_csv(path)
        with pytest.warns(SkippedWarning):
            assert list(read_frame(path).columns) == ["a", "b"]
    for values in (np.arange(90) % 7, normal(90)):  # tell nothing apart: a column like any other, without a name
        table.set_axis(values).rename_axis(name or None).to_csv(path)
        if name:
            assert list(read_frame(path).columns) == [name, "a", "b"]
            continue
        with pytest.raises(ValueError, match="column 1 has no name"):
            read_frame(path)


def test_columns_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame({"id": [f"A{n}" for n in range(80)], "a": normal(80), "b": normal(80, 1)})
    table.loc[3, "a"] = np.nan
    for suffix in ("csv", "parquet"):
        path, out = tmp_path / f"t.{suffix}", tmp_path / f"o.{suffix}"
        write_frame(path, table)
        assert run("detect", path, path, "--out", out) == 1
        assert "'id' has a different category in almost every row; leave it out (for a command, --ignore)" in (
            capsys.readouterr().err
        )
        assert run("detect", path, path, "--ignore", "id", "--with-data", "--out", out) == 0
        assert read_frame(out)["id"].tolist() == table["id"].tolist()
        for to in ("csv", "parquet"):
            filled = tmp_path / f"filled.{to}"
            assert run("impute", path, "--ignore", "id", "--out", filled) == 0
            assert read_frame(filled)["id"].tolist() == table["id"].tolist()
            assert np.isfinite(read_frame(filled)["a"]).all()
        capsys.readouterr()
        assert run("detect", path, path, "--ignore", "ids", "--out", out) == 1
        assert "has no column 'ids' to leave out; it has id, a, b" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%d.%m.%Y", "%m/%d/%y", "%Y-%m-%dT%H:%M:%SZ"])
def test_dates_in_text_are_no_names(tmp_path: Path, form: str) -> None:
    days = pd.date_range("2026-01-01", periods=20).strftime(form)
    table = pd.DataFrame({"a": normal(80), "day": list(days) * 4})
    write_frame(tmp_path / "t.csv", table)
    with pytest.raises(ValueError, match=r"column 'day' holds dates or times; turn them into numbers.*--ignore"):
        read_frame(tmp_path / "t.csv")
    assert list(read_frame(tmp_path / "t.csv", ignore=["day"]).columns) == ["a"]
    write_frame(tmp_path / "t.csv", table.assign(day=["1-2", "version 1.2.3", "10.0.0.1", "2026"] * 20))
    assert read_frame(tmp_path / "t.csv")["day"].nunique() == 4


def test_values_too_far_apart_are_named() -> None:
    table = pd.DataFrame({"a": normal(60), "b": np.where(np.arange(60) % 2, 1e308, -1e308)})
    with pytest.raises(ValueError, match=r"column 'b' has values from -1e\+308 to 1e\+308, too far apart"):
        ScoreDensity(**QUICK).fit(table)
    with pytest.raises(ValueError, match=r"column 1 has values from -1e\+308"):
        ScoreDensity(**QUICK).fit(table.to_numpy())
    ids = 1_600_000_000_000_000_000 + np.arange(60)
    with pytest.raises(ValueError, match="column 'id' has whole numbers most of which double"):
        ScoreDensity(**QUICK).fit(table.assign(b=normal(60), id=ids))
    ScoreDensity(**QUICK).fit(table.assign(b=normal(60), id=ids[0] + 512 * np.arange(60)))


def test_a_page_is_about_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(model("a", "b"), tmp_path / "run")
    assert run("report", tmp_path / "run" / "model.safetensors") == 1
    assert "expected the folder of a run, whose data the page needs, got a file" in capsys.readouterr().err


def test_one_known_name_is_not_another_in_every_row() -> None:
    table = pd.DataFrame({"a": normal(80), "c": [None] * 79 + ["only"]})
    filled = ScoreDensity(**QUICK).fit(table).impute(table, draws=2)
    assert set(filled["c"]) == {"only"}


def test_dollars_in_names_are_no_formulas(tmp_path: Path) -> None:
    table = pd.DataFrame({"in_$ out_$": normal(80), "c": ["$0_to_$50", "$10-$20"] * 40})
    write_frame(tmp_path / "t.csv", table)
    out, page = tmp_path / "o.csv", tmp_path / "page.html"
    assert run("detect", tmp_path / "t.csv", tmp_path / "t.csv", "--out", out, "--report", page) == 0
    assert page.is_file()


def test_a_space_after_commas_is_none_of_the_cells(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a, t, b\n30, "x, y",2\n31, "x, z",\n')
    read = read_frame(tmp_path / "t.csv")
    assert read["t"].tolist() == ["x, y", "x, z"]
    assert read["b"].isna().tolist() == [False, True]


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("a,b\nzo\u00eb,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t\.csv: is not in UTF-8; save it in that encoding"):
        read_frame(tmp_path / "t.csv")


def test_what_is_found_of_a_frame_has_its_index() -> None:
    table = pd.DataFrame({"a": normal(90), "b": normal(90, 1)}, index=pd.RangeIndex(1000, 1090))
    detector = ScoreOutlierDetector(**QUICK).fit(table)
    odd = table.iloc[[5, 7]]
    low, high = detector.expected(odd)
    for found in (low, high, detector.all_scores(odd)):
        assert found.index.tolist() == [1005, 1007]
    assert ((odd > high) | (odd <= high)).all(axis=None)
    assert isinstance(detector.expected(odd.to_numpy())[0], pd.DataFrame)


def test_a_run_that_is_refused_for_its_data_leaves_the_folder_free(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": normal(60), "b": np.ones(60)})
    write_frame(tmp_path / "bad.csv", table)
    write_frame(tmp_path / "good.csv", table.assign(b=normal(60, 1)))
    (tmp_path / "t.yaml").write_text(ON_DATA % f"{{kind: table, path: {tmp_path / 'bad.csv'}}}")
    assert run("train", tmp_path / "t.yaml", "--out", tmp_path / "run") == 1
    assert not (tmp_path / "run").exists()
    good = f"data.path={tmp_path / 'good.csv'}"
    assert run("train", tmp_path / "t.yaml", "--set", good, "--out", tmp_path / "run") == 0


def test_missing_last_cells_are_no_short_lines(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,"b, or c"\n1,\n\n3,4\n')
    read = read_frame(tmp_path / "t.csv")
    assert read["b, or c"].isna().tolist() == [True, False]


def test_scores_match_columns_by_name_where_there_are_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(model("a", "b"), tmp_path / "run")
    table = pd.DataFrame({"a": normal(40), "b": 3.0 + normal(40, 1)})
    extra = table.assign(when=pd.Timestamp("2020-01-01"), id=["1"] * 39 + ["A1"], x=np.inf)
    for name, rows in (
        ("plain", table), ("turned", table[["b", "a"]]), ("more", extra), ("other", table.rename(columns=str.upper)),
    ):  # fmt: skip
        rows.to_parquet(tmp_path / f"{name}.parquet")
    np.save(tmp_path / "bare.npy", table.to_numpy())
    scores = {}
    for name in ("plain.parquet", "turned.parquet", "more.parquet", "bare.npy"):
        assert run("score", tmp_path / "run", tmp_path / name, "--out", tmp_path / "s.csv") == 0
        scores[name] = read_frame(tmp_path / "s.csv")["log_prob"].to_numpy()
        np.testing.assert_allclose(scores[name], scores["plain.parquet"], rtol=1e-5)
    capsys.readouterr()
    assert run("score", tmp_path / "run", tmp_path / "other.parquet", "--out", tmp_path / "s.csv") == 1
    assert "columns a, b are missing; it has A, B instead" in capsys.readouterr().err


def test_what_is_written_replaces_nothing_that_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(model("a", "b"), tmp_path / "run")
    table = pd.DataFrame({"a": normal(60), "b": normal(60, 1)})
    write_frame(tmp_path / "t.csv", table)
    before = (tmp_path / "t.csv").read_bytes()
    t, o = tmp_path / "t.csv", tmp_path / "o.csv"
    assert run("detect", t, t, "--out", t) == 1
    assert run("detect", t, t, "--out", o, "--report", o) == 1
    assert run("score", tmp_path / "run", t, "--out", tmp_path / "." / "t.csv") == 1
    assert run("impute", t, "--out", t) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert "--report" in errors[1]
    assert "is what --out writes, too; give another file" in errors[1]
    assert (tmp_path / "t.csv").read_bytes() == before
    assert not o.exists()


def test_mistakes_are_found_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("fitted all the same")

    monkeypatch.setattr("arcsm.estimators.base.TableEstimator._fit_table", never)
    table = pd.DataFrame({"a": normal(60), "b": [1.0, 2.0, None] * 20})
    write_frame(tmp_path / "t.csv", table)
    t = tmp_path / "t.csv"
    assert run("impute", t, "--out", tmp_path / "o.npy") == 1
    assert run("detect", t, t, "--out", tmp_path / "o.csv", "--p-value", 0.001) == 1
    errors = capsys.readouterr().err
    assert "--out" in errors
    assert "p-value: expected at least 0.0625 (of 15 held-out rows)" in errors
    assert run("detect", t, t, "--out", tmp_path / "o.csv", "--seed", 2**32) == 2


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_codes_keep_the_zeros_before_them(tmp_path: Path, suffix: str) -> None:
    codes = [f"0{number}" for number in (1000, 1037, 1074)] * 20
    table = pd.DataFrame({"zip": codes, "z": normal(60)})
    path = tmp_path / f"t{suffix}"
    table.to_parquet(path) if suffix == ".parquet" else table.to_csv(path, index=False)
    assert read_frame(path)["zip"].tolist() == codes
    table.loc[[3, 9], "zip"] = None
    table.to_parquet(path) if suffix == ".parquet" else table.to_csv(path, index=False)
    out = tmp_path / f"o{'.parquet' if suffix == '.parquet' else '.csv'}"
    for command in ("impute", "synthesize"):
        assert run(command, path, "--out", out) == 0
        assert set(read_frame(out)["zip"]) <= set(codes)


def test_filling_keeps_types_and_words(tmp_path: Path) -> None:
    table = pd.DataFrame({"id": range(60), "t": ["TRUE", "false", "TRUE"] * 20, "z": normal(60)})
    table.loc[3, "t"] = table.loc[5, "z"] = None
    table.to_csv(tmp_path / "t.csv", index=False)
    assert run("impute", tmp_path / "t.csv", "--ignore", "id", "--out", tmp_path / "o.parquet") == 0
    assert pd.read_parquet(tmp_path / "o.parquet")["id"].tolist() == list(range(60))
    assert run("impute", tmp_path / "t.csv", "--ignore", "id", "--out", tmp_path / "o.csv") == 0
    assert set(pd.read_csv(tmp_path / "o.csv", dtype=str)["t"]) == {"TRUE", "false"}


def test_p_values_count_the_rows_that_are_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame({"z": normal(80), "name": ["w"] + ["u"] * 79})
    write_frame(tmp_path / "t.csv", table)
    t, counts = tmp_path / "t.csv", set()
    for seed in range(12):
        held_out = ScoreOutlierDetector(**{**QUICK, "random_state": seed}).count_held_out(read_frame(t))
        counts.add(held_out)
        enough = 1.0 / (1.0 + held_out)
        assert run("detect", t, t, "--out", tmp_path / "o.csv", "--seed", seed, "--p-value", 1.001 * enough) == 0
        assert run("detect", t, t, "--out", tmp_path / "o.csv", "--seed", seed, "--p-value", 0.999 * enough) == 1
    assert counts == {19, 20}  # the rare name moves over where it is held out
    assert "of 19 held-out rows" in capsys.readouterr().err


def test_values_far_out_are_judged_at_the_edge_of_single_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(model("a", "b"), tmp_path / "run")
    table = pd.DataFrame({"a": [0.0, 1e20, -1e30], "b": 0.0})
    write_frame(tmp_path / "t.csv", table)
    with pytest.warns(AccuracyWarning, match=r"2 rows have values more than 1e\+06 standard deviations out"):
        assert run("score", tmp_path / "run", tmp_path / "t.csv", "--out", tmp_path / "s.csv") == 0
    found = read_frame(tmp_path / "s.csv")["log_prob"]
    assert np.isfinite(found).all()
    assert (found[1:] < -1e9).all()
    write_frame(tmp_path / "t.csv", table.replace(1e20, 1e300))
    assert run("score", tmp_path / "run", tmp_path / "t.csv", "--out", tmp_path / "s.csv") == 1
    assert "row 2, column 'a': 1e+300 is too large for single precision" in capsys.readouterr().err
    for size in (1e35, 1e-40):
        with pytest.raises(ValueError, match=r"column 'b' has values as (large|small) as .* out of the reach"):
            check_precision(np.c_[normal(9), size * normal(9)], ("a", "b"), "t")


def test_folders_of_results_are_made(tmp_path: Path) -> None:
    save(model("a", "b"), tmp_path / "run")
    for name in ("new/s.csv", "newer/s.npy"):
        assert run("sample", tmp_path / "run", "-n", 3, "--out", tmp_path / name) == 0
        assert (tmp_path / name).exists()
    assert run("score", tmp_path / "run", tmp_path / "new/s.csv", "--out", tmp_path / "newest/s.npy") == 0


def test_columns_that_single_precision_cannot_tell_apart_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.DataFrame({"z": normal(100), "t": 1.7e9 + 30.0 * normal(100, 1)})
    write_frame(tmp_path / "t.csv", table)
    (tmp_path / "run.yaml").write_text(ON_DATA % f"{{kind: table, path: {tmp_path / 't.csv'}}}")
    assert run("train", tmp_path / "run.yaml", "--out", tmp_path / "run") == 1
    assert "column 't' varies by 26 around 1.7e+09, too little for single precision" in capsys.readouterr().err
    check_precision(np.c_[normal(9), np.full(9, 1e9), np.full(9, np.nan)], ("a", "b", "c"), "t")
    assert np.isfinite(ScoreDensity(**QUICK).fit(table).score_samples(table)).all()  # its maps are in double precision
