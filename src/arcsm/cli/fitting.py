"""The command that fits a table once for all others, and what they share with it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Annotated, Literal

import pandas as pd
from typer import Argument, Option, Typer

from arcsm._runtime.files import check_separate, check_writable
from arcsm._runtime.terminal import printable
from arcsm.cli.console import show
from arcsm.cli.fitted_tables import FittedTable, of_total
from arcsm.cli.kinds import is_fitted_table
from arcsm.cli.options import (
    Categorical,
    Decimal,
    Device,
    Encoding,
    Estimators,
    Ids,
    Ignore,
    Missing,
    Numeric,
    Seed,
    Separator,
    read_options,
)
from arcsm.cli.table_inputs import TableInput
from arcsm.data import SampledFile
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from arcsm.estimators.encoder import Columns
from arcsm.serialization import weights_path

app = Typer()

TABLE_KINDS = ".csv, .tsv, .parquet, .npy or .npz, or - for standard input"
_MAX_LISTED = 60  # columns


@app.command(
    epilog="Examples: arcsm fit table.csv --out model   |   arcsm detect new.csv --model model --out scores.csv   |   "
    "arcsm impute gaps.csv --model model --out filled.csv   |   arcsm synthesize --model model -n 100 --out rows.csv"
)
def fit(
    table: Annotated[Path, Argument(metavar="TABLE", help=f"A table, which may have missing values ({TABLE_KINDS}).")],
    out: Annotated[Path, Option(help="A folder or a .safetensors file for the fitted table.")],
    purpose: Annotated[
        Literal["all", "outliers", "values"],
        Option(
            "--for",
            help="all; outliers, for arcsm detect alone; or values, for arcsm impute, synthesize and score alone.",
        ),
    ] = "all",
    most_rows: Annotated[
        int | None,
        Option(
            "--rows",
            help="Fit at most this many rows of TABLE, drawn at random. Default: 1,000,000, and fewer if there are "
            "more than 50 columns.",
            min=2,
        ),
    ] = None,
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
    """Fit a table once; detect, impute, synthesize and score use it with --model, here or on another machine.

    A table larger than memory is read in parts. The fitted table holds no pickled objects, so it is safe to open. It
    holds names and values of TABLE.

    The command ends by listing the columns of each type that it inferred.
    """
    if out.suffix not in ("", ".safetensors"):
        raise ValueError(f"--out {out}: expected a folder or a .safetensors file")
    file = weights_path(out)
    check_writable(file)
    check_separate({"--out": file}, (table,))
    if file.exists() and not is_fitted_table(file):
        raise ValueError(f"--out {out}: holds something else than a fitted table; choose another name")
    options = read_options(sep, decimal, encoding, na, ignore, ids, categorical, numeric)
    source = TableInput(table)
    frame = SampledFile(source.path, most_rows, seed, options, source.source, progress=True)
    rows = frame.read(set_aside=True)
    density = detector = None
    if purpose != "values":
        detector = ScoreOutlierDetector(
            n_estimators=n_estimators or "auto", random_state=seed, device=device, verbose=True
        )
        fit_rows(detector, rows, source.source)
    if purpose != "outliers":
        density = ScoreDensity(n_estimators or "auto", random_state=seed, device=device, verbose=True)
        fit_rows(density, rows, source.source)
    known = FittedTable.of_file(frame, rows, density, detector)
    known.write(out)
    fitted = density or detector
    assert fitted is not None
    show_columns(source.source, len(rows), fitted.columns_, known.total)
    uses = ["detect"] * (detector is not None) + ["impute", "synthesize", "score"] * (density is not None)
    show(f"{out}  for arcsm {', '.join(uses)}, with --model {out}; or look at it: arcsm serve {out}")


def fit_rows(estimator: ScoreDensity | ScoreOutlierDetector, rows: pd.DataFrame, source: str) -> None:
    """Fit the rows of a file, whose name errors begin with."""
    with about_file(source):
        estimator.fit(rows)


@contextmanager
def about_file(source: str) -> Iterator[None]:
    """Let errors begin with the name of a file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def show_columns(source: str, rows: int, columns: Columns, total: int | None = None) -> None:
    """Print how many columns there are of each type and, unless there are too many, which.

    The rows may have been drawn from a ``total``.
    """
    show(f"{source}  {rows} rows{of_total(total)}, {columns.describe()}")
    if len(columns.kinds) > _MAX_LISTED:
        return
    for words, names in columns.names_by_type().items():
        listed = ", ".join(map(printable, names))
        show(fill(f"{words}: {listed}", 100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))


def check_outputs(out: Path, page: Path | None, inputs: Sequence[Path]) -> None:
    """Check before the work that the outputs can be written and do not replace an input or each other."""
    if out.suffix.lower() not in (".csv", ".tsv", ".parquet"):
        raise ValueError(f"--out {out}: expected a .csv, .tsv or .parquet file")
    check_writable(out)
    check_separate({"--out": out, "--report": page}, inputs)
    if page is not None:
        check_writable(page)
