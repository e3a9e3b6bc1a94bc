"""What several commands ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arcsm.training.runs import check_finished


def _with_a_model(run: Path) -> Path:
    """The argument as it is, unless it is a run that has no model yet."""
    check_finished(run)
    return run


Trained = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a run, or a model file.", callback=_with_a_model)
]
Seed = Annotated[int, typer.Option(help="Seed of all randomness.", min=0, max=2**32 - 1)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Label = Annotated[int | None, typer.Option("--class", help="Class of all rows, for a model with classes.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that cannot be read or are of another size, and list them.")
]
WithData = Annotated[
    bool, typer.Option("--with-data", help="Keep the table's columns, as they are, before what is found.")
]
Ignore = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="COLUMN", help="Leave a column out, such as an id or a date; may be repeated."),
]
Devices = Annotated[
    int, typer.Option(help="Processes on this machine, one for each device (or, without any, for its cores).", min=1)
]
Nodes = Annotated[
    int,
    typer.Option(
        help="Machines; start the command on each, with MASTER_ADDR and MASTER_PORT of one of them in the environment.",
        min=1,
    ),
]
