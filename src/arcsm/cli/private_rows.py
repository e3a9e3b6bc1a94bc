"""Rows that may be published: how ``arcsm synthesize --epsilon`` draws them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from arcsm.cli.console import show
from arcsm.cli.fitting import about_file, fit_rows, show_columns
from arcsm.cli.given_values import given_values
from arcsm.data import FrameFile, frame_writer
from arcsm.data.cell_forms import CellForms
from arcsm.estimators import PrivateDensity
from arcsm.estimators.checks import check_training_rows
from arcsm.estimators.encoder import Columns
from arcsm.estimators.rounding import decimals_of, round_like
from arcsm.privacy import PrivateStatistics
from arcsm.privacy.accounting import check_budget


@dataclass(frozen=True)
class Drawn:
    """Private rows, with all that is known of their table.

    Attributes:
        rows: The rows.
        forms: How cells write their values.
        columns: The columns that are inferred from the rows, not from the table.
        total: The number of rows of the table, with noise.
        given: The values that all rows have.
    """

    rows: pd.DataFrame
    forms: CellForms
    columns: Columns
    total: int
    given: dict[str, Any]


@dataclass(frozen=True)
class PrivateRows:
    """How private rows are drawn.

    Attributes:
        epsilon: The budget of the table.
        delta: The probability that it fails.
        count: The number of rows. Default: as many as the table has, with noise.
        gaps: Leave values out as the table does.
        given: Pairs ``COLUMN=VALUE`` of values that all rows have, for which a model is trained on private rows.
        orders: The orders of the columns that such a model averages.
        seed: The seed of the draws; noise is seeded by the operating system.
        device: The device of the model.
    """

    epsilon: float
    delta: float
    count: int | None
    gaps: bool
    given: list[str]
    orders: int | str
    seed: int
    device: str

    def write(self, file: FrameFile, source: str, out: Path, safe_csv: bool) -> None:
        """Draw rows, write them to a table and print what they are.

        Arguments:
            file: The file of the private table.
            source: Its name, with which errors begin.
            out: The table to write.
            safe_csv: Write no cell that a spreadsheet would run.
        """
        drawn = self.draw(file, source)
        as_text = out.suffix.lower() != ".parquet"
        rows = round_like(decimals_of(drawn.rows, drawn.columns), drawn.rows, drawn.given, as_text)
        with frame_writer(out, file.file, safe_csv) as write:
            write(drawn.forms.with_ids(drawn.forms.written(rows, as_text)))
        show_columns(source, drawn.total, drawn.columns)
        show(f"{out}  {len(rows)} rows" + (f", {len(rows.drop_duplicates())} of them different" if self.given else ""))
        show(f"private: epsilon {self.epsilon:g}, delta {self.delta:g}; quality not measured, it would reveal rows")

    def draw(self, file: FrameFile, source: str) -> Drawn:
        """Draw rows of the table of a file, whose name errors begin with."""
        check_budget(self.epsilon, self.delta)
        table = file.read(set_aside=True)
        forms = replace(file.forms, highest={}, plain={})  # which the table, not the statistics, would say
        return self._of_model(table, forms, source) if self.given else self._of_statistics(table, forms, source)

    def _of_statistics(self, table: pd.DataFrame, forms: CellForms, source: str) -> Drawn:
        with about_file(source):
            check_training_rows(table, table)
            statistics = PrivateStatistics.release(table, self.epsilon, self.delta, progress=True)
        random = np.random.default_rng(self.seed)
        rows = statistics.draw(self.count or statistics.rows, random, self.gaps, progress=True)
        return Drawn(rows, forms, Columns.infer(rows), statistics.rows, {})

    def _of_model(self, table: pd.DataFrame, forms: CellForms, source: str) -> Drawn:
        density = PrivateDensity(self.epsilon, self.delta, self.orders, device=self.device, verbose=True)
        fit_rows(density, table, source)
        columns = density.columns_
        kinds = dict(zip(forms.types, columns.kinds, strict=True))
        given = given_values(self.given, forms, pd.DataFrame(columns.examples()), kinds)
        rows = pd.DataFrame(density.conditional(given, self.count or density.rows_, random_state=self.seed))
        return Drawn(rows, forms, columns, density.rows_, given)
