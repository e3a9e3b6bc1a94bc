"""The command that runs the experiments."""

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from arcsm.cli.console import show
from arcsm.cli.options import Changes, Device
from arcsm.experiments import EXPERIMENTS, Preset, find
from arcsm.experiments.records import result_path

app = Typer()


@app.command(epilog="Examples: arcsm reproduce   |   arcsm reproduce mnist-made --preset cpu --out mine")
def reproduce(
    experiment: Annotated[
        str | None, Argument(metavar="[EXPERIMENT]", help="Name of the experiment. Default: list all.")
    ] = None,
    preset: Annotated[Preset, Option(help="smoke (seconds), cpu (two cores) or paper (the paper's settings).")] = "cpu",
    out: Annotated[Path, Option(help="Folder of the results.")] = Path("results"),
    work: Annotated[
        Path, Option(help="Folder of the models that the experiment trains; an interrupted experiment resumes from it.")
    ] = Path("runs"),
    changes: Changes = None,
    force: Annotated[bool, Option("--force", help="Overwrite an earlier result.")] = False,
    seed: Annotated[int | None, Option(help="Seed of all randomness. Default: the preset's.", min=0)] = None,
    device: Device = "auto",
) -> None:
    """Run an experiment; write its metrics, configuration, versions and pictures."""
    if experiment is None:
        for known in EXPERIMENTS.values():
            show(f"{known.name:14s} {known.about}")
        return
    chosen = find(experiment)
    path = result_path(out, chosen.name, preset)
    if path.exists() and not force:
        raise ValueError(f"{path}: exists already; give --force to overwrite it, or another --out")
    record = chosen.run(preset, out, work, changes or [], device, seed)
    show(json.dumps(record["metrics"], indent=2))
    show(path)
