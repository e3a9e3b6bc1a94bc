"""Commands that use the density of a table: impute missing values, synthesize rows."""

from pathlib import Path
from typing import Annotated

import pandas as pd
from typer import Argument, Option, Typer

from arcsm.cli.console import show
from arcsm.cli.filling import fill_in_file
from arcsm.cli.fitted_tables import FittedTable
from arcsm.cli.fitting import TABLE_KINDS, check_outputs, fit_rows, show_columns
from arcsm.cli.given_values import given_values
from arcsm.cli.options import (
    Categorical,
    Decimal,
    Device,
    Encoding,
    Estimators,
    Ids,
    Ignore,
    Missing,
    Model,
    Numeric,
    SafeCSV,
    Seed,
    Separator,
    check_safe_csv,
    check_unused,
    read_options,
)
from arcsm.cli.private_rows import PrivateRows
from arcsm.cli.table_inputs import TableInput
from arcsm.data import FrameFile, frame_writer
from arcsm.data.parquet_files import cast_as_parquet
from arcsm.estimators import ScoreDensity
from arcsm.estimators.encoder import Columns
from arcsm.estimators.rounding import round_like
from arcsm.estimators.synthesis_quality import SynthesisQuality

app = Typer()


@app.command(
    epilog="Examples: arcsm impute table.csv --out filled.csv   |   "
    "arcsm impute messwerte.csv --sep ';' --decimal , --na k.A. --out filled.csv   |   "
    "zcat table.csv.gz | arcsm impute - --out filled.csv   |   arcsm impute new.csv --model model --out filled.csv"
)
def impute(
    table: Annotated[
        Path,
        Argument(
            metavar="TABLE",
            help=f"A table with missing values ({TABLE_KINDS}): in CSV, cells that are empty or NA, NaN, null, None or "
            "?.",
        ),
    ],
    out: Annotated[Path, Option(help="A .csv, .tsv or .parquet file for the table without missing values.")],
    model: Model = None,
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

    The density is fitted to TABLE, unless --model holds one that was fitted by arcsm fit. Known values stay as they are
    in the file. Filled values are written in the same form, such as $1,234.50. A table without missing values is
    copied.

    The command ends by listing the columns of each type that it inferred.
    """
    check_outputs(out, None, (table,))
    check_safe_csv(safe_csv, out)
    options = read_options(sep, decimal, encoding, na, ignore, ids, categorical, numeric)
    source, density, forms, decimals = TableInput(table), None, None, None
    if model is not None:
        check_unused({"--n-estimators": n_estimators, "--categorical": categorical, "--numeric": numeric})
        known = FittedTable.read(model, device)
        density, file = known.density_for("impute", model), known.file(source, options)
        forms, decimals = known.forms, known.decimals
        rows = file.read()
    else:
        file = FrameFile(source.path, options, source=source.source)
        rows = file.read(set_aside=True)
    missing = int(rows.isna().to_numpy().sum())
    filled, columns = rows, None if density is None else density.columns_
    if missing:
        if density is None:
            density = ScoreDensity(n_estimators or "auto", random_state=seed, device=device, verbose=True)
            fit_rows(density, rows, source.source)
        filled, columns = pd.DataFrame(density.impute(rows, draws=draws, random_state=seed)), density.columns_
    with frame_writer(out, file.file, safe_csv) as write:
        write(fill_in_file(file, rows, filled, out, forms, decimals))
    show_columns(source.source, len(rows), columns or Columns.infer(rows))
    show(
        f"{out}  {missing} values filled"
        if missing
        else f"{out}  no value is missing: a copy" + ", nothing fitted" * (model is None)
    )


@app.command(
    epilog="Examples: arcsm synthesize table.csv --out rows.csv --report rows.html   |   "
    "arcsm synthesize table.csv -n 100 --given city=Rome --given day=2026-11-25 --out rows.csv   |   "
    "arcsm synthesize table.csv --gaps --out rows.csv   |   arcsm synthesize --model model -n 100 --out rows.csv   |   "
    "arcsm synthesize patients.csv --epsilon 1 --out public.csv"
)
def synthesize(
    out: Annotated[Path, Option(help="A .csv, .tsv or .parquet file for the synthetic rows.")],
    table: Annotated[
        Path | None,
        Argument(
            metavar="[TABLE]",
            help=f"A table, which may have missing values ({TABLE_KINDS}). With --model, the table to compare with.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    n: Annotated[int | None, Option("-n", help="Number of rows. Default: as many as the table has.", min=1)] = None,
    given: Annotated[
        list[str] | None, Option(metavar="COLUMN=VALUE", help="Draw rows with this value; may be repeated.")
    ] = None,
    page: Annotated[
        Path | None, Option("--report", help="Also write an HTML report that compares the rows to TABLE.")
    ] = None,
    gaps: Annotated[bool, Option("--gaps", help="Leave values out as TABLE does. Default: rows are complete.")] = False,
    epsilon: Annotated[
        float | None,
        Option(
            help="Protect each row of TABLE by differential privacy with this budget: 1 is strong, 10 is weak. The "
            "noise does not depend on --seed.",
            show_default=False,
        ),
    ] = None,
    delta: Annotated[
        float | None,
        Option(help="With --epsilon, the probability that it fails. Default: 0.000001.", show_default=False),
    ] = None,
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

    The density is fitted to TABLE, unless --model holds one that was fitted by arcsm fit. Synthetic rows have no
    missing values, unless you ask for gaps. Values have the form that they have in the file, such as $1,234.50.
    Columns of ids that are whole numbers continue after the highest one; other ids and free text are left out.

    The command ends by listing the columns of each type, how similar the synthetic rows are to the table, and how many
    are copies.

    With --epsilon the rows may be published: they say nearly the same with any one row of TABLE as without it. Names,
    types and formats of columns are taken as public. Each run spends the budget again. No model is trained, unless
    --given needs one.
    """
    if gaps and given:
        raise ValueError("--gaps: rows with given values are complete; leave out --gaps or --given")
    if table is None and (model is None or page is not None):
        raise ValueError("expected a TABLE" + (" to compare with in --report" if model is not None else ", or --model"))
    check_outputs(out, page, () if table is None else (table,))
    check_safe_csv(safe_csv, out)
    options = read_options(sep, decimal, encoding, na, ignore, ids, categorical, numeric)
    source = None if table is None else TableInput(table)
    if epsilon is None:
        check_unused({"--delta": delta}, "without --epsilon")
    elif model is not None:
        raise ValueError("--epsilon: has no effect with --model, which was fitted without it; leave one of them out")
    elif page is not None:
        raise ValueError("--report: shows rows of the table, which --epsilon protects; leave one of them out")
    else:
        assert source is not None
        if not given:
            check_unused({"--n-estimators": n_estimators}, "with --epsilon, unless --given needs a model")
        private = PrivateRows(
            epsilon, 1e-6 if delta is None else delta, n, gaps, given or [], n_estimators or "auto", seed, device
        )
        private.write(FrameFile(source.path, options, source=source.source), source.source, out, safe_csv)
        return
    rows, file = None, None
    if model is not None:
        check_unused({"--n-estimators": n_estimators, "--categorical": categorical, "--numeric": numeric})
        known = FittedTable.read(model, device)
        density, forms, name, total = known.density_for("synthesize", model), known.forms, known.source, known.rows
        if source is None:
            reading = {"--sep": sep, "--decimal": decimal, "--encoding": encoding, "--na": na}
            check_unused({**reading, "--ignore": ignore, "--id": ids}, "with --model and without a TABLE")
        else:
            file = known.file(source, options)
            rows = file.read()
        kinds = dict(zip(forms.types, density.columns_.kinds, strict=True))
        conditions = given_values(given or (), forms, pd.DataFrame(density.columns_.examples()), kinds)
    else:
        assert source is not None
        file = FrameFile(source.path, options, source=source.source)
        rows = file.read(set_aside=True)
        forms, name, total = file.forms, source.source, len(rows)
        conditions = given_values(given or (), forms, rows)
        density = ScoreDensity(n_estimators or "auto", random_state=seed, device=device, verbose=True)
        fit_rows(density, rows, source.source)
        known = FittedTable.of_file(file, rows, density, None)
    count = n or (total if rows is None else len(rows))
    drawn = pd.DataFrame(
        density.conditional(conditions, count, random_state=seed)
        if conditions
        else density.sample(count, random_state=seed, gaps=gaps)
    )
    as_text = out.suffix.lower() != ".parquet"
    drawn = round_like(known.decimals, drawn, conditions, as_text)
    written = known.forms.with_ids(known.forms.written(drawn, as_text))
    if not as_text and rows is not None and file is not None and file.file.suffix == ".parquet":
        written = cast_as_parquet(file.file.path, written)
    with frame_writer(out, forms.dialect if file is None else file.file, safe_csv) as write:
        write(written)
    show_columns(name, total, density.columns_)
    show(f"{out}  {count} rows" + (f", {len(drawn.drop_duplicates())} of them different" if conditions else ""))
    if rows is None:
        return
    quality = [] if conditions else _quality(known, density, rows, drawn, seed)
    for line in quality:
        show(line)
    if page is not None:
        from arcsm.reports.synthesis import write_synthesis_report  # loads matplotlib

        remarks = quality or [f"Drawn with {' and '.join(given or ())}: the rows are not like the whole table."]
        title = f"{out.name}, like {Path(name).name}"
        write_synthesis_report(density, rows, drawn, remarks, page, title, progress=True)
        show(page)


def _quality(
    known: FittedTable, density: ScoreDensity, rows: pd.DataFrame, drawn: pd.DataFrame, seed: int
) -> list[str]:
    """Return lines on the quality of synthetic rows, beside the table to which the density was fitted."""
    if known.total is not None:
        return [f"quality not measured: {known.rows} random rows of {known.source} were fitted, not all"]
    if not known.is_of(rows):
        return [
            f"quality not measured: it needs {known.source} as it was fitted, which tells held-out rows from others"
        ]
    return SynthesisQuality.measure(density, rows, drawn, seed).lines()
