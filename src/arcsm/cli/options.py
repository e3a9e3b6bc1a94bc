"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from arcsm import registry
from arcsm.training.runs import check_finished


def _check_run(run: Path) -> Path:
    check_finished(run)
    return run


Trained = Annotated[Path, Argument(metavar="RUN", help="Folder of a run, or a model file.", callback=_check_run)]
Seed = Annotated[int, Option(help="Seed of all randomness.", min=0, max=2**32 - 1)]
Device = Annotated[str, Option(help="auto, cpu, cuda, ...")]
Label = Annotated[int | None, Option("--class", help="Class label for all rows, for models with classes.")]
SkipBad = Annotated[
    bool, Option("--skip-bad", help="Skip images that cannot be read or have another size, and list them.")
]
WithData = Annotated[bool, Option("--with-data", help="Copy the table's columns, unchanged, before the results.")]
Ignore = Annotated[
    list[str] | None,
    Option("--ignore", metavar="COLUMN", help="Ignore a column, such as an id or a date; may be repeated."),
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
