"""The command that finds outliers in a table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from typer import Argument, Option, Typer

from arcsm._runtime.progress import track
from arcsm.cli.console import show
from arcsm.cli.fitted_tables import FittedTable
from arcsm.cli.fitting import TABLE_KINDS, check_outputs, fit_rows, show_columns
from arcsm.cli.options import (
    Categorical,
    Decimal,
    Device,
    Encodings,
    Estimators,
    Ids,
    Ignore,
    Missing,
    Model,
    Numeric,
    SafeCSV,
    Seed,
    Separator,
    WithData,
    check_safe_csv,
    check_unused,
    read_options,
)
from arcsm.cli.table_inputs import TableInput
from arcsm.data import FrameFile, frame_writer
from arcsm.data.table import TableFile, check_reserved_columns
from arcsm.errors import SkippedWarning, warn
from arcsm.estimators import ScoreOutlierDetector
from arcsm.estimators.detection import DETECTION_COLUMNS, DetectionResult, check_p_value
from arcsm.estimators.false_discoveries import check_fdr, selection_threshold

app = Typer()

_PART_ROWS = 2_000  # scored at once


@dataclass(frozen=True)
class _Fitted:
    """The table that a detector was fitted to: its name, its number of rows, its columns and its labels."""

    source: str
    rows: int
    columns: Sequence[str]
    labels: Sequence[str]


@app.command(
    epilog="Examples: arcsm detect normal.csv new.csv --out scores.csv   |   "
    "arcsm detect all.csv all.csv --contamination 0.02 --out scores.csv --report report.html   |   "
    "arcsm detect sales.csv new.csv --id order --categorical branch --na -999 --out scores.csv   |   "
    "arcsm detect new.csv --model model --fdr 0.1 --out scores.csv"
)
def detect(
    tables: Annotated[
        list[Path],
        Argument(
            metavar="[TRAIN] TEST",
            help="A table of mostly normal rows, unless --model is fitted to one, and the table to score, with the "
            f"same columns ({TABLE_KINDS}).",
        ),
    ],
    out: Annotated[Path, Option(help="A .csv, .tsv or .parquet file, with one line for each row of TEST.")],
    model: Model = None,
    page: Annotated[
        Path | None, Option("--report", help="Also write an HTML report on the strongest outliers.")
    ] = None,
    contamination: Annotated[
        float | None,
        Option(
            help="Fraction of outliers in TRAIN, at most 0.5. Three times as many rows, which an isolation forest "
            "separates first, are not fitted. Default: TRAIN is normal, and a tenth of new rows like it are flagged. "
            "With --model, only the threshold changes.",
        ),
    ] = None,
    p_value: Annotated[
        float | None,
        Option("--p-value", help="Flag rows with at most this p-value, in place of --contamination."),
    ] = None,
    fdr: Annotated[
        float | None,
        Option(
            help="Flag rows so that at most this share of them is expected to be normal, such as 0.1, in place of "
            "--contamination. TEST is scored twice.",
        ),
    ] = None,
    with_data: WithData = False,
    safe_csv: SafeCSV = False,
    n_estimators: Estimators = None,
    seed: Seed = 0,
    device: Device = "auto",
    sep: Separator = None,
    decimal: Decimal = None,
    encoding: Encodings = None,
    na: Missing = None,
    ignore: Ignore = None,
    ids: Ids = None,
    categorical: Categorical = None,
    numeric: Numeric = None,
) -> None:
    """Find outliers in a table, and the columns that make them so.

    The detector is fitted to TRAIN, or was fitted by arcsm fit, and scores the rows of TEST. Rows are counted from 1,
    without the header. Columns that only label the rows, such as ids, are not modelled but copied to the results.

    The command ends by listing the columns of each type that it inferred.
    """
    if sum(option is not None for option in (p_value, contamination, fdr)) > 1:
        raise ValueError("expected one of --contamination, --p-value and --fdr, got several")
    if fdr is not None and not 0.0 < fdr < 1.0:
        raise ValueError(f"--fdr {fdr}: expected a number between 0 and 1")
    if p_value is not None and not 0.0 < p_value < 1.0:
        raise ValueError(f"--p-value {p_value}: expected a number between 0 and 1")
    check_outputs(out, page, tables)
    check_safe_csv(safe_csv, out)
    first, second = _two_encodings(encoding or ())
    options = read_options(sep, decimal, first, na, ignore, ids, categorical, numeric)
    normal = None  # rows that are yet to be fitted
    if model is not None:
        check_unused({"--n-estimators": n_estimators, "--categorical": categorical, "--numeric": numeric})
        if len(tables) != 1:
            raise ValueError(f"{', '.join(map(str, tables))}: with --model, expected the table to score alone")
        if len(encoding or ()) > 1:
            raise ValueError("--encoding: with --model, expected that of the table to score alone")
        known = FittedTable.read(model, device)
        detector = known.detector_for("detect", model)
        new = known.file(TableInput(tables[0]), options)
        columns, labels = [*known.forms.columns, *known.ignored, *options.ignore], [*known.labels, *options.ids]
        detected = _Fitted(known.source, known.rows, columns, labels)
    else:
        if len(tables) != 2:
            raise ValueError("expected TRAIN and TEST, or TEST and --model")
        train, test = tables
        fitted = TableInput(train)
        scored = fitted if test == train else TableInput(test)
        table = FrameFile(fitted.path, options, source=fitted.source)
        normal = table.read(set_aside=True)
        default = table.file.decimal if table.file.is_text else None
        others = replace(options, encoding=second, default_decimal=default)
        new = FrameFile(scored.path, table.known_options if scored is fitted else others, table.types, scored.source)
        labels = [name for name, reason in table.set_aside.items() if reason.is_label]
        detected = _Fitted(fitted.source, len(normal), [*table.columns, *table.options.ignore], labels)
        detector = ScoreOutlierDetector(
            n_estimators=n_estimators or "auto", random_state=seed, device=device, verbose=True
        )
    _check_results_are_new(new, detected.labels, with_data)
    rows = sum(len(part) for part in new.parts())  # checks the whole file before a fit that may take hours
    _warn_of_extra_columns(new, detected)
    if p_value is not None or fdr is not None:
        calibrating = len(detector.held_out_scores_) if normal is None else detector.count_held_out(normal)
        if p_value is not None:
            check_p_value(p_value, calibrating)
        if fdr is not None:
            check_fdr(fdr, calibrating)
    if normal is not None:
        detector.set_params(contamination="auto" if contamination is None else contamination)
        fit_rows(detector, normal, detected.source)
        if len(detector.screened_rows_):
            show(f"{len(detector.screened_rows_)} of {len(normal)} rows were not fitted, because they may be outliers")
    elif contamination is not None:
        detector.set_contamination(contamination)
    if fdr is not None:
        detector.warn_of_training_rows()
        with track("selecting", rows, enabled=True) as work:
            parts = work.over(new.parts(_PART_ROWS), len)
            p_values = np.concatenate([detector.p_values(part) for part in parts])
        p_value = selection_threshold(p_values, fdr, len(detector.held_out_scores_))
    result = _write_scores(detector, new, out, detected.labels, with_data, p_value, rows, safe_csv)
    show_columns(detected.source, detected.rows, detector.columns_)
    show(f"{out}  {rows} rows, {result.outliers} flagged")
    if page is not None:
        from arcsm.reports.detection import write_detection_report  # loads matplotlib

        title = f"Outliers in {Path(new.file.source).name}"
        write_detection_report(detector, result, page, title, progress=True)
        show(page)


def _two_encodings(encodings: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the encodings of TRAIN and of TEST, which are the same unless two are given."""
    if len(encodings) > 2:
        raise ValueError(f"--encoding: expected one, or those of TRAIN and of TEST, got {', '.join(encodings)}")
    return (encodings[0], encodings[-1]) if encodings else (None, None)


def _write_scores(
    detector: ScoreOutlierDetector,
    new: FrameFile,
    out: Path,
    labels: Sequence[str],
    with_data: bool,
    p_value: float | None,
    rows: int,
    safe_csv: bool,
) -> DetectionResult:
    """Score a table in parts and write a line for each row, beside its labels or all columns of the file."""
    data = new.file.raw_parts(_PART_ROWS) if with_data or labels or new.file.index else None
    like = new.file if out.suffix.lower() == ".parquet" else None
    with frame_writer(out, like, safe_csv) as write, track("scoring", rows, enabled=True) as work:

        def write_part(verdicts: pd.DataFrame) -> None:
            if data is not None:
                raw = next(data)
                verdicts = (
                    pd.concat([raw, verdicts], axis=1) if with_data else _labelled(new.file, raw, labels, verdicts)
                )
            write(verdicts)

        return DetectionResult.from_parts(detector, work.over(new.parts(_PART_ROWS), len), p_value, write_part)


def _warn_of_extra_columns(new: FrameFile, fitted: _Fitted) -> None:
    extra = [name for name in next(new.file.parts(1)).columns if name not in fitted.columns]
    if extra:
        warn(f"{new.file.source}: not in {fitted.source}, so left out: {', '.join(extra)}", SkippedWarning)


def _check_results_are_new(new: FrameFile, labels: Sequence[str], with_data: bool) -> None:
    """Check that no column that will be copied has the name of a column of results."""
    if with_data:
        check_reserved_columns(new.file, DETECTION_COLUMNS)
    else:
        check_reserved_columns(new.file, DETECTION_COLUMNS[1:], labels)  # a label `row` takes the place of the numbers


def _labelled(file: TableFile, raw: pd.DataFrame, ids: Sequence[str], verdicts: pd.DataFrame) -> pd.DataFrame:
    """Insert the labels of the rows after their numbers, or in place of these if a label is named ``row``, too."""
    labels = file.labels(raw, ids)
    numbers = verdicts[[] if "row" in labels.columns else ["row"]]
    return pd.concat([numbers, labels, verdicts.drop(columns="row")], axis=1)
