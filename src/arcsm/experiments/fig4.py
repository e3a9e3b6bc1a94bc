"""Figures 4 and 8 to 11: images by AR-CSM and by its partner of maximum likelihood, on the same networks.

The members of a pair share the context network, the data and the noise of the density that is modelled, so that their
likelihoods are of the same thing: the dequantised images with the smallest noise of the ladder.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from arcsm._runtime.files import atomic_path
from arcsm.data.datasets import Dataset
from arcsm.data.images import image_grid
from arcsm.data.pixels import unscale_images
from arcsm.experiments.base import Count, Preset, Study, digest, study
from arcsm.experiments.image_models import (
    CPU_MADE,
    CPU_PIXELCNN,
    PAPER,
    PAPER_PIXELCNN,
    TINY,
    TINY_MADE,
    TINY_PIXELCNN,
    ImageModels,
    dataset_of,
    folder_of,
    train_all,
    trained,
)
from arcsm.experiments.records import result_path
from arcsm.metrics import add_smallest_noise, bits_per_dim, mean_and_standard_error
from arcsm.metrics.evaluations import count_evaluations
from arcsm.metrics.frechet import Frechet
from arcsm.reports import plots
from arcsm.training.log import read_metrics


class Fig4(ImageModels):
    """The models are those of :mod:`arcsm.experiments.image_models`; how they are drawn from and measured is here."""

    many_seeds: ClassVar[bool] = False

    models: tuple[str, ...] = Field(
        tuple(
            name
            for pair in ("mnist-made", "mnist-pixelcnn", "cifar-made", "cifar-pixelcnn", "faces-pixelcnn")
            for name in (pair, f"{pair}-mle")
        ),
        min_length=1,
    )
    grid: Count = 64  # samples that are shown
    samples: Count = 2_000  # of the Fréchet distance, and as many held-out images
    timed_samples: int = Field(64, ge=1)  # by each sampler, of a model of scores
    compared_samples: int = Field(256, ge=2)  # and as many whose Fréchet distance is taken
    langevin_steps: tuple[Count, Count] = (20, 10)  # T of the paper, for MNIST and for colour images (App. C.3)
    test_rows: Count = 200  # of the likelihoods
    neighbours: Count = 8  # samples beside the training images nearest to them
    draw_at_a_time: Count = 250


PRESETS: Mapping[Preset, Fig4] = {
    "smoke": Fig4(
        models=("mnist-made", "mnist-pixelcnn-mle"),
        changes=TINY,
        pixelcnn_changes=TINY_PIXELCNN,
        made_changes=TINY_MADE,
        grid=4,
        samples=4,
        timed_samples=2,
        compared_samples=4,
        langevin_steps=(2, 1),
        test_rows=2,
        neighbours=2,
    ),
    "cpu": Fig4(pixelcnn_changes=CPU_PIXELCNN, made_changes=CPU_MADE, samples=1_000),
    "paper": Fig4(changes=PAPER, pixelcnn_changes=PAPER_PIXELCNN, samples=10_000, test_rows=10_000),
}

FEWEST = "fast_flow, 3 steps"
SAMPLERS: Mapping[str, dict[str, Any]] = {
    "langevin": {"sampler": "langevin"},  # with the steps of the paper
    "probability_flow": {"sampler": "probability_flow"},
    FEWEST: {"sampler": "fast_flow", "steps": 3},
}

Result = dict[str, Any]


def body(run: Study[Fig4]) -> Result:
    """Train, draw and measure every model; each is a cell, so that a stopped run goes on."""
    names = run.settings.models
    training = train_all(run, {f"train {name}": (name, run.settings.first_seed) for name in names})
    drawn = _of_models(run, {f"draw {name}": (_draw, name) for name in names})
    measured = _of_models(run, {f"measure {name}": (_measure, name) for name in names})
    of_scores = [name for name in names if not name.endswith("-mle")]
    compared = _of_models(
        run,
        {
            f"samplers {name} {sampler}": (partial(_compare, sampler=sampler), name)
            for name in of_scores
            for sampler in SAMPLERS
        },
        {f"samplers {name} {sampler}": options for name in of_scores for sampler, options in SAMPLERS.items()},
    )
    data = run.each({f"data {key}": partial(_data, run, name) for key, name in _sets(run).items()})
    models = {}
    for name in names:
        models[name] = {**training[f"train {name}"], **drawn[f"draw {name}"], **measured[f"measure {name}"]}
        cells = {sampler: compared.get(f"samplers {name} {sampler}") for sampler in SAMPLERS}
        models[name]["samplers"] = {sampler: cell for sampler, cell in cells.items() if cell is not None}
        models[name]["pictures"] = _pictures(run, name)
        models[name]["curve"] = [[row["step"], row["valid"]] for row in read_metrics(folder_of(run, name))]
    return {
        "models": models,
        "data": {key: data[f"data {key}"] for key in _sets(run)},
        "figure": run.figure(_figure(run, models)),
        "curves": _picture(run, "curves", plots.as_png(_curves(models))),
    }


def _of_models(
    run: Study[Fig4],
    cells: Mapping[str, tuple[Callable[[Study[Fig4], str], Result], str]],
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Result]:
    """Cells of one model each; they are done again where the model's preset, or the cell's options, have changed."""
    computed = {cell: partial(compute, run, name) for cell, (compute, name) in cells.items()}
    basis: dict[str, Any] = {cell: folder_of(run, name).name for cell, (_, name) in cells.items()}
    return run.each(computed, basis | {cell: [basis[cell], dict(of)] for cell, of in (options or {}).items()})


def _sets(run: Study[Fig4]) -> dict[str, str]:
    """The data sets, each with a model that is trained on it."""
    return {name.split("-")[0]: name for name in run.settings.models}


# Cells --------------------------------------------------------------------------------------------------------------


def _draw(run: Study[Fig4], name: str) -> Result:
    """Samples by the model's default sampler, without the last noise, kept as grey values."""
    settings, model = run.settings, trained(run, name)
    generator = run.generator(settings.first_seed, 1)
    begun = time.monotonic()
    rows = model.sample(
        max(settings.samples, settings.grid),
        generator=generator,
        progress=True,
        denoise=True,
        batch_size=settings.draw_at_a_time,
    )
    seconds = time.monotonic() - begun
    with atomic_path(_samples_path(run, name)) as temporary, temporary.open("wb") as file:
        np.save(file, _pixels(rows.cpu(), model.metadata).numpy())
    return {"seconds_to_draw": round(seconds, 1), "drawn": len(rows)}


def _samples_path(run: Study[Fig4], name: str) -> Path:
    settings = run.settings
    how = [settings.samples, settings.grid, settings.draw_at_a_time, settings.first_seed]
    return run.work / f"{folder_of(run, name).name}-{digest(how)}.npy"


def _samples(run: Study[Fig4], name: str) -> Tensor:
    return torch.from_numpy(np.load(_samples_path(run, name)))


def _pixels(rows: Tensor, metadata: Mapping[str, Any]) -> Tensor:
    """Rows as grey values 0 to 255, uint8 ``(N, C, H, W)``."""
    return unscale_images(rows.clamp(-1.0, 1.0), metadata["levels"], stretch=True).view(-1, *metadata["image_shape"])


def _measure(run: Study[Fig4], name: str) -> Result:
    """Likelihood, Fréchet distance and nearest training images."""
    dataset, drawn = dataset_of(run, name), _samples(run, name)
    real = _pixels(dataset.test[: run.settings.samples], dataset.metadata)
    frechet = Frechet(real, run.device, progress=True)
    train = _pixels(dataset.train_rows(), dataset.metadata)
    return {
        **_likelihood(run, name, dataset),
        "frechet_distance": frechet.distance(drawn[: run.settings.samples]),
        "frechet_network": frechet.network,
        "frechet_images": [len(real), min(len(drawn), run.settings.samples)],
        "distance_to_nearest_training_image": float(_nearest(drawn[: run.settings.grid], train)[0].median()),
    }


def _compare(run: Study[Fig4], name: str, sampler: str) -> Result:
    """What some images cost by a sampler, and how good a few more are."""
    settings, model, dataset = run.settings, trained(run, name), dataset_of(run, name)
    steps = settings.langevin_steps[model.metadata["image_shape"][0] == 3]
    options = dict(SAMPLERS[sampler])
    if sampler == "langevin":
        options["sampler_options"] = {"steps": steps}
    generator = run.generator(settings.first_seed, 2)

    def draw(count: int) -> Tensor:
        return model.sample(count, generator=generator, denoise=True, progress=True, **options)

    with count_evaluations(model.head) as count:
        begun = time.monotonic()
        draw(settings.timed_samples)
        seconds, evaluations = time.monotonic() - begun, count.scores + count.with_derivative
    pixels = _pixels(draw(settings.compared_samples).cpu(), model.metadata)
    real = _pixels(dataset.test[: settings.compared_samples], dataset.metadata)
    return {
        "timed_samples": settings.timed_samples,
        "seconds": round(seconds, 2),
        "evaluations_per_value": evaluations / (settings.timed_samples * model.features),
        "frechet_distance": Frechet(real, run.device).distance(pixels),
        "frechet_images": [len(real), len(pixels)],
    }


@torch.no_grad()
def _likelihood(run: Study[Fig4], name: str, dataset: Dataset) -> Result:
    model, seed = trained(run, name), run.settings.first_seed
    rows = dataset.dequantised(dataset.test[: run.settings.test_rows], seed + 1)
    noisy = add_smallest_noise(model, rows, seed + 2).to(run.device)
    log_prob = torch.cat([model.log_prob(part) for part in noisy.split(20)])
    mean, error = mean_and_standard_error(-log_prob)
    bits = float(bits_per_dim(log_prob, model.features, dataset.metadata["levels"]).mean())
    return {"nll": mean, "nll_standard_error": error, "bits_per_value_of_the_noisy_images": bits}


def _data(run: Study[Fig4], name: str) -> Result:
    """The Fréchet distance of training images in place of samples, and how near test images come to training ones.

    Samples of a perfect model would have about these; samples that are remembered have a distance of zero.
    """
    dataset, count = dataset_of(run, name), run.settings.samples
    real, train = (_pixels(rows, dataset.metadata) for rows in (dataset.test[:count], dataset.train_rows()))
    nearest = _nearest(real[: run.settings.grid], train)[0]
    return {
        "frechet_distance": Frechet(real, run.device).distance(train[:count]),
        "distance_to_nearest_training_image": float(nearest.median()),
    }


def _nearest(images: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Root mean square distance in grey levels to the nearest training image, and its number, each ``(N,)``."""
    a, b = images.flatten(1).float(), train.flatten(1).float()
    distances = torch.cat([torch.cdist(a, part) for part in b.split(5_000)], 1) / a.shape[1] ** 0.5
    found = distances.min(1)
    return found.values, found.indices


# Pictures -----------------------------------------------------------------------------------------------------------


def _pictures(run: Study[Fig4], name: str) -> dict[str, str]:
    """A grid of samples, and some of them beside the training images nearest to them."""
    dataset, drawn = dataset_of(run, name), _samples(run, name)
    train = _pixels(dataset.train_rows(), dataset.metadata)
    some = drawn[: run.settings.neighbours]
    pairs = torch.cat([some, train[_nearest(some, train)[1]]])
    found = {}
    for kind, pixels, columns in (
        ("samples", drawn[: run.settings.grid], None),
        ("nearest", pairs, len(some)),
    ):
        written = io.BytesIO()
        image_grid(pixels, columns, zoom=2).save(written, format="PNG")
        found[kind] = _picture(run, f"{name}-{kind}", written.getvalue())
    return found


def _picture(run: Study[Fig4], name: str, png: bytes) -> str:
    """Keep a picture beside the record; its name."""
    path = result_path(run.out, run.name, run.preset).with_name(f"{run.preset}-{name}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(png)
    return path.name


def _curves(models: Mapping[str, Result]) -> Figure:
    """The objective on held-out images while training; each model has its own."""
    figure = Figure(figsize=(2.4 * len(models), 2.2), layout="constrained")
    for place, (name, cell) in enumerate(models.items()):
        axes = figure.add_subplot(1, len(models), place + 1)
        axes.plot(*np.array(cell["curve"]).T, "o-", color=plots.BLUE, markersize=3)
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        plots.open_frame(axes)
    return figure


def _figure(run: Study[Fig4], models: Mapping[str, Result]) -> Figure:
    """Sixteen samples of every model; the members of a pair one above the other."""
    pairs = list(dict.fromkeys(name.removesuffix("-mle") for name in models))
    figure = Figure(figsize=(2.6 * len(pairs), 5.6), layout="constrained")
    for column, pair in enumerate(pairs):
        for row, name in enumerate((pair, f"{pair}-mle")):
            axes = figure.add_subplot(2, len(pairs), row * len(pairs) + column + 1)
            axes.set_axis_off()
            if name in models:
                picture = np.asarray(image_grid(_samples(run, name)[:16], 4, padding=1).convert("RGB"))
                axes.imshow(picture, interpolation="nearest")
                axes.set_title(f"{name}\nFréchet {models[name]['frechet_distance']:.3g}", fontsize=8)
    return figure


def _of(images: str) -> Mapping[Preset, Fig4]:
    """The presets for one set of images: its models alone (smoke: on the digits of scikit-learn)."""
    found: dict[Preset, Fig4] = {}
    for preset, settings in PRESETS.items():
        names = [name for name in PRESETS["cpu"].models if name.startswith(images)]
        update: dict[str, Any] = {"models": tuple(names)}
        if preset == "smoke":
            update = {"models": tuple(names[-2:]), "changes": (*TINY, "data={kind: digits}")}
        found[preset] = settings.model_copy(update=update)
    return found


_ABOUT = "by AR-CSM and by maximum likelihood on the same networks"
FIG4 = study("fig4", f"images {_ABOUT} (Figures 4, 8 to 11)", PRESETS, body)
FIG4_MNIST = study("fig4-mnist", f"MNIST {_ABOUT} (part of fig4)", _of("mnist"), body)
FIG4_CIFAR = study("fig4-cifar", f"CIFAR-10 {_ABOUT} (part of fig4)", _of("cifar"), body)
FIG4_FACES = study("fig4-faces", f"faces {_ABOUT} (part of fig4)", _of("faces"), body)
