"""What the page computes for a fitted table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from arcsm.cli.fitted_tables import FittedTable
from arcsm.cli.web.components import Downloads
from arcsm.cli.web.fitted import FittedTableExplorer, shown
from small_fitted_tables import NAMES

FEE = NAMES[-1]


@pytest.fixture
def table(fitted: tuple[FittedTable, Path]) -> FittedTable:
    return fitted[0]


@pytest.fixture
def explorer(table: FittedTable) -> FittedTableExplorer:
    return FittedTableExplorer(table)


def test_cells_are_read_in_the_forms_of_the_table(explorer: FittedTableExplorer) -> None:
    assert explorer.columns == NAMES
    assert explorer.known_values(["", None, " "]) == {}
    assert explorer.known_values(["", None, "31,25"]) == {FEE: 31.25}
    assert explorer.known_values(["40", "rome", ""]) == {"age": 40.0, "city": "Rome"}
    assert sorted(explorer.choices("city")) == ["Bern", "Oslo", "Rome"]
    assert explorer.choices("age") == explorer.choices(FEE) == []
    low, _, high = explorer.span("age").partition(" to ")
    assert 20 <= float(low.replace(",", ".")) < float(high.replace(",", ".")) < 60


def test_wrong_cells_are_errors(explorer: FittedTableExplorer) -> None:
    with pytest.raises(ValueError, match=r"^city = Paris: city has no 'Paris'; it has Bern, Oslo, Rome"):
        explorer.known_values(["40", "Paris", ""])


def test_a_summary_tells_how_likely_the_known_values_are(explorer: FittedTableExplorer, table: FittedTable) -> None:
    assert explorer.summary({}).startswith("Nothing is known")
    known = {"age": 40.0, FEE: 30.0}
    row = pd.DataFrame({"age": [40.0], "city": [None], FEE: [30.0]})
    assert table.density is not None
    expected = table.density.score_samples(row)[0]
    assert explorer.summary(known).startswith(f"Log density of the known values: {expected:.2f} nats. p-value: ")
    assert f"{FEE}: expected" in explorer.summary({"age": 40.0, FEE: 900.0})


def test_each_column_has_a_picture_whose_caption_is_no_markup(explorer: FittedTableExplorer) -> None:
    page = explorer.pictures({"age": 40.0, FEE: 900.0})
    assert page.count("<img") == 3
    assert "<i>" not in page
    for caption in ("age: 40", "city", "fee &lt;i&gt;: 900"):
        assert f">{caption}<" in page
    assert explorer.pictures({}, ["city"]).count("<img") == 1


def test_drawn_rows_have_the_known_values_in_the_forms_of_the_table(
    explorer: FittedTableExplorer, tmp_path: Path
) -> None:
    drawn = explorer.draw({"city": "Oslo"}, 7, 0)
    assert list(drawn.columns) == NAMES
    assert drawn["city"].tolist() == ["Oslo"] * 7
    explorer.write(drawn, tmp_path / "drawn.csv")
    first, second, *_ = (tmp_path / "drawn.csv").read_text(encoding="utf-8").splitlines()
    assert first == ";".join(NAMES)
    assert second.count(",") >= 1  # the decimal mark of the table
    assert len(explorer.draw({}, 3, 0)) == 3
    with pytest.raises(ValueError, match="number of rows: expected 1 to"):
        explorer.draw({}, 0, 0)
    explorer.write(pd.DataFrame({"city": ["=1+1", "Rome"]}), tmp_path / "out.csv")
    assert "\n=1+1" not in (tmp_path / "out.csv").read_text(encoding="utf-8")  # no formulas


def test_a_file_is_sorted_by_surprise_with_reasons(explorer: FittedTableExplorer, tmp_path: Path) -> None:
    lines = (";".join(NAMES), "40;Rome;30,1", "41;Oslo;900,5", ";Bern;22,0")
    (tmp_path / "new.csv").write_text("\n".join(lines), encoding="utf-8")
    found = explorer.outliers(tmp_path / "new.csv")
    assert found["row"].iloc[0] == 2
    assert bool(found["outlier"].iloc[0])
    assert f"{FEE}: expected" in found["because"].iloc[0]
    assert list(found.columns) == ["row", "p_value", "outlier", "because", "change", *NAMES]
    assert shown(found)["city"].iloc[0] == "Oslo"
    assert (shown(found)["age"] == "").sum() == 1


def test_a_table_fitted_for_one_purpose_refuses_the_other(table: FittedTable, tmp_path: Path) -> None:
    only_detector, only_density = replace(table, density=None), replace(table, detector=None)
    explorer = FittedTableExplorer(only_detector)
    assert not explorer.can_draw
    assert explorer.pictures({"age": 40.0}).count("<img") == 3
    assert explorer.summary({"age": 40.0}).startswith("p-value")
    with pytest.raises(ValueError, match="--for outliers"):
        explorer.draw({}, 3, 0)
    explorer = FittedTableExplorer(only_density)
    assert not explorer.can_detect
    with pytest.raises(ValueError, match="--for values"):
        explorer.outliers(tmp_path / "rows.csv")


def test_old_downloads_are_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    downloads = Downloads()
    paths = [downloads.path("a.csv") for _ in range(10)]
    assert [path.parent.exists() for path in paths] == [False] * 2 + [True] * 8
