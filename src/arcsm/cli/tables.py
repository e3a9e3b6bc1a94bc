"""Commands that fit a table and judge or fill it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from arcsm._runtime.files import check_separate, check_writable
from arcsm._runtime.progress import track
from arcsm.cli.options import Device, Ignore, Seed, WithData
from arcsm.data import frame_parts, frame_writer, read_frame, write_frame
from arcsm.data.cells import are_codes
from arcsm.data.csv_files import MISSING, TRUTH
from arcsm.data.frames import check_not_taken, parts_as_written, typed_as
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from arcsm.estimators.checks import check_not_empty
from arcsm.estimators.detection import DETECTION_COLUMNS, DetectionResult, check_p_value
from arcsm.estimators.encoder import Columns, clip_to_dtype, encode_value, is_categorical
from arcsm.estimators.rounding import round_like
from arcsm.estimators.synthesis_quality import SynthesisQuality
from arcsm.reports.detection import write_detection_report
from arcsm.reports.synthesis import write_synthesis_report

app = typer.Typer()

_JUDGED_AT_ONCE = 2_000  # rows of a table: a progress bar that moves, and bounded memory


@app.command(
    epilog="Examples: arcsm detect normal.csv new.csv --out scores.csv   |   "
    "arcsm detect all.csv all.csv --contamination 0.02 --out scores.csv --report report.html"
)
def detect(
    train: Annotated[Path, typer.Argument(metavar="TRAIN", help="A table, most of whose rows are normal.")],
    test: Annotated[Path, typer.Argument(metavar="TEST", help="A table with the same columns, to be judged.")],
    out: Annotated[Path, typer.Option(help="A .csv or .parquet file: a line for every row of TEST.")],
    page: Annotated[Path | None, typer.Option("--report", help="A page about the most surprising rows.")] = None,
    contamination: Annotated[
        float | None, typer.Option(help="Share of TRAIN that is taken for outliers, up to 0.5; 0.1 without.")
    ] = None,
    p_value: Annotated[
        float | None, typer.Option("--p-value", help="Flag rows at most this likely, in place of a share.")
    ] = None,
    with_data: WithData = False,
    ignore: Ignore = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Find the rows of a table that do not belong, and say which columns are to top_contributions."""
    if p_value is not None and (contamination is not None or not 0.0 < p_value < 1.0):
        raise ValueError(f"--p-value {p_value}: expected a number between 0 and 1, and no --contamination")
    _check_out(out)
    check_separate({"--out": out, "--report": page}, (train, test))
    if page is not None:
        check_writable(page)
    if with_data:
        check_not_taken(test, DETECTION_COLUMNS)
    normal = read_frame(train, ignore=ignore or ())
    rows, gaps = 0, False
    for part in frame_parts(test, normal):  # all of it is looked at before hours may be spent
        rows, gaps = rows + len(part), gaps or bool(part.isna().any(axis=None))
    detector = ScoreOutlierDetector(
        "auto" if contamination is None else contamination,
        missing=gaps or "auto",
        random_state=seed,
        device=device,
        verbose=True,
    )
    if p_value is not None:
        check_p_value(p_value, detector.count_held_out(normal))
    detector.fit(normal)
    own = parts_as_written(test, _JUDGED_AT_ONCE) if with_data else None
    with frame_writer(out) as write, track("judging", rows, enabled=True) as advance:

        def written(found: pd.DataFrame) -> None:
            write(found if own is None else pd.concat([next(own), found], axis=1))
            advance(len(found))

        judged = DetectionResult.from_parts(detector, frame_parts(test, normal, _JUDGED_AT_ONCE), p_value, written)
    print(f"{train}  {len(normal)} rows, {detector.columns_.describe()}")
    print(f"{out}  {rows} rows, {judged.outliers} flagged")
    if page is not None:
        write_detection_report(detector, judged, page, f"{test.name}, judged by {train.name}")
        print(page)


@app.command(epilog="Example: arcsm impute table.csv --out filled.csv")
def impute(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="A table with missing values: in CSV, cells that are empty or NA, NaN, null, None, ?.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="A .csv or .parquet file: the table with its gaps filled.")],
    draws: Annotated[int, typer.Option(help="Joint draws of the missing values of a row.", min=1)] = 64,
    ignore: Ignore = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Fill the missing values of a table by what the rest of each row says of them."""
    _check_out(out)
    check_separate({"--out": out}, (table,))
    rows = read_frame(table, ignore=ignore or ())
    gaps = int(rows.isna().to_numpy().sum())
    if not gaps:
        raise ValueError(f"{table}: no value is missing")
    density = ScoreDensity(random_state=seed, device=device, verbose=True).fit(rows)
    filled = density.impute(rows, draws)
    write_frame(out, _with_gaps_filled(table, rows, pd.DataFrame(filled), out, bool(ignore)))
    print(f"{table}  {len(rows)} rows, {density.columns_.describe()}")
    print(f"{out}  {gaps} values filled")


@app.command(
    epilog="Examples: arcsm synthesize table.csv --out rows.csv --report rows.html   |   "
    "arcsm synthesize table.csv -n 100 --given city=Rome --given age=40 --out rows.csv"
)
def synthesize(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A table; it may have gaps, the new rows have none.")],
    out: Annotated[Path, typer.Option(help="A .csv or .parquet file: the synthetic rows.")],
    n: Annotated[int | None, typer.Option("-n", help="Rows to draw; by default as many as TABLE has.", min=1)] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Draw rows that have this value; may be repeated."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--report", help="A page that shows them beside the table's rows.")
    ] = None,
    ignore: Ignore = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Draw synthetic rows like those of a table, and say how like them they are, and whether they are copies."""
    _check_out(out)
    check_separate({"--out": out, "--report": page}, (table,))
    if page is not None:
        check_writable(page)
    rows = read_frame(table, ignore=ignore or ())
    wanted = _given(given or (), rows)
    density = ScoreDensity(random_state=seed, device=device, verbose=True).fit(rows)
    count = len(rows) if n is None else n
    if wanted:
        drawn = pd.DataFrame(density.conditional(list(wanted), list(wanted.values()), count))
    else:
        drawn = pd.DataFrame(density.sample(count))
    drawn = round_like(rows, density.columns_, drawn, wanted, out.suffix.lower() == ".csv")
    write_frame(out, typed_as(table, drawn) if {table.suffix.lower(), out.suffix.lower()} == {".parquet"} else drawn)
    print(f"{table}  {len(rows)} rows, {density.columns_.describe()}")
    print(f"{out}  {count} rows" + (f", {len(drawn.drop_duplicates())} of them different" if wanted else ""))
    found = [] if wanted else SynthesisQuality.measure(density, rows, drawn, seed).lines()
    print(*found, sep="\n", end="\n" if found else "")
    if page is not None:
        said = found or [f"Drawn with {' and '.join(given or ())}: they are not like the whole table."]
        write_synthesis_report(density, rows, drawn, said, page, f"{out.name}, like {table.name}")
        print(page)


def _given(pairs: Sequence[str], table: pd.DataFrame) -> dict[str, Any]:
    """``COLUMN=VALUE`` as the table has them.

    Raises:
        ValueError: for what is no such pair, an unknown column, or a value that is none of its own.
    """
    found: dict[str, Any] = {}
    check_not_empty(table)
    for pair in pairs:
        splits = [parts for parts in (pair.rpartition("="), pair.partition("=")) if parts[1] and parts[0] in table]
        if not splits:
            raise ValueError(f"--given {pair}: expected COLUMN=VALUE, a column of {', '.join(table.columns[:20])}")
        name, _, text = splits[0]
        if name in found:
            raise ValueError(f"--given {pair}: {name} is given already")
        found[name] = _value(pair, table[name], text)
        encode_value(Columns.infer(table[[name]]).kinds[0], name, found[name])  # refused before anything is fitted
    return found


def _value(pair: str, column: pd.Series, text: str) -> Any:
    """A value of a column by its text; names in another case, where that leaves no doubt."""
    if not is_categorical(column.dtype):
        whole = pd.api.types.is_integer_dtype(column.dtype)
        try:
            return int(text) if whole else float(text)
        except ValueError as error:
            raise ValueError(f"--given {pair}: expected a {'whole ' * whole}number, got {text!r}") from error
    values = {str(value): value for value in column.dropna().unique()}
    alike = [value for name, value in values.items() if name.lower() == text.lower()]
    if text not in values and len(alike) != 1:
        raise ValueError(f"--given {pair}: {column.name} has no {text!r}; it has {', '.join(sorted(values))[:200]}")
    return values.get(text, alike[0])


def _check_out(out: Path) -> None:
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"--out {out}: expected a .csv or .parquet file")
    check_writable(out)


def _with_gaps_filled(
    path: Path, rows: pd.DataFrame, filled: pd.DataFrame, out: Path, ignored: bool = False
) -> pd.DataFrame:
    """The table of a file with its gaps filled; all else is what it was, to the letter where text becomes text.

    Arguments:
        path: The file.
        rows: What was read from it.
        filled: The same with its gaps filled.
        out: The file that is to be written.
        ignored: Whether the file has columns that were left out of ``rows``.
    """
    text = path.suffix.lower() in (".csv", ".gz")
    as_it_is = path.suffix.lower() == ".parquet" or (text and out.suffix.lower() == ".csv")
    if not as_it_is and not ignored:
        return filled
    whole = pd.concat(parts_as_written(path), ignore_index=True)
    whole.columns = [str(name) for name in whole.columns]
    if not as_it_is:
        others = {name: _typed(whole[name]) for name in whole.columns if name not in filled.columns}
        return whole.assign(**others, **{name: filled[name].to_numpy() for name in filled.columns})
    for name in rows.columns:
        gaps = rows[name].isna().to_numpy()
        if not gaps.any():
            continue
        if not text:
            whole.loc[gaps, name] = clip_to_dtype(filled[name][gaps].to_numpy(dtype=object), whole[name].dtype)
        elif pd.api.types.is_numeric_dtype(filled[name].dtype) and bool((rows[name].dropna() % 1 == 0).all()):
            whole.loc[gaps, name] = [f"{value:.0f}" for value in filled[name][gaps].round()]
        else:
            fillings = filled[name][gaps].astype(str)
            whole.loc[gaps, name] = fillings.replace(_spelled(whole[name][~gaps])).to_numpy()
    return whole


def _typed(column: pd.Series) -> pd.Series:
    """A column of text as numbers, if all of its cells are, and none of them a code."""
    numbers = pd.to_numeric(column.mask(column.isin(MISSING)), errors="coerce")
    texts = column[~column.isin(MISSING)]
    return column if numbers[texts.index].isna().any() or are_codes(texts) else numbers


def _spelled(cells: pd.Series) -> dict[str, str]:
    """How a column of text writes truth values, by how Python does: each as most of its cells do."""
    words = cells.str.strip()
    counts = words[words.isin(TRUTH)].value_counts(ascending=True)
    return {word.capitalize(): word for word in counts.index}
