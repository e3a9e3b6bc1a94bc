"""The command ``arcsm``. Every command is a few lines over the library; none prints a traceback for a mistake."""

from __future__ import annotations

import json
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table as ShownTable

from arcsm import __version__
from arcsm.config import RunConfig, dump_config, load_config, load_tree, presets, run_config_path, validated
from arcsm.data import frame_parts, frame_writer, read_frame, scale_images, write_frame, write_table
from arcsm.data.frames import check_names, raw_parts
from arcsm.data.images import digits, save_images, unscale_images
from arcsm.estimators import ScoreDensity, ScoreOutlierDetector
from arcsm.estimators.report import VERDICTS, Judged, write_detection_report
from arcsm.experiments import EXPERIMENTS, Preset, find
from arcsm.experiments.base import result_path
from arcsm.files import atomic_path, check_writable
from arcsm.implicit.report import write_vae_report
from arcsm.implicit.runs import VAERunConfig, holds_vae, is_vae, is_vae_run, load_vae_run, train_vae_run
from arcsm.implicit.vae import VAE, load_vae
from arcsm.model import AutoregressiveModel, load, resolve_device
from arcsm.model_rows import (
    SCORES,
    RowSource,
    columns_of,
    continuous,
    images_for,
    log_probs,
    sample_share,
    score_frame,
    score_writer,
    shared_class,
    write_images,
)
from arcsm.processes import ProcessError, copies, group, is_lost_contact, join, leave_error, start, was_started
from arcsm.progress import track
from arcsm.report import LikelihoodRow, ReportNumbers, sample_picture, write_report
from arcsm.restore import Denoiser, Noise, corruption_of, restored, restored_paths
from arcsm.running import RunningMoments
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
WithData = Annotated[
    bool, typer.Option("--with-data", help="Keep the table's columns, as they are, before what is found.")
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
_SHARED = ("train", "sample", "score", "reproduce")  # what several processes do together, the last by its cells
_JUDGED_AT_ONCE = 2_000  # rows of a table: a progress bar that moves, and bounded memory


def _version(wanted: bool) -> None:
    if wanted:
        print(f"arcsm {__version__}")
        raise typer.Exit


@app.callback()
def callback(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Score-based autoregressive density models: train by scores, get likelihoods, samples and calibrated CDFs."""
    command = context.invoked_subcommand
    if command not in _SHARED and copies() > 1:
        raise ValueError(f"{command}: works in one process, and {copies()} were started; start it by itself")


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
    if isinstance(config, VAERunConfig) and devices * nodes > 1:
        raise ValueError("--devices: an autoencoder trains in one process")
    folder = out or Path("runs") / config.name
    again = (
        f"go on with: {shlex.join(['arcsm', 'train', str(run_config_path(folder)), '--out', str(folder), '--resume'])}"
    )
    if not isinstance(config, VAERunConfig):
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
    if not holds_vae(run):
        _in_processes(devices, nodes)
    elif devices * nodes > 1:
        raise ValueError("--devices: an autoencoder draws in one process")
    model = load_vae(run, device) if holds_vae(run) else load(run, group().device(device))
    if out.suffix not in ("", ".png", ".npy", ".csv", ".parquet"):
        raise ValueError(f"--out {out}: expected a .png, .csv, .parquet or .npy file, or a folder")
    if out.suffix in ("", ".png") and "image_shape" not in model.metadata:
        raise ValueError(f"--out {out}: this model is not of images; use .csv, .parquet or .npy")
    if out.suffix == "" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: exists already; give a new or an empty folder")
    check_writable(out / "0.png" if out.suffix == "" else out)
    begun = time.monotonic()
    if isinstance(model, VAE):
        if sampler is not None or denoise or label is not None:
            raise ValueError("--sampler, --denoise, --class: expected none of them; this is an autoencoder")
        rows = model.sample(n, torch.Generator(model.device).manual_seed(seed)).cpu()
    else:
        rows = sample_share(model, n, sampler, class_labels(model, n, label), seed, denoise, group())
    if not group().first:
        return
    if out.suffix == "":
        write_images(out, rows, model.metadata)
    elif out.suffix == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(out) as temporary:
            temporary.write_bytes(sample_picture(rows, model.metadata))
    else:
        write_table(out, rows.numpy(), columns_of(model))
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
    with_data: WithData = False,
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
    if with_data and (out.suffix == ".npy" or data.is_dir()):
        raise ValueError("--with-data: keeps the columns of a table; use it with one, and with --out .csv or .parquet")
    _in_processes(devices, nodes)
    model, processes, mean = load(run, group().device(device)), group(), RunningMoments()
    of_class = shared_class(model, label)
    source = RowSource(model, data, seed, skip_bad)
    if with_data:
        source.check_names(SCORES)
    count = sum(len(rows) for rows in source.parts())  # all is looked at before the work
    with (
        score_writer(out) if processes.first else nullcontext(lambda _: None) as write,
        track("scoring", processes.share(count).stop, processes.first) as advance,
    ):
        own = source.own_columns() if with_data else None
        for rows in source.parts():
            share = rows[processes.share(len(rows))]
            terms = processes.collect(log_probs(model, share, method, of_class, advance))
            before = None if own is None else next(own)
            if processes.first:
                write(score_frame(terms, mean.count, before, source.names))
                mean.add(terms.sum(1))
    if processes.first:
        print(f"{out}  {count} rows, mean log density {float(mean.mean):.4f} +- {mean.error:.4f} nats")


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
    noisy = images_for(model, images, skip_bad)
    targets = restored_paths(images, noisy.names or (), out)
    corruption = corruption_of(model, noise, sigma, probability, noisy.levels)
    rows = scale_images(noisy.pixels, noisy.levels).flatten(1) + 1.0 / noisy.levels  # the middle of each level
    begun = time.monotonic()
    rows = rows.to(model.shift)
    of_class, generator = shared_class(model, label), torch.Generator(rows.device).manual_seed(seed)
    clean = restored(model, rows, corruption, method, of_class, generator)
    pixels = unscale_images(clean.cpu(), noisy.levels, stretch=True).view(noisy.pixels.shape)
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
    with_data: WithData = False,
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
    if with_data:
        check_names(test, VERDICTS)
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
    own = raw_parts(test, _JUDGED_AT_ONCE) if with_data else None
    with frame_writer(out) as write, track("judging", rows, enabled=True) as advance:

        def written(found: pd.DataFrame) -> None:
            write(found if own is None else pd.concat([next(own), found], axis=1))
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
    check_writable(page)
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
    if devices * nodes > 1 and not was_started():
        raise _SeveralProcesses(devices, nodes, again)
    if not join().first:
        warnings.simplefilter("ignore")  # the first one says it


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
            if is_lost_contact(error):
                said = "arcsm: another process of the run has ended; see what it said"
                return 1 if leave_error(f"{said}\n{error}") else _fail(said.removeprefix("arcsm: "), 1)
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


def _score_digits(model: AutoregressiveModel, out: Path, seed: int) -> None:
    """Log density of every digit beside its label."""
    images = digits()
    rows = continuous(scale_images(images.pixels, images.levels).flatten(1), images.levels, seed)
    with track("scoring", len(rows), enabled=True) as advance:
        terms = log_probs(model, rows, advance=advance)
    frame = score_frame(terms)[["row", "log_prob"]]
    if images.labels is not None:
        frame.insert(1, "label", images.labels.numpy())
    write_frame(out, frame)


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
