"""The command ``arcsm``. Every command is a few lines over the library; none prints a traceback for a mistake."""

from __future__ import annotations

import json
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as ShownTable

from arcsm import __version__
from arcsm.config import RunConfig, dump_config, load_config, load_tree, presets, run_config_path, validated
from arcsm.data import (
    ImageSet,
    Table,
    frame_parts,
    frame_writer,
    read_frame,
    read_images,
    read_table,
    scale_images,
    write_frame,
    write_table,
)
from arcsm.data.images import IMAGE_SUFFIXES, digits, save_images, unscale_images, unstretch_images
from arcsm.denoise import Corruption, GaussianNoise, SaltAndPepper, langevin, particles, posterior, tweedie
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from arcsm.estimators.report import Judged, write_detection_report
from arcsm.experiments import EXPERIMENTS, Preset, find
from arcsm.experiments.base import result_path
from arcsm.files import atomic_path, check_writable
from arcsm.implicit.report import write_vae_report
from arcsm.implicit.runs import VAERunConfig, holds_vae, is_vae, is_vae_run, load_vae_run, train_vae_run
from arcsm.implicit.vae import VAE, load_vae
from arcsm.metrics import summary
from arcsm.model import AutoregressiveModel, load, resolve_device
from arcsm.processes import ProcessError, group, is_started, leave_error, start
from arcsm.progress import track
from arcsm.report import LikelihoodRow, ReportNumbers, sample_picture, write_report
from arcsm.runs import class_labels, load_run, train_run
from arcsm.samplers import SAMPLERS
from arcsm.training import FitResult, TrainingDiverged

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)

Seed = Annotated[int, typer.Option(help="Seed of all randomness.", min=0)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Label = Annotated[int | None, typer.Option("--class", help="Class of all rows, for a model with classes.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that cannot be read or are of another size, and list them.")
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
Noise = Literal["gaussian", "salt-and-pepper"]
_JUDGED_AT_ONCE = 2_000  # rows of a table: a progress bar that moves, and bounded memory
Denoiser = Literal["tweedie", "posterior", "particles", "langevin"]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"arcsm {__version__}")
        raise typer.Exit


@app.callback()
def callback(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Score-based autoregressive density models: train by scores, get likelihoods, samples and calibrated CDFs."""


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
    _show_training(result)
    _show_likelihoods(numbers)
    for name, what in (("report.html", "the report"), ("samples.png", "64 samples"), ("scores.csv", "scored digits")):
        print(f"{out / name}  {what}")


@app.command(
    epilog="Examples: arcsm train digits --out runs/digits   |   "
    "arcsm train mnist-made --set data.path=mnist --set train.epochs=5 --out runs/mnist"
)
def train(
    source: Annotated[str, typer.Argument(metavar="PRESET|FILE.yaml", help="A preset (see below), or a YAML file.")],
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
    if isinstance(config, VAERunConfig) and (devices * nodes > 1 or group().size > 1):
        raise ValueError("--devices: an autoencoder trains in one process")
    folder = out or Path("runs") / config.name
    again = (
        f"go on with: {shlex.join(['arcsm', 'train', str(run_config_path(folder)), '--out', str(folder), '--resume'])}"
    )
    _in_processes(devices, nodes, again)
    try:
        if isinstance(config, VAERunConfig):
            result = train_vae_run(config, folder, resume, progress=True)
        else:
            result = train_run(config, folder, resume, progress=True)
    except KeyboardInterrupt as stop:
        said = str(stop) or "interrupted"
        raise typer.Exit(_fail(f"{said}; {again}" if run_config_path(folder).is_file() else said, 130)) from stop
    if group().first:
        _show_training(result)
        print(f"{folder}  next: arcsm report {folder}")


train.__doc__ = f"{train.__doc__}\n\nPresets: {', '.join(presets())}."
app.registered_commands[-1].help = train.__doc__


@app.command(
    epilog="Examples: arcsm sample runs/digits --out samples.png   |   arcsm sample runs/table -n 1000 --out rows.csv"
    "   |   arcsm sample runs/digits -n 100 --out images/"
)
def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or a model file.")],
    out: Annotated[
        Path, typer.Option(help="A .png (a grid of images), a folder (a .png each), a .csv, .parquet or .npy file.")
    ],
    n: Annotated[int, typer.Option("-n", help="Number of samples.", min=1)] = 64,
    sampler: Annotated[str | None, typer.Option(help=f"{', '.join(SAMPLERS)}; the model's default without.")] = None,
    denoise: Annotated[bool, typer.Option("--denoise", help="Remove the last noise (Tweedie's formula).")] = False,
    label: Annotated[
        int | None, typer.Option("--class", help="Class to draw, for a model with classes; by default all in turn.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
) -> None:
    """Draw samples from a trained model. The same seed and number of devices give the same samples."""
    model: AutoregressiveModel | VAE
    model = load_vae(run, device) if holds_vae(run) else load(run, _own_device(device))
    if out.suffix not in ("", ".png", ".npy", ".csv", ".parquet"):
        raise ValueError(f"--out {out}: expected a .png, .csv, .parquet or .npy file, or a folder")
    if out.suffix in ("", ".png") and "image_shape" not in model.metadata:
        raise ValueError(f"--out {out}: this model is not of images; use .csv, .parquet or .npy")
    if out.suffix == "" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: exists already; give a new or an empty folder")
    _in_processes(devices, nodes)
    begun = time.monotonic()
    if isinstance(model, VAE):
        if sampler is not None or denoise or label is not None:
            raise ValueError("--sampler, --denoise, --class: expected none of them; this is an autoencoder")
        rows = model.sample(n, torch.Generator(model.device).manual_seed(seed)).cpu()
    else:
        rows = _sample_share(model, n, sampler, class_labels(model, n, label), seed, denoise)
    if not group().first:
        return
    if out.suffix == "":
        _write_images(out, rows, model.metadata)
    elif out.suffix == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(out) as temporary:
            temporary.write_bytes(sample_picture(rows, model.metadata))
    else:
        write_table(out, rows.numpy(), _columns(model))
    print(f"{out}  {n} samples in {time.monotonic() - begun:.1f} s")


@app.command(
    epilog="Examples: arcsm score runs/table new.csv --out scores.csv   |   "
    "arcsm score runs/mnist images/ --skip-bad --out scores.csv"
)
def score(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or a model file.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help=".csv, .parquet, .npy, .npz or a folder of images.")],
    out: Annotated[Path, typer.Option(help="A .csv, .parquet or .npy file.")],
    method: Annotated[str | None, typer.Option(help="flow, quadrature or closed_form; the default without.")] = None,
    label: Label = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
) -> None:
    """Log density of each row in nats, and the dimension that surprises most."""
    if skip_bad and out.suffix == ".npy":
        raise ValueError(f"--out {out}: a .npy file cannot say which images were left out; use .csv or .parquet")
    check_writable(out)
    _in_processes(devices, nodes)
    model = load(run, _own_device(device))
    rows, files = _read_rows(model, data, seed, skip_bad)
    if len(rows) < group().size:
        raise ValueError(f"--devices: {len(rows)} rows cannot be shared by {group().size} of them")
    terms = group().collect(_log_probs(model, rows[group().share(len(rows))], method, _one_class(model, label)))
    if not group().first:
        return
    total = terms.sum(1)
    found = {"log_prob": total, "least_likely_column": terms.argmin(1), "its_log_prob": terms.amin(1)}
    _write_scores(out, found, files)
    mean, error = summary(total)
    print(f"{out}  {len(rows)} rows, mean log density {mean:.4f} +- {error:.4f} nats")


@app.command(
    epilog="Examples: arcsm denoise runs/mnist noisy --sigma 0.6 --out restored   |   "
    "arcsm denoise runs/mnist noisy --noise salt-and-pepper --probability 0.1 --method particles --out restored"
)
def denoise(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or a model file.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of noisy images of the model's size.")],
    out: Annotated[Path, typer.Option(help="Folder of the restored images, PNG, of the same names.")],
    noise: Annotated[Noise, typer.Option(help="What the noise is.")] = "gaussian",
    sigma: Annotated[
        float | None, typer.Option(help="Standard deviation of gaussian noise; pixels are from -1 to 1.")
    ] = None,
    probability: Annotated[
        float | None, typer.Option(help="Share of the values that salt and pepper have replaced.")
    ] = None,
    method: Annotated[
        Denoiser | None,
        typer.Option(
            help="tweedie (gaussian noise; fast, its default), posterior (the other's default), particles (looks ahead "
            "too; slow) or langevin (the paper's, for salt and pepper)."
        ),
    ] = None,
    label: Label = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Remove noise from images, by a model of clean ones."""
    model = load(run, resolve_device(device))
    if not images.is_dir():
        raise ValueError(f"{images}: expected a folder of images")
    noisy = _read_images(model, images, skip_bad)
    targets = _restored_paths(images, noisy.names or (), out)
    corruption = _corruption(model, noise, sigma, probability, noisy.levels)
    rows = scale_images(noisy.pixels, noisy.levels).flatten(1) + 1.0 / noisy.levels  # the middle of each level
    begun = time.monotonic()
    rows = rows.to(model.shift)
    of_class = _one_class(model, label)
    restored = _denoised(model, rows, corruption, method, of_class, torch.Generator(rows.device).manual_seed(seed))
    pixels = unscale_images(restored.cpu(), noisy.levels, stretch=True).view(noisy.pixels.shape)
    for target, image in zip(targets, pixels, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        save_images(target, image[None], padding=0)
    print(f"{out}  {len(targets)} images in {time.monotonic() - begun:.1f} s")


@app.command(
    epilog="Examples: arcsm detect normal.csv new.csv --out scores.csv   |   "
    "arcsm detect all.csv all.csv --contamination 0.02 --out scores.csv --report report.html"
)
def detect(
    train: Annotated[Path, typer.Argument(metavar="TRAIN", help="A table, most of whose rows are normal.")],
    test: Annotated[Path, typer.Argument(metavar="TEST", help="A table with the same columns, to be judged.")],
    out: Annotated[Path, typer.Option(help="A .csv or .parquet file: a line for every row of TEST.")],
    page: Annotated[Path | None, typer.Option("--report", help="A page about the most surprising rows.")] = None,
    contamination: Annotated[
        float | None, typer.Option(help="Share of TRAIN that is taken for outliers, up to 0.5; 0.1 without.")
    ] = None,
    p_value: Annotated[
        float | None, typer.Option("--p-value", help="Flag rows at most this likely, in place of a share.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Find the rows of a table that do not belong, and say which columns are to blame."""
    if p_value is not None and (contamination is not None or not 0.0 < p_value < 1.0):
        raise ValueError(f"--p-value {p_value}: expected a number between 0 and 1, and no --contamination")
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"--out {out}: expected a .csv or .parquet file")
    for target in (out, *([] if page is None else [page])):
        check_writable(target)
    normal = read_frame(train)
    rows, gaps = 0, False
    for part in frame_parts(test, normal):  # all of it is looked at before hours may be spent
        rows, gaps = rows + len(part), gaps or bool(part.isna().any(axis=None))
    detector = ScoreOutlierDetector(
        "auto" if contamination is None else contamination,
        missing=gaps or "auto",
        random_state=seed,
        device=device,
        verbose=True,
    ).fit(normal)
    with frame_writer(out) as write, track("judging", rows, enabled=True) as advance:

        def written(found: pd.DataFrame) -> None:
            write(found)
            advance(len(found))

        judged = Judged.of(detector, frame_parts(test, normal, _JUDGED_AT_ONCE), p_value, written)
    print(f"{out}  {rows} rows, {judged.flagged} flagged")
    if page is not None:
        write_detection_report(detector, judged, page, f"{test.name}, judged by {train.name}")
        print(page)


@app.command(epilog="Example: arcsm impute table.csv --out filled.csv")
def impute(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A table with missing values.")],
    out: Annotated[Path, typer.Option(help="A .csv or .parquet file: the table with its gaps filled.")],
    draws: Annotated[int, typer.Option(help="Joint draws of the missing values of a row.", min=1)] = 64,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Fill the missing values of a table by what the rest of each row says of them."""
    check_writable(out)
    rows = read_frame(table)
    gaps = int(rows.isna().to_numpy().sum())
    if not gaps:
        raise ValueError(f"{table}: no value is missing")
    filled = ScoreDensity(random_state=seed, device=device, verbose=True).fit(rows).impute(rows, draws)
    write_frame(out, pd.DataFrame(filled))
    print(f"{out}  {len(rows)} rows, {gaps} values filled")


@app.command(epilog="Example: arcsm report runs/digits")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in the run.")] = None,
    samples: Annotated[int, typer.Option(help="Samples shown.", min=1)] = 64,
    sampler: Annotated[str | None, typer.Option(help=f"{', '.join(SAMPLERS)}; the model's default without.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Write one self-contained page: curves, samples, calibration, likelihoods, configuration."""
    page = out or run / "report.html"
    if is_vae_run(run):
        if sampler is not None:
            raise ValueError(f"--sampler {sampler}: expected none; this is an autoencoder")
        of_vae = write_vae_report(load_vae_run(run, device), page, samples, seed, progress=True)
        _show_likelihood_table(of_vae.log_likelihood)
        print(page)
        return
    numbers = write_report(load_run(run, device), page, samples, sampler, seed, progress=True)
    _show_likelihoods(numbers)
    print(page)


@app.command(epilog="Examples: arcsm reproduce   |   arcsm reproduce mnist-made --preset cpu --out results")
def reproduce(
    experiment: Annotated[
        str | None, typer.Argument(metavar="[EXPERIMENT]", help="A name; without it, the list.")
    ] = None,
    preset: Annotated[Preset, typer.Option(help="smoke (seconds), cpu (two cores) or paper (its settings).")] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    work: Annotated[Path, typer.Option(help="Folder of what is trained on the way; a stopped run goes on.")] = Path(
        "runs"
    ),
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an earlier result.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness; by default the preset's.", min=0)] = None,
    device: Device = "auto",
) -> None:
    """Run an experiment and write its metrics, configuration, versions and pictures."""
    if experiment is None:
        for known in EXPERIMENTS.values():
            print(f"{known.name:14s} {known.about}")
        return
    chosen = find(experiment)
    path = result_path(out, chosen.name, preset)
    if path.exists() and not force:
        raise ValueError(f"{path}: exists already; give --force to overwrite it, or another --out")
    record = chosen.run(preset, out, work, changes or [], device, seed)
    print(json.dumps(record["metrics"], indent=2))
    print(path)


@app.command(epilog="Examples: arcsm serve runs/digits   |   arcsm serve runs/table --port 8000")
def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or a model file.")],
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
    from arcsm.web.page import serve as show  # Gradio takes seconds to import

    show(load(run, resolve_device(device)), run.stem, host, port)


@app.command(epilog="Example: arcsm info runs/digits")
def info(run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or a model file.")]) -> None:
    """Say what a model is made of."""
    of_vae = holds_vae(run)
    model = load_vae(run) if of_vae else load(run)
    print(f"features    {model.features}")
    print(f"weights     {sum(p.numel() for p in model.parameters()):,}")
    for name, part in model.config().items():
        print(f"{name:11s} {json.dumps(part)}")
    if run_config_path(run).is_file():
        print(dump_config(load_vae_run(run).config if of_vae else load_run(run).config), end="")


class _SeveralProcesses(Exception):
    """The command is to run in processes of its own."""

    def __init__(self, devices: int, nodes: int, again: str) -> None:
        super().__init__(devices, nodes)
        self.devices, self.nodes, self.again = devices, nodes, again


def _in_processes(devices: int, nodes: int, again: str = "") -> None:
    """Where several processes are asked for, and this is none of them: have the command start again in each."""
    if devices * nodes > 1 and not is_started():
        raise _SeveralProcesses(devices, nodes, again)


def main() -> None:
    """Run the command; a user's mistake becomes one line on standard error."""
    warnings.showwarning = _warn_in_one_line
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: Sequence[str]) -> int:
    """Exit code of the command for given arguments."""
    try:
        code = app(args=list(arguments), prog_name="arcsm", standalone_mode=False)
    except _SeveralProcesses as wanted:
        return _start(arguments, wanted)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (ValueError, TrainingDiverged) as error:
        return _fail(error, 1)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error, 1)
    except Exception as error:  # errors of usage; their class depends on the version of typer
        if not hasattr(error, "format_message"):
            if type(error).__name__ == "Abort":
                return _fail("interrupted", 130)
            if leave_error(traceback.format_exc().rstrip()):
                return 1
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return 2
        return _fail(f"{error.format_message()} (see arcsm --help)", 2)
    return code if isinstance(code, int) else 0


def _start(arguments: Sequence[str], wanted: _SeveralProcesses) -> int:
    """Exit code of the command, run in several processes."""
    try:
        return start(arguments, wanted.devices, wanted.nodes)
    except ValueError as error:
        return _fail(error, 1)
    except ProcessError as error:
        return _fail(f"{error}; {wanted.again}" if wanted.again else error, 1)
    except KeyboardInterrupt as stop:
        return _fail(str(stop).removeprefix("arcsm: ") or "interrupted", 130)


def _fail(error: object, code: int) -> int:
    said = f"arcsm: {' '.join(str(error).split())}"
    if not leave_error(said):
        print(said, file=sys.stderr)
    return code


def _warn_in_one_line(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"arcsm: {category.__name__}: {message}", file=sys.stderr)


# What the commands share --------------------------------------------------------------------------------------------


def _write_scores(out: Path, found: dict[str, torch.Tensor], files: Sequence[str] | None = None) -> None:
    """Write what was found of every row, after its number; whole numbers stay whole, but in ``.npy``."""
    columns = {"row": np.arange(len(next(iter(found.values())))), **{name: t.numpy() for name, t in found.items()}}
    if out.suffix == ".npy":
        write_table(out, np.stack([column.astype(np.float64) for column in columns.values()], 1))
    else:
        write_frame(out, pd.DataFrame({**columns, **({} if files is None else {"file": list(files)})}))


def _columns(model: AutoregressiveModel | VAE) -> tuple[str, ...]:
    names = model.metadata.get("columns")
    return tuple(names) if names else tuple(f"x{d}" for d in range(model.features))


def _read_rows(
    model: AutoregressiveModel, path: Path, seed: int, skip_bad: bool
) -> tuple[torch.Tensor, tuple[str, ...] | None]:
    """Rows of a file as the model takes them, ``(N, D)``, and the names of images; images are dequantised."""
    shape = model.metadata.get("image_shape")
    is_images = path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES
    if not is_images and shape is None:
        table = read_table(path)
        return torch.from_numpy(_in_order(model, table, path)).to(model.shift.dtype), None
    images = _read_images(model, path, skip_bad)
    return _continuous(scale_images(images.pixels, images.levels).flatten(1), images.levels, seed), images.names


def _in_order(model: AutoregressiveModel, table: Table, path: Path) -> NDArray[Any]:
    """Values of a table in the model's order: by name, where the table has all of the model's names."""
    names = _columns(model)
    if len(table.columns) == len(set(table.columns)) and set(names) <= set(table.columns):
        return table.values[:, [table.columns.index(name) for name in names]]
    if table.values.shape[1] != model.features:
        raise ValueError(f"{path}: expected {model.features} columns, got {table.values.shape[1]}")
    if "columns" in model.metadata and set(names) & set(table.columns):  # some names agree, so names count
        raise ValueError(f"{path}: columns {', '.join(sorted(set(names) - set(table.columns)))} are missing")
    return table.values


def _read_images(model: AutoregressiveModel, path: Path, skip_bad: bool = False) -> ImageSet:
    """Images of the shape that the model is of."""
    shape = model.metadata.get("image_shape")
    if shape is None:
        raise ValueError(f"{path}: images, but this model is of tables with {model.features} columns")
    size = (int(shape[1]), int(shape[2])) if skip_bad else None
    images = read_images(path, channels=int(shape[0]), shape=size, skip_bad=skip_bad)
    if list(images.pixels.shape[1:]) != list(shape):
        got = "x".join(str(size) for size in images.pixels.shape[1:])
        raise ValueError(f"{path}: expected images of {'x'.join(map(str, shape))}, got {got}")
    levels = int(model.metadata["levels"])
    if images.levels == levels:
        return images
    return ImageSet(unstretch_images(images.pixels, levels), levels=levels, names=images.names)


def _write_images(folder: Path, rows: torch.Tensor, metadata: dict[str, Any]) -> None:
    """A PNG for each row, numbered."""
    pixels = unscale_images(rows.clamp(-1.0, 1.0), metadata["levels"], stretch=True).view(-1, *metadata["image_shape"])
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(pixels):
        save_images(folder / f"{index:0{len(str(len(pixels) - 1))}d}.png", image[None], padding=0)


def _continuous(rows: torch.Tensor, levels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return rows + 2.0 / levels * torch.rand(rows.shape, generator=generator)


def _one_class(model: AutoregressiveModel, label: int | None) -> torch.Tensor | None:
    """The label that all rows share, for a model with classes."""
    if label is None and class_labels(model, 1) is not None:
        raise ValueError("--class: this model has classes; say which one the rows are of")
    labels = class_labels(model, 1, label)
    return None if labels is None else labels[0]


def _own_device(device: str) -> torch.device:
    """The device of this process."""
    return group().device(resolve_device(device))


def _sample_share(
    model: AutoregressiveModel, n: int, sampler: str | None, labels: torch.Tensor | None, seed: int, denoise: bool
) -> torch.Tensor:
    """``n`` samples, each process drawing its share with a seed of its own; the first process gets them all."""
    processes = group()
    if n < processes.size:
        raise ValueError(f"-n {n}: expected at least one for each of {processes.size} devices")
    share = processes.share(n)
    generator = torch.Generator(model.shift.device).manual_seed(seed + 0x9E3779B97F4A7C15 * processes.rank % 2**63)
    rows = model.sample(
        share.stop - share.start,
        sampler,
        generator,
        None if labels is None else labels[share],
        progress=processes.first,
        denoise=denoise,
    )
    return processes.collect(rows.cpu())


def _log_probs(
    model: AutoregressiveModel, rows: torch.Tensor, method: str | None, condition: torch.Tensor | None = None
) -> torch.Tensor:
    """Terms of the log density, ``(N, D)``, with a progress bar."""
    size = max(1, 65536 // model.features)
    parts = []
    with torch.no_grad(), track("scoring", len(rows), enabled=group().first) as advance:
        for part in rows.split(size):
            parts.append(
                model.log_prob(part.to(model.shift.device), condition=condition, reduce=False, method=method).cpu()
            )
            advance(len(part))
    return torch.cat(parts)


def _restored_paths(images: Path, names: Sequence[str], out: Path) -> list[Path]:
    """Where the restored images go: never where anything is, nor among the noisy ones."""
    targets = [(out / name).with_suffix(".png") for name in names]
    if len(set(targets)) < len(targets):
        raise ValueError(f"{images}: expected names that differ by more than their suffix, since all become .png")
    if any(target.resolve().is_relative_to(images.resolve()) for target in targets):
        raise ValueError(f"--out {out}: expected a folder outside of {images}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: expected a folder, got a file")
    for target in targets:
        if target.exists():
            raise ValueError(f"{target}: exists already; give another --out")
    return targets


def _corruption(
    model: AutoregressiveModel, noise: Noise, sigma: float | None, probability: float | None, levels: int
) -> Corruption:
    """The noise that was asked for, on images in [-1, 1) with values in the middle of their level."""
    given = {"--sigma": sigma, "--probability": probability}
    wanted, other = ("--sigma", "--probability") if noise == "gaussian" else ("--probability", "--sigma")
    if given[wanted] is None or given[other] is not None:
        raise ValueError(f"--noise {noise}: expected {wanted} and no {other}")
    if sigma is not None:
        return GaussianNoise(sigma)
    smallest = model.noise.sigma_min * float(model.scale.max()) if model.noise else 0.0
    return SaltAndPepper.of_images(float(probability or 0.0), levels, smallest)


def _denoised(
    model: AutoregressiveModel,
    rows: torch.Tensor,
    corruption: Corruption,
    method: Denoiser | None,
    condition: torch.Tensor | None,
    generator: torch.Generator,
) -> torch.Tensor:
    """Restored rows, ``(N, D)``, by the method that was asked for or else the default for the noise."""
    method = method or ("tweedie" if isinstance(corruption, GaussianNoise) else "posterior")
    if method == "posterior":
        return posterior(model, rows, corruption, condition=condition, tol=1e-3, progress=True)
    if method == "particles":
        return particles(model, rows, corruption, generator=generator, condition=condition, progress=True).mean()
    if method == "langevin":
        suspect, first = None, 0
        if isinstance(corruption, SaltAndPepper):
            suspect = corruption.suspect(rows)
        elif isinstance(corruption, GaussianNoise):  # the noisy value is at home at the level of its noise
            levels = [level * float(model.scale.max()) for level in model.path()]
            first = min(sum(level > corruption.sigma for level in levels), max(len(levels) - 1, 0))
        return langevin(model, rows, suspect, first, generator=generator, condition=condition, progress=True)
    if not isinstance(corruption, GaussianNoise):
        raise ValueError("--method tweedie: expected gaussian noise; use posterior, particles or langevin")
    return tweedie(model, rows, corruption.sigma, condition, progress=True)


def _score_digits(model: AutoregressiveModel, out: Path, seed: int) -> None:
    """Log density of every digit beside its label."""
    images = digits()
    rows = _continuous(scale_images(images.pixels, images.levels).flatten(1), images.levels, seed)
    total = _log_probs(model, rows, None).sum(1)
    labels = images.labels if images.labels is not None else torch.zeros(len(rows))
    _write_scores(out, {"label": labels, "log_prob": total})


def _show_training(result: FitResult) -> None:
    early = ", stopped early" if result.stopped_early else ""
    print(f"trained {result.steps} steps in {result.seconds:.0f} s{early}; best objective {result.best_loss:.4f}")


def _show_likelihoods(numbers: ReportNumbers) -> None:
    _show_likelihood_table(numbers.log_likelihood)
    print(f"calibration: KS distance {numbers.pit_statistic:.4f} over {numbers.pit_count} values")


def _show_likelihood_table(rows: Sequence[LikelihoodRow]) -> None:
    table = ShownTable("held-out log likelihood", "nats a row")
    for row in rows:
        table.add_row(row.model, f"{row.mean:.3f}" + (f" +- {row.error:.3f}" if row.error is not None else ""))
    Console().print(table)


if __name__ == "__main__":
    main()
