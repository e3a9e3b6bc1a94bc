"""Commands that show a run: its report, its page and its configuration."""

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from arcsm._runtime.devices import resolve_device
from arcsm._runtime.files import check_writable
from arcsm.cli.console import show
from arcsm.cli.kinds import is_fitted_table, kind_at
from arcsm.cli.options import Device, Sampler, Seed, Trained
from arcsm.model import load
from arcsm.training.run_config import dump_config, run_config_path
from arcsm.training.runs import finished_config

app = Typer()


@app.command(epilog="Example: arcsm report runs/digits")
def report(
    run: Annotated[Path, Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path | None, Option(help="The page. Default: report.html in the run.")] = None,
    samples: Annotated[int, Option(help="Number of samples to show.", min=1)] = 64,
    sampler: Sampler = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Write a self-contained HTML page: curves, samples, calibration, likelihoods and configuration."""
    if is_fitted_table(run):
        raise ValueError(
            f"{run}: holds a fitted table; look at it with arcsm serve, or write a report with arcsm detect or "
            "synthesize --report"
        )
    if run.is_file():
        raise ValueError(f"{run}: expected the folder of a run, whose data the page needs, got a file")
    page = out or run / "report.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {page}: expected an .html file")
    check_writable(page)
    kind_at(run).report(run, page, samples, sampler, seed, device)
    show(page)


@app.command(
    epilog="Examples: arcsm serve runs/digits   |   arcsm serve model, of arcsm fit   |   "
    "arcsm serve runs/table --port 8000"
)
def serve(
    run: Trained,
    host: Annotated[
        str, Option(help="Address to listen on. Any but the default opens the page to the network, without a password.")
    ] = "127.0.0.1",
    port: Annotated[int | None, Option(min=1, max=65535, help="Port. Default: the first free one from 7860.")] = None,
    device: Device = "auto",
) -> None:
    """Serve an interactive page: likelihoods, surprise, denoising, completion and sampling. Needs the extra "web".

    For a table that arcsm fit has fitted, the page shows the distribution of each column given known values of a row,
    draws rows with these values, and finds the outliers of a file.
    """
    from arcsm.cli.fitted_tables import FittedTable
    from arcsm.cli.web.page import serve as serve_page  # Gradio takes seconds to import

    model = FittedTable.read(run, device) if is_fitted_table(run) else load(run, resolve_device(device))
    serve_page(model, run.stem, host, port)


@app.command(epilog="Examples: arcsm info runs/digits   |   arcsm info model, of arcsm fit")
def info(run: Trained, seed: Seed = 0, device: Device = "cpu") -> None:
    """Print the parts of a model and the configuration of its run, or what a fitted table holds.

    The seed has no effect.
    """
    if is_fitted_table(run):
        from arcsm.cli.fitted_tables import FittedTable  # estimators take seconds to import

        for line in FittedTable.read(run, device).lines():
            show(line)
        return
    kind = kind_at(run)
    model = kind.load(run, device)
    show(f"features    {model.features}")
    show(f"weights     {sum(p.numel() for p in model.parameters()):,}")
    for name, part in model.config().items():
        show(f"{name:11s} {json.dumps(part)}")
    if run_config_path(run).is_file():
        show(dump_config(finished_config(run, kind.config)).rstrip("\n"))
