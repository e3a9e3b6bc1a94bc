"""Commands that fit a density to a table: detect outliers, impute missing values, synthesize rows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Annotated

import pandas as pd
from typer import Argument, Option, Typer

from arcsm._runtime.files import check_separate, check_writable
from arcsm._runtime.progress import track
from arcsm._runtime.terminal import printable
from arcsm.cli.console import show
from arcsm.cli.filling import fill_in_file
from arcsm.cli.given_values import given_values
from arcsm.cli.options import (
    Categorical,
    Decimal,
    Device,
    Encoding,
    Encodings,
    Estimators,
    Ids,
    Ignore,
    Missing,
    Numeric,
    SafeCSV,
    Seed,
    Separator,
    WithData,
    check_safe_csv,
)
from arcsm.cli.table_inputs import TableInput
from arcsm.data import FrameFile, ReadOptions, frame_writer
from arcsm.data.parquet_files import cast_as_parquet
from arcsm.data.table import TableFile, check_reserved_columns
from arcsm.errors import SkippedWarning, warn
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from arcsm.estimators.detection import DETECTION_COLUMNS, DetectionResult, check_p_value
from arcsm.estimators.encoder import Columns
from arcsm.estimators.rounding import round_like
from arcsm.estimators.synthesis_quality import SynthesisQuality
from arcsm.reports.detection import write_detection_report
from arcsm.reports.synthesis import write_synthesis_report

app = Typer()

_PART_ROWS = 2_000  # scored at once
_MAX_LISTED = 60  # columns
_TABLE = ".csv, .tsv, .parquet, .npy or .npz, or - for standard input"


@app.command(
    epilog="Examples: arcsm detect normal.csv new.csv --out scores.csv   |   "
    "arcsm detect all.csv all.csv --contamination 0.02 --out scores.csv --report report.html   |   "
    "arcsm detect sales.csv new.csv --id order --categorical branch --na -999 --out scores.csv"
)
def detect(
    train: Annotated[Path, Argument(metavar="TRAIN", help=f"A table of mostly normal rows ({_TABLE}).")],
    test: Annotated[Path, Argument(metavar="TEST", help="The table to score, with the same columns.")],
    out: Annotated[Path, Option(help="A .csv, .tsv or .parquet file, with one line for each row of TEST.")],
    page: Annotated[
        Path | None, Option("--report", help="Also write an HTML report on the strongest outliers.")
    ] = None,
    contamination: Annotated[
        float | None,
        Option(help="Fraction of outliers in TRAIN, at most 0.5. Default: flag a tenth of new rows like it."),
    ] = None,
    p_value: Annotated[
        float | None,
        Option("--p-value", help="Flag rows with at most this p-value, in place of --contamination."),
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

    The detector is fitted to TRAIN and scores the rows of TEST. Rows are counted from 1, without the header. Columns
    that only label the rows, such as ids, are not modelled but copied to the results.

    The command ends by listing the columns of each type that it inferred.
    """
    if p_value is not None and contamination is not None:
        raise ValueError("--p-value: expected either this or --contamination, got both")
    if p_value is not None and not 0.0 < p_value < 1.0:
        raise ValueError(f"--p-value {p_value}: expected a number between 0 and 1")
    _check_outputs(out, page, (train, test))
    check_safe_csv(safe_csv, out)
    first, second = _two_encodings(encoding or ())
    options = ReadOptions(
        separator=sep, decimal=decimal, encoding=first, missing=na or (), ignore=ignore or (), ids=ids or (),
        categorical=categorical or (), numeric=numeric or (),
    )  # fmt: skip
    fitted = TableInput(train)
    scored = fitted if test == train else TableInput(test)
    table = FrameFile(fitted.path, options, source=fitted.source)
    normal = table.read(set_aside=True)
    default = table.file.decimal if table.file.is_text else None
    others = replace(options, encoding=second, default_decimal=default)
    new = FrameFile(scored.path, table.known_options if scored is fitted else others, table.types, scored.source)
    labels = [name for name, reason in table.set_aside.items() if reason.is_label]
    if with_data:
        check_reserved_columns(new.file, DETECTION_COLUMNS)
    else:
        check_reserved_columns(new.file, DETECTION_COLUMNS[1:], labels)  # a label `row` takes the place of the numbers
    rows = sum(len(part) for part in new.parts())  # checks the whole file before a fit that may take hours
    _warn_of_extra_columns(new, table)
    detector = ScoreOutlierDetector(
        "auto" if contamination is None else contamination,
        n_estimators or "auto",
        random_state=seed,
        device=device,
        verbose=True,
    )
    if p_value is not None:
        check_p_value(p_value, detector.count_held_out(normal))
    _fit(detector, normal, fitted.source)
    result = _write_scores(detector, new, out, labels, with_data, p_value, rows, safe_csv)
    _show_columns(fitted.source, len(normal), detector.columns_)
    show(f"{out}  {rows} rows, {result.outliers} flagged")
    if page is not None:
        write_detection_report(detector, result, page, f"Outliers in {Path(scored.source).name}", progress=True)
        show(page)


@app.command(
    epilog="Examples: arcsm impute table.csv --out filled.csv   |   "
    "arcsm impute messwerte.csv --sep ';' --decimal , --na k.A. --out filled.csv   |   "
    "zcat table.csv.gz | arcsm impute - --out filled.csv"
)
def impute(
    table: Annotated[
        Path,
        Argument(
            metavar="TABLE",
            help=f"A table with missing values ({_TABLE}): in CSV, cells that are empty or NA, NaN, null, None or ?.",
        ),
    ],
    out: Annotated[Path, Option(help="A .csv, .tsv or .parquet file for the table without missing values.")],
    draws: Annotated[int, Option(help="Joint draws of the missing values of a row.", min=1)] = 64,
    safe_csv: SafeCSV = False,
    n_estimators: Estimators = None,
    seed: Seed = 0,
    device: Device = "auto",
    sep: Separator = None,
    decimal: Decimal = None,
    encoding: Encoding = None,
    na: Missing = None,
    ignore: Ignore = None,
    ids: Ids = None,
    categorical: Categorical = None,
    numeric: Numeric = None,
) -> None:
    """Fill in the missing values of a table, given the other values of each row.

    Known values stay as they are in the file. Filled values are written in the same form, such as $1,234.50. A table
    without missing values is copied.

    The command ends by listing the columns of each type that it inferred.
    """
    _check_outputs(out, None, (table,))
    check_safe_csv(safe_csv, out)
    options = ReadOptions(
        separator=sep, decimal=decimal, encoding=encoding, missing=na or (), ignore=ignore or (), ids=ids or (),
        categorical=categorical or (), numeric=numeric or (),
    )  # fmt: skip
    source = TableInput(table)
    file = FrameFile(source.path, options, source=source.source)
    rows = file.read(set_aside=True)
    missing = int(rows.isna().to_numpy().sum())
    filled, columns = rows, None
    if missing:
        density = ScoreDensity(n_estimators or "auto", random_state=seed, device=device, verbose=True)
        _fit(density, rows, source.source)
        filled, columns = pd.DataFrame(density.impute(rows, draws=draws)), density.columns_
    with frame_writer(out, file.file, safe_csv) as write:
        write(fill_in_file(file, rows, filled, out))
    _show_columns(source.source, len(rows), columns or Columns.infer(rows))
    show(f"{out}  {missing} values filled" if missing else f"{out}  no value is missing: a copy, nothing fitted")


@app.command(
    epilog="Examples: arcsm synthesize table.csv --out rows.csv --report rows.html   |   "
    "arcsm synthesize table.csv -n 100 --given city=Rome --given day=2026-11-25 --out rows.csv   |   "
    "arcsm synthesize table.csv --gaps --out rows.csv"
)
def synthesize(
    table: Annotated[Path, Argument(metavar="TABLE", help=f"A table, which may have missing values ({_TABLE}).")],
    out: Annotated[Path, Option(help="A .csv, .tsv or .parquet file for the synthetic rows.")],
    n: Annotated[int | None, Option("-n", help="Number of rows. Default: as many as TABLE has.", min=1)] = None,
    given: Annotated[
        list[str] | None, Option(metavar="COLUMN=VALUE", help="Draw rows with this value; may be repeated.")
    ] = None,
    page: Annotated[
        Path | None, Option("--report", help="Also write an HTML report that compares the rows to TABLE.")
    ] = None,
    gaps: Annotated[bool, Option("--gaps", help="Leave values out as TABLE does. Default: rows are complete.")] = False,
    safe_csv: SafeCSV = False,
    n_estimators: Estimators = None,
    seed: Seed = 0,
    device: Device = "auto",
    sep: Separator = None,
    decimal: Decimal = None,
    encoding: Encoding = None,
    na: Missing = None,
    ignore: Ignore = None,
    ids: Ids = None,
    categorical: Categorical = None,
    numeric: Numeric = None,
) -> None:
    """Draw synthetic rows like those of a table.

    Synthetic rows have no missing values, unless you ask for gaps. Values have the form that they have in the file,
    such as $1,234.50. Columns of ids that are whole numbers continue after the highest one; other ids and free text are
    left out.

    The command ends by listing the columns of each type, how similar the synthetic rows are to the table, and how many
    are copies.
    """
    if gaps and given:
        raise ValueError("--gaps: rows with given values are complete; leave out --gaps or --given")
    _check_outputs(out, page, (table,))
    check_safe_csv(safe_csv, out)
    options = ReadOptions(
        separator=sep, decimal=decimal, encoding=encoding, missing=na or (), ignore=ignore or (), ids=ids or (),
        categorical=categorical or (), numeric=numeric or (),
    )  # fmt: skip
    source = TableInput(table)
    file = FrameFile(source.path, options, source=source.source)
    rows = file.read(set_aside=True)
    conditions = given_values(given or (), file, rows)
    density = ScoreDensity(n_estimators or "auto", random_state=seed, device=device, verbose=True)
    _fit(density, rows, source.source)
    count = len(rows) if n is None else n
    drawn = pd.DataFrame(density.conditional(conditions, count) if conditions else density.sample(count, gaps=gaps))
    as_text = out.suffix.lower() != ".parquet"
    drawn = round_like(rows, density.columns_, drawn, conditions, as_text)
    written = _numbered(file, file.written(drawn, as_text))
    if not as_text and file.file.suffix == ".parquet":
        written = cast_as_parquet(file.file.path, written)
    with frame_writer(out, file.file, safe_csv) as write:
        write(written)
    _show_columns(source.source, len(rows), density.columns_)
    show(f"{out}  {count} rows" + (f", {len(drawn.drop_duplicates())} of them different" if conditions else ""))
    quality = [] if conditions else SynthesisQuality.measure(density, rows, drawn, seed).lines()
    for line in quality:
        show(line)
    if page is not None:
        remarks = quality or [f"Drawn with {' and '.join(given or ())}: the rows are not like the whole table."]
        title = f"{out.name}, like {Path(source.source).name}"
        write_synthesis_report(density, rows, drawn, remarks, page, title, progress=True)
        show(page)


def _show_columns(source: str, rows: int, columns: Columns) -> None:
    """Print how many columns there are of each type and, unless there are too many, which."""
    show(f"{source}  {rows} rows, {columns.describe()}")
    if len(columns.kinds) > _MAX_LISTED:
        return
    for words, names in columns.names_by_type().items():
        listed = ", ".join(map(printable, names))
        show(fill(f"{words}: {listed}", 100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))


def _fit(estimator: ScoreDensity | ScoreOutlierDetector, rows: pd.DataFrame, source: str) -> None:
    """Fit the rows of a file, whose name errors begin with."""
    try:
        estimator.fit(rows)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _check_outputs(out: Path, page: Path | None, inputs: Sequence[Path]) -> None:
    """Check before the work that the outputs can be written and do not replace an input or each other."""
    if out.suffix.lower() not in (".csv", ".tsv", ".parquet"):
        raise ValueError(f"--out {out}: expected a .csv, .tsv or .parquet file")
    check_writable(out)
    check_separate({"--out": out, "--report": page}, inputs)
    if page is not None:
        check_writable(page)


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


def _warn_of_extra_columns(new: FrameFile, table: FrameFile) -> None:
    known = [*table.columns, *table.options.ignore]
    extra = [name for name in next(new.file.parts(1)).columns if name not in known]
    if extra:
        warn(f"{new.file.source}: not in {table.file.source}, so left out: {', '.join(extra)}", SkippedWarning)


def _labelled(file: TableFile, raw: pd.DataFrame, ids: Sequence[str], verdicts: pd.DataFrame) -> pd.DataFrame:
    """Insert the labels of the rows after their numbers, or in place of these if a label is named ``row``, too."""
    labels = file.labels(raw, ids)
    numbers = verdicts[[] if "row" in labels.columns else ["row"]]
    return pd.concat([numbers, labels, verdicts.drop(columns="row")], axis=1)


def _numbered(file: FrameFile, rows: pd.DataFrame) -> pd.DataFrame:
    """Insert the ids of new rows: whole numbers after the highest ones of the table."""
    rows = rows.copy()
    for name in file.highest:
        rows[name] = file.next_ids(name, len(rows)).to_numpy()
    return rows[[name for name in file.columns if name in rows.columns]]
