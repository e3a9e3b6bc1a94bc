"""Table 1: outliers among images by models of CIFAR-10, by the paper's statistic and by others."""

from __future__ import annotations

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
from arcsm.experiments.base import Count, Positive, Preset, Study, over_seeds, study
from arcsm.experiments.image_models import (
    CPU_MADE,
    CPU_PIXELCNN,
    PAPER,
    PAPER_PIXELCNN,
    TINY,
    TINY_MADE,
    TINY_PIXELCNN,
    ImageModels,
    config_of,
    dataset_of,
    on_all_models,
    train_all,
    trained,
    untrained,
)
from arcsm.metrics import add_smallest_noise, auroc, auroc_standard_error
from arcsm.model import AutoregressiveModel
from arcsm.reports.plots import BLUE, GREY, ORANGE, open_frame

SVHN, COLOUR, GREY_LEVEL, UNIFORM = "SVHN", "constant, a colour", "constant, a grey", "uniform"
CHOSEN = "combination"
UNTRAINED = ", untrained"  # ends the name of the control

#: The paper's own table: AUROC by models that are not those trained here.
QUOTED: Mapping[str, Any] = {
    "source": "quoted from the paper, Autoregressive Score Matching (Meng et al., NeurIPS 2020), Table 1; not measured",
    "auroc": {
        "PixelCNN++": {"SVHN": 0.32, "constant": 0.0, "uniform": 1.0, "average": 0.44},
        "Glow": {"SVHN": 0.24, "constant": 0.0, "uniform": 1.0, "average": 0.41},
        "EBM": {"SVHN": 0.63, "constant": 0.30, "uniform": 1.0, "average": 0.64},
        "AR-CSM": {"SVHN": 0.68, "constant": 0.57, "uniform": 0.95, "average": 0.73},
    },
}
_AVERAGED = (SVHN, COLOUR, UNIFORM)  # as many sets as the paper's
_VALIDATION, _TEST = "validation", "test"
_CLEAN = ", no noise"  # ends the names of scores of images without the smallest noise


class Table1(ImageModels):
    """The models are those of :mod:`arcsm.experiments.image_models`, and so are their sizes, which the paper does not
    give; neither does it give the sign and the noise of its statistic.

    The two PixelCNN++ have the same context network. All see the same noise: the contexts read images with
    ``sigma_min`` on them, and the likelihoods are of such images.
    """

    lists_cells: ClassVar[frozenset[str]] = frozenset({"seeds", "models", "control"})

    models: tuple[str, ...] = Field(("cifar-made", "cifar-pixelcnn", "cifar-pixelcnn-mle"), min_length=1)
    control: bool = True  # the first PixelCNN++ with fresh weights, too: what the scores tell without any training
    rows: int = Field(2000, ge=3)  # of each set, as far as there are so many
    density_rows: int = Field(200, ge=3)  # the first of them, whose densities are found (slow) and that are combined
    methods: tuple[Literal["flow", "quadrature"], ...] = ("flow", "quadrature")  # densities of models of scores
    tol: Positive = 0.01  # nats for each of the values of an image
    max_evaluations: Count = 128
    resamples: Count = 100  # of the bootstrap


_DIGITS = "data={kind: digits}"  # which ship with scikit-learn and have no SVHN
PRESETS: Mapping[Preset, Table1] = {
    "smoke": Table1(
        changes=(*TINY, _DIGITS), pixelcnn_changes=TINY_PIXELCNN, made_changes=TINY_MADE, rows=24, density_rows=16,
        resamples=10,
    ),
    "cpu": Table1(
        pixelcnn_changes=CPU_PIXELCNN, made_changes=CPU_MADE, rows=300, density_rows=100, methods=("flow",),
    ),
    "paper": Table1(
        seeds=3, changes=PAPER, pixelcnn_changes=PAPER_PIXELCNN, rows=10_000, density_rows=10_000, tol=1e-3,
        max_evaluations=512, resamples=200,
    ),
}  # fmt: skip

Result = dict[str, Any]
Columns = dict[str, Tensor]


def body(run: Study[Table1]) -> Result:
    """Train every model, score every set with it, and see how well each score tells the sets from the test images."""
    names, seeds = run.settings.models, run.settings.all_seeds()
    training = train_all(run, {f"train {name} seed {seed}": (name, seed) for name in names for seed in seeds})
    data = {seed: _images(run, seed) for seed in seeds}
    outliers = data[run.settings.first_seed].outliers
    scorers = _scorers(run)
    cells = {
        f"{name} seed {seed} {part} {images}": partial(measure, run, data[seed], partial(scorer, seed), images, seed)
        for name, scorer in scorers.items()
        for seed in seeds
        for part, measure in (("scores", _scores), ("densities", _densities))
        for images in (_VALIDATION, _TEST, *outliers)
    }
    found = run.each(cells, on_all_models(run, cells))
    models: dict[str, Result] = {}
    tables: dict[str, Mapping[str, Columns]] = {}  # of the first seed
    for name in scorers:
        of_seeds = [_tables(found, f"{name} seed {seed}", outliers) for seed in seeds]
        trainings = [training[f"train {name} seed {seed}"] for seed in seeds] if name in names else []
        models[name] = _training(trainings) | _over_seeds([_aurocs(run.settings, each) for each in of_seeds])
        models[name]["nearest_to_the_paper"] = _nearest(models[name]["as_is"])
        tables[name] = of_seeds[0]
    return {
        "inliers": f"test images of {config_of(run, names[0]).data.kind}",
        "averaged": [name for name in _AVERAGED if name in outliers],
        "orientation": "as_is: a larger score counts as more outlying, and the opposite sign has 1 minus that AUROC; "
        "two_sided: how far one score is from those of the validation images, to either side",
        "chosen_without_outliers": CHOSEN,
        "quoted": QUOTED,
        "models": models,
        "figure": run.figure(_figure(models, tables)),
    }


def _scorers(run: Study[Table1]) -> dict[str, Callable[[int], AutoregressiveModel]]:
    """What gives the model of a seed, for every model and for the control."""
    found: dict[str, Callable[[int], AutoregressiveModel]] = {
        name: partial(trained, run, name) for name in run.settings.models
    }
    of_scores = [name for name in run.settings.models if "pixelcnn" in name and not name.endswith("-mle")]
    if run.settings.control and of_scores:
        found[f"{of_scores[0]}{UNTRAINED}"] = partial(untrained, run, of_scores[0])
    return found


# The images ---------------------------------------------------------------------------------------------------------


def _images(run: Study[Table1], seed: int) -> Images:
    """The images that all models were trained on, the test images, which are the inliers, and the outliers."""
    first, *others = (config_of(run, name, seed).data for name in run.settings.models)
    if any(other != first for other in others):
        raise ValueError(f"models: expected models of the same images, got {', '.join(run.settings.models)}")
    return Images(run.settings, dataset_of(run, run.settings.models[0], seed), getattr(first, "download", False))


@dataclass(frozen=True)
class Images:
    """The images of the experiment, read when they are needed."""

    settings: Table1
    dataset: Dataset
    download: bool = False  # fetch SVHN where it is missing

    @property
    def outliers(self) -> tuple[str, ...]:
        """Names of the sets that are none."""
        drawn = (COLOUR, GREY_LEVEL, UNIFORM)
        return (SVHN, *drawn) if self.dataset.metadata["image_shape"][0] == 3 else drawn

    def rows(self, images: str, seed: int) -> Tensor:
        """Images of a set as dequantised rows ``(N, D)``, at most as many as the settings say."""
        count, dataset = self.settings.rows, self.dataset
        stored: Mapping[str, Callable[[], Tensor]] = {
            _VALIDATION: lambda: dataset.valid, _TEST: lambda: dataset.test, SVHN: self._svhn,
        }  # fmt: skip
        rows = stored[images]() if images in stored else self._drawn(images, count, seed)
        return dataset.dequantised(rows[:count], 1_000_003 * seed + _number(images))

    def _svhn(self) -> Tensor:
        """The test images of SVHN as rows ``(N, D)``."""
        path, wanted = named_images_path("svhn"), self.dataset.metadata["image_shape"]
        if path.suffix == ".npz":
            images = read_images(path, key="x_test")
        else:
            images = torchvision_images("svhn", path, "test", self.download)
        if list(images.pixels.shape[1:]) != wanted:
            raise ValueError(f"{path}: expected images {wanted}, got {list(images.pixels.shape[1:])}")
        return scale_images(images.pixels, images.levels).flatten(1)

    def _drawn(self, images: str, count: int, seed: int) -> Tensor:
        """Images of one colour or grey, or of independent values, every value uniform on the grey levels."""
        channels, height, width = self.dataset.metadata["image_shape"]
        shapes = {COLOUR: (channels, 1, 1), GREY_LEVEL: (1, 1, 1), UNIFORM: (channels, height, width)}
        levels = int(self.dataset.metadata["levels"])
        generator = torch.Generator().manual_seed(7_000_003 * seed + _number(images))
        pixels = torch.randint(levels, (count, *shapes[images]), generator=generator).to(torch.uint8)
        return scale_images(pixels.expand(count, channels, height, width), levels).flatten(1)


def _number(images: str) -> int:
    """A number of its own for the randomness of a set."""
    return (_VALIDATION, _TEST, SVHN, COLOUR, GREY_LEVEL, UNIFORM).index(images) + 1


# The scores ---------------------------------------------------------------------------------------------------------


def _scores(
    run: Study[Table1], data: Images, load: Callable[[], AutoregressiveModel], images: str, seed: int
) -> Result:
    """The sums and norms of the scores of a set, with the smallest noise on the images and without it."""
    model = load()
    clean = data.rows(images, seed)
    noisy = add_smallest_noise(model, clean, 1_000_003 * seed + 100 + _number(images))
    return {
        f"{name}{suffix}": _rounded(column)
        for suffix, rows in (("", noisy), (_CLEAN, clean))
        for name, column in outlier_scores(model, rows, methods=()).items()
    }


def _densities(
    run: Study[Table1], data: Images, load: Callable[[], AutoregressiveModel], images: str, seed: int
) -> Result:
    """Likelihoods and statistics of PIT values of the first rows of a set, with the smallest noise on the images."""
    settings, model = run.settings, load()
    methods = ("closed_form",) if model.head.normalised else settings.methods
    rows = data.rows(images, seed)
    noisy = add_smallest_noise(model, rows, 1_000_003 * seed + 100 + _number(images))[: settings.density_rows]
    columns = outlier_scores(
        model, noisy, levels=(), methods=methods, tol=settings.tol, max_evaluations=settings.max_evaluations
    )  # fmt: skip
    return {name: _rounded(column) for name, column in columns.items()}


def _rounded(column: Tensor) -> list[float]:
    return [float(f"{value:.7g}") for value in column.tolist()]


def _tables(found: Mapping[str, Result], of: str, outliers: Sequence[str]) -> dict[str, Columns]:
    """All scores of all sets by one model, by set and then by score."""
    tables = {}
    for images in (_VALIDATION, _TEST, *outliers):
        cells = found[f"{of} scores {images}"] | found[f"{of} densities {images}"]
        tables[images] = {name: torch.tensor(column, dtype=torch.float64) for name, column in cells.items()}
    return tables


# How well the scores tell -------------------------------------------------------------------------------------------


def _aurocs(settings: Table1, tables: Mapping[str, Columns]) -> Result:
    """AUROC and its standard error of every score on every set, and of their combination: ``kind -> score -> set``."""

    def against_test(score: Callable[[Columns], Tensor]) -> Result:
        outliers = [images for images in tables if images not in (_VALIDATION, _TEST)]
        inliers = score(tables[_TEST])
        return {images: _entry(settings, inliers, score(tables[images])) for images in outliers}

    validation = tables[_VALIDATION]
    return {
        "as_is": {name: against_test(itemgetter(name)) for name in validation},
        "two_sided": {name: against_test(Combination().fit({name: validation[name]}).score) for name in validation},
        CHOSEN: {CHOSEN: against_test(_chosen(validation))},
    }


def _chosen(validation: Columns) -> Callable[[Columns], Tensor]:
    """The score that no outlier had a say in: the distance in all scores of the noisy images."""

    def together(table: Columns) -> Columns:
        used = {name: column for name, column in table.items() if not name.endswith(_CLEAN)}
        shortest = min(len(column) for column in used.values())
        return {name: column[:shortest] for name, column in used.items()}

    combination = Combination().fit(together(validation))
    return lambda table: combination.score(together(table))


def _entry(settings: Table1, inliers: Tensor, outliers: Tensor) -> dict[str, float]:
    count = min(len(inliers), len(outliers))  # balanced
    pair = inliers[:count], outliers[:count]
    error = auroc_standard_error(*pair, settings.resamples)
    return {"auroc": round(auroc(*pair), 5), "standard_error": round(error, 5)}


def _over_seeds(found: Sequence[Result]) -> Result:
    """The same with the mean and standard deviation over the seeds, and the average over the sets."""
    merged: Result = {}
    for kind, scores in found[0].items():
        merged[kind] = {}
        for score, sets in scores.items():
            entries = {images: [one[kind][score][images] for one in found] for images in sets}
            merged[kind][score] = {
                images: {
                    **over_seeds([entry["auroc"] for entry in each]),
                    "standard_error": fmean(entry["standard_error"] for entry in each),
                }
                for images, each in entries.items()
            }
            averaged = [merged[kind][score][images]["mean"] for images in _AVERAGED if images in entries]
            merged[kind][score]["average"] = {"mean": fmean(averaged)}
    return {**merged, CHOSEN: merged[CHOSEN][CHOSEN]}


def _training(cells: Sequence[Result]) -> Result:
    """How the model was trained, over the seeds; nothing for one that was not."""
    if not cells:
        return {}
    return {
        "parameters": cells[0]["parameters"],
        "training_steps": cells[0]["steps"],
        "training_seconds": round(fmean(cell["training_seconds"] for cell in cells)),
        "validation_objective": fmean(cell["validation"] for cell in cells),
    }


def _nearest(as_is: Mapping[str, Result]) -> Result:
    """The sign, noise and images of the paper's statistic that come nearest to its figures, and how near."""
    quoted = QUOTED["auroc"]["AR-CSM"]
    wanted = {SVHN: quoted["SVHN"], COLOUR: quoted["constant"], UNIFORM: quoted["uniform"]}
    found = []
    for name in (name for name in as_is if name.startswith("h,")):
        for sign in ("+", "-"):
            means = {images: as_is[name][images]["mean"] for images in wanted if images in as_is[name]}
            signed = {images: mean if sign == "+" else 1.0 - mean for images, mean in means.items()}
            gap = fmean(abs(value - wanted[images]) for images, value in signed.items())
            found.append({"score": f"{sign}{name}", "mean_gap": gap, "auroc": signed})
    return min(found, key=lambda each: each["mean_gap"])


# The figure ---------------------------------------------------------------------------------------------------------

_COLOURS = (GREY, BLUE, ORANGE, "#7a5195", "#3a7d44")


def _figure(models: Mapping[str, Result], tables: Mapping[str, Mapping[str, Columns]]) -> Figure:
    """AUROC of the scores as they are and to both sides, and how the chosen score is distributed on every set."""
    shown = _shown(models)
    figure = Figure(figsize=(6.0 + 2.6 * len(models), 4.0 + 0.24 * len(shown)), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(0.24 * len(shown) + 1.0, 2.0))
    above, below = (figure.add_subfigure(grid[row, 0]) for row in range(2))
    panels = above.subplots(1, 2, sharey=True)
    for axes, kind, title in zip(panels, ("as_is", "two_sided"), ("larger is outlying", "either side"), strict=True):
        _heat_map(axes, models, kind, shown)
        axes.set_title(f"AUROC, {title}", fontsize=9)
    for axes, (name, sets) in zip(np.atleast_1d(below.subplots(1, len(models))), tables.items(), strict=True):
        _histograms(axes, name, sets)
    return figure


def _shown(models: Mapping[str, Result]) -> list[str]:
    """Rows of the heat map: the scores of the outer noise levels and the middle one, and everything else."""
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
    distance = _chosen(tables[_VALIDATION])
    logs = {images: distance(table).clamp(min=1e-9).log10().numpy() for images, table in tables.items()}
    low, high = min(float(v.min()) for v in logs.values()), max(float(v.max()) for v in logs.values())
    edges = np.linspace(low, high + 1e-9, 60).tolist()
    drawn = [images for images in logs if images != _VALIDATION]
    for images, colour in zip(drawn, _COLOURS, strict=False):
        axes.hist(logs[images], bins=edges, density=True, histtype="stepfilled", alpha=0.5, color=colour, label=images)
    axes.set_title(name, fontsize=8)
    axes.set_xlabel(f"log10 of the {CHOSEN}", fontsize=7)
    axes.set_yticks([])
    axes.tick_params(labelsize=6)
    axes.legend(frameon=False, fontsize=6)
    open_frame(axes)


TABLE1 = study("table1", "outliers among images by models of CIFAR-10 (paper, Table 1)", PRESETS, body)
