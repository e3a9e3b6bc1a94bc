"""Commands that apply a trained model: sample, score and denoise."""

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import torch
from typer import Argument, Option, Typer

from arcsm._runtime.devices import resolve_device
from arcsm._runtime.files import check_separate, check_writable, write_bytes
from arcsm._runtime.moments import RunningMoments
from arcsm._runtime.process_group import group
from arcsm._runtime.progress import track
from arcsm.cli.console import show
from arcsm.cli.kinds import is_fitted_table, kind_at
from arcsm.cli.launching import join_processes
from arcsm.cli.model_rows import (
    SCORE_COLUMNS,
    RowSource,
    column_names,
    images_for,
    log_probs,
    score_frame,
    score_writer,
    shared_class,
    write_images,
)
from arcsm.cli.options import (
    Decimal,
    Device,
    Devices,
    Encoding,
    Ids,
    Ignore,
    Label,
    Missing,
    Model,
    Nodes,
    SafeCSV,
    Sampler,
    Seed,
    Separator,
    SkipBad,
    Trained,
    WithData,
    check_safe_csv,
    check_unused,
    read_options,
)
from arcsm.cli.restoration import Denoiser, Noise, make_corruption, restored, restored_paths
from arcsm.cli.table_inputs import TableInput
from arcsm.data import save_images, scale_images, unscale_images, write_table
from arcsm.data.table import check_header, check_reserved_columns
from arcsm.model import load
from arcsm.reports.pictures import sample_picture
from arcsm.training.runs import check_finished, training_file

app = Typer()


@app.command(
    epilog="Examples: arcsm sample runs/digits --out samples.png   |   arcsm sample runs/table -n 1000 --out rows.csv"
    "   |   arcsm sample runs/digits -n 100 --out images/"
)
def sample(
    run: Trained,
    out: Annotated[
        Path, Option(help="A .png (a grid of images), a folder (one .png each), or a .csv, .parquet or .npy file.")
    ],
    n: Annotated[int, Option("-n", help="Number of samples.", min=1)] = 64,
    sampler: Sampler = None,
    denoise: Annotated[bool, Option("--denoise", help="Remove the smallest noise (Tweedie's formula).")] = False,
    label: Annotated[
        int | None, Option("--class", help="Class to sample, for models with classes. Default: all in turn.")
    ] = None,
    safe_csv: SafeCSV = False,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
) -> None:
    """Draw samples from a trained model. The same seed and number of devices give the same samples."""
    check_safe_csv(safe_csv, out)
    kind = kind_at(run)
    kind.join(devices, nodes)
    model = kind.load(run, device)
    if out.suffix not in ("", ".png", ".npy", ".csv", ".parquet"):
        raise ValueError(f"--out {out}: expected a .png, .csv, .parquet or .npy file, or a folder")
    if out.suffix in ("", ".png") and "image_shape" not in model.metadata:
        raise ValueError(f"--out {out}: this is not an image model; use .csv, .parquet or .npy")
    if out.suffix == "" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: already exists; choose a new or an empty folder")
    check_writable(out / "0.png" if out.suffix == "" else out)
    check_separate({"--out": out}, [path] if (path := training_file(run)) else ())
    if out.suffix == ".csv":
        check_header(column_names(model))
    started = time.monotonic()
    rows = kind.sample(model, n, sampler, denoise, label, seed)
    if not group().first:
        return
    if out.suffix == "":
        write_images(out, rows, model.metadata)
    elif out.suffix == ".png":
        write_bytes(out, sample_picture(rows, model.metadata))
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_table(out, rows.numpy(), column_names(model), safe_csv)
    show(f"{out}  {n} samples in {time.monotonic() - started:.1f} s")


@app.command(
    epilog="Examples: arcsm score runs/table new.csv --out scores.csv   |   "
    "arcsm score runs/mnist images/ --skip-bad --out scores.csv   |   "
    "arcsm score runs/table new.tsv --id customer --na -999 --out scores.csv   |   "
    "arcsm score new.csv --model model --out scores.csv"
)
def score(
    paths: Annotated[
        list[Path],
        Argument(
            metavar="[RUN] DATA",
            help="Folder of a run or a model file, unless --model holds a fitted table; then .csv, .tsv, .parquet, "
            ".npy, .npz, - or a folder of images.",
        ),
    ],
    out: Annotated[Path, Option(help="A .csv, .tsv, .parquet or .npy file.")],
    fitted: Model = None,
    method: Annotated[str | None, Option(help="flow, quadrature or closed_form. Default: the model's own.")] = None,
    with_data: WithData = False,
    safe_csv: SafeCSV = False,
    label: Label = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    sep: Separator = None,
    decimal: Decimal = None,
    encoding: Encoding = None,
    na: Missing = None,
    ignore: Ignore = None,
    ids: Ids = None,
) -> None:
    """Compute the log density of each row in nats, and its least likely column.

    Rows are counted from 1, without the header. Dimensions without a name, such as pixels, are numbered from 0.
    """
    if fitted is None and len(paths) == 2 and is_fitted_table(paths[0]):
        fitted, paths = paths[0], paths[1:]
    if fitted is not None:
        if len(paths) != 1:
            raise ValueError(f"{', '.join(map(str, paths))}: with --model, expected the table to score alone")
        if devices * nodes > 1:
            raise ValueError("--devices: a fitted table is scored in one process")
        check_unused({"--method": method, "--class": label, "--skip-bad": skip_bad}, "with --model")
        options = read_options(sep, decimal, encoding, na, ignore, ids)
        from arcsm.cli.table_scores import score_rows  # estimators take seconds to import

        score_rows(fitted, TableInput(paths[0]), options, out, with_data, safe_csv, device)
        return
    if len(paths) != 2:
        raise ValueError("expected RUN and DATA, or DATA and --model")
    run, data = paths
    check_finished(run)
    if skip_bad and out.suffix == ".npy":
        raise ValueError(f"--out {out}: a .npy file cannot list the skipped images; use .csv or .parquet")
    check_safe_csv(safe_csv, out)
    check_writable(out)
    check_separate({"--out": out}, (data,))
    if (with_data or ids) and (out.suffix == ".npy" or data.is_dir()):
        option = "--with-data" if with_data else "--id"
        raise ValueError(f"{option}: copies the columns of a table; it needs a table, and --out .csv or .parquet")
    join_processes(devices, nodes)
    model, processes, mean = load(run, group().device(device)), group(), RunningMoments()
    class_label = shared_class(model, label)
    table = TableInput(data)
    options = read_options(sep, decimal, encoding, na, ignore, ids)
    source = RowSource(model, table.path, seed, skip_bad, options, table.source)
    if source.file is not None and (with_data or ids):
        check_reserved_columns(source.file, *((SCORE_COLUMNS,) if with_data else (SCORE_COLUMNS[1:], options.ids)))
    count = sum(len(rows) for rows in source.parts())  # checks all rows first
    names = column_names(model) if "columns" in model.metadata and out.suffix != ".npy" else None
    with (
        score_writer(out, source.file, safe_csv) if processes.first else nullcontext(lambda _: None) as write,
        track("scoring", count, processes.first) as work,
    ):
        columns = None if source.file is None or out.suffix == ".npy" else source.copied_parts(with_data)
        for rows in work.over(source.parts(), len):
            share = rows[processes.share(len(rows))]
            terms = processes.collect(log_probs(model, share, method, class_label))
            before = None if columns is None else next(columns)
            if processes.first:
                write(score_frame(terms, mean.count, before, source.names, names))
                mean.add(terms.sum(1))
    if processes.first:
        error = "" if math.isnan(mean.standard_error) else f" +- {mean.standard_error:.4f}"
        show(f"{out}  {count} rows, mean log density {float(mean.mean):.4f}{error} nats")


@app.command(
    epilog="Examples: arcsm denoise runs/mnist noisy --sigma 0.6 --out restored   |   "
    "arcsm denoise runs/mnist noisy --noise salt-and-pepper --probability 0.1 --method particles --out restored"
)
def denoise(
    run: Trained,
    images: Annotated[Path, Argument(metavar="IMAGES", help="A folder of noisy images of the model's size.")],
    out: Annotated[Path, Option(help="Folder of the restored images, PNG files of the same names.")],
    noise: Annotated[Noise, Option(help="Kind of noise.")] = "gaussian",
    sigma: Annotated[
        float | None, Option(help="Standard deviation of gaussian noise, for pixels from -1 to 1.")
    ] = None,
    probability: Annotated[float | None, Option(help="Fraction of values that salt-and-pepper noise replaces.")] = None,
    method: Annotated[
        Denoiser | None,
        Option(
            help="tweedie (fast, gaussian noise only, its default), posterior (default for salt-and-pepper noise), "
            "particles (slow, also uses later pixels) or langevin (the paper's, for salt-and-pepper noise)."
        ),
    ] = None,
    label: Label = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Remove noise from images, with a model of clean images."""
    model = load(run, resolve_device(device))
    if not images.is_dir():
        raise ValueError(f"{images}: expected a folder of images")
    noisy = images_for(model, images, skip_bad)
    targets = restored_paths(images, noisy.names or (), out)
    corruption = make_corruption(model, noise, sigma, probability, noisy.levels)
    rows = scale_images(noisy.pixels, noisy.levels).flatten(1) + 1.0 / noisy.levels  # the middle of each level
    started = time.monotonic()
    rows = rows.to(model.shift)
    class_label, generator = shared_class(model, label), torch.Generator(rows.device).manual_seed(seed)
    clean = restored(model, rows, corruption, method, class_label, generator, progress=True)
    pixels = unscale_images(clean.cpu(), noisy.levels, stretch=True).view(noisy.pixels.shape)
    for target, image in zip(targets, pixels, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        save_images(target, image[None], padding=0)
    show(f"{out}  {len(targets)} images in {time.monotonic() - started:.1f} s")
