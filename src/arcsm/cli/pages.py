"""Commands that show what a run is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from arcsm import registry
from arcsm._runtime.devices import resolve_device
from arcsm._runtime.files import check_writable
from arcsm.cli.console import show_likelihood_table, show_likelihoods
from arcsm.cli.options import Device, Seed, Trained
from arcsm.implicit.networks.vae import load_vae
from arcsm.implicit.vae.runs import holds_vae, is_vae_run, load_vae_run
from arcsm.model import load
from arcsm.reports.run import write_report
from arcsm.reports.vae import write_vae_report
from arcsm.training.run_config import dump_config, run_config_path
from arcsm.training.runs import load_run

app = typer.Typer()


@app.command(epilog="Example: arcsm report runs/digits")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in the run.")] = None,
    samples: Annotated[int, typer.Option(help="Samples shown.", min=1)] = 64,
    sampler: Annotated[
        str | None, typer.Option(help=f"{', '.join(registry.parts('sampler'))}; the model's default without.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Write one self-contained page: curves, samples, calibration, likelihoods, configuration."""
    if run.is_file():
        raise ValueError(f"{run}: expected the folder of a run, whose data the page needs, got a file")
    page = out or run / "report.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {page}: expected an .html file")
    check_writable(page)
    if is_vae_run(run):
        if sampler is not None:
            raise ValueError(f"--sampler {sampler}: expected none; this is an autoencoder")
        of_vae = write_vae_report(load_vae_run(run, device), page, samples, seed, progress=True)
        show_likelihood_table(of_vae.log_likelihood)
        print(page)
        return
    numbers = write_report(load_run(run, device), page, samples, sampler, seed, progress=True)
    show_likelihoods(numbers)
    print(page)


@app.command(epilog="Examples: arcsm serve runs/digits   |   arcsm serve runs/table --port 8000")
def serve(
    run: Trained,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen at. Any other than this machine's own lets its network use the page, unasked."
        ),
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="By default the first free one from 7860.")] = None,
    device: Device = "auto",
) -> None:
    """A page to play with a run: likelihoods, surprise, cleaning, completing and drawing. Needs the extra "web"."""
    from arcsm.cli.web.page import serve as show  # Gradio takes seconds to import

    show(load(run, resolve_device(device)), run.stem, host, port)


@app.command(epilog="Example: arcsm info runs/digits")
def info(run: Trained, seed: Seed = 0, device: Device = "cpu") -> None:
    """Say what a model is made of. Nothing of it depends on a seed; the device is where it is loaded."""
    of_vae = holds_vae(run)
    model = (load_vae if of_vae else load)(run, resolve_device(device))
    print(f"features    {model.features}")
    print(f"weights     {sum(p.numel() for p in model.parameters()):,}")
    for name, part in model.config().items():
        print(f"{name:11s} {json.dumps(part)}")
    if run_config_path(run).is_file():
        print(dump_config(load_vae_run(run).config if of_vae else load_run(run).config), end="")
