"""Commands that train a model."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import torch
from typer import Argument, Option, Typer

from arcsm._runtime.devices import resolve_device
from arcsm._runtime.files import check_separate, check_writable, write_bytes
from arcsm._runtime.process_group import group
from arcsm.cli.console import Stopped, show, show_likelihoods, show_training
from arcsm.cli.kinds import kind_at, kind_in_config
from arcsm.cli.model_rows import continuous_images, log_probs, score_frame
from arcsm.cli.options import Changes, Device, Devices, Nodes, Seed, Trained
from arcsm.data import digits, write_frame
from arcsm.model import AutoregressiveModel, load, save
from arcsm.reports.pictures import sample_picture
from arcsm.serialization import weights_path
from arcsm.training.distillation import DistilConfig
from arcsm.training.distillation import distil as distil_model
from arcsm.training.run_config import RunConfig, load_config, load_tree, presets, run_config_path, validated
from arcsm.training.runs import RunRows, load_run, rows_of_run, train_run

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


@app.command(
    epilog="Examples: arcsm distil runs/digits --out runs/digits-fast   |   arcsm score runs/digits-fast new.npy "
    "--out scores.csv"
)
def distil(
    run: Trained,
    out: Annotated[Path, Option(help="A new folder, or a .safetensors file, for the model.")],
    steps: Annotated[int, Option(help="Steps of the training.", min=1)] = DistilConfig().steps,
    without_data: Annotated[
        bool, Option("--without-data", help="Learn from samples only, without the data of the run.")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Turn a trained model into one whose densities, quantiles and samples take one evaluation each.

    The commands sample, score and info accept the result. The first line printed is the Kullback-Leibler divergence
    from the trained model, in nats a row.
    """
    if kind_at(run).config is not RunConfig:
        raise ValueError(f"{run}: holds an autoencoder; only densities can be distilled")
    is_file = out.suffix == ".safetensors"
    if not is_file and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: already exists; choose a new or an empty folder")
    check_writable(out if is_file else out / "config.json")
    check_separate({"--out": out}, (weights_path(run),))
    model, rows = load(run, resolve_device(device)), RunRows(None, None, None, None)
    if not without_data and run_config_path(run).is_file():
        rows = rows_of_run(load_run(run, device), seed)
    student = distil_model(
        model, rows.train, rows.valid, rows.train_labels, rows.valid_labels,
        config=DistilConfig(steps=steps, seed=seed, device=device), progress=True,
    )  # fmt: skip
    save(student, out)
    found = student.metadata["distillation"]
    names = {"kl": "from the trained model (Kullback-Leibler)", "loss": "lost on held-out rows"}
    for key, name in names.items():
        if key in found:
            error = found[key]["standard_error"]
            show(f"{found[key]['mean']:.4f}{'' if error is None else f' +- {error:.4f}'} nats a row {name}")
    show(f"{out}  next: arcsm sample {out} --out samples.csv")


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
