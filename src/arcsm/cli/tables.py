"""Commands that fit a density to a table: detect outliers, impute missing values, synthesize rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from typer import Argument, Option, Typer

from arcsm._runtime.files import check_separate, check_writable
from arcsm._runtime.progress import track
from arcsm.cli.options import Device, Ignore, Seed, WithData
from arcsm.data import frame_parts, frame_writer, read_frame, write_frame
from arcsm.data.column_types import MISSING, TRUTH, has_leading_zeros
from arcsm.data.parquet_files import cast_as_parquet
from arcsm.data.table import check_reserved_columns, raw_parts
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from arcsm.estimators.checks import check_not_empty
from arcsm.estimators.detection import DETECTION_COLUMNS, DetectionResult, check_p_value
from arcsm.estimators.encoder import Columns, clip_to_dtype, encode_value, is_categorical
from arcsm.estimators.rounding import round_like
from arcsm.estimators.synthesis_quality import SynthesisQuality
from arcsm.reports.detection import write_detection_report
from arcsm.reports.synthesis import write_synthesis_report

app = Typer()

_PART_ROWS = 2_000  # scored at once


@app.command(
    epilog="Examples: arcsm detect normal.csv new.csv --out scores.csv   |   "
    "arcsm detect all.csv all.csv --contamination 0.02 --out scores.csv --report report.html"
)
def detect(
    train: Annotated[Path, Argument(metavar="TRAIN", help="A table of mostly normal rows.")],
    test: Annotated[Path, Argument(metavar="TEST", help="The table to score, with the same columns.")],
    out: Annotated[Path, Option(help="A .csv or .parquet file, with one line for each row of TEST.")],
    page: Annotated[
        Path | None, Option("--report", help="Also write an HTML report on the strongest outliers.")
    ] = None,
    contamination: Annotated[
        float | None, Option(help="Fraction of outliers in TRAIN, at most 0.5. Default: 0.1.")
    ] = None,
    p_value: Annotated[
        float | None,
        Option("--p-value", help="Flag rows with at most this p-value, in place of --contamination."),
    ] = None,
    with_data: WithData = False,
    ignore: Ignore = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Find outliers in a table, and the columns that make them so.

    The detector is fitted to TRAIN and scores the rows of TEST.

    The command ends by printing the type it inferred for each column.
    """
    if p_value is not None and (contamination is not None or not 0.0 < p_value < 1.0):
        raise ValueError(f"--p-value {p_value}: expected a number between 0 and 1, and no --contamination")
    _check_outputs(out, page, (train, test))
    if with_data:
        check_reserved_columns(test, DETECTION_COLUMNS)
    normal = read_frame(train, ignore=ignore or ())
    rows, has_missing = 0, False
    for part in frame_parts(test, normal):  # check the whole file before a fit that may take hours
        rows, has_missing = rows + len(part), has_missing or bool(part.isna().any(axis=None))
    detector = ScoreOutlierDetector(
        "auto" if contamination is None else contamination,
        missing=has_missing or "auto",
        random_state=seed,
        device=device,
        verbose=True,
    )
    if p_value is not None:
        check_p_value(p_value, detector.count_held_out(normal))
    detector.fit(normal)
    data = raw_parts(test, _PART_ROWS) if with_data else None
    with frame_writer(out) as write, track("scoring", rows, enabled=True) as work:

        def write_part(verdicts: pd.DataFrame) -> None:
            write(verdicts if data is None else pd.concat([next(data), verdicts], axis=1))

        parts = work.over(frame_parts(test, normal, _PART_ROWS), len)
        result = DetectionResult.from_parts(detector, parts, p_value, write_part)
    print(f"{train}  {len(normal)} rows, {detector.columns_.describe()}")
    print(f"{out}  {rows} rows, {result.outliers} flagged")
    if page is not None:
        write_detection_report(detector, result, page, f"Outliers in {test.name}", progress=True)
        print(page)


@app.command(epilog="Example: arcsm impute table.csv --out filled.csv")
def impute(
    table: Annotated[
        Path,
        Argument(
            metavar="TABLE",
            help="A table with missing values: in CSV, cells that are empty or NA, NaN, null, None or ?.",
        ),
    ],
    out: Annotated[Path, Option(help="A .csv or .parquet file for the table without missing values.")],
    draws: Annotated[int, Option(help="Joint draws of the missing values of a row.", min=1)] = 64,
    ignore: Ignore = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Fill in the missing values of a table, given the other values of each row.

    Known values stay as they are in the file.

    The command ends by printing the type it inferred for each column.
    """
    _check_outputs(out, None, (table,))
    rows = read_frame(table, ignore=ignore or ())
    missing = int(rows.isna().to_numpy().sum())
    if not missing:
        raise ValueError(f"{table}: no value is missing")
    density = ScoreDensity(random_state=seed, device=device, verbose=True).fit(rows)
    filled = pd.DataFrame(density.impute(rows, draws))
    write_frame(out, _fill_in_file(table, rows, filled, out, bool(ignore)))
    print(f"{table}  {len(rows)} rows, {density.columns_.describe()}")
    print(f"{out}  {missing} values filled")


@app.command(
    epilog="Examples: arcsm synthesize table.csv --out rows.csv --report rows.html   |   "
    "arcsm synthesize table.csv -n 100 --given city=Rome --given age=40 --out rows.csv"
)
def synthesize(
    table: Annotated[Path, Argument(metavar="TABLE", help="A table, which may have missing values.")],
    out: Annotated[Path, Option(help="A .csv or .parquet file for the synthetic rows.")],
    n: Annotated[int | None, Option("-n", help="Number of rows. Default: as many as TABLE has.", min=1)] = None,
    given: Annotated[
        list[str] | None, Option(metavar="COLUMN=VALUE", help="Draw rows with this value; may be repeated.")
    ] = None,
    page: Annotated[
        Path | None, Option("--report", help="Also write an HTML report that compares the rows to TABLE.")
    ] = None,
    ignore: Ignore = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Draw synthetic rows like those of a table.

    Synthetic rows have no missing values.

    The command ends by printing the type of each column, how alike both tables are, and whether rows are copies.
    """
    _check_outputs(out, page, (table,))
    rows = read_frame(table, ignore=ignore or ())
    conditions = _conditions(given or (), rows)
    density = ScoreDensity(random_state=seed, device=device, verbose=True).fit(rows)
    count = len(rows) if n is None else n
    if conditions:
        drawn = pd.DataFrame(density.conditional(list(conditions), list(conditions.values()), count))
    else:
        drawn = pd.DataFrame(density.sample(count))
    drawn = round_like(rows, density.columns_, drawn, conditions, out.suffix.lower() == ".csv")
    both_parquet = {table.suffix.lower(), out.suffix.lower()} == {".parquet"}
    write_frame(out, cast_as_parquet(table, drawn) if both_parquet else drawn)
    print(f"{table}  {len(rows)} rows, {density.columns_.describe()}")
    print(f"{out}  {count} rows" + (f", {len(drawn.drop_duplicates())} of them different" if conditions else ""))
    quality = [] if conditions else SynthesisQuality.measure(density, rows, drawn, seed).lines()
    for line in quality:
        print(line)
    if page is not None:
        remarks = quality or [f"Drawn with {' and '.join(given or ())}: the rows are not like the whole table."]
        write_synthesis_report(density, rows, drawn, remarks, page, f"{out.name}, like {table.name}", progress=True)
        print(page)


def _check_outputs(out: Path, page: Path | None, inputs: Sequence[Path]) -> None:
    """Check before the work that the outputs can be written and do not replace an input or each other."""
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"--out {out}: expected a .csv or .parquet file")
    check_writable(out)
    check_separate({"--out": out, "--report": page}, inputs)
    if page is not None:
        check_writable(page)


def _conditions(pairs: Sequence[str], table: pd.DataFrame) -> dict[str, Any]:
    """Parse ``COLUMN=VALUE`` pairs into values of the table's types, by column."""
    conditions: dict[str, Any] = {}
    check_not_empty(table)
    for pair in pairs:
        splits = [parts for parts in (pair.rpartition("="), pair.partition("=")) if parts[1] and parts[0] in table]
        if not splits:
            raise ValueError(f"--given {pair}: expected COLUMN=VALUE, with a column of {', '.join(table.columns[:20])}")
        name, _, text = splits[0]
        if name in conditions:
            raise ValueError(f"--given {pair}: {name} is given already")
        conditions[name] = _parse_value(pair, table[name], text)
        encode_value(Columns.infer(table[[name]]).kinds[0], name, conditions[name])  # raises before the fit
    return conditions


def _parse_value(pair: str, column: pd.Series, text: str) -> Any:
    """Return the value of a column that a text stands for. Names may differ in case if only one matches."""
    if not is_categorical(column.dtype):
        whole = pd.api.types.is_integer_dtype(column.dtype)
        try:
            return int(text) if whole else float(text)
        except ValueError as error:
            raise ValueError(f"--given {pair}: expected a {'whole ' * whole}number, got {text!r}") from error
    values = {str(value): value for value in column.dropna().unique()}
    matches = [value for name, value in values.items() if name.lower() == text.lower()]
    if text not in values and len(matches) != 1:
        raise ValueError(f"--given {pair}: {column.name} has no {text!r}; it has {', '.join(sorted(values))[:200]}")
    return values.get(text, matches[0])


def _fill_in_file(path: Path, rows: pd.DataFrame, filled: pd.DataFrame, out: Path, ignored: bool) -> pd.DataFrame:
    """Return the table of the file ``path`` with its missing values filled in, and all else unchanged.

    From CSV to CSV known cells keep their text; from Parquet columns keep their types. ``rows`` are the rows as read,
    without some columns of the file if ``ignored``.
    """
    from_text = path.suffix.lower() in (".csv", ".gz")
    keep_cells = path.suffix.lower() == ".parquet" or (from_text and out.suffix.lower() == ".csv")
    if not keep_cells and not ignored:
        return filled
    whole = pd.concat(raw_parts(path), ignore_index=True)
    whole.columns = [str(name) for name in whole.columns]
    if not keep_cells:
        others = {name: _text_as_numbers(whole[name]) for name in whole.columns if name not in filled.columns}
        return whole.assign(**others, **{name: filled[name].to_numpy() for name in filled.columns})
    for name in rows.columns:
        missing = rows[name].isna().to_numpy()
        if missing.any():
            values: Any = filled[name][missing]
            if not from_text:
                values = clip_to_dtype(values.to_numpy(dtype=object), whole[name].dtype)
            elif pd.api.types.is_numeric_dtype(values.dtype) and bool((rows[name].dropna() % 1 == 0).all()):
                values = [f"{value:.0f}" for value in values.round()]
            else:
                values = values.astype(str).replace(_truth_spelling(whole[name][~missing])).to_numpy()
            whole.loc[missing, name] = values
    return whole


def _text_as_numbers(column: pd.Series) -> pd.Series:
    """Convert a text column to numbers if all of its cells are numbers and none is a code with leading zeros."""
    numbers = pd.to_numeric(column.mask(column.isin(MISSING)), errors="coerce")
    texts = column[~column.isin(MISSING)]
    return column if numbers[texts.index].isna().any() or has_leading_zeros(texts) else numbers


def _truth_spelling(cells: pd.Series) -> dict[str, str]:
    """Return the most frequent spelling of ``True`` and of ``False`` in a text column."""
    words = cells.str.strip()
    counts = words[words.isin(TRUTH)].value_counts(ascending=True)
    return {word.capitalize(): word for word in counts.index}
