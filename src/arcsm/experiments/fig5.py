"""Figure 5: images restored from noise that is known, by the paper's two ways, by exact posteriors, and by filters.

The paper shows pictures alone. Here every way is measured on the same noisy images, beside the filters that one would
try first; those have the best of a few settings on validation images, ours have none to choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from arcsm._runtime.files import atomic_path
from arcsm.data.datasets import Dataset
from arcsm.data.pixels import unscale_images
from arcsm.denoise import Corruption, GaussianNoise, SaltAndPepper, langevin, particle_filter, posterior, tweedie
from arcsm.experiments.base import Positive, Preset, Study, digest, interval, study
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
    on_all_models,
    train_all,
    trained,
)
from arcsm.metrics import mean_and_standard_error
from arcsm.model import AutoregressiveModel


class Fig5(ImageModels):
    """Noise and sets are the paper's; that of salt and pepper is on single values, each colour on its own."""

    many_seeds: ClassVar[bool] = False
    lists_cells: ClassVar[frozenset[str]] = frozenset({"seeds"})  # the models are part of what a cell is

    models: tuple[str, ...] = Field(("mnist-made", "cifar-pixelcnn"), min_length=2, max_length=2)
    sigma: float = Field(0.6, gt=0)  # of the Gaussian noise, which the first model removes
    probability: float = Field(0.1, gt=0, lt=1)  # of salt and pepper, which the second model removes
    images: int = Field(64, ge=2)  # test images of each set
    validation_images: int = Field(32, ge=1)  # the filters' settings are chosen on
    particles: int = Field(8, ge=1)
    langevin_steps: int = Field(10, ge=1)  # at each level (paper, App. C.3, for colour images)
    tol: Positive = 1e-3
    shown: int = Field(8, ge=1)


_DIGITS = "data={kind: digits}"
PRESETS: Mapping[Preset, Fig5] = {
    "smoke": Fig5(
        changes=(*TINY, _DIGITS), pixelcnn_changes=TINY_PIXELCNN, made_changes=TINY_MADE, images=3,
        validation_images=2, particles=2, langevin_steps=1, tol=1e-2, shown=2,
    ),
    "cpu": Fig5(made_changes=CPU_MADE, pixelcnn_changes=CPU_PIXELCNN, images=32),
    "paper": Fig5(changes=PAPER, pixelcnn_changes=PAPER_PIXELCNN, images=1_000, particles=64),
}  # fmt: skip

GAUSSIAN, SALT = "Gaussian noise", "salt and pepper"
CLEAN, NOISY = "clean", "noisy"
TWEEDIE, MEAN = "Tweedie, one step (paper)", "posterior mean"
_CHOSEN = {GAUSSIAN: TWEEDIE, SALT: MEAN}  # ours that is held against the filters, said before anything was measured
_NOISE_OF = {"test": 11, "validation": 12}  # purposes of the randomness; those of the ways are below ten
Result = dict[str, Any]
Restorer = Callable[[Tensor], Tensor]  #: noisy rows ``(N, D)`` to restored ones


def body(run: Study[Fig5]) -> Result:
    """Train, corrupt, restore and measure; every way of restoring is a cell."""
    _skimage()  # a missing package is found before hours are spent
    training = train_all(run, {f"train {name}": (name, run.settings.first_seed) for name in run.settings.models})
    tasks = [_gaussian(run), _salt_and_pepper(run)]
    cells = {
        f"{task.name}, {way}": partial(_restore, run, task, way, restorer)
        for task in tasks
        for way, restorer in task.ways().items()
    }
    found = run.each(cells, on_all_models(run, cells))
    of_task = {task.name: {way: found[f"{task.name}, {way}"] for way in task.ways()} for task in tasks}
    leads = {task.name: _lead(task, of_task[task.name]) for task in tasks}
    for cell in found.values():
        cell.pop("psnr_of_each")
    return {
        "models": {name: training[f"train {name}"] for name in run.settings.models},
        "unit": "PSNR in decibels; means over the images with their standard errors",
        "tasks": of_task,
        "lead_over_the_best_filter": leads,
        "figure": run.figure(_figure(run, tasks, of_task)),
    }


# The two tasks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Images, what has spoilt them, and all ways to restore them."""

    run: Study[Fig5]
    name: str
    model_name: str
    corruption: Corruption
    ours: Mapping[str, Callable[[AutoregressiveModel, Tensor], Tensor]]

    def ways(self) -> dict[str, Restorer | None]:
        """Restorers by name; those of filters are chosen when they are needed, so theirs is ``None``."""
        model = partial(trained, self.run, self.model_name)
        ours = {name: lambda y, way=way: way(model(), y) for name, way in self.ours.items()}
        return {NOISY: lambda y: y, **dict.fromkeys(_filters(self.corruption, (1, 1, 1))), **ours}

    def clean(self, part: str) -> Tensor:
        """Images as rows ``(N, D)``, every value in the middle of its grey level."""
        dataset, settings = self.dataset(), self.run.settings
        rows, count = (dataset.test, settings.images) if part == "test" else (dataset.valid, settings.validation_images)
        return rows[:count] + 1.0 / dataset.metadata["levels"]

    def noisy(self, part: str) -> Tensor:
        """The same with noise, always the same."""
        generator = torch.Generator().manual_seed(1_000_003 * self.run.settings.first_seed + _NOISE_OF[part])
        return self.corruption.corrupt(self.clean(part), generator)

    def dataset(self) -> Dataset:
        return dataset_of(self.run, self.model_name)

    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.dataset().metadata["image_shape"]
        return channels, height, width


def _gaussian(run: Study[Fig5]) -> Task:
    settings, noise = run.settings, GaussianNoise(run.settings.sigma)
    generator = partial(run.generator, settings.first_seed)
    return Task(
        run, GAUSSIAN, settings.models[0], noise,
        {
            TWEEDIE: lambda model, y: tweedie(model, y, settings.sigma),
            MEAN: lambda model, y: posterior(model, y, noise, tol=settings.tol),
            "particles": lambda model, y: particle_filter(
                model, y, noise, settings.particles, generator(3), tol=settings.tol
            ).mean(),
        },
    )  # fmt: skip


def _salt_and_pepper(run: Study[Fig5]) -> Task:
    settings = run.settings
    metadata = dataset_of(run, settings.models[1]).metadata
    model = trained(run, settings.models[1])
    smallest = model.noise.sigma_min * float(model.scale.max()) if model.noise else 0.0
    noise = SaltAndPepper.of_images(settings.probability, metadata["levels"], smallest)
    generator, steps, tol = partial(run.generator, settings.first_seed), settings.langevin_steps, settings.tol
    return Task(
        run, SALT, settings.models[1], noise,
        {
            "Langevin (paper)": lambda model, y: langevin(model, y, None, 0, steps, generator=generator(4)),
            "Langevin, extremes alone": lambda model, y: langevin(
                model, y, noise.is_extreme(y), 0, steps, generator=generator(4)
            ),
            MEAN: lambda model, y: posterior(model, y, noise, tol=tol),
            "posterior median": lambda model, y: posterior(model, y, noise, "median", tol=tol),
            "particles": lambda model, y: particle_filter(
                model, y, noise, settings.particles, generator(5), tol=tol
            ).mean(),
        },
    )  # fmt: skip


# Filters ------------------------------------------------------------------------------------------------------------


def _skimage() -> Any:
    """The library of filters."""
    try:
        import skimage.metrics
        import skimage.restoration
    except ImportError as error:
        raise ValueError('fig5: needs scikit-image; pip install "arcsm[images]"') from error
    return skimage


def _filters(corruption: Corruption, shape: tuple[int, int, int]) -> dict[str, dict[str, Restorer]]:
    """What one would try first, by name and then by setting; non-local means are told Gaussian noise."""
    sigma = corruption.sigma if isinstance(corruption, GaussianNoise) else 0.0
    found: dict[str, dict[str, Restorer]] = {
        "median filter": {f"{size} x {size}": partial(_median, shape, size) for size in (3, 5)},
        "non-local means": {
            f"h = {h:g}": partial(_each, shape, partial(_non_local_means, h, sigma)) for h in (0.1, 0.2, 0.4, 0.8, 1.6)
        },
        "total variation": {
            f"weight {weight:g}": partial(_each, shape, partial(_total_variation, weight))
            for weight in (0.1, 0.2, 0.4, 0.8, 1.6)
        },
    }
    if isinstance(corruption, SaltAndPepper):
        found["median of the others"] = {
            f"{size} x {size}": partial(_median_of_others, corruption, shape, size) for size in (3, 5)
        }
    return found


def _windows(shape: tuple[int, int, int], size: int, y: Tensor) -> Tensor:
    """The values around each value, in its own channel, ``(N, D, size^2)``; NaN beyond the edges."""
    images = torch.nn.functional.pad(y.view(-1, *shape), [size // 2] * 4, value=math.nan)
    return images.unfold(2, size, 1).unfold(3, size, 1).reshape(len(y), -1, size * size)


def _median(shape: tuple[int, int, int], size: int, y: Tensor) -> Tensor:
    return _median_of_last(_windows(shape, size, y))


def _median_of_last(values: Tensor) -> Tensor:
    """Medians over the last dimension without the NaN there, ``(*)``; of an even number, the mean of the middle two."""
    ordered = values.sort(-1).values  # NaN last
    count = (~values.isnan()).sum(-1, keepdim=True)
    low, high = ((count - 1) // 2).clamp(min=0), (count // 2).clamp(max=values.shape[-1] - 1)
    return 0.5 * (ordered.gather(-1, low) + ordered.gather(-1, high)).squeeze(-1)


def _median_of_others(corruption: SaltAndPepper, shape: tuple[int, int, int], size: int, y: Tensor) -> Tensor:
    """Values at an extreme become the median of those around them that are not; the rest stays as it is."""
    suspect = corruption.is_extreme(y)
    found = _median_of_last(_windows(shape, size, y.masked_fill(suspect, math.nan)))
    return torch.where(suspect & ~found.isnan(), found, y)


def _each(shape: tuple[int, int, int], restore: Callable[[np.ndarray], np.ndarray], y: Tensor) -> Tensor:
    """A filter of single images ``(H, W, C)``."""
    images = y.view(-1, *shape).permute(0, 2, 3, 1).double().cpu().numpy()
    restored = np.stack([restore(image).reshape(image.shape) for image in images])
    return torch.from_numpy(restored).permute(0, 3, 1, 2).reshape(len(y), -1).to(y)


def _non_local_means(h: float, sigma: float, image: np.ndarray) -> np.ndarray:
    denoise = _skimage().restoration.denoise_nl_means
    return np.asarray(denoise(image, 5, 7, h=h, sigma=sigma, fast_mode=True, channel_axis=-1))


def _total_variation(weight: float, image: np.ndarray) -> np.ndarray:
    return np.asarray(_skimage().restoration.denoise_tv_chambolle(image, weight=weight, channel_axis=-1))


def _best_filter(task: Task, way: str) -> tuple[str, Restorer]:
    """The setting of a filter with the best PSNR on validation images."""
    clean, noisy = task.clean("validation"), task.noisy("validation")
    settings = _filters(task.corruption, task.shape())[way]
    chosen = max(settings, key=lambda name: float(psnr(clean, settings[name](noisy)).mean()))
    return chosen, settings[chosen]


# What is measured ---------------------------------------------------------------------------------------------------


def _restore(run: Study[Fig5], task: Task, way: str, restorer: Restorer | None) -> Result:
    """Restore the test images in one way, keep them, and measure them."""
    setting = None
    if restorer is None:
        setting, restorer = _best_filter(task, way)
    clean = task.clean("test")
    restored = restorer(task.noisy("test").to(run.device)).cpu().clamp(-1.0, 1.0)
    path = _path(run, task, way)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, restored.numpy())
    each = psnr(clean, restored)
    means = {
        "psnr": mean_and_standard_error(each),
        "ssim": mean_and_standard_error(ssim(clean, restored, task.shape())),
    }
    found: Result = {name: {"mean": mean, "standard_error": error} for name, (mean, error) in means.items()}
    found["psnr_of_each"] = each.tolist()
    return found if setting is None else {**found, "setting": setting}


def _lead(task: Task, found: Mapping[str, Result]) -> Result:
    """By how many decibels ours is ahead of the filter that did best here, image by image."""
    ours, filters = _CHOSEN[task.name], list(_filters(task.corruption, (1, 1, 1)))
    best = max(filters, key=lambda way: float(found[way]["psnr"]["mean"]))
    pairs = zip(found[ours]["psnr_of_each"], found[best]["psnr_of_each"], strict=True)
    return {"ours": ours, "filter": best, **interval([a - b for a, b in pairs])}


def _path(run: Study[Fig5], task: Task, way: str) -> Path:
    """Where restored images are kept for the figure."""
    return run.work / f"restored-{digest([run.settings.model_dump(mode='json'), task.name, way])}.npy"


def psnr(clean: Tensor, restored: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of rows in [-1, 1], ``(N,)`` in decibels."""
    error = (clean - restored.clamp(-1.0, 1.0)).double().square().mean(1)
    return 10.0 * torch.log10(4.0 / error.clamp(min=1e-12))


def ssim(clean: Tensor, restored: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Structural similarity of rows in [-1, 1], ``(N,)``, by scikit-image, in windows of 7 x 7."""
    pairs = [rows.view(-1, *shape).permute(0, 2, 3, 1).double().numpy() for rows in (clean, restored.clamp(-1.0, 1.0))]
    similar = _skimage().metrics.structural_similarity
    found = [similar(a, b, data_range=2.0, channel_axis=-1) for a, b in zip(*pairs, strict=True)]
    return torch.tensor(found, dtype=torch.float64)


# The figure ---------------------------------------------------------------------------------------------------------


def _figure(run: Study[Fig5], tasks: list[Task], found: Mapping[str, Mapping[str, Result]]) -> Figure:
    """A block for each task: one row of images for each way, noisy first and clean last."""
    rows = sum(len(task.ways()) + 1 for task in tasks)
    figure = Figure(figsize=(2.4 + 0.62 * run.settings.shown, 0.62 * rows + 0.8), layout="constrained")
    grid = figure.add_gridspec(len(tasks), 1, height_ratios=[len(task.ways()) + 1.6 for task in tasks])
    for index, task in enumerate(tasks):
        block = figure.add_subfigure(grid[index, 0])
        block.suptitle(f"{task.name}, {task.model_name}", fontsize=9)
        panels = block.subplots(len(task.ways()) + 1, 1)
        for axes, way in zip(panels, (*task.ways(), CLEAN), strict=True):
            _strip(axes, run, task, way, found[task.name].get(way))
    return figure


def _strip(axes: Axes, run: Study[Fig5], task: Task, way: str, cell: Result | None) -> None:
    images = task.clean("test") if cell is None else torch.from_numpy(np.load(_path(run, task, way)))
    levels = task.dataset().metadata["levels"]
    pixels = unscale_images(images[: run.settings.shown].clamp(-1.0, 1.0), levels, stretch=True)
    picture = pixels.view(-1, *task.shape()).permute(2, 0, 3, 1).flatten(1, 2).numpy()  # (H, N * W, C)
    axes.imshow(picture.repeat(3 if picture.shape[2] == 1 else 1, 2), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    label = way if cell is None else f"{way}\n{cell['psnr']['mean']:.1f} dB, SSIM {cell['ssim']['mean']:.2f}"
    axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=6)


FIG5 = study("fig5", "images restored from known noise, beside filters (paper, Figure 5)", PRESETS, body)
