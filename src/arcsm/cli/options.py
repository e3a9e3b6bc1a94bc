"""Options and arguments that several commands share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from arcsm import registry
from arcsm.data import ReadOptions
from arcsm.training.runs import check_finished


def _check_run(run: Path) -> Path:
    check_finished(run)
    return run


_READING = "How the table is read"

Trained = Annotated[Path, Argument(metavar="RUN", help="Folder of a run, or a model file.", callback=_check_run)]
Model = Annotated[
    Path | None,
    Option("--model", metavar="MODEL", help="A table fitted by arcsm fit, in place of fitting anew."),
]
Seed = Annotated[int, Option(help="Seed of all randomness.", min=0, max=2**32 - 1)]
Device = Annotated[str, Option(help="auto, cpu, cuda, ...")]
Label = Annotated[int | None, Option("--class", help="Class label for all rows, for models with classes.")]
SkipBad = Annotated[
    bool, Option("--skip-bad", help="Skip images that cannot be read or have another size, and list them.")
]
WithData = Annotated[bool, Option("--with-data", help="Copy the table's columns, unchanged, before the results.")]
SafeCSV = Annotated[
    bool,
    Option(
        "--safe-csv",
        help="Put an apostrophe before text in a .csv or .tsv file that spreadsheet programs take for a formula.",
    ),
]
Estimators = Annotated[
    int | None,
    Option(
        "--n-estimators",
        help="Number of orders of the columns that are averaged; fewer are faster. Default: by the table.",
        min=1,
    ),
]
Ignore = Annotated[
    list[str] | None,
    Option("--ignore", metavar="COLUMN", help="Leave a column out; may be repeated.", rich_help_panel=_READING),
]
Ids = Annotated[
    list[str] | None,
    Option(
        "--id",
        metavar="COLUMN",
        help="A column that only labels the rows: not modelled, but copied to the results; may be repeated.",
        rich_help_panel=_READING,
    ),
]
Categorical = Annotated[
    list[str] | None,
    Option(
        metavar="COLUMN",
        help="A column of names, such as numeric codes; may be repeated.",
        rich_help_panel=_READING,
    ),
]
Numeric = Annotated[
    list[str] | None,
    Option(
        metavar="COLUMN",
        help="A column of numbers, though it may look like a label; may be repeated.",
        rich_help_panel=_READING,
    ),
]
Missing = Annotated[
    list[str] | None,
    Option(
        "--na",
        metavar="TEXT",
        help="Another mark of missing values in a CSV file, such as -999; may be repeated.",
        rich_help_panel=_READING,
    ),
]
Separator = Annotated[
    str | None,
    Option(
        "--sep",
        metavar="CHARACTER",
        help="Separator of a CSV file, such as ';' or tab. Default: a guess.",
        rich_help_panel=_READING,
    ),
]
Decimal = Annotated[
    str | None,
    Option(metavar="MARK", help="Decimal mark of a CSV file, . or ,. Default: a guess.", rich_help_panel=_READING),
]
Encoding = Annotated[
    str | None,
    Option(metavar="NAME", help="Encoding of a CSV file, such as cp1252. Default: UTF-8.", rich_help_panel=_READING),
]
Encodings = Annotated[
    list[str] | None,
    Option(
        "--encoding",
        metavar="NAME",
        help="Encoding of the CSV files, such as cp1252, or twice: those of TRAIN and of TEST. Default: UTF-8.",
        rich_help_panel=_READING,
    ),
]
Changes = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")]
Sampler = Annotated[str | None, Option(help=f"{', '.join(registry.parts('sampler'))}. Default: the model's own.")]
Devices = Annotated[
    int, Option(help="Processes on this machine, one per device (without devices, they share the cores).", min=1)
]
Nodes = Annotated[
    int,
    Option(
        help="Number of machines; start the command on each, with the environment variables MASTER_ADDR and "
        "MASTER_PORT of one of them.",
        min=1,
    ),
]


def check_safe_csv(safe_csv: bool, out: Path) -> None:
    """Check that ``--safe-csv`` has an effect."""
    if safe_csv and out.suffix.lower() not in (".csv", ".tsv"):
        raise ValueError(f"--safe-csv: expected --out to be a .csv or .tsv file, got {out}")


def check_unused(options: Mapping[str, object], where: str = "with --model; give it to arcsm fit") -> None:
    """Check that options without effect, by default beside ``--model``, are not given, by their names."""
    for name, value in options.items():
        if value is not None and value is not False and value != []:
            raise ValueError(f"{name}: has no effect {where}")


def read_options(
    separator: str | None,
    decimal: str | None,
    encoding: str | None,
    missing: Sequence[str] | None,
    ignore: Sequence[str] | None,
    ids: Sequence[str] | None,
    categorical: Sequence[str] | None = None,
    numeric: Sequence[str] | None = None,
) -> ReadOptions:
    """Return how to read a table from the options of a command, which are ``None`` unless they are given."""
    return ReadOptions(
        separator, decimal, encoding, missing or (), ignore or (), ids or (), categorical or (), numeric or ()
    )
