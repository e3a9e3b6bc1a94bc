"""Typed tables: formats are reported, labels and free text set aside, and mistakes named at once."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcsm.data import FrameFile, ReadOptions
from arcsm.errors import SkippedWarning
from small_tables import normal


def sales(count: int = 60) -> pd.DataFrame:
    random = np.random.default_rng(0)
    days = pd.to_datetime("2024-01-20") + pd.to_timedelta(random.integers(0, 99, count), unit="D")
    return pd.DataFrame({
        "order": [f"A-{place}" for place in range(count)],
        "customer_id": random.permutation(10 * count)[:count],
        "place": np.arange(count) + 7,
        "year": 1900 + np.arange(count),
        "price": [f"${price:,.2f}" for price in random.lognormal(7.0, 1.0, count)],
        "day": days.strftime("%d.%m.%Y"),
        "remark": [f"delivered with {n} other parcels on a rainy day" for n in random.integers(0, 10**6, count)],
        "city": random.choice(["Rome", "Oslo"], count),
    })  # fmt: skip


def test_labels_and_free_text_are_set_aside_and_formats_are_reported(tmp_path: Path) -> None:
    sales().to_csv(tmp_path / "t.csv", index=False)
    file = FrameFile(tmp_path / "t.csv")
    with pytest.warns(SkippedWarning) as skipped, pytest.warns(UserWarning, match="read 'price' as numbers") as read:
        frame = file.read(set_aside=True)
    assert list(frame.columns) == ["year", "price", "day", "city"]
    assert [str(one) for one in file.set_aside.values()] == [
        "a different name in every row", *["a different whole number in every row"] * 2, "free text",
    ]  # fmt: skip
    assert file.highest == {"customer_id": int(sales()["customer_id"].max()), "place": 66}
    assert "'remark' (free text)" in str(skipped[0].message)
    assert "'day' as dates ('" in str(read[-1].message)
    written = file.forms.written(frame, as_text=True)
    assert written["price"].tolist() == sales()["price"].tolist()
    assert written["day"].tolist() == sales()["day"].tolist()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_plain_numbers_are_written_like_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcsm.data.frames._PART_ROWS", 3)
    lines = ["1,00;7;2,5e-05"] * 3 + [";NA;"] * 4 + ["2,50;12;1,5e-04"]  # two parts without a known cell
    (tmp_path / "t.csv").write_text("a;b;c\n" + "\n".join(lines) + "\n")
    file = FrameFile(tmp_path / "t.csv")
    assert file.read().dtypes.eq(float).all()
    written = file.forms.written(pd.DataFrame({"a": [3.0, 1.5e-5], "b": [8.0, None], "c": [3e-6, 0.5]}), as_text=True)
    assert written["a"].tolist() == ["3,00", "0,000015"]
    assert written["b"].iloc[0] == "8"
    assert written["b"].isna().tolist() == [False, True]
    assert written["c"].tolist() == ["3,0e-06", "5,0e-01"]


def test_options_name_the_use_of_columns(tmp_path: Path) -> None:
    sales().to_csv(tmp_path / "t.csv", index=False)
    uses = {"ids": ["city"], "numeric": ["place"], "categorical": ["customer_id"], "ignore": ["order", "remark"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = FrameFile(tmp_path / "t.csv", ReadOptions(**uses))
        frame = file.read(set_aside=True)
    assert list(frame.columns) == ["customer_id", "place", "year", "price", "day"]
    assert frame["customer_id"].map(type).eq(str).all()
    with pytest.raises(ValueError, match="has no column 'country', 'town'; it has order, customer_id"):
        FrameFile(tmp_path / "t.csv", ReadOptions(ids=["town"], ignore=["country"])).read()


def test_another_file_is_read_with_the_same_types(tmp_path: Path) -> None:
    sales().to_csv(tmp_path / "t.csv", index=False)
    other = sales(3)
    other["price"], other["day"] = ["$1.00", "2", None], ["01.02.2024", None, "12.11.2023"]
    other.to_csv(tmp_path / "u.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        types = FrameFile(tmp_path / "t.csv")
        types.read(set_aside=True)
        found = next(FrameFile(tmp_path / "u.csv", like=types.types).parts())
    assert found["price"].tolist()[:2] == [1.0, 2.0]
    assert found["day"].tolist()[::2] == [pd.Timestamp("2024-02-01"), pd.Timestamp("2023-11-12")]
    other.assign(day="yesterday").to_csv(tmp_path / "u.csv", index=False)
    with pytest.raises(ValueError, match=r"row 1 \(line 2\), column 'day': expected a date such as \d+\.\d+\.2024"):
        next(FrameFile(tmp_path / "u.csv", like=types.types).parts())


def test_all_columns_with_mistakes_are_named_at_once(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": normal(30), "b": normal(30), "c": normal(30)}).astype(object)
    table.loc[4, "a"], table.loc[9, "c"] = "oops", "x"
    table.to_csv(tmp_path / "t.csv", index=False)
    message = (
        r"2 columns cannot be used \('a', 'c'\): row 5 \(line 6\), column 'a': expected a number, got 'oops' "
        r"\(.*--na 'oops'.*--categorical 'a'; to leave it out: --ignore 'a'\); "
        r"row 10 \(line 11\), column 'c'"
    )
    with pytest.raises(ValueError, match=message):
        FrameFile(tmp_path / "t.csv").read()
