"""Figures 4 and 8 to 11: images by AR-CSM, as we and as the paper have it, and by maximum likelihood.

The models share the context network, the data and the noise of the modelled density, so their likelihoods can be
compared: all are of dequantised images with the smallest noise of the ladder. The paper's own score network has none.
"""

import io
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from arcsm.data.datasets import Dataset
from arcsm.data.images import image_grid
from arcsm.experiments import image_models
from arcsm.experiments.base import Count, Preset, Result, Study, study
from arcsm.experiments.records import digest
from arcsm.metrics import add_smallest_noise, bits_per_dim, mean_and_standard_error
from arcsm.metrics.evaluations import count_evaluations
from arcsm.metrics.frechet import Frechet
from arcsm.reports import plots
from arcsm.reports.pictures import to_pixels
from arcsm.training.log import read_metrics


class Fig4(image_models.ImageModels):
    """How samples of the image models are drawn and measured."""

    several_seeds: ClassVar[bool] = False
    models: tuple[str, ...] = Field(
        tuple(partner for name in image_models.NAMES for partner in image_models.partners(name)), min_length=1
    )
    grid: Count = 64  # samples in a picture
    samples: Count = 2_000  # for the Fréchet distance, with as many held-out images
    timed_samples: int = Field(64, ge=1)  # by each sampler, of score models
    compared_samples: int = Field(256, ge=2)  # by each sampler, for its Fréchet distance
    langevin_steps: tuple[Count, Count] = (20, 10)  # the paper's T, for MNIST and for colour images (App. C.3)
    test_rows: Count = 200  # for the likelihoods
    neighbours: Count = 8  # samples shown with their nearest training images
    draw_at_a_time: Count = 250


PRESETS: Mapping[Preset, Fig4] = {
    "smoke": Fig4(
        models=("mnist-made", "mnist-made-paper", "mnist-made-gaussian", "mnist-made-mle"),
        grid=4, samples=4, timed_samples=2, compared_samples=4,
        langevin_steps=(2, 1), test_rows=2, neighbours=2,
        **{**image_models.PRESET_CHANGES["smoke"], "changes": (*image_models.TINY, image_models.DIGITS)},
    ),
    "cpu": Fig4(samples=1_000, **image_models.PRESET_CHANGES["cpu"]),
    "paper": Fig4(samples=10_000, test_rows=10_000, **image_models.PRESET_CHANGES["paper"]),
}  # fmt: skip

SAMPLERS: Mapping[str, dict[str, Any]] = {
    "langevin": {"sampler": "langevin"},  # with the paper's steps
    "probability_flow": {"sampler": "probability_flow"},
    "fast_flow, 3 steps": {"sampler": "fast_flow", "steps": 3},
}


def body(run: Study[Fig4]) -> Result:
    """Train, sample and measure every model."""
    names = run.settings.models
    training = image_models.train_models(run, {f"train {name}": (name, run.settings.first_seed) for name in names})
    folders = {name: image_models.model_folder(run, name).name for name in names}

    def compute(part: str, function: Callable[[Study[Fig4], str], Result]) -> dict[str, Result]:
        cells = {name: f"{part} {name}" for name in names}
        basis = {cell: [folders[name], _drawing_options(run, name)] for name, cell in cells.items()}
        return run.compute_all({cell: partial(function, run, name) for name, cell in cells.items()}, basis)

    drawn, measured = compute("draw", _draw), compute("measure", _measure)
    pairs = {(name, s): f"samplers {name} {s}" for name in names for s in _samplers(name)}
    compared = run.compute_all(
        {cell: partial(_compare, run, *pair) for pair, cell in pairs.items()},
        {cell: [folders[name], SAMPLERS[sampler]] for (name, sampler), cell in pairs.items()},
    )
    sets = {name.split("-")[0]: name for name in names}  # each with a model that is trained on it
    data = run.compute_all({f"data {key}": partial(_measure_data, run, name) for key, name in sets.items()})
    models: dict[str, Result] = {}
    for name in names:
        models[name] = {
            **training[f"train {name}"],
            **drawn[f"draw {name}"],
            **measured[f"measure {name}"],
            "samplers": {s: compared[pairs[name, s]] for s in SAMPLERS if (name, s) in pairs},
            "pictures": _pictures(run, name),
            "curve": [[row["step"], row["valid"]] for row in read_metrics(image_models.model_folder(run, name))],
        }
    return {
        "models": models,
        "data": {key: data[f"data {key}"] for key in sets},
        "figure": run.figure(_figure(run, models)),
        "curves": run.picture("curves", plots.as_png(_curves(models))),
    }


def _samplers(name: str) -> list[str]:
    """Return the samplers that are compared on a model, a key of :data:`SAMPLERS` each."""
    if name.endswith(image_models.LIKELIHOODS):
        return []
    return ["langevin"] if name.endswith(image_models.PAPER) else list(SAMPLERS)


def _options(run: Study[Fig4], name: str, sampler: str) -> dict[str, Any]:
    """Return the arguments of ``model.sample`` for a sampler; Langevin dynamics have the paper's steps."""
    steps = run.settings.langevin_steps[not name.startswith("mnist")]
    return {**SAMPLERS[sampler], **({"sampler_options": {"steps": steps}} if sampler == "langevin" else {})}


def _drawing_options(run: Study[Fig4], name: str) -> dict[str, Any]:
    """Return the arguments of ``model.sample`` for the samples that are shown and measured."""
    if name.endswith(image_models.LIKELIHOODS):
        return {"sampler": "inverse_cdf"}
    return _options(run, name, "langevin") if name.endswith(image_models.PAPER) else {"sampler": "fast_flow"}


def _draw(run: Study[Fig4], name: str) -> Result:
    """Draw samples without the last noise, by the fast flow or by Langevin dynamics, and store them as grey values."""
    settings, model = run.settings, image_models.load_model(run, name)
    count, generator = max(settings.samples, settings.grid), run.generator(settings.first_seed, 1)
    options = _drawing_options(run, name)
    start = time.monotonic()
    rows = model.sample(
        count, generator=generator, progress=True, denoise=True, batch_size=settings.draw_at_a_time, **options
    )
    seconds = time.monotonic() - start
    image_models.save_array(_samples_path(run, name), to_pixels(rows.cpu(), model.metadata))
    return {"seconds_to_draw": round(seconds, 1), "drawn": len(rows)}


def _samples_path(run: Study[Fig4], name: str) -> Path:
    settings = run.settings
    key = [settings.samples, settings.grid, settings.draw_at_a_time, settings.first_seed, _drawing_options(run, name)]
    return run.work / f"{image_models.model_folder(run, name).name}-{digest(key)}.npy"


def _measure(run: Study[Fig4], name: str) -> Result:
    dataset, count = image_models.load_images(run, name), run.settings.samples
    samples = image_models.load_array(_samples_path(run, name))
    real, train = (to_pixels(rows, dataset.metadata) for rows in (dataset.test[:count], dataset.train_rows()))
    frechet = Frechet(real, run.device, progress=True)
    return {
        **(_likelihood(run, name, dataset) if image_models.load_model(run, name).head.has_density else {}),
        "frechet_distance": frechet.distance(samples[:count]),
        "frechet_network": frechet.network,
        "frechet_images": [len(real), min(len(samples), count)],
        "distance_to_nearest_training_image": float(_nearest(samples[: run.settings.grid], train)[0].median()),
    }


def _compare(run: Study[Fig4], name: str, sampler: str) -> Result:
    settings, model, dataset = run.settings, image_models.load_model(run, name), image_models.load_images(run, name)
    options = _options(run, name, sampler)
    generator = run.generator(settings.first_seed, 2)

    def draw(count: int) -> Tensor:
        return model.sample(count, generator=generator, denoise=True, progress=True, **options)

    with count_evaluations(model.head) as count:
        start = time.monotonic()
        draw(settings.timed_samples)
        seconds, evaluations = time.monotonic() - start, count.scores + count.with_derivative
    pixels = to_pixels(draw(settings.compared_samples).cpu(), model.metadata)
    real = to_pixels(dataset.test[: settings.compared_samples], dataset.metadata)
    return {
        "timed_samples": settings.timed_samples,
        "seconds": round(seconds, 2),
        "evaluations_per_value": evaluations / (settings.timed_samples * model.features),
        "frechet_distance": Frechet(real, run.device).distance(pixels),
        "frechet_images": [len(real), len(pixels)],
    }


@torch.no_grad()
def _likelihood(run: Study[Fig4], name: str, dataset: Dataset) -> Result:
    model, seed = image_models.load_model(run, name), run.settings.first_seed
    rows = dataset.dequantised(dataset.test[: run.settings.test_rows], seed + 1)
    noisy = add_smallest_noise(model, rows, seed + 2).to(run.device)
    log_prob = torch.cat([model.log_prob(part) for part in noisy.split(20)])
    mean, error = mean_and_standard_error(-log_prob)
    bits = float(bits_per_dim(log_prob, model.features, dataset.metadata["levels"]).mean())
    return {"nll": mean, "nll_standard_error": error, "bits_per_value_of_the_noisy_images": bits}


def _measure_data(run: Study[Fig4], name: str) -> Result:
    """Measure training images as samples, and the distance of test images to them, for comparison."""
    dataset, count = image_models.load_images(run, name), run.settings.samples
    real, train = (to_pixels(rows, dataset.metadata) for rows in (dataset.test[:count], dataset.train_rows()))
    return {
        "frechet_distance": Frechet(real, run.device).distance(train[:count]),
        "distance_to_nearest_training_image": float(_nearest(real[: run.settings.grid], train)[0].median()),
    }


def _nearest(images: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Return the RMS distance in grey levels to the nearest training image, and its index, each ``(N,)``."""
    a, b = images.flatten(1).float(), train.flatten(1).float()
    distances = torch.cat([torch.cdist(a, part) for part in b.split(5_000)], 1) / a.shape[1] ** 0.5
    nearest = distances.min(1)
    return nearest.values, nearest.indices


def _pictures(run: Study[Fig4], name: str) -> dict[str, str]:
    dataset, samples = image_models.load_images(run, name), image_models.load_array(_samples_path(run, name))
    train = to_pixels(dataset.train_rows(), dataset.metadata)
    shown = samples[: run.settings.neighbours]
    pairs = torch.cat([shown, train[_nearest(shown, train)[1]]])
    files = {}
    for kind, pixels, columns in (("samples", samples[: run.settings.grid], None), ("nearest", pairs, len(shown))):
        png = io.BytesIO()
        image_grid(pixels, columns, zoom=2).save(png, format="PNG")
        files[kind] = run.picture(f"{name}-{kind}", png.getvalue())
    return files


def _curves(models: Mapping[str, Result]) -> Figure:
    figure, panels = plots.column_panels(list(models), 2.4, 2.2)
    for axes, cell in zip(panels, models.values(), strict=True):
        axes.plot(*np.array(cell["curve"]).T, "o-", color=plots.BLUE, markersize=3)
        axes.set_xlabel("step", fontsize=8)
    return figure


def _figure(run: Study[Fig4], models: Mapping[str, Result]) -> Figure:
    columns = list(dict.fromkeys(image_models.score_model(name) for name in models))
    drawn = [[name for name in image_models.partners(column) if name in models] for column in columns]
    rows = max(map(len, drawn))
    figure = Figure(figsize=(2.6 * len(columns), 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, len(columns), squeeze=False)
    for column, names in enumerate(drawn):
        for axes, name in zip_longest(panels[:, column], names):
            axes.set_axis_off()
            if name is not None:
                grid = image_grid(image_models.load_array(_samples_path(run, name))[:16], 4, padding=1).convert("RGB")
                axes.imshow(np.asarray(grid), interpolation="nearest")
                axes.set_title(f"{name}\nFréchet {models[name]['frechet_distance']:.3g}", fontsize=8)
    return figure


def _for_set(images: str) -> Mapping[Preset, Fig4]:
    """Return the presets for the models of one data set."""
    columns = [name for name in (*image_models.NAMES, image_models.CELEBA) if name.startswith(images)]
    names = tuple(partner for name in columns for partner in image_models.partners(name))
    return {
        preset: settings.model_copy(update={"models": names[-3:] if preset == "smoke" else names})
        for preset, settings in PRESETS.items()
    }


_ABOUT = "by AR-CSM, ours and the paper's, and by maximum likelihood on the same networks"
EXPERIMENTS = [study("fig4", f"images {_ABOUT} (Figures 4, 8 to 11)", PRESETS, body)] + [
    study(f"fig4-{images}", f"{title} {_ABOUT} (part of fig4)", _for_set(images), body)
    for images, title in (("mnist", "MNIST"), ("cifar", "CIFAR-10"), ("faces", "faces"), ("celeba", "CelebA"))
]
