"""Tables fitted once by ``arcsm fit``: their models, and how files like theirs are read and written."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import pandas as pd

from arcsm import serialization
from arcsm._runtime.cards import write_card
from arcsm._runtime.terminal import printable
from arcsm.cli.kinds import TABLE_KIND
from arcsm.cli.table_inputs import TableInput
from arcsm.data import FrameFile, ReadOptions
from arcsm.data.cell_forms import CellForms
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from arcsm.estimators.card import estimator_card
from arcsm.estimators.files import load_stored, save_stored
from arcsm.estimators.rounding import decimals_of
from arcsm.stored_values import stored


@stored
@dataclass(frozen=True)
class FittedTable:
    """A fitted table.

    Attributes:
        source: The name of its file.
        rows: How many rows it has.
        missing: The marks of missing values that an option named.
        encoding: The encoding that an option named.
        ignored: The columns left out.
        labels: The columns that label its rows.
        forms: How its cells write their values.
        digest: A hash of its rows, which tells it from others.
        decimals: The most decimals of each column of numbers; see :func:`~arcsm.estimators.rounding.decimals_of`.
        density: Its density, unless it was fitted for outliers alone.
        detector: Its detector of outliers, unless it was fitted for values alone.
        total: How many rows the file has, if only some were drawn and fitted.
    """

    source: str
    rows: int
    missing: tuple[str, ...]
    encoding: str | None
    ignored: tuple[str, ...]
    labels: tuple[str, ...]
    forms: CellForms
    digest: str
    decimals: dict[str, int | None]
    density: ScoreDensity | None = None
    detector: ScoreOutlierDetector | None = None
    total: int | None = None

    @classmethod
    def of_file(
        cls, file: FrameFile, rows: pd.DataFrame, density: ScoreDensity | None, detector: ScoreOutlierDetector | None
    ) -> Self:
        """Return the models of a file with how it is read and written."""
        estimator = density or detector
        assert estimator is not None
        labels = [name for name, reason in file.set_aside.items() if reason.is_label]
        decimals, sample = decimals_of(rows, estimator.columns_), file.file.sample
        total = sample.total if sample is not None and len(rows) < sample.total else None
        return cls(
            Path(file.file.source).name, len(rows), tuple(file.options.missing), file.options.encoding,
            tuple(file.options.ignore), tuple(labels), file.forms, _digest(rows), decimals, density, detector, total,
        )  # fmt: skip

    @classmethod
    def read(cls, path: Path, device: str = "cpu") -> Self:
        """Read the table that :meth:`write` wrote; its models go to the device."""
        found = load_stored(path, device, TABLE_KIND)
        if not isinstance(found, cls):
            raise ValueError(f"{path}: expected a table from arcsm fit")
        return found

    def write(self, path: Path) -> None:
        """Write the table to a ``.safetensors`` file, or to a folder with a card."""
        save_stored(self, path, TABLE_KIND)
        estimator = self.density or self.detector
        if (folder := serialization.folder_of(path)) is None or estimator is None:
            return
        commands = (
            ("arcsm detect new.csv --model FOLDER --out scores.csv", self.detector),
            ("arcsm impute gaps.csv --model FOLDER --out filled.csv", self.density),
            ("arcsm synthesize --model FOLDER -n 1000 --out rows.csv", self.density),
        )
        use = "\n".join(command for command, needed in commands if needed is not None)
        facts = [" ".join(line.split()) for line in self.lines()]
        write_card(folder, estimator_card("A fitted table", facts, estimator.columns_.names_by_type(), use))

    def lines(self) -> list[str]:
        """Return lines that say what the table holds."""
        found = [f"fitted to   {self.source}, {self.rows} rows{of_total(self.total)}"]
        if self.labels:
            found.append(f"labels      {', '.join(map(printable, self.labels))}")
        for name, estimator in (("density", self.density), ("detector", self.detector)):
            if estimator is None:
                continue
            weights = 0 if estimator.model_ is None else sum(p.numel() for p in estimator.model_.model.parameters())
            held_out = len(estimator.held_out_rows_)
            found.append(f"{name:11s} {weights:,} weights, {held_out} held-out rows, {estimator.columns_.describe()}")
        return found

    def is_of(self, rows: pd.DataFrame) -> bool:
        """Return whether these are the fitted rows."""
        return self.digest == _digest(rows)

    def density_for(self, command: str, model: Path) -> ScoreDensity:
        """Return the density, which a command needs."""
        if self.density is None:
            raise ValueError(f"{model}: was fitted with --for outliers; arcsm {command} needs arcsm fit --for values")
        return self.density

    def detector_for(self, command: str, model: Path) -> ScoreOutlierDetector:
        """Return the detector, which a command needs."""
        if self.detector is None:
            raise ValueError(f"{model}: was fitted with --for values; arcsm {command} needs arcsm fit --for outliers")
        return self.detector

    def file(self, table: TableInput, options: ReadOptions) -> FrameFile:
        """Return another table, to read like the fitted one."""
        modelled = [name for name in options.named if name in self.forms.types]
        if modelled:
            raise ValueError(
                f"column {modelled[0]!r}: is modelled in {self.source}, so --ignore and --id have no effect; give them "
                "to arcsm fit"
            )
        decimal, dialect = self.forms.decimal if self.forms.is_text else None, self.forms.dialect
        encoding = options.encoding or (self.encoding if dialect is not None else None)
        options = replace(
            options, encoding=encoding, missing=[*self.missing, *options.missing], default_decimal=decimal
        )
        return FrameFile(table.path, options, self.forms.types, table.source)


def of_total(total: int | None) -> str:
    """Return the words after a number of rows if these were drawn from ``total`` rows."""
    return "" if total is None else f" of {total}, drawn at random"


def _digest(rows: pd.DataFrame) -> str:
    return hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()
