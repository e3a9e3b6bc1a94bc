"""Data frames of polars and pyarrow: the same results as with pandas, in the library of the rows."""

from __future__ import annotations

import datetime
import pickle
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import narwhals
import numpy as np
import pandas as pd
import pyarrow
import pytest

from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from small_tables import QUICK, use_small_models


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)


def to_polars(table: pyarrow.Table) -> Any:
    polars = pytest.importorskip("polars", reason="needs polars")
    frame = polars.from_arrow(table)
    return frame.with_columns(polars.col("size").cast(polars.Enum(["s", "m", "l"])))


LIBRARIES = pytest.mark.parametrize("convert", [to_polars, lambda table: table], ids=["polars", "pyarrow"])
Convert = Callable[[pyarrow.Table], Any]


def mixed(count: int = 80, gaps: bool = True) -> pyarrow.Table:
    """Return columns of many types, some with missing values."""
    random = np.random.default_rng(0)
    missing = random.random(count) < 0.2 * gaps
    return pyarrow.table({
        "income": pyarrow.array(random.normal(size=count), mask=missing),
        "visits": pyarrow.array(random.poisson(3.0, count).astype(np.int16), mask=missing[::-1]),
        "city": pyarrow.array(random.choice(["Rome", "Oslo"], count).tolist(), mask=missing[::-1]),
        "yes": pyarrow.array(random.random(count) < 0.5, mask=missing),
        "size": pyarrow.array(random.choice(["s", "m"], count).tolist()).dictionary_encode(),
        "key": pyarrow.array(2**53 + 1 + random.integers(0, 9, count), mask=missing),
    })  # fmt: skip


def schema(frame: Any) -> Any:
    return narwhals.from_native(frame).schema


def cells(frame: Any) -> list[Any]:
    return [cell for row in narwhals.from_native(frame).iter_rows() for cell in row]


@LIBRARIES
def test_rows_have_library_and_types_of_the_fitted_frame(convert: Convert) -> None:
    table = convert(mixed())
    density = pickle.loads(pickle.dumps(ScoreDensity(**QUICK).fit(table)))
    assert density.feature_names_in_.tolist() == ["income", "visits", "city", "yes", "size", "key"]
    filled = density.impute(table)
    rows = density.sample(9), filled, density.conditional({"visits": 2, "city": "Rome"}, draws=9)
    for found in (*rows, density.quantile(np.full((2, 6), 0.5))):
        assert type(found) is type(table)
        assert schema(found) == schema(table)
    assert None not in cells(filled)
    assert all(new == old for new, old in zip(cells(filled), cells(table), strict=True) if old is not None)


@LIBRARIES
def test_scores_and_explanations_equal_those_of_pandas(convert: Convert) -> None:
    table = convert(mixed(gaps=False))
    of_pandas = pd.DataFrame({name: mixed(gaps=False).column(name).to_pandas() for name in mixed().column_names})
    detector, other = ScoreOutlierDetector(**QUICK).fit(table), ScoreOutlierDetector(**QUICK).fit(of_pandas)
    np.testing.assert_array_equal(detector.score_samples(table), other.score_samples(of_pandas))
    np.testing.assert_array_equal(detector.predict(table), other.predict(of_pandas))
    for method in ("explain", "top_contributions", "all_scores"):
        found, expected = (getattr(one, method)(x) for one, x in ((detector, table), (other, of_pandas)))
        assert type(found) is type(table)
        assert isinstance(expected, pd.DataFrame)
        assert cells(found) == expected.to_numpy().flatten().tolist()
    low, high = detector.expected(table)
    assert schema(low) == schema(high) == schema(table)


def test_batches_of_records_and_lazy_frames_are_rejected() -> None:
    batch = pyarrow.RecordBatch.from_pydict({"a": [1.0, 2.0, 3.0]})
    with pytest.raises(TypeError, match=r"X: expected a table, got a RecordBatch; give pyarrow.Table.from_batches"):
        ScoreDensity().fit(batch)
    polars = pytest.importorskip("polars", reason="needs polars")
    with pytest.raises(TypeError, match=r"X: expected rows in memory, got a lazy frame .* collect it"):
        ScoreDensity(**QUICK).fit(polars.LazyFrame({"a": [1.0, 2.0]}))


def test_repeated_names_and_dates_in_arrays_are_one_line_errors() -> None:
    table = mixed(gaps=False).select(["income", "visits"])
    density = ScoreDensity(**QUICK).fit(table)
    for rows in (table.rename_columns(["income"] * 2), table.rename_columns(["income"] * 2).to_pandas()):
        for call in (ScoreDensity(**QUICK).fit, density.score_samples):
            with pytest.raises(ValueError, match=r"^X: expected different column names, got 'income' more than once$"):
                call(rows)
    dates = np.array([[1.0, pd.Timestamp("2026-01-05")]] * 3, dtype=object)
    for rows in (dates, dates.tolist(), np.array([["2026-01-05"]], dtype="M8[D]")):
        with pytest.raises(ValueError, match=r"^X: expected numbers in an array, got '2026-01-05.*; give dates and"):
            ScoreDensity(**QUICK).fit(rows)


def exact(count: int = 60) -> pyarrow.Table:
    """Return columns of Arrow types that pandas has not, with missing values in all but the first."""
    random = np.random.default_rng(0)
    gaps, places = random.random(count) < 0.2, random.integers(0, 20, count).tolist()

    def column(values: list[Any], kind: pyarrow.DataType) -> pyarrow.Array:
        return pyarrow.array(values, kind, mask=gaps)

    words = column([["a", "b"][place % 2] for place in places], pyarrow.string())
    return pyarrow.table({
        "x": random.normal(size=count),
        "price": column([Decimal(5 * place) / 100 for place in places], pyarrow.decimal128(4, 2)),
        "wide": column([Decimal("12345678901234567.01") + k for k in range(count)], pyarrow.decimal128(38, 2)),
        "clock": column([datetime.time(place) for place in places], pyarrow.time64("ns")),
        "day": column([datetime.date(2026, 1, 1 + place) for place in places], pyarrow.date64()),
        "word": words.dictionary_encode(),
        "code": words.dictionary_encode().cast(pyarrow.dictionary(pyarrow.uint8(), pyarrow.large_string())),
    })  # fmt: skip


def test_arrow_types_that_pandas_has_not_come_back() -> None:
    table = exact()
    density = ScoreDensity(**QUICK).fit(table)
    filled = density.impute(table)
    for found in (density.sample(9), filled):
        assert found.schema == table.schema
    assert None not in cells(filled)
    assert all(new == old for new, old in zip(cells(filled), cells(table), strict=True) if old is not None)
