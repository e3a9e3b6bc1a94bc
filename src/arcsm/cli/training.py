"""Commands that train a model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import torch
import typer

from arcsm._runtime.files import atomic_path
from arcsm._runtime.process_group import group
from arcsm._runtime.progress import track
from arcsm.cli.console import Stopped, show_likelihoods, show_training
from arcsm.cli.launching import in_processes
from arcsm.cli.model_rows import continuous_images, log_probs, score_frame
from arcsm.cli.options import Device, Devices, Nodes, Seed
from arcsm.data import write_frame
from arcsm.data.image_sets import digits
from arcsm.implicit.vae.runs import VAERunConfig, is_vae, train_vae_run
from arcsm.model import AutoregressiveModel
from arcsm.reports.run import sample_picture, write_report
from arcsm.training.run_config import RunConfig, load_config, load_tree, presets, run_config_path, validated
from arcsm.training.runs import load_run, train_run

app = typer.Typer()


@app.command(epilog="Example: arcsm quickstart --out quickstart")
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the model, the samples and the report.")] = Path("quickstart"),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train on 8x8 digits, sample, score, and write a report. About a minute on two cores."""
    config = load_config("digits", [f"train.seed={seed}", f"train.device={device}"])
    result = train_run(config, out, resume=True, progress=True)
    run = load_run(out, device)
    numbers = write_report(run, out / "report.html", seed=seed, progress=True)
    generator = torch.Generator(run.model.shift.device).manual_seed(seed)
    rows = run.model.sample(64, generator=generator, progress=True, denoise=True).cpu()
    with atomic_path(out / "samples.png") as temporary:
        temporary.write_bytes(sample_picture(rows, run.model.metadata))
    _score_digits(run.model, out / "scores.csv", seed)
    show_training(result)
    show_likelihoods(numbers)
    for name, what in (("report.html", "the report"), ("samples.png", "64 samples"), ("scores.csv", "scored digits")):
        print(f"{out / name}  {what}")


@app.command(
    epilog="Examples: arcsm train digits --out runs/digits   |   "
    "arcsm train mnist-made --set data.path=mnist --set train.epochs=5 --out runs/mnist"
)
def train(
    source: Annotated[str, typer.Argument(metavar="PRESET|FILE.yaml", help="A preset (listed above), or a YAML file.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness; by default the file's.", min=0)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...; by default the file's.")] = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
) -> None:
    """Train a model. Kill it at any moment; --resume goes on to exactly the same weights."""
    extra = [f"train.seed={seed}"] * (seed is not None) + [f"train.device={device}"] * (device is not None)
    tree = load_tree(source, [*(changes or []), *extra])
    config = validated(tree, source, VAERunConfig) if is_vae(tree) else validated(tree, source, RunConfig)
    if isinstance(config, VAERunConfig) and devices * nodes > 1:
        raise ValueError("--devices: an autoencoder trains in one process")
    folder = out or Path("runs") / config.name
    again = (
        f"go on with: {shlex.join(['arcsm', 'train', str(run_config_path(folder)), '--out', str(folder), '--resume'])}"
    )
    if not isinstance(config, VAERunConfig):
        in_processes(devices, nodes, again)
    try:
        if isinstance(config, VAERunConfig):
            result = train_vae_run(config, folder, resume, progress=True)
        else:
            result = train_run(config, folder, resume, progress=True)
    except KeyboardInterrupt as stop:
        said = str(stop) or "interrupted"
        raise Stopped(f"{said}; {again}" if run_config_path(folder).is_file() else said) from stop
    if group().first:
        is_autoencoder = isinstance(config, VAERunConfig)
        show_training(result, "held-out bound of -log p(x)" if is_autoencoder else "best objective")
        print(f"{folder}  next: arcsm report {folder}")


train.__doc__ = f"{train.__doc__}\n\nPresets: {', '.join(presets())}."
app.registered_commands[-1].help = train.__doc__


def _score_digits(model: AutoregressiveModel, out: Path, seed: int) -> None:
    """Log density of every digit beside its label."""
    images = digits()
    rows = continuous_images(images, seed)
    with track("scoring", len(rows), enabled=True) as advance:
        terms = log_probs(model, rows, advance=advance)
    frame = score_frame(terms)[["row", "log_prob"]]
    if images.labels is not None:
        frame.insert(1, "label", images.labels.numpy())
    write_frame(out, frame)
