"""Fitted estimators as files: the same answers after loading, and one-line errors for anything else."""

from __future__ import annotations

import datetime
import decimal
import enum
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from sklearn.exceptions import NotFittedError

import arcsm
from arcsm import DistilConfig
from arcsm.estimators import ScoreClassifier, ScoreDensity, ScoreImputer, ScoreOutlierDetector, ScoreRegressor, outliers
from arcsm.serialization import read_tensors, write_tensors

ROWS = 60
SMALL: dict[str, Any] = {"max_steps": 2, "n_estimators": 2, "hidden_features": (4,), "random_state": 0}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "width": random.normal(size=ROWS),
            "income": np.where(random.random(ROWS) < 0.4, 0.0, random.exponential(size=ROWS)),
            "city": random.choice(["Rome", "Turin"], ROWS),
            "visits": random.poisson(3.0, ROWS),
            "day": pd.Timestamp("2026-01-01") + pd.to_timedelta(random.integers(0, 300, ROWS), "D"),
        }
    )
    frame.loc[3, "width"] = np.nan
    return frame


@pytest.fixture(scope="module")
def density(table: pd.DataFrame) -> ScoreDensity:
    return ScoreDensity(**SMALL).fit(table)


@pytest.fixture(scope="module")
def narrow(table: pd.DataFrame) -> ScoreDensity:
    """Return a density of two columns."""
    return ScoreDensity(**SMALL).fit(table[["width", "city"]])


@pytest.fixture
def path(narrow: ScoreDensity, tmp_path: Path) -> Path:
    """Return a file with a density of two columns, which a test may change."""
    path = tmp_path / "density.safetensors"
    narrow.save(path)
    return path


def test_a_loaded_density_gives_the_same_answers(table: pd.DataFrame, density: ScoreDensity, tmp_path: Path) -> None:
    density.save(tmp_path / "density")
    loaded = ScoreDensity.load(tmp_path / "density")
    assert vars(loaded).keys() == vars(density).keys()
    np.testing.assert_array_equal(loaded.score_samples(table), density.score_samples(table))
    pd.testing.assert_frame_equal(loaded.sample(9, gaps=True), density.sample(9, gaps=True))
    gaps = table.mask(np.random.default_rng(1).random(table.shape) < 0.3)
    pd.testing.assert_frame_equal(loaded.impute(gaps, draws=4), density.impute(gaps, draws=4))
    given = {"city": "Rome", "width": (0.0, None)}
    pd.testing.assert_frame_equal(loaded.conditional(given, 5), density.conditional(given, 5))
    card = (tmp_path / "density" / "README.md").read_text(encoding="utf-8")
    assert "# A fitted ScoreDensity" in card
    assert "- categorical: city\n" in card
    arcsm.save(arcsm.AutoregressiveModel(arcsm.MADE(2, 4, (8,)), arcsm.ScoreHead(4, (8,))), tmp_path / "density")
    assert not (tmp_path / "density" / "README.md").exists()  # it would describe another model


def test_files_without_a_newer_argument_have_its_default(table: pd.DataFrame, narrow: ScoreDensity, path: Path) -> None:
    rewritten(path, lambda header: header["estimator"]["fitted"]["columns_"]["kinds"]["items"][1].pop("ordered"))
    rows = table[["width", "city"]]
    np.testing.assert_array_equal(ScoreDensity.load(path).score_samples(rows), narrow.score_samples(rows))


def test_a_loaded_detector_gives_the_same_verdicts_and_reasons(table: pd.DataFrame, tmp_path: Path) -> None:
    detector = ScoreOutlierDetector(0.1, **SMALL).fit(table)
    detector.save(tmp_path / "detector.safetensors")
    loaded = ScoreOutlierDetector.load(tmp_path / "detector.safetensors")
    np.testing.assert_array_equal(loaded.p_values(table), detector.p_values(table))
    np.testing.assert_array_equal(loaded.predict(table), detector.predict(table))
    pd.testing.assert_frame_equal(loaded.explain(table), detector.explain(table))
    for own, other in zip(loaded.expected(table), detector.expected(table), strict=True):
        pd.testing.assert_frame_equal(own, other)


def test_all_other_estimators_can_be_saved(
    table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, path = table[["width", "city", "visits"]], tmp_path / "model.safetensors"
    features = table[["city"]]
    imputer = ScoreImputer(draws=4, **SMALL).fit(table)
    imputer.save(path)
    pd.testing.assert_frame_equal(ScoreImputer.load(path).transform(table), imputer.transform(table))
    regressor = ScoreRegressor(**SMALL).fit(features, table["visits"])
    regressor.save(path)
    np.testing.assert_array_equal(ScoreRegressor.load(path).predict(features), regressor.predict(features))
    classifier = ScoreClassifier(**SMALL).fit(table[["visits"]], table["city"])
    classifier.save(path)
    found, expected = (one.predict_proba(table[["visits"]]) for one in (ScoreClassifier.load(path), classifier))
    np.testing.assert_array_equal(found, expected)
    short = partial(DistilConfig, steps=3, conditionals=500, report_rows=50)
    monkeypatch.setattr(outliers, "DistilConfig", short)
    fast = ScoreOutlierDetector(fast=True, **{**SMALL, "random_state": np.random.RandomState(3)})
    values = table[["width", "visits"]].fillna(0.0).to_numpy()
    fast.fit(values).save(path)
    np.testing.assert_array_equal(ScoreOutlierDetector.load(path).score_samples(values), fast.score_samples(values))


COLUMNS: dict[str, Any] = {
    "interval": pd.cut(np.random.default_rng(0).normal(size=ROWS), 3),
    "period": pd.period_range("2020", periods=ROWS, freq="M"),
    "duration": pd.to_timedelta(np.random.default_rng(0).integers(0, 99, ROWS), "h"),
    "clock": [datetime.time(hour % 24) for hour in range(ROWS)],
    "date": [datetime.date(2026, 1, 1 + day % 28) for day in range(ROWS)],
    "decimal": [decimal.Decimal(number % 7) / 10 for number in range(ROWS)],
    "constant": [1.5] * ROWS,
    "mixed": [("a", 1)[row % 2] for row in range(ROWS)],
    "bytes": [(b"a", b"b")[row % 2] for row in range(ROWS)],
    "ordered": pd.Categorical(["small", "large"] * (ROWS // 2), ["small", "large"], ordered=True),
    "nullable": pd.array([None, *range(1, ROWS)], dtype="Int64"),
    "arrow text": pd.array(["a", "b"] * (ROWS // 2), dtype=pd.ArrowDtype(pa.string())),
    "fixed zone": pd.date_range(
        "2026", periods=ROWS, freq="h", tz=datetime.timezone(datetime.timedelta(hours=1), "CET")
    ),
}


def test_columns_of_any_type_come_back(tmp_path: Path) -> None:
    density = ScoreDensity(**{**SMALL, "n_estimators": 1}).fit(pd.DataFrame(COLUMNS))
    density.save(tmp_path)
    drawn, again = density.sample(9), ScoreDensity.load(tmp_path).sample(9)
    pd.testing.assert_frame_equal(again, drawn)
    for name in COLUMNS:
        assert [type(value) for value in again[name]] == [type(value) for value in drawn[name]]


def test_frames_of_other_libraries_come_back(table: pd.DataFrame, tmp_path: Path) -> None:
    frame = pl.from_pandas(table[["city", "visits"]]).with_columns(
        pl.col("city").cast(pl.Enum(["Rome", "Turin", "Oslo"]))
    )
    for rows in (frame, frame.to_arrow()):
        density = ScoreDensity(**SMALL).fit(rows)
        density.save(tmp_path)
        assert ScoreDensity.load(tmp_path).sample(5).equals(density.sample(5))
    assert ScoreDensity.load(tmp_path).sample(5).schema == density.sample(5).schema


class ScoreDensityOfMine(ScoreDensity):
    """A subclass outside the package."""


def test_subclasses_of_users_are_saved_as_such(table: pd.DataFrame, tmp_path: Path) -> None:
    ScoreDensityOfMine(**SMALL).fit(table[["width"]]).save(tmp_path / "mine")
    assert type(ScoreDensity.load(tmp_path / "mine")) is ScoreDensityOfMine


class Colour(enum.Enum):
    RED, BLUE = 1, 2


def test_what_no_file_can_hold_is_an_error(table: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        ScoreDensity().save(tmp_path / "new")
    frame = table[["width"]].assign(colour=[Colour.RED, Colour.BLUE] * (ROWS // 2))
    message = r"cannot be saved: <Colour.*type .*test_files\.Colour; give such values as text"
    with pytest.raises(ValueError, match=message):
        ScoreDensity(**SMALL).fit(frame).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a file in place."""
    tensors, header = read_tensors(path)
    change(header)
    write_tensors(path, tensors, header)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown type": (lambda entry: entry.update(type="Popen"), "unknown type 'Popen'; a later arcsm wrote it, or"),
    "a method": (lambda entry: entry["fitted"].update(sample=1), "ScoreDensity: wrong value of 'sample'"),
    "another field": (lambda entry: entry["fitted"]["columns_"].update(colour=1), "Columns has no colour"),
    "a name for numbers": (
        lambda entry: entry["fitted"]["columns_"]["kinds"]["items"][0].update(scale="wide"),
        "Identity: scale: expected .*float.*, got 'wide'",
    ),
    "a tensor twice": (
        lambda entry: entry["fitted"].update(held_out_rows_=entry["fitted"]["order_weights_"]),
        "is used twice",
    ),
    "an open library": (
        lambda entry: entry["fitted"].update(_native={"type": "FrameKind", "library": "os"}),
        "unknown library 'os'",
    ),
    "a broken schema": (
        lambda entry: entry["fitted"].update(
            _native={"type": "FrameKind", "library": "polars", "schema": {"type": "bytes", "value": "AAAA"}}
        ),
        "not what arcsm .* writes",
    ),
    "no dtypes": (
        lambda entry: entry["fitted"]["columns_"].update(dtypes=None),
        "Columns: expected a type, a dtype and a name for each",
    ),
    "no tensor": (lambda entry: entry["fitted"]["order_weights_"].update(numbers="array.99"), "'array.99' is missing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_were_changed_are_rejected(name: str, path: Path) -> None:
    change, message = WRONG[name]
    rewritten(path, lambda header: change(header["estimator"]))
    with pytest.raises(ValueError, match=message) as raised:
        ScoreDensity.load(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_tensors_that_no_fit_gives_are_rejected(density: ScoreDensity, tmp_path: Path) -> None:
    path = tmp_path / "density.safetensors"
    density.save(path)
    tensors, header = read_tensors(path)
    changed = [name for name in tensors if name.endswith(".correlation")]
    assert changed
    for name in changed:
        wrong = -torch.eye(len(tensors[name]), dtype=tensors[name].dtype)
        write_tensors(path, {**tensors, name: wrong}, header)
        with pytest.raises(ValueError, match="correlation: expected a symmetric, positive definite matrix"):
            ScoreDensity.load(path)


def test_files_of_something_else_are_rejected(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a ScoreOutlierDetector, got a ScoreDensity"):
        ScoreOutlierDetector.load(path)
    with pytest.raises(ValueError, match="holds a fitted estimator, not an autoregressive model; the method load"):
        arcsm.load(path)
    with pytest.raises(ValueError, match=r"missing\.safetensors: no such file"):
        ScoreDensity.load(tmp_path / "missing.safetensors")
    model = arcsm.AutoregressiveModel(arcsm.MADE(2, 2, (4,)), arcsm.GaussianHead(2))
    arcsm.save(model, tmp_path / "model")
    with pytest.raises(ValueError, match="expected a fitted estimator, got a model"):
        ScoreDensity.load(tmp_path / "model")
    rewritten(path, lambda header: header.update(schema_version=99))
    with pytest.raises(ValueError, match="written by a later arcsm"):
        ScoreDensity.load(path)
