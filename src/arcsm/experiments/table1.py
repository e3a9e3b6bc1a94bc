"""Table 1: outliers among images by models of CIFAR-10, by the paper's statistic and by others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from statistics import fmean
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from arcsm.anomaly import Combination, outlier_scores
from arcsm.data.datasets import Dataset, named_images_path
from arcsm.data.image_sets import torchvision_images
from arcsm.data.images import read_images
from arcsm.data.pixels import scale_images
from arcsm.experiments import image_models
from arcsm.experiments.base import Count, Positive, Preset, Result, Study, study
from arcsm.experiments.comparisons import mean_and_sd
from arcsm.metrics import add_smallest_noise, auroc, auroc_standard_error
from arcsm.model import AutoregressiveModel
from arcsm.reports.plots import BLUE, GREY, ORANGE, open_frame

SVHN, COLOUR, GREY_LEVEL, UNIFORM = "SVHN", "constant, a colour", "constant, a grey", "uniform"
CHOSEN = "combination"
UNTRAINED = ", untrained"  # suffix of the control

#: The paper's table: AUROC of its own models.
QUOTED: Mapping[str, Any] = {
    "source": "quoted from the paper, Autoregressive Score Matching (Meng et al., NeurIPS 2020), Table 1; not measured",
    "auroc": {
        "PixelCNN++": {"SVHN": 0.32, "constant": 0.0, "uniform": 1.0, "average": 0.44},
        "Glow": {"SVHN": 0.24, "constant": 0.0, "uniform": 1.0, "average": 0.41},
        "EBM": {"SVHN": 0.63, "constant": 0.30, "uniform": 1.0, "average": 0.64},
        "AR-CSM": {"SVHN": 0.68, "constant": 0.57, "uniform": 0.95, "average": 0.73},
    },
}
_AVERAGED = (SVHN, COLOUR, UNIFORM)  # as in the paper's average
_VALIDATION, _TEST = "validation", "test"
_CHANGED = ("mutated", "blurred")  # validation images, by which sign and noise of the paper's statistic are chosen
_MUTATED_SHARE = 0.2  # of the values, replaced by uniform ones
_CLEAN = ", no noise"  # suffix of scores of images without the smallest noise
Columns = dict[str, Tensor]  #: values of every score, ``(N,)``


class Table1(image_models.ImageModels):
    """The paper gives neither the sizes of its networks nor the sign and the noise of its statistic.

    The two PixelCNN++ have the same context network. All models see the same noise: contexts read images with noise
    ``sigma_min``, and likelihoods are of such images.
    """

    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds", "models", "control"})
    models: tuple[str, ...] = Field(
        ("cifar-made", "cifar-made-paper", "cifar-pixelcnn", "cifar-pixelcnn-paper", "cifar-pixelcnn-mle"), min_length=1
    )
    control: bool = True  # also the first PixelCNN++ with its initial weights
    rows: int = Field(2000, ge=3)  # of each set, if it has as many
    density_rows: int = Field(200, ge=3)  # the first of them, for densities, which are slow, and the combination
    methods: tuple[Literal["flow", "quadrature"], ...] = ("flow", "quadrature")  # densities of score models
    tol: Positive = 0.01  # nats for each value of an image
    max_evaluations: Count = 128
    resamples: Count = 100  # of the bootstrap


PRESETS: Mapping[Preset, Table1] = {
    "smoke": Table1(
        rows=12, density_rows=6, max_evaluations=32, resamples=10,
        **{**image_models.PRESET_CHANGES["smoke"], "changes": (*image_models.TINY, image_models.DIGITS)},
    ),
    "cpu": Table1(rows=300, density_rows=100, methods=("flow",), **image_models.PRESET_CHANGES["cpu"]),
    "paper": Table1(
        seeds=3, rows=10_000, density_rows=10_000, tol=1e-3, max_evaluations=512, resamples=200,
        **image_models.PRESET_CHANGES["paper"],
    ),
}  # fmt: skip


def body(run: Study[Table1]) -> Result:
    """Train every model, score every set, and measure how well each score separates the sets from the test images."""
    names, seeds = run.settings.models, run.settings.seed_range
    trained = {f"train {name} seed {seed}": (name, seed) for name in names for seed in seeds}
    training = image_models.train_models(run, trained)
    data = {seed: image_sets(run, seed) for seed in seeds}
    outliers = data[run.settings.first_seed].outliers
    loaders = _model_loaders(run)
    cells = {
        f"{name} seed {s} {part} {images}": partial(_measure, run, data[s], partial(load, s), images, s, part)
        for name, load in loaders.items()
        for s in seeds
        for part in ("scores", "densities")
        for images in (_VALIDATION, _TEST, *outliers, *(_CHANGED if part == "scores" else ()))
    }
    results = run.compute_all(cells, image_models.model_basis(run, cells))
    models: dict[str, Result] = {}
    tables: dict[str, Mapping[str, Columns]] = {}  # of the first seed
    for name in loaders:
        by_seed = [_tables(results, f"{name} seed {seed}", outliers) for seed in seeds]
        trainings = [training[f"train {name} seed {seed}"] for seed in seeds] if name in names else []
        models[name] = _training(trainings) | _over_seeds([_aurocs(run.settings, each) for each in by_seed])
        models[name]["nearest_to_the_paper"] = _nearest_to_paper(models[name]["as_is"])
        changed = {images: results[f"{name} seed {run.settings.first_seed} scores {images}"] for images in _CHANGED}
        models[name]["chosen_on_validation"] = _chosen_on_validation(by_seed[0], changed, models[name]["as_is"])
        tables[name] = by_seed[0]
    return {
        "inliers": f"test images of {image_models.model_config(run, names[0]).data.kind}",
        "averaged": [name for name in _AVERAGED if name in outliers],
        "orientation": "as_is: a larger score counts as more outlying, and the opposite sign has 1 minus that AUROC; "
        "two_sided: how far one score is from those of the validation images, to either side",
        "chosen_without_outliers": CHOSEN,
        "quoted": QUOTED,
        "models": models,
        "figure": run.figure(_figure(models, tables)),
    }


def _model_loaders(run: Study[Table1]) -> Mapping[str, Callable[[int], AutoregressiveModel]]:
    names = run.settings.models
    loaders = {name: partial(image_models.load_model, run, name) for name in names}
    controls = [name for name in names if name.endswith("pixelcnn")]
    if run.settings.control and controls:
        loaders[f"{controls[0]}{UNTRAINED}"] = partial(image_models.initial_model, run, controls[0])
    return loaders


@dataclass(frozen=True)
class ImageSets:
    """Inliers and outliers, read when they are needed."""

    settings: Table1
    dataset: Dataset  # the images that the models were trained on; its test images are the inliers
    download: bool = False  # SVHN, if it is missing

    @property
    def outliers(self) -> tuple[str, ...]:
        synthetic = (COLOUR, GREY_LEVEL, UNIFORM)
        return (SVHN, *synthetic) if self.dataset.metadata["image_shape"][0] == 3 else synthetic

    def rows(self, images: str, seed: int) -> Tensor:
        """Return the first images of a set as dequantised rows ``(N, D)``."""
        count, dataset = self.settings.rows, self.dataset
        stored: Mapping[str, Callable[[], Tensor]] = {
            _VALIDATION: lambda: dataset.valid, _TEST: lambda: dataset.test, SVHN: self._svhn,
            **{kind: partial(self._changed, kind, dataset.valid[:count], seed) for kind in _CHANGED},
        }  # fmt: skip
        rows = stored[images]() if images in stored else self._synthetic(images, count, seed)
        return dataset.dequantised(rows[:count], 1_000_003 * seed + _purpose(images))

    def _svhn(self) -> Tensor:
        path, shape = named_images_path("svhn"), self.dataset.metadata["image_shape"]
        stored = path.suffix == ".npz"
        images = read_images(path, key="x_test") if stored else torchvision_images("svhn", path, "test", self.download)
        if list(images.pixels.shape[1:]) != shape:
            raise ValueError(f"{path}: expected images {shape}, got {list(images.pixels.shape[1:])}")
        return scale_images(images.pixels, images.levels).flatten(1)

    def _changed(self, kind: str, rows: Tensor, seed: int) -> Tensor:
        """Return images in which a share of the values are uniform, or in which each is a mean of its neighbours."""
        levels, shape = int(self.dataset.metadata["levels"]), self.dataset.metadata["image_shape"]
        if kind == "blurred":
            images = torch.nn.functional.pad(rows.unflatten(1, shape), [1] * 4, mode="replicate")
            means = torch.nn.functional.avg_pool2d(images, 3, stride=1).flatten(1)
            return scale_images(((means + 1.0) * (0.5 * levels)).floor().clamp(0, levels - 1).to(torch.uint8), levels)
        generator = torch.Generator().manual_seed(7_000_003 * seed + _purpose(kind))
        pixels = torch.randint(levels, rows.shape, generator=generator).to(torch.uint8)
        mutated = torch.rand(rows.shape, generator=generator) < _MUTATED_SHARE
        return torch.where(mutated, scale_images(pixels, levels), rows)

    def _synthetic(self, images: str, count: int, seed: int) -> Tensor:
        """Draw images of one colour, of one grey, or of independent values, uniform on the grey levels."""
        channels, height, width = self.dataset.metadata["image_shape"]
        shapes = {COLOUR: (channels, 1, 1), GREY_LEVEL: (1, 1, 1), UNIFORM: (channels, height, width)}
        levels = int(self.dataset.metadata["levels"])
        generator = torch.Generator().manual_seed(7_000_003 * seed + _purpose(images))
        pixels = torch.randint(levels, (count, *shapes[images]), generator=generator).to(torch.uint8)
        return scale_images(pixels.expand(count, channels, height, width), levels).flatten(1)


def image_sets(run: Study[Table1], seed: int) -> ImageSets:
    """Return inliers and outliers; raise a ValueError if the models are not of the same images."""
    first, *others = (image_models.model_config(run, name, seed).data for name in run.settings.models)
    if any(other != first for other in others):
        raise ValueError(f"models: expected models of the same images, got {', '.join(run.settings.models)}")
    dataset = image_models.load_images(run, run.settings.models[0], seed)
    return ImageSets(run.settings, dataset, getattr(first, "download", False))


def _purpose(images: str) -> int:
    return (_VALIDATION, _TEST, SVHN, COLOUR, GREY_LEVEL, UNIFORM, *_CHANGED).index(images) + 1


def _measure(
    run: Study[Table1], data: ImageSets, load: Callable[[], AutoregressiveModel], images: str, seed: int, part: str
) -> Result:
    """Return sums and norms of scores with and without the smallest noise, or densities of the first rows with it."""
    settings, model = run.settings, load()
    clean = data.rows(images, seed)
    noisy = add_smallest_noise(model, clean, 1_000_003 * seed + 100 + _purpose(images))
    if part == "scores":
        columns = outlier_scores(model, noisy, methods=())
        columns |= {f"{name}{_CLEAN}": column for name, column in outlier_scores(model, clean, methods=()).items()}
    elif not model.head.has_density:
        columns = {}
    else:
        methods = ("closed_form",) if model.head.normalised else settings.methods
        precision: dict[str, Any] = {"tol": settings.tol, "max_evaluations": settings.max_evaluations}
        columns = outlier_scores(model, noisy[: settings.density_rows], levels=(), methods=methods, **precision)
    return {name: [float(f"{value:.7g}") for value in column.tolist()] for name, column in columns.items()}


def _tables(cells: Mapping[str, Result], model: str, outliers: Sequence[str]) -> dict[str, Columns]:
    return {
        images: {
            name: torch.tensor(column, dtype=torch.float64)
            for part in ("scores", "densities")
            for name, column in cells[f"{model} {part} {images}"].items()
        }
        for images in (_VALIDATION, _TEST, *outliers)
    }


def _aurocs(settings: Table1, tables: Mapping[str, Columns]) -> Result:
    """Return AUROC and its standard error, ``kind -> score -> set``, of every score and of their combination."""

    def against_test(score: Callable[[Columns], Tensor]) -> Result:
        inliers = score(tables[_TEST])
        found = {}
        for images in (name for name in tables if name not in (_VALIDATION, _TEST)):
            outliers = score(tables[images])
            count = min(len(inliers), len(outliers))  # balanced
            pair = inliers[:count], outliers[:count]
            error = auroc_standard_error(*pair, settings.resamples)
            found[images] = {"auroc": round(auroc(*pair), 5), "standard_error": round(error, 5)}
        return found

    validation = tables[_VALIDATION]
    return {
        "as_is": {name: against_test(itemgetter(name)) for name in validation},
        "two_sided": {name: against_test(Combination().fit({name: validation[name]}).score) for name in validation},
        CHOSEN: {CHOSEN: against_test(_combination(validation))},
    }


def _combination(validation: Columns) -> Callable[[Columns], Tensor]:
    """Return the score that was chosen without outliers: the distance in all scores of the noisy images."""

    def select(table: Columns) -> Columns:
        noisy = {name: column for name, column in table.items() if not name.endswith(_CLEAN)}
        shortest = min(len(column) for column in noisy.values())
        return {name: column[:shortest] for name, column in noisy.items()}

    combination = Combination().fit(select(validation))
    return lambda table: combination.score(select(table))


def _over_seeds(aurocs: Sequence[Result]) -> Result:
    merged: Result = {}
    for kind, scores in aurocs[0].items():
        merged[kind] = {}
        for score, sets in scores.items():
            found = merged[kind][score] = {}
            for images in sets:
                each = [one[kind][score][images] for one in aurocs]
                error = fmean(entry["standard_error"] for entry in each)
                found[images] = {**mean_and_sd([entry["auroc"] for entry in each]), "standard_error": error}
            found["average"] = {"mean": fmean(found[images]["mean"] for images in _AVERAGED if images in sets)}
    return {**merged, CHOSEN: merged[CHOSEN][CHOSEN]}


def _training(cells: Sequence[Result]) -> Result:
    if not cells:
        return {}
    return {
        "parameters": cells[0]["parameters"],
        "training_steps": cells[0]["steps"],
        "training_seconds": round(fmean(cell["training_seconds"] for cell in cells)),
        "validation_objective": fmean(cell["validation"] for cell in cells),
    }


def _chosen_on_validation(tables: Mapping[str, Columns], changed: Mapping[str, Result], as_is: Result) -> Result:
    """Return the paper's statistic with the sign and the noise that tell validation images best from changed ones."""
    names = [name for name in as_is if name.startswith("h,")]

    def areas(name: str) -> list[float]:
        inliers = tables[_VALIDATION][name]
        return [auroc(inliers, torch.tensor(columns[name], dtype=torch.float64)) for columns in changed.values()]

    mean = {name: fmean(areas(name)) for name in names}
    best = max(names, key=lambda name: abs(mean[name] - 0.5))
    sign = "+" if mean[best] >= 0.5 else "-"
    means = {images: entry["mean"] for images, entry in as_is[best].items()}
    signed = {images: value if sign == "+" else 1.0 - value for images, value in means.items()}
    return {"score": f"{sign}{best}", "on_validation": max(mean[best], 1.0 - mean[best]), "auroc": signed}


def _nearest_to_paper(as_is: Mapping[str, Result]) -> Result:
    """Return the sign, noise and images of the paper's statistic that come nearest to its figures."""
    quoted = QUOTED["auroc"]["AR-CSM"]
    paper = {SVHN: quoted["SVHN"], COLOUR: quoted["constant"], UNIFORM: quoted["uniform"]}
    candidates = []
    for name in (name for name in as_is if name.startswith("h,")):
        for sign in ("+", "-"):
            means = {images: as_is[name][images]["mean"] for images in paper if images in as_is[name]}
            signed = {images: mean if sign == "+" else 1.0 - mean for images, mean in means.items()}
            gap = fmean(abs(value - paper[images]) for images, value in signed.items())
            candidates.append({"score": f"{sign}{name}", "mean_gap": gap, "auroc": signed})
    return min(candidates, key=lambda each: each["mean_gap"])


def _figure(models: Mapping[str, Result], tables: Mapping[str, Mapping[str, Columns]]) -> Figure:
    shown = _shown_scores(models)
    figure = Figure(figsize=(6.0 + 2.6 * len(models), 4.0 + 0.24 * len(shown)), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(0.24 * len(shown) + 1.0, 2.0))
    above, below = (figure.add_subfigure(grid[row, 0]) for row in range(2))
    panels = above.subplots(1, 2, sharey=True)
    for axes, kind, title in zip(panels, ("as_is", "two_sided"), ("larger is more outlying", "two-sided"), strict=True):
        _heat_map(axes, models, kind, shown)
        axes.set_title(f"AUROC, {title}", fontsize=9)
    for axes, (name, sets) in zip(np.atleast_1d(below.subplots(1, len(models))), tables.items(), strict=True):
        _histograms(axes, name, sets)
    return figure


def _shown_scores(models: Mapping[str, Result]) -> list[str]:
    """Return the rows of the heat map: all scores, but of inner noise levels only the middle one."""
    names = dict.fromkeys(score for model in models.values() for score in model["as_is"])
    levels = sorted({float(name.split(", ")[1]) for name in names if name.startswith(("h, ", "|s|, "))})
    inner = [sigma for sigma in levels[1:-1] if sigma != levels[len(levels) // 2]]
    hidden = {f"{kind}, {sigma:.4g}" for kind in ("h", "|s|") for sigma in inner}
    return [*(name for name in names if name.removesuffix(_CLEAN) not in hidden), CHOSEN]


def _heat_map(axes: Axes, models: Mapping[str, Result], kind: str, shown: Sequence[str]) -> None:
    columns = [(name, images) for name, model in models.items() for images in model[CHOSEN]]
    cells = np.full((len(shown), len(columns)), np.nan)
    for row, score in enumerate(shown):
        for column, (name, images) in enumerate(columns):
            sets = models[name][CHOSEN] if score == CHOSEN else models[name][kind].get(score)
            if sets is not None and (score != CHOSEN or kind == "two_sided"):
                cells[row, column] = sets[images]["mean"]
                colour = "white" if abs(cells[row, column] - 0.5) > 0.35 else "black"
                axes.text(column, row, f"{cells[row, column]:.2f}", ha="center", va="center", fontsize=5, color=colour)
    axes.imshow(cells, vmin=0.0, vmax=1.0, cmap="RdBu", aspect="auto")
    labels = [f"{images}, {name}" for name, images in columns]
    axes.set_xticks(range(len(columns)), labels, rotation=90, fontsize=6)
    axes.set_yticks(range(len(shown)), shown, fontsize=6)


def _histograms(axes: Axes, name: str, tables: Mapping[str, Columns]) -> None:
    distance = _combination(tables[_VALIDATION])
    logs = {images: distance(table).clamp(min=1e-9).log10().numpy() for images, table in tables.items()}
    low, high = min(float(v.min()) for v in logs.values()), max(float(v.max()) for v in logs.values())
    edges = np.linspace(low, high + 1e-9, 60).tolist()
    shown = [images for images in logs if images != _VALIDATION]
    for images, colour in zip(shown, (GREY, BLUE, ORANGE, "#7a5195", "#3a7d44"), strict=False):
        axes.hist(logs[images], bins=edges, density=True, histtype="stepfilled", alpha=0.5, color=colour, label=images)
    axes.set_title(name, fontsize=8)
    axes.set_xlabel(f"log10 of the {CHOSEN}", fontsize=7)
    axes.set_yticks([])
    axes.tick_params(labelsize=6)
    axes.legend(frameon=False, fontsize=6)
    open_frame(axes)


TABLE1 = study("table1", "outliers among images by models of CIFAR-10 (paper, Table 1)", PRESETS, body)
