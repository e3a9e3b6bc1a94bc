"""The command ``arcsm``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from arcsm.config import load_config
from arcsm.runs import train_run

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def callback() -> None:
    """Density models by scores."""


@app.command()
def train(
    source: Annotated[str, typer.Argument()],
    change: Annotated[list[str] | None, typer.Option("--set")] = None,
    out: Annotated[Path, typer.Option()] = Path("run"),
    resume: bool = False,
) -> None:
    """Train."""
    result = train_run(load_config(source, change or []), out, resume, progress=True)
    print(result.steps, result.best_loss, result.seconds)


def main() -> None:
    app()


if __name__ == "__main__":
    sys.exit(main())
