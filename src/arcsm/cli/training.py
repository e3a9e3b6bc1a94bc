"""Commands that train a model."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import torch
from typer import Argument, Option, Typer

from arcsm._runtime.files import write_bytes
from arcsm._runtime.process_group import group
from arcsm.cli.console import Stopped, show, show_likelihoods, show_training
from arcsm.cli.kinds import kind_in_config
from arcsm.cli.model_rows import continuous_images, log_probs, score_frame
from arcsm.cli.options import Changes, Device, Devices, Nodes, Seed
from arcsm.data import digits, write_frame
from arcsm.model import AutoregressiveModel
from arcsm.reports.pictures import sample_picture
from arcsm.training.run_config import load_config, load_tree, presets, run_config_path, validated
from arcsm.training.runs import load_run, train_run

app = Typer()


@app.command(epilog="Example: arcsm quickstart --out quickstart")
def quickstart(
    out: Annotated[Path, Option(help="Folder for the model, the samples and the report.")] = Path("quickstart"),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train on 8x8 digits, sample, score and write a report. Takes about a minute on two cores."""
    from arcsm.reports.run import write_report  # matplotlib takes a second to import

    config = load_config("digits", [f"train.seed={seed}", f"train.device={device}"])
    result = train_run(config, out, resume=True, progress=True)
    run = load_run(out, device)
    numbers = write_report(run, out / "report.html", seed=seed, progress=True)
    generator = torch.Generator(run.model.shift.device).manual_seed(seed)
    rows = run.model.sample(64, generator=generator, progress=True, denoise=True).cpu()
    write_bytes(out / "samples.png", sample_picture(rows, run.model.metadata))
    _score_digits(run.model, out / "scores.csv", seed)
    show_training(result)
    show_likelihoods(numbers)
    for name, content in (("report.html", "report"), ("samples.png", "64 samples"), ("scores.csv", "scored digits")):
        show(f"{out / name}  {content}")


@app.command(
    epilog="Examples: arcsm train digits --out runs/digits   |   "
    "arcsm train mnist-made --set data.path=mnist --set train.epochs=5 --out runs/mnist"
)
def train(
    source: Annotated[str, Argument(metavar="PRESET|FILE.yaml", help="A preset (listed above) or a YAML file.")],
    changes: Changes = None,
    out: Annotated[Path | None, Option(help="Folder of the run. Default: runs/NAME.")] = None,
    resume: Annotated[bool, Option("--resume", help="Continue the run in the folder.")] = False,
    seed: Annotated[int | None, Option(help="Seed of all randomness. Default: the file's.", min=0)] = None,
    device: Annotated[str | None, Option(help="auto, cpu, cuda, ... Default: the file's.")] = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
) -> None:
    """Train a model. A run that is killed at any moment resumes (--resume) to exactly the same weights."""
    extra = [f"train.seed={seed}"] * (seed is not None) + [f"train.device={device}"] * (device is not None)
    tree = load_tree(source, [*(changes or []), *extra])
    kind = kind_in_config(tree)
    config: Any = validated(tree, source, kind.config)
    folder = out or _default_folder(source, config.name)
    command = ["arcsm", "train", str(run_config_path(folder)), "--out", str(folder), "--resume"]
    hint = f"continue with: {shlex.join(command)}"
    kind.join(devices, nodes, hint)
    try:
        result = kind.train(config, folder, resume, True)
    except KeyboardInterrupt as stop:
        message = str(stop) or "interrupted"
        raise Stopped(f"{message}; {hint}" if run_config_path(folder).is_file() else message) from stop
    if group().first:
        show_training(result, kind.loss_name)
        show(f"{folder}  next: arcsm report {folder}")


train.__doc__ = f"{train.__doc__}\n\nPresets: {', '.join(presets())}."
app.registered_commands[-1].help = train.__doc__


def _default_folder(source: str, name: str) -> Path:
    """Return the folder of a run without ``--out``; its name, which a file may hold, must not lead elsewhere."""
    if name in ("", ".", "..") or not name.isprintable() or any(character in name for character in "/\\:"):
        raise ValueError(f"{source}: name: expected the name of a folder in runs, got {name!r:.60}; give --out")
    return Path("runs") / name


def _score_digits(model: AutoregressiveModel, out: Path, seed: int) -> None:
    images = digits()
    rows = continuous_images(images, seed)
    terms = log_probs(model, rows, progress=True)
    frame = score_frame(terms)[["row", "log_prob"]]
    if images.labels is not None:
        frame.insert(1, "label", images.labels.numpy())
    write_frame(out, frame)
