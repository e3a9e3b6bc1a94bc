"""Figure 5: images restored from known noise by the paper's two methods, by exact posteriors, and by filters.

The paper shows pictures only. Here every method is measured on the same noisy images. Filters and Langevin dynamics get
the best of a few settings on validation images; the others have no settings to choose.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from arcsm.data.datasets import Dataset
from arcsm.denoise import Corruption, GaussianNoise, SaltAndPepper, langevin, particle_filter, posterior, tweedie
from arcsm.experiments import image_models
from arcsm.experiments.base import Positive, Preset, Result, Study, study
from arcsm.experiments.comparisons import confidence_interval
from arcsm.experiments.records import digest
from arcsm.metrics import mean_and_standard_error
from arcsm.model import AutoregressiveModel
from arcsm.reports.pictures import to_pixels


class Fig5(image_models.ImageModels):
    """Noise and data are the paper's. Salt and pepper hits single values, each colour on its own."""

    several_seeds: ClassVar[bool] = False
    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds"})  # cells depend on all models
    models: tuple[str, ...] = Field(("mnist-made", "cifar-pixelcnn"), min_length=2, max_length=2)
    paper_models: tuple[str, ...] = Field(("mnist-made-paper", "cifar-pixelcnn-paper"), min_length=2, max_length=2)
    sigma: float = Field(0.6, gt=0)  # of the Gaussian noise, which the first model removes
    probability: float = Field(0.1, gt=0, lt=1)  # of salt and pepper, which the second model removes
    images: int = Field(64, ge=2)  # test images of each set
    validation_images: int = Field(32, ge=1)  # for the settings of the filters
    particles: int = Field(8, ge=1)
    langevin_steps: int = Field(10, ge=1)  # at each level (paper, App. C.3, for colour images)
    first_levels: tuple[int, ...] = Field((0, 5, 7, 8, 9), min_length=1)  # of Langevin dynamics, one is chosen
    step_sizes: tuple[Positive, ...] = Field((0.1, 0.4, 1.0), min_length=1)  # likewise, relative to sigma_min^2
    langevin_images: int = Field(8, ge=1)  # validation images for their choice
    tol: Positive = 1e-3
    shown: int = Field(8, ge=1)


PRESETS: Mapping[Preset, Fig5] = {
    "smoke": Fig5(
        models=("mnist-made", "cifar-made"), paper_models=("mnist-made-paper", "cifar-made-paper"),
        images=2, validation_images=1, langevin_images=1, particles=2, langevin_steps=1, first_levels=(0, 1),
        step_sizes=(0.4,), tol=0.1, shown=2,
        **{
            **image_models.PRESET_CHANGES["smoke"],
            "changes": (*image_models.TINY, image_models.DIGITS, "model.noise.levels=2"),
        },
    ),
    "cpu": Fig5(images=32, **image_models.PRESET_CHANGES["cpu"]),
    "paper": Fig5(images=1_000, particles=64, **image_models.PRESET_CHANGES["paper"]),
}  # fmt: skip

GAUSSIAN, SALT = "Gaussian noise", "salt and pepper"
_PAPER_MODEL = ", the paper's model"  # suffix of a method of the paper with its own score network
TWEEDIE, LANGEVIN, MEAN = "Tweedie, one step (paper)", "Langevin (paper)", "posterior mean"
_OURS = {GAUSSIAN: TWEEDIE, SALT: MEAN}  # compared with the filters; chosen before anything was measured
_NOISE_PURPOSE = {"test": 11, "validation": 12}  # purposes of the methods are below ten
Shape = tuple[int, int, int]
Restorer = Callable[[Tensor], Tensor]  #: noisy rows ``(N, D)`` to restored ones
Candidates = Callable[[], dict[str, Restorer]]  #: the settings of a method, as restorers by name


def body(run: Study[Fig5]) -> Result:
    """Train, corrupt, restore and measure; every method is a cell."""
    import_skimage()  # fail before training if it is missing
    names, seed = (*run.settings.models, *run.settings.paper_models), run.settings.first_seed
    training = image_models.train_models(run, {f"train {name}": (name, seed) for name in names})
    tasks = [_gaussian_task(run), _salt_and_pepper_task(run)]
    cells = {
        f"{task.name}, {method}": partial(_restore, run, task, method, candidates)
        for task in tasks
        for method, candidates in task.methods().items()
    }
    folders = [image_models.model_folder(run, name).name for name in names]
    results = run.compute_all(cells, dict.fromkeys(cells, folders))
    tables = {task.name: {method: results[f"{task.name}, {method}"] for method in task.methods()} for task in tasks}
    leads = {task.name: _lead(task, tables[task.name]) for task in tasks}
    for cell in results.values():
        cell.pop("psnr_of_each")
    return {
        "models": {name: training[f"train {name}"] for name in names},
        "unit": "PSNR in decibels; means over the images with their standard errors",
        "tasks": tables,
        "lead_over_the_best_filter": leads,
        "figure": run.figure(_figure(run, tasks, tables)),
    }


@dataclass(frozen=True)
class Task:
    """Images, their corruption, and our methods that restore them with a model."""

    run: Study[Fig5]
    name: str
    model_name: str  # the preset
    corruption: Corruption
    ours: Mapping[str, Candidates]

    @property
    def filters(self) -> list[str]:
        return list(filters_for(self.corruption, (1, 1, 1)))

    def methods(self) -> dict[str, Candidates]:
        """Return the settings of each method; a method with several gets the best on validation images."""
        filters = {name: lambda name=name: filters_for(self.corruption, self.shape())[name] for name in self.filters}
        return {"noisy": lambda: {"": lambda y: y}, **filters, **self.ours}

    def clean(self, part: str) -> Tensor:
        """Return images as rows ``(N, D)``, every value in the middle of its grey level."""
        dataset, settings = self.dataset, self.run.settings
        rows, count = (dataset.test, settings.images) if part == "test" else (dataset.valid, settings.validation_images)
        return rows[:count] + 1.0 / dataset.metadata["levels"]

    def noisy(self, part: str) -> Tensor:
        """Return the same images with reproducible noise."""
        generator = torch.Generator().manual_seed(1_000_003 * self.run.settings.first_seed + _NOISE_PURPOSE[part])
        return self.corruption.corrupt(self.clean(part), generator)

    @cached_property
    def dataset(self) -> Dataset:
        return image_models.load_images(self.run, self.model_name)

    def shape(self) -> Shape:
        channels, height, width = self.dataset.metadata["image_shape"]
        return channels, height, width

    def path(self, method: str) -> Path:
        """Return the file of restored images."""
        key = [self.run.settings.model_dump(mode="json"), self.name, method]
        return self.run.work / f"restored-{digest(key)}.npy"


def _restored_by(run: Study[Fig5], name: str, restore: Callable[[AutoregressiveModel, Tensor], Tensor]) -> Candidates:
    """Return a method without settings, a function of a model and of noisy rows."""
    return lambda: {"": lambda y: restore(image_models.load_model(run, name), y)}


def _gaussian_task(run: Study[Fig5]) -> Task:
    settings, noise = run.settings, GaussianNoise(run.settings.sigma)
    name, paper = settings.models[0], settings.paper_models[0]
    generator, tol, count = partial(run.generator, settings.first_seed), settings.tol, settings.particles

    def by_tweedie(model: AutoregressiveModel, y: Tensor) -> Tensor:
        return tweedie(model, y, settings.sigma)

    def by_particles(model: AutoregressiveModel, y: Tensor) -> Tensor:
        return particle_filter(model, y, noise, count, generator(3), tol=tol).mean()

    return Task(
        run, GAUSSIAN, name, noise,
        {
            TWEEDIE + _PAPER_MODEL: _restored_by(run, paper, by_tweedie),
            TWEEDIE: _restored_by(run, name, by_tweedie),
            MEAN: _restored_by(run, name, lambda model, y: posterior(model, y, noise, tol=tol)),
            "particles": _restored_by(run, name, by_particles),
        },
    )  # fmt: skip


def _salt_and_pepper_task(run: Study[Fig5]) -> Task:
    settings, name = run.settings, run.settings.models[1]
    ladder = image_models.load_model(run, name)
    smallest = ladder.noise.sigma_min * float(ladder.scale.max()) if ladder.noise else 0.0
    noise = SaltAndPepper.of_images(
        settings.probability, image_models.load_images(run, name).metadata["levels"], smallest
    )
    generator, tol, count = partial(run.generator, settings.first_seed), settings.tol, settings.particles

    def by_langevin(name: str, extremes_alone: bool = False) -> Candidates:
        def restore(first_level: int, step_size: float, y: Tensor) -> Tensor:
            model, mask = image_models.load_model(run, name), noise.is_extreme(y) if extremes_alone else None
            assert model.noise is not None
            size = step_size * model.noise.sigma_min**2
            return langevin(model, y, mask, first_level, settings.langevin_steps, size, generator(4))

        return lambda: {
            f"from level {level + 1}, eps0 {size:g} sigma_L^2": partial(restore, level, size)
            for level in settings.first_levels
            for size in settings.step_sizes
        }

    def by_particles(model: AutoregressiveModel, y: Tensor) -> Tensor:
        return particle_filter(model, y, noise, count, generator(5), tol=tol).mean()

    return Task(
        run, SALT, name, noise,
        {
            LANGEVIN + _PAPER_MODEL: by_langevin(settings.paper_models[1]),
            LANGEVIN: by_langevin(name),
            "Langevin, extremes alone": by_langevin(name, extremes_alone=True),
            MEAN: _restored_by(run, name, lambda model, y: posterior(model, y, noise, tol=tol)),
            "posterior median": _restored_by(run, name, lambda model, y: posterior(model, y, noise, "median", tol=tol)),
            "particles": _restored_by(run, name, by_particles),
        },
    )  # fmt: skip


def import_skimage() -> Any:
    try:
        import skimage.metrics
        import skimage.restoration
    except ImportError as error:
        raise ValueError('fig5: needs scikit-image; pip install "arcsm[images]"') from error
    return skimage


def filters_for(corruption: Corruption, shape: Shape) -> dict[str, dict[str, Restorer]]:
    """Return filters by name and setting. Non-local means know the size of Gaussian noise."""
    sigma = corruption.sigma if isinstance(corruption, GaussianNoise) else 0.0
    sizes, strengths = (3, 5), (0.1, 0.2, 0.4, 0.8, 1.6)

    def for_each(restore: Callable[[np.ndarray], np.ndarray]) -> Restorer:
        return partial(_for_each_image, shape, restore)

    filters: dict[str, dict[str, Restorer]] = {
        "median filter": {f"{size} x {size}": partial(_median, shape, size) for size in sizes},
        "non-local means": {f"h = {h:g}": for_each(partial(_non_local_means, h, sigma)) for h in strengths},
        "total variation": {f"weight {w:g}": for_each(partial(_total_variation, w)) for w in strengths},
    }
    if isinstance(corruption, SaltAndPepper):
        filters["median of the others"] = {
            f"{size} x {size}": partial(_median_of_others, corruption, shape, size) for size in sizes
        }
    return filters


def _median(shape: Shape, size: int, y: Tensor) -> Tensor:
    """Return the median (or mean of the middle two) around each value in its channel, ``(N, D)``; NaN is ignored."""
    images = torch.nn.functional.pad(y.view(-1, *shape), [size // 2] * 4, value=math.nan)
    windows = images.unfold(2, size, 1).unfold(3, size, 1).reshape(len(y), -1, size * size)  # (N, D, size^2)
    ordered = windows.sort(-1).values  # NaN last
    count = (~windows.isnan()).sum(-1, keepdim=True)
    low, high = ((count - 1) // 2).clamp(min=0), (count // 2).clamp(max=size * size - 1)
    return 0.5 * (ordered.gather(-1, low) + ordered.gather(-1, high)).squeeze(-1)


def _median_of_others(corruption: SaltAndPepper, shape: Shape, size: int, y: Tensor) -> Tensor:
    """Replace values at an extreme by the median of the values around them that are not; keep the rest."""
    suspect = corruption.is_extreme(y)
    median = _median(shape, size, y.masked_fill(suspect, math.nan))
    return torch.where(suspect & ~median.isnan(), median, y)


def _for_each_image(shape: Shape, restore: Callable[[np.ndarray], np.ndarray], y: Tensor) -> Tensor:
    images = y.view(-1, *shape).permute(0, 2, 3, 1).double().cpu().numpy()
    restored = np.stack([restore(image).reshape(image.shape) for image in images])
    return torch.from_numpy(restored).permute(0, 3, 1, 2).reshape(len(y), -1).to(y)


def _non_local_means(h: float, sigma: float, image: np.ndarray) -> np.ndarray:
    denoise = import_skimage().restoration.denoise_nl_means
    return np.asarray(denoise(image, 5, 7, h=h, sigma=sigma, fast_mode=True, channel_axis=-1))


def _total_variation(weight: float, image: np.ndarray) -> np.ndarray:
    return np.asarray(import_skimage().restoration.denoise_tv_chambolle(image, weight=weight, channel_axis=-1))


def _restore(run: Study[Fig5], task: Task, method: str, settings_of: Candidates) -> Result:
    candidates, chosen = settings_of(), dict[str, Any]()
    [best, *others] = candidates
    if others:
        count = run.settings.validation_images if method in task.filters else run.settings.langevin_images
        clean, noisy = (rows[:count] for rows in (task.clean("validation"), task.noisy("validation").to(run.device)))
        sweep = {name: float(psnr(clean, restore(noisy).cpu()).mean()) for name, restore in candidates.items()}
        best = max(sweep, key=sweep.__getitem__)
        chosen = {"setting": best, "validation_psnr": sweep}
    clean = task.clean("test")
    restored = candidates[best](task.noisy("test").to(run.device)).cpu().clamp(-1.0, 1.0)
    image_models.save_array(task.path(method), restored)
    psnr_of_each = psnr(clean, restored)
    measures = {}
    for name, values in (("psnr", psnr_of_each), ("ssim", ssim(clean, restored, task.shape()))):
        mean, error = mean_and_standard_error(values)
        measures[name] = {"mean": mean, "standard_error": error}
    return {**measures, "psnr_of_each": psnr_of_each.tolist(), **chosen}


def _lead(task: Task, results: Mapping[str, Result]) -> Result:
    """Return the lead of our method over the best filter in decibels, image by image."""
    ours = _OURS[task.name]
    best = max(task.filters, key=lambda method: float(results[method]["psnr"]["mean"]))
    pairs = zip(results[ours]["psnr_of_each"], results[best]["psnr_of_each"], strict=True)
    return {"ours": ours, "filter": best, **confidence_interval([a - b for a, b in pairs])}


def psnr(clean: Tensor, restored: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of rows in [-1, 1], ``(N,)`` in decibels."""
    error = (clean - restored.clamp(-1.0, 1.0)).double().square().mean(1)
    return 10.0 * torch.log10(4.0 / error.clamp(min=1e-12))


def ssim(clean: Tensor, restored: Tensor, shape: Shape) -> Tensor:
    """Return the structural similarity of rows in [-1, 1], ``(N,)``, by scikit-image, in windows of 7 x 7."""
    pairs = [rows.view(-1, *shape).permute(0, 2, 3, 1).double().numpy() for rows in (clean, restored.clamp(-1.0, 1.0))]
    similarity = import_skimage().metrics.structural_similarity
    values = [similarity(a, b, data_range=2.0, channel_axis=-1) for a, b in zip(*pairs, strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def _figure(run: Study[Fig5], tasks: list[Task], tables: Mapping[str, Mapping[str, Result]]) -> Figure:
    rows = sum(len(task.methods()) + 1 for task in tasks)
    figure = Figure(figsize=(2.4 + 0.62 * run.settings.shown, 0.62 * rows + 0.8), layout="constrained")
    grid = figure.add_gridspec(len(tasks), 1, height_ratios=[len(task.methods()) + 1.6 for task in tasks])
    for index, task in enumerate(tasks):
        block = figure.add_subfigure(grid[index, 0])
        block.suptitle(f"{task.name}, {task.model_name}", fontsize=9)
        *panels, last = block.subplots(len(task.methods()) + 1, 1)
        for axes, (method, cell) in zip(panels, tables[task.name].items(), strict=True):
            label = f"{method}\n{cell['psnr']['mean']:.1f} dB, SSIM {cell['ssim']['mean']:.2f}"
            _draw_images(axes, task, image_models.load_array(task.path(method)), label)
        _draw_images(last, task, task.clean("test"), "clean")
    return figure


def _draw_images(axes: Axes, task: Task, images: Tensor, label: str) -> None:
    pixels = to_pixels(images[: task.run.settings.shown], task.dataset.metadata)
    picture = pixels.permute(2, 0, 3, 1).flatten(1, 2).numpy()  # (H, N * W, C)
    axes.imshow(picture.repeat(3 if picture.shape[2] == 1 else 1, 2), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=6)


FIG5 = study("fig5", "images restored from known noise, beside filters (paper, Figure 5)", PRESETS, body)
