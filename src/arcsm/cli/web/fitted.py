"""What the page computes for a table that ``arcsm fit`` has fitted, independent of Gradio."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from arcsm.cli.fitted_tables import FittedTable
from arcsm.cli.given_values import given_value, in_form
from arcsm.cli.table_inputs import TableInput
from arcsm.data import ReadOptions, frame_writer
from arcsm.data.table import check_reserved_columns
from arcsm.estimators.detection import detection_table
from arcsm.estimators.encoder import is_categorical
from arcsm.estimators.rounding import round_like
from arcsm.reports.conditionals import conditional_panels
from arcsm.reports.run import render

MAX_PANELS = 24  #: columns that are drawn
MAX_FIELDS = 60  #: columns whose values can be filled in
_MAX_CHOICES = 500  # names in a list
MAX_DRAWS = 10_000
MAX_SCORED = 20_000  #: rows of an uploaded table
_SHOWN_ROWS = 100
_OF_RESULTS = ["row", "p_value", "outlier", "because", "change"]


class FittedTableExplorer:
    """Evaluates rows of a fitted table given some of their values. It draws the others, and scores files."""

    def __init__(self, table: FittedTable) -> None:
        estimator = table.density or table.detector
        assert estimator is not None
        self.table, self.estimator = table, estimator
        self.columns = [str(name) for name in table.forms.types]
        self.fields = self.columns[:MAX_FIELDS]
        self._examples = pd.DataFrame(estimator.columns_.examples())

    @property
    def can_draw(self) -> bool:
        """Whether there is a density to draw from."""
        return self.table.density is not None

    @property
    def can_detect(self) -> bool:
        """Whether there is a detector of outliers."""
        return self.table.detector is not None

    def choices(self, name: str) -> list[str]:
        """Return the names of a column, the most frequent first; none if there are too many, and for numbers."""
        words = self.table.forms.truth_words.get(name, {})
        examples = self._examples[name].dropna()
        if self.table.forms.types[name].format is not None or not is_categorical(examples.dtype):
            return []
        names = [words.get(str(value), str(value)) for value in examples.unique()]
        return names if len(names) <= _MAX_CHOICES else []

    def span(self, name: str) -> str:
        """Return the lowest and the highest value of a column, as the table writes them."""
        values = self._examples[name].dropna()
        try:
            low, high = in_form(
                pd.Series([values.min(), values.max()], dtype=values.dtype), self.table.forms.types[name]
            )
        except TypeError:  # names have no order
            return ""
        return low if low == high else f"{low} to {high}"

    def known_values(self, cells: Sequence[object]) -> dict[str, object]:
        """Return the values of the cells that are not empty, one cell for each field, in the forms of the table."""
        if len(cells) != len(self.fields):
            raise ValueError(f"row: expected {len(self.fields)} cells, got {len(cells)}")
        found = {}
        for name, cell in zip(self.fields, cells, strict=True):
            if text := str(cell or "").strip():
                found[name] = given_value(f"{name} = {text}", name, text, self.table.forms, self._examples)
        return found

    def to_row(self, known: dict[str, object]) -> pd.DataFrame:
        """Return a table of one row with the known values, and all others missing."""
        columns = {}
        for name in self.columns:
            dtype = self._examples[name].dtype
            column = pd.Series([known.get(name)], dtype=object)
            columns[name] = column.astype(dtype) if name in known else column
        return pd.DataFrame(columns)

    def summary(self, known: dict[str, object]) -> str:
        """Return how likely the known values are, in a sentence of plain text."""
        if not known:
            return "Nothing is known: each picture shows the distribution of a column in the whole table."
        row, parts = self.to_row(known), []
        if self.table.density is not None:
            parts.append(f"Log density of the known values: {self.table.density.score_samples(row)[0]:.2f} nats.")
        if self.table.detector is not None:
            line = detection_table(self.table.detector, row).iloc[0]
            parts.append(f"p-value: {line['p_value']:.2g}" + (f" ({line['because']})." if line["because"] else "."))
            if line["change"]:
                parts.append(f"Ordinary after one change: {line['change']}.")
        return " ".join(parts)

    def pictures(self, known: dict[str, object], columns: Sequence[str] | None = None) -> str:
        """Return HTML with the distribution of each column given the known values of all others."""
        chosen = [self.columns.index(name) for name in (columns or self.columns)[:MAX_PANELS]]
        return render("conditionals.html", panels=conditional_panels(self.estimator, self.to_row(known), chosen))

    def draw(self, known: dict[str, object], count: int, seed: int) -> pd.DataFrame:
        """Return drawn rows with the known values, in the forms of the table."""
        density = self.table.density
        if density is None:
            raise ValueError("rows cannot be drawn: the table was fitted with --for outliers")
        if not 1 <= count <= MAX_DRAWS:
            raise ValueError(f"number of rows: expected 1 to {MAX_DRAWS}, got {count}")
        drawn = density.conditional(known, count, seed) if known else density.sample(count, seed)
        drawn = round_like(self.table.decimals, pd.DataFrame(drawn), known, as_text=True)
        return self.table.forms.with_ids(self.table.forms.written(drawn, as_text=True))

    def outliers(self, path: Path) -> pd.DataFrame:
        """Return a line for each row of a file, the most surprising one first, with the cells of the file."""
        detector = self.table.detector
        if detector is None:
            raise ValueError("rows cannot be scored: the table was fitted with --for values")
        upload = TableInput(path)
        upload.source = path.name  # messages do not tell where the page keeps it
        file = self.table.file(upload, ReadOptions())
        check_reserved_columns(file.file, _OF_RESULTS)
        rows = next(file.parts(MAX_SCORED + 1))
        if len(rows) > MAX_SCORED:
            raise ValueError(f"{path.name}: expected at most {MAX_SCORED} rows; use arcsm detect --model for more")
        lines = detection_table(detector, rows)
        cells = next(file.file.raw_parts(MAX_SCORED + 1))
        chosen = lines[_OF_RESULTS].assign(p_value=[float(f"{p:.2g}") for p in lines["p_value"]])
        return pd.concat([chosen, cells], axis=1).iloc[np.argsort(lines["score"].to_numpy(), kind="stable")]

    def write(self, rows: pd.DataFrame, path: Path) -> None:
        """Write rows in the separator and the encoding of the table; no cell is a formula for spreadsheets."""
        with frame_writer(path, self.table.forms.dialect, no_formulas=True) as write:
            write(rows)


def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the first rows, as many as the page shows, as text."""
    first = rows.head(_SHOWN_ROWS).astype(object)
    return first.where(first.notna(), "").map(str)
