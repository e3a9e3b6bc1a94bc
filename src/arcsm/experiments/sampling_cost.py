"""What a row costs by each sampler, in evaluations of the score and in seconds, and how good the rows are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from arcsm.experiments.base import Count, Preset, Study, digest, study
from arcsm.experiments.toys import ToyRows, toy_rows
from arcsm.experiments.toys_nll import ToyScores, train_scores
from arcsm.metrics import energy_distance, sliced_wasserstein
from arcsm.metrics.evaluations import count_evaluations
from arcsm.model import AutoregressiveModel, load, save
from arcsm.reports.plots import BLUE, GREEN, GREY, ORANGE, open_frame


class SamplingCost(ToyScores):
    """The paper samples by annealed Langevin dynamics with 20 steps a level; the rest is ours.

    Rows are compared with as many held-out ones: where a sampler draws fewer, chance alone leaves more.
    """

    lists_cells: ClassVar[frozenset[str]] = ToyScores.lists_cells | {"fast_steps"}

    toys: tuple[str, ...] = ("checkerboard", "rings", "two_spirals")
    rows: Count = 10_000
    flow_steps: tuple[Count, ...] = (5, 10, 20, 40)
    fast_steps: tuple[Count, ...] = (4, 10, 20)
    langevin_steps: tuple[Count, ...] = (20, 200)  # a level
    long_langevin: Count = 20_000  # steps a dimension over all levels
    long_rows: Count = 2000  # it takes minutes
    references: Count = 5  # pairs of samples of the truth


PRESETS: Mapping[Preset, SamplingCost] = {
    "smoke": SamplingCost(
        toys=("eight_gaussians",), train=500, hidden=(16,), context_features=4, head_hidden=(16, 16), levels=10,
        steps=20, batch=64, rows=200, flow_steps=(5, 10), fast_steps=(2,), langevin_steps=(2,),
        long_langevin=40, long_rows=100, references=3,
    ),
    "cpu": SamplingCost(),
    "paper": SamplingCost(train=200_000, steps=40_000, langevin_steps=(20, 100, 200), long_rows=10_000, references=20),
}  # fmt: skip

FLOW, FAST, INVERSE, LANGEVIN = "probability flow", "fast flow", "inverse CDF", "Langevin"
_ROWS_AT_A_TIME = 1024

Result = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A sampler and what it is told.

    Attributes:
        family: One of the samplers.
        label: The number that tells it from others of its family.
        options: Of :meth:`AutoregressiveModel.sample`.
        rows: How many it draws.
    """

    family: str
    label: str
    options: Mapping[str, Any]
    rows: int

    @property
    def name(self) -> str:
        return f"{self.family}, {self.label}" if self.label else self.family


def body(run: Study[SamplingCost]) -> Result:
    """Train a model on each toy set, then draw from it by every sampler."""
    settings = _settings(run.settings)
    sizes = sorted({setting.rows for setting in settings})
    cells: dict[str, Callable[[], Result]] = {}
    for seed in run.settings.all_seeds():
        for toy in run.settings.toys:
            key = f"{toy} seed {seed}"
            cells[f"{key} model"] = partial(_train, run, toy, seed)
            cells |= {f"{key} truth {size}": partial(_reference, run, toy, seed, size) for size in sizes}
            cells |= {f"{key} {setting.name}": partial(_draw, run, toy, seed, setting) for setting in settings}
    found = run.each(cells)
    toys = {toy: _of_toy(run, toy, settings, sizes, found) for toy in run.settings.toys}
    return {"toys": toys, "figure": run.figure(_figure(toys, settings))}


def _settings(settings: SamplingCost) -> list[Setting]:
    flows = [
        Setting(family, f"{steps} steps", {"sampler": sampler, "steps": steps}, settings.rows)
        for family, sampler, all_steps in (
            (FLOW, "probability_flow", settings.flow_steps),
            (FAST, "fast_flow", settings.fast_steps),
        )
        for steps in all_steps
    ]
    long = max(1, round(settings.long_langevin / settings.levels))
    langevins = [
        Setting(LANGEVIN, f"{steps} a level", {"sampler": "langevin", "sampler_options": {"steps": steps}}, rows)
        for steps, rows in (*((steps, settings.rows) for steps in settings.langevin_steps), (long, settings.long_rows))
    ]
    return [*flows, Setting(INVERSE, "", {"sampler": "inverse_cdf"}, settings.rows), *langevins]


# Models and truth ---------------------------------------------------------------------------------------------------


def _train(run: Study[SamplingCost], toy: str, seed: int) -> Result:
    begun = time.monotonic()
    model = train_scores(run.settings, _rows(run, toy, seed), seed, run.device)
    save(model, _path(run, toy, seed))
    return {"training_seconds": round(time.monotonic() - begun, 1)}


def _model(run: Study[SamplingCost], toy: str, seed: int) -> AutoregressiveModel:
    """The trained model, from its file; trained once more if someone took that away."""
    path = _path(run, toy, seed)
    if not path.is_file():
        _train(run, toy, seed)
    return load(path, run.device)


def _path(run: Study[SamplingCost], toy: str, seed: int) -> Path:
    """A file of its own for every way of training."""
    training = set(ToyScores.model_fields) - {"seeds", "first_seed", "toys"}
    described = run.settings.model_dump(mode="json", include=training)
    return run.work / f"{toy}-{seed}-{digest(described)}.safetensors"


def _rows(run: Study[SamplingCost], toy: str, seed: int) -> ToyRows:
    return toy_rows(toy, run.settings.train, 1, run.settings.sigma_min, seed)


def _held_out(run: Study[SamplingCost], rows: ToyRows, count: int, seed: int) -> Tensor:
    return rows.fresh(count, torch.Generator().manual_seed(1_000_003 * seed + 7))


def _reference(run: Study[SamplingCost], toy: str, seed: int, count: int) -> Result:
    """Distances between the held-out rows and other samples of the truth: what chance alone leaves."""
    rows = _rows(run, toy, seed)
    held_out = _held_out(run, rows, count, seed)
    generator = torch.Generator().manual_seed(1_000_003 * seed + 8)
    found = [_distances(rows.fresh(count, generator), held_out) for _ in range(run.settings.references)]
    return {key: [distances[key] for distances in found] for key in found[0]}


def _distances(drawn: Tensor, held_out: Tensor) -> dict[str, float]:
    return {
        "energy_distance": energy_distance(drawn, held_out),
        "sliced_wasserstein": sliced_wasserstein(drawn, held_out),
    }


# Sampling -----------------------------------------------------------------------------------------------------------


def _draw(run: Study[SamplingCost], toy: str, seed: int, setting: Setting) -> Result:
    """Draw, count, time and compare."""
    model = _model(run, toy, seed)
    generator = run.generator(seed, 9)
    with count_evaluations(model.head) as count:
        begun = time.monotonic()
        drawn = model.sample(setting.rows, generator=generator, batch_size=_ROWS_AT_A_TIME, **setting.options).cpu()
        seconds = time.monotonic() - begun
    held_out = _held_out(run, _rows(run, toy, seed), setting.rows, seed)
    return {
        "rows": setting.rows,
        "seconds": seconds,
        "evaluations_per_row": (count.scores + count.with_derivative) / setting.rows,
        "of_them_with_derivative": count.with_derivative / setting.rows,
        **_distances(drawn, held_out),
    }


# Tables and the figure ----------------------------------------------------------------------------------------------


def _of_toy(
    run: Study[SamplingCost], toy: str, settings: list[Setting], sizes: list[int], found: Mapping[str, Result]
) -> Result:
    """Means over the seeds."""
    keys = [f"{toy} seed {seed}" for seed in run.settings.all_seeds()]
    samplers = {}
    for setting in settings:
        each = [found[f"{key} {setting.name}"] for key in keys]
        samplers[setting.name] = {name: fmean([result[name] for result in each]) for name in each[0]}
        samplers[setting.name]["rows"] = setting.rows
    truth = {}
    for size in sizes:
        truth[str(size)] = {
            name: _spread([value for key in keys for value in found[f"{key} truth {size}"][name]])
            for name in ("energy_distance", "sliced_wasserstein")
        }
    seconds = fmean([found[f"{key} model"]["training_seconds"] for key in keys])
    return {"training_seconds": seconds, "samplers": samplers, "truth_against_truth": truth}


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": fmean(values), "least": min(values), "largest": max(values)}


_MARKS: Mapping[str, tuple[str, str]] = {
    FLOW: (BLUE, "o"),
    FAST: (GREEN, "v"),
    INVERSE: ("black", "s"),
    LANGEVIN: (ORANGE, "^"),
}


def _figure(toys: Mapping[str, Result], settings: list[Setting]) -> Figure:
    """Distance against cost, a panel for each toy set."""
    figure = Figure(figsize=(1.0 + 3.9 * len(toys), 4.0), layout="constrained")
    panels = figure.subplots(1, len(toys), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (toy, result) in zip(panels, toys.items(), strict=True):
        _reference_lines(axes, result["truth_against_truth"])
        for family in _MARKS:
            _points(axes, family, [s for s in settings if s.family == family], result["samplers"])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.margins(x=0.14, y=0.12)
        axes.set_title(toy.replace("_", " "), fontsize=10)
        axes.set_xlabel("score evaluations a row")
        open_frame(axes)
    panels[0].set_ylabel("sliced Wasserstein distance to held-out rows")
    handles, labels = panels[0].get_legend_handles_labels()
    across = len(labels) if len(toys) > 2 else 2
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=across, loc="outside lower center")
    return figure


def _reference_lines(axes: Axes, truth: Mapping[str, Result]) -> None:
    """Truth against truth: a line and the range, for each number of rows that was drawn."""
    for size, style in zip(sorted(truth, key=int, reverse=True), ("-", "--"), strict=False):
        level = truth[size]["sliced_wasserstein"]
        label = f"truth against truth, {int(size):,} rows"
        axes.axhline(level["mean"], color=GREY, linewidth=1.0, linestyle=style, label=label)
        axes.axhspan(level["least"], level["largest"], color=GREY, alpha=0.15, linewidth=0)


def _points(axes: Axes, family: str, settings: list[Setting], samplers: Mapping[str, Result]) -> None:
    """The settings of one sampler; hollow where fewer rows were drawn than elsewhere."""
    colour, marker = _MARKS[family]
    most = max(result["rows"] for result in samplers.values())
    x = [samplers[setting.name]["evaluations_per_row"] for setting in settings]
    y = [samplers[setting.name]["sliced_wasserstein"] for setting in settings]
    comparable = sum(setting.rows == most for setting in settings)  # these come first
    axes.plot(x[:comparable], y[:comparable], "-", color=colour, linewidth=0.8, alpha=0.5)
    for index, (setting, cost, distance) in enumerate(zip(settings, x, y, strict=True)):
        filling = colour if setting.rows == most else "white"
        label = family if index == 0 else None
        axes.plot([cost], [distance], marker, color=colour, markerfacecolor=filling, markersize=6, label=label)
        text = setting.label.split(" ")[0] + ("" if setting.rows == most else f"\n({setting.rows:,} rows)")
        axes.annotate(text, (cost, distance), (0, 7), textcoords="offset points", ha="center", fontsize=7)


SAMPLING_COST = study(
    "sampling-cost", "what 10,000 toy rows cost by each sampler, and how good they are", PRESETS, body
)
