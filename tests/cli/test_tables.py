"""The commands detect, impute and synthesize on messy tables: mixed types, missing values, outputs that clash."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcsm import save
from arcsm.data import read_frame, read_table, write_frame
from arcsm.errors import SkippedWarning
from arcsm.estimators import ScoreOutlierDetector
from small_tables import QUICK, model_of_columns, normal, run, use_small_models


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)


def test_one_odd_cell_among_truth_values_keeps_the_others(tmp_path: Path) -> None:
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


def test_truth_values_with_gaps_are_truth_values(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": normal(60), "t": [True, False, None] * 20})
    table.to_csv(tmp_path / "t.csv", index=False)
    assert {type(cell) for cell in read_frame(tmp_path / "t.csv")["t"].dropna()} == {bool}
    assert run("impute", tmp_path / "t.csv", "--out", tmp_path / "o.csv") == 0
    assert set((tmp_path / "o.csv").read_text().split()[1:][0].split(",")[1:]) <= {"True", "False"}
    assert read_frame(tmp_path / "o.csv")["t"].dtype == bool


def test_all_columns_of_lists_in_parquet_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [[1, 2], [3]] * 30
    pd.DataFrame({"d": cells, "z": normal(60), "e": cells}).to_parquet(tmp_path / "t.parquet")
    assert run("detect", tmp_path / "t.parquet", tmp_path / "t.parquet", "--out", tmp_path / "o.csv") == 1
    error = capsys.readouterr().err
    assert "2 columns cannot be used ('d', 'e'): column 'd' holds lists, not single values; column 'e' holds" in error


def test_impute_keeps_the_text_of_known_cells(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    lines = [f"{'' if i % 9 == 0 else '00' + str(100 + i)},{value:.3f},x y" for i, value in enumerate(normal(60))]
    lines = [f"{line},{random.choice(['1', '2', ''])}" for line in lines]
    (tmp_path / "t.csv").write_text("zip,value,words,count\n" + "\n".join(lines) + "\n")
    assert run("impute", tmp_path / "t.csv", "--out", tmp_path / "o.csv") == 0
    filled = (tmp_path / "o.csv").read_text().splitlines()[1:]
    for before, after in zip(lines, filled, strict=True):
        for known, cell in zip(before.split(","), after.split(","), strict=True):
            assert cell == known or (known == "" and cell.isdigit())


def test_a_named_index_in_parquet_is_kept(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": normal(60), "b": [1.0, 2.0, None] * 20}, index=pd.Index(range(60), name="customer"))
    table["key"] = pd.Series([2**53 + 1, None, 2**53 + 3] * 20, dtype="Int64")  # more digits than a float has
    table.to_parquet(tmp_path / "t.parquet")
    assert run("impute", tmp_path / "t.parquet", "--out", tmp_path / "o.parquet") == 0
    filled = pd.read_parquet(tmp_path / "o.parquet")
    assert filled.index.equals(table.index)
    assert filled.index.name == "customer"
    assert filled["key"].tolist()[::3] == [2**53 + 1] * 20
    assert not filled.isna().any(axis=None)
    both = tmp_path / "t.parquet", tmp_path / "t.parquet"
    assert run("detect", *both, "--out", tmp_path / "s.csv", "--with-data") == 0
    assert read_frame(tmp_path / "s.csv")["customer"].tolist() == list(range(60))


@pytest.mark.parametrize("to", ["csv", "parquet"])
def test_a_table_without_missing_values_is_copied(
    to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("fitted all the same")

    monkeypatch.setattr("arcsm.estimators.density_estimator.DensityEstimator._fit_table", never)
    table, out = pd.DataFrame({"a": normal(60), "day": ["01.02.2026", "02.03.2026"] * 30}), tmp_path / f"o.{to}"
    write_frame(tmp_path / "t.csv", table)
    assert run("impute", tmp_path / "t.csv", "--out", out) == 0
    assert f"{out}  no value is missing: a copy, nothing fitted" in capsys.readouterr().out
    if to == "csv":
        assert out.read_text() == (tmp_path / "t.csv").read_text()
    else:
        assert pd.read_parquet(out)["a"].tolist() == table["a"].tolist()


def test_filled_numbers_have_the_form_of_the_known_ones(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": normal(60).round(2), "runs": [7.0, 20.0, None] * 20, "size": [5.27e8, None, 1e7] * 20})
    forms = {"a": r"-?\d+\.\d\d", "runs": r"\d+\.0", "size": r"\d\.\d{3}e\+\d\d"}
    table.loc[3, "a"] = np.nan
    texts = {"a": "{:.2f}".format, "size": "{:.3e}".format}
    written = table.assign(**{name: table[name].map(text, na_action="ignore") for name, text in texts.items()})
    written.to_csv(tmp_path / "t.csv", index=False)
    assert run("impute", tmp_path / "t.csv", "--out", tmp_path / "o.csv") == 0
    filled = pd.read_csv(tmp_path / "o.csv", dtype=str)
    assert all(filled[name].str.fullmatch(form).all() for name, form in forms.items())


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_labels_of_rows_are_kept_whatever_the_files(suffix: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"a": normal(60), "index": [1.0, 2.0, None] * 20}, index=[f"car{n}" for n in range(60)])
    path, out, parquet = tmp_path / f"t{suffix}", tmp_path / "o.csv", tmp_path / "o.parquet"
    table.to_csv(path) if suffix == ".csv" else table.to_parquet(path)
    assert run("impute", path, "--out", parquet) == 0
    filled = pd.read_parquet(parquet)
    assert list(filled.index if suffix == ".parquet" else filled["level_0"]) == list(table.index)
    assert run("impute", path, "--out", out) == 0
    assert pd.read_csv(out).iloc[:, 0].tolist() == list(table.index)
    assert run("detect", path, path, "--out", out) == 0
    assert pd.read_csv(out)["level_0"].tolist() == list(table.index)
    save(model_of_columns("a", "index"), tmp_path / "run")
    table.dropna().to_parquet(tmp_path / "whole.parquet")
    assert run("score", tmp_path / "run", tmp_path / "whole.parquet", "--out", out) == 0
    assert pd.read_csv(out)["level_0"].tolist() == list(table.dropna().index)


def test_impute_keeps_the_order_of_categories_and_those_that_do_not_occur(tmp_path: Path) -> None:
    sizes, path, out = ["small", "medium", "large", "huge"], tmp_path / "t.parquet", tmp_path / "o.parquet"
    cells = pd.Categorical(["large", "small", "medium"] * 20, sizes, ordered=True)
    table = pd.DataFrame({"size": cells, "grade": cells.astype(str), "a": normal(60)})
    table.loc[[2, 7], "size"] = None
    table["grade"] = pd.Categorical(table["grade"].where(table.index != 5), sizes[::-1])
    table.to_parquet(path, row_group_size=16)
    assert run("impute", path, "--out", out) == 0
    filled = pd.read_parquet(out)
    for name in ("size", "grade"):
        known = table[name].notna()
        assert filled[name].dtype == table[name].dtype
        assert filled[name][known].tolist() == table[name][known].tolist()
        assert not filled[name].isna().any()


@pytest.mark.parametrize("gap", [True, False])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_ids_and_postcodes_keep_their_leading_zeros(suffix: str, gap: bool, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).permutation(9_999)[:60]
    path, out = tmp_path / f"t{suffix}", tmp_path / "o.parquet"
    table = pd.DataFrame({
        "customer_id": [f"{number:06d}" for number in numbers],
        "order": [str(10**19 + number) for number in numbers.tolist()],  # more digits than numbers have
        "zip": [f"{number:05d}" for number in numbers[::-1]],
        "a": normal(60),
    })  # fmt: skip
    table.loc[[2, 7] if gap else [], "zip"] = None
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    assert run("impute", path, "--ignore", "order", "--out", out) == 0
    filled = pd.read_parquet(out)
    for name in ("customer_id", "order", "zip"):
        known = table[name].notna()
        assert filled[name][known].tolist() == table[name][known].tolist()
        assert filled[name].str.fullmatch(r"\d+").all()
    assert (filled["zip"].str.len() == 5).all()
    assert filled["a"].dtype == float
    first = int(table["customer_id"].max()) + 1
    for out_again in (out, tmp_path / "o.csv"):
        assert run("synthesize", path, "--ignore", "order", "-n", 5, "--out", out_again) == 0
        drawn = pd.read_parquet(out) if out_again == out else pd.read_csv(out_again, dtype=str)
        assert drawn["customer_id"].tolist() == [f"{number:06d}" for number in range(first, first + 5)]
        assert drawn["zip"].str.fullmatch(r"\d{5}").all()


def test_whole_numbers_that_are_not_modelled_stay_whole_in_parquet(tmp_path: Path) -> None:
    table = pd.DataFrame({"key": [2**53 + 1, None] * 30, "n": range(60), "code": ["1E5", "12E3"] * 30}, dtype=object)
    table.assign(a=normal(60)).to_csv(tmp_path / "t.csv", index=False)
    ignored = (part for name in table.columns for part in ("--ignore", name))
    assert run("impute", tmp_path / "t.csv", *ignored, "--out", tmp_path / "o.parquet") == 0
    filled = pd.read_parquet(tmp_path / "o.parquet")
    assert filled["key"].dropna().tolist() == [2**53 + 1] * 30
    assert filled["n"].tolist() == list(range(60))
    assert filled.dtypes[["key", "n"]].map(pd.api.types.is_integer_dtype).all()
    assert filled["code"].tolist() == table["code"].tolist()


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_impute_and_synthesize_keep_line_ends(line_end: str, tmp_path: Path) -> None:
    lines = [
        "a,b",
        *(f"{value:.3f},{'' if row == 4 else 'x y'[2 * (row % 2)]}" for row, value in enumerate(normal(60))),
    ]
    (tmp_path / "t.csv").write_bytes((line_end.join(lines) + line_end).encode())
    for command in ("impute", "synthesize"):
        assert run(command, tmp_path / "t.csv", "--out", tmp_path / "o.csv") == 0
        content = (tmp_path / "o.csv").read_bytes()
        assert content.count(line_end.encode()) == content.count(b"\n") == 61


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_detect_with_data_keeps_the_index_that_pandas_writes(tmp_path: Path, name: str) -> None:
    path, index = tmp_path / "t.csv", pd.RangeIndex(200, 290, name=name or None)
    pd.DataFrame({"a": normal(90), "b": normal(90, 1)}, index=index).to_csv(path)
    with pytest.warns(SkippedWarning):
        assert run("detect", path, path, "--with-data", "--out", tmp_path / "o.csv") == 0
    assert pd.read_csv(tmp_path / "o.csv").iloc[:, 0].tolist() == list(range(200, 290))


def test_ignored_columns_are_only_left_out_of_the_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame({"id": [f"A{n}" for n in range(80)], "a": normal(80), "b": normal(80, 1)})
    table.loc[3, "a"] = np.nan
    for suffix in ("csv", "parquet"):
        path, out = tmp_path / f"t.{suffix}", tmp_path / f"o.{suffix}"
        write_frame(path, table)
        assert run("detect", path, path, "--ignore", "id", "--with-data", "--out", out) == 0
        assert read_frame(out)["id"].tolist() == table["id"].tolist()
        for to in ("csv", "parquet"):
            filled = tmp_path / f"filled.{to}"
            assert run("impute", path, "--ignore", "id", "--out", filled) == 0
            assert read_frame(filled)["id"].tolist() == table["id"].tolist()
            assert np.isfinite(read_frame(filled)["a"]).all()
        capsys.readouterr()
        assert run("detect", path, path, "--ignore", "ids", "--out", out) == 1
        assert "has no column 'ids'; it has id, a, b" in capsys.readouterr().err


def test_dollars_in_names_do_not_break_the_report(tmp_path: Path) -> None:
    table = pd.DataFrame({"in_$ out_$": normal(80), "c": ["$0_to_$50", "$10-$20"] * 40})
    write_frame(tmp_path / "t.csv", table)
    out, page = tmp_path / "o.csv", tmp_path / "page.html"
    assert run("detect", tmp_path / "t.csv", tmp_path / "t.csv", "--out", out, "--report", page) == 0
    assert page.is_file()


def test_a_table_that_is_too_small_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "one.csv"
    table.write_text("a,b\n1,2\n")
    for command in (("synthesize", table), ("detect", table, table)):
        assert run(*command, "--out", tmp_path / "out.csv") == 1
        assert f"arcsm: {table}: Expected at least 2 samples" in capsys.readouterr().err
    table.write_text("a,b\n1,\n2,\n3,\n")
    assert run("impute", table, "--out", tmp_path / "out.csv") == 1
    assert f"arcsm: {table}: column 'b' holds nothing but missing values" in capsys.readouterr().err


def test_outputs_never_replace_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(model_of_columns("a", "b"), tmp_path / "run")
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


def test_mistakes_are_found_before_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("fitted all the same")

    monkeypatch.setattr("arcsm.estimators.density_estimator.DensityEstimator._fit_table", never)
    table = pd.DataFrame({"a": normal(60), "b": [1.0, 2.0, None] * 20})
    write_frame(tmp_path / "t.csv", table)
    t = tmp_path / "t.csv"
    assert run("impute", t, "--out", tmp_path / "o.npy") == 1
    assert run("detect", t, t, "--out", tmp_path / "o.csv", "--p-value", 0.001) == 1
    errors = capsys.readouterr().err
    assert "--out" in errors
    assert "p-value: expected at least 0.0625 (of 15 held-out rows)" in errors
    assert run("detect", t, t, "--out", tmp_path / "o.csv", "--seed", 2**32) == 2
    write_frame(t, table.assign(score=np.arange(60)))
    assert run("detect", t, t, "--out", tmp_path / "o.csv", "--id", "score") == 1
    assert "has a column 'score' already, a name that the output uses" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_codes_keep_their_leading_zeros(tmp_path: Path, suffix: str) -> None:
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


def test_impute_keeps_types_and_spellings(tmp_path: Path) -> None:
    table = pd.DataFrame({"id": range(60), "t": ["TRUE", "false", "TRUE"] * 20, "z": normal(60)})
    table.loc[3, "t"] = table.loc[5, "z"] = None
    table.to_csv(tmp_path / "t.csv", index=False)
    assert run("impute", tmp_path / "t.csv", "--ignore", "id", "--out", tmp_path / "o.parquet") == 0
    assert pd.read_parquet(tmp_path / "o.parquet")["id"].tolist() == list(range(60))
    assert run("impute", tmp_path / "t.csv", "--ignore", "id", "--out", tmp_path / "o.csv") == 0
    assert set(pd.read_csv(tmp_path / "o.csv", dtype=str)["t"]) == {"TRUE", "false"}


def test_p_values_too_small_for_the_held_out_rows_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.DataFrame({"z": normal(80), "name": ["w"] + ["u"] * 79})
    write_frame(tmp_path / "t.csv", table)
    t, seeds = tmp_path / "t.csv", {}
    for seed in range(12):
        held_out = ScoreOutlierDetector(**{**QUICK, "random_state": seed}).count_held_out(read_frame(t))
        seeds[held_out] = seed
    assert set(seeds) == {19, 20}  # a held-out row with the rare name moves to the fitted rows
    for held_out, seed in seeds.items():
        enough = 1.0 / (1.0 + held_out)
        assert run("detect", t, t, "--out", tmp_path / "o.csv", "--seed", seed, "--p-value", 1.001 * enough) == 0
        assert run("detect", t, t, "--out", tmp_path / "o.csv", "--seed", seed, "--p-value", 0.999 * enough) == 1
    assert "of 19 held-out rows" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["detect", "impute", "synthesize"])
def test_safe_csv_files_hold_no_formulas(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame(
        {"=a": normal(60), "b": np.array(["=cmd", "@x", "-1 y"])[np.arange(60) % 3], "c": normal(60, 1)}
    )
    table.loc[3, "c"] = None
    table.to_csv(tmp_path / "a.csv", index=False)
    inputs = [tmp_path / "a.csv"] * (2 if command == "detect" else 1)
    more = ["--with-data"] * (command == "detect")
    for option, mark in (((), ""), (("--safe-csv",), "'")):
        assert run(command, *inputs, *more, *option, "--out", tmp_path / "out.csv") == 0
        written = pd.read_csv(tmp_path / "out.csv")
        assert f"{mark}=a" in written.columns
        assert pd.api.types.is_float_dtype(written[f"{mark}=a"])
        assert set(written["b"]) == {f"{mark}=cmd", f"{mark}@x", f"{mark}-1 y"}
    capsys.readouterr()
    assert run(command, *inputs, "--safe-csv", "--out", tmp_path / "out.parquet") == 1
    assert "--safe-csv: expected --out to be a .csv or .tsv file" in capsys.readouterr().err


def test_a_column_may_have_any_name(tmp_path: Path) -> None:
    table = pd.DataFrame({"self": normal(60).round(2), "id": range(60), "columns": ["x", "y"] * 30})
    table.loc[3, "self"] = None
    for names in (["self", "id", "columns"], ["index", "self", "columns"]):
        table.set_axis(names, axis=1).to_csv(tmp_path / "t.csv", index=False)
        for command, out in itertools.product(("impute", "synthesize"), ("o.csv", "o.parquet")):
            assert run(command, tmp_path / "t.csv", "--id", names[1], "--out", tmp_path / out) == 0
            assert "self" in read_frame(tmp_path / out).columns
    (tmp_path / "t.csv").write_text("self,b\n$1.50,2\n$3.00,4\n")
    assert read_table(tmp_path / "t.csv").values.tolist() == [[1.5, 2.0], [3.0, 4.0]]
