"""Cost of a row by each sampler, in evaluations of the score and in seconds, and the quality of the rows."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arcsm.experiments.base import Count, Preset, Result, Study, study
from arcsm.experiments.records import digest
from arcsm.experiments.toys import ToyRows, distances, toy_rows
from arcsm.experiments.toys_nll import ToyScores, train_scores
from arcsm.metrics.evaluations import count_evaluations
from arcsm.model import AutoregressiveModel, load, save
from arcsm.reports.plots import BLUE, GREEN, GREY, ORANGE, open_panels


class SamplingCost(ToyScores):
    """The paper samples by annealed Langevin dynamics with 20 steps a level; the rest is ours.

    Rows are compared with as many held-out rows; chance alone leaves larger distances with fewer rows.
    """

    cell_selection: ClassVar[frozenset[str]] = ToyScores.cell_selection | {"fast_steps"}
    toys: tuple[str, ...] = ("checkerboard", "rings", "two_spirals")
    rows: Count = 10_000
    flow_steps: tuple[Count, ...] = (5, 10, 20, 40)
    fast_steps: tuple[Count, ...] = (4, 10, 20)
    langevin_steps: tuple[Count, ...] = (20, 200)  # a level
    long_langevin: Count = 20_000  # steps a dimension over all levels
    long_rows: Count = 2000  # this takes minutes
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
_BATCH_SIZE = 1024


class Setting(NamedTuple):
    """A sampler, a label that distinguishes its settings, arguments of ``sample``, and a number of rows."""

    family: str
    label: str
    options: Mapping[str, Any]
    rows: int

    @property
    def name(self) -> str:
        return f"{self.family}, {self.label}" if self.label else self.family


def body(run: Study[SamplingCost]) -> Result:
    """Train a model on each toy set, then draw from it by every sampler."""
    settings = sampler_settings(run.settings)
    sizes = sorted({setting.rows for setting in settings})
    samplers = {setting.name: setting for setting in settings}
    cells: dict[tuple[str, str], Callable[[int], Result]] = {}
    for toy in run.settings.toys:
        cells[toy, "model"] = partial(_train, run, toy)
        cells |= {(toy, f"truth {size}"): partial(_compare_truth, run, toy, count=size) for size in sizes}
        cells |= {(toy, name): partial(_draw, run, toy, setting=setting) for name, setting in samplers.items()}
    results = run.compute_seeds(cells, lambda key, seed: f"{key[0]} seed {seed} {key[1]}")
    toys = {}
    for toy in run.settings.toys:
        toys[toy] = _over_seeds({name: cell for (t, name), cell in results.items() if t == toy}, settings)
    return {"toys": toys, "figure": run.figure(_figure(toys, settings))}


def sampler_settings(settings: SamplingCost) -> list[Setting]:
    """Return all samplers with their options."""
    families = ((FLOW, "probability_flow", settings.flow_steps), (FAST, "fast_flow", settings.fast_steps))
    flows = [
        Setting(family, f"{steps} steps", {"sampler": sampler, "steps": steps}, settings.rows)
        for family, sampler, step_counts in families
        for steps in step_counts
    ]
    long = max(1, round(settings.long_langevin / settings.levels))
    langevin = [
        Setting(LANGEVIN, f"{steps} a level", {"sampler": "langevin", "sampler_options": {"steps": steps}}, rows)
        for steps, rows in (*((steps, settings.rows) for steps in settings.langevin_steps), (long, settings.long_rows))
    ]
    return [*flows, Setting(INVERSE, "", {"sampler": "inverse_cdf"}, settings.rows), *langevin]


def _train(run: Study[SamplingCost], toy: str, seed: int) -> Result:
    start = time.monotonic()
    model = train_scores(run.settings, _rows(run, toy, seed), seed, run.device)
    save(model, _model_path(run, toy, seed))
    return {"training_seconds": round(time.monotonic() - start, 1)}


def _load_model(run: Study[SamplingCost], toy: str, seed: int) -> AutoregressiveModel:
    path = _model_path(run, toy, seed)
    if not path.is_file():
        _train(run, toy, seed)
    return load(path, run.device)


def _model_path(run: Study[SamplingCost], toy: str, seed: int) -> Path:
    key = run.settings.model_dump(mode="json", include=set(ToyScores.model_fields) - {"seeds", "first_seed", "toys"})
    return run.work / f"{toy}-{seed}-{digest(key)}.safetensors"


def _rows(run: Study[SamplingCost], toy: str, seed: int) -> ToyRows:
    return toy_rows(toy, run.settings.train, 1, run.settings.sigma_min, seed)


def _compare_truth(run: Study[SamplingCost], toy: str, seed: int, count: int) -> Result:
    """Return distances between the held-out rows and other samples of the truth: what chance alone leaves."""
    rows = _rows(run, toy, seed)
    held_out = rows.sample(count, torch.Generator().manual_seed(1_000_003 * seed + 7))
    generator = torch.Generator().manual_seed(1_000_003 * seed + 8)
    found = [distances(rows.sample(count, generator), held_out) for _ in range(run.settings.references)]
    return {key: [each[key] for each in found] for key in found[0]}


def _draw(run: Study[SamplingCost], toy: str, seed: int, setting: Setting) -> Result:
    model = _load_model(run, toy, seed)
    generator = run.generator(seed, 9)
    with count_evaluations(model.head) as count:
        start = time.monotonic()
        samples = model.sample(setting.rows, generator=generator, batch_size=_BATCH_SIZE, **setting.options).cpu()
        seconds = time.monotonic() - start
    held_out = _rows(run, toy, seed).sample(setting.rows, torch.Generator().manual_seed(1_000_003 * seed + 7))
    return {
        "rows": setting.rows,
        "seconds": seconds,
        "evaluations_per_row": (count.scores + count.with_derivative) / setting.rows,
        "of_them_with_derivative": count.with_derivative / setting.rows,
        **distances(samples, held_out),
    }


def _over_seeds(cells: Mapping[str, list[Result]], settings: list[Setting]) -> Result:
    samplers = {}
    for setting in settings:
        results = cells[setting.name]
        samplers[setting.name] = {key: fmean([result[key] for result in results]) for key in results[0]}
        samplers[setting.name]["rows"] = setting.rows
    truth: Result = {str(size): {} for size in sorted({setting.rows for setting in settings})}
    for size, measures in truth.items():
        by_seed = cells[f"truth {size}"]
        for name in by_seed[0]:
            values = [value for cell in by_seed for value in cell[name]]
            measures[name] = {"mean": fmean(values), "least": min(values), "largest": max(values)}
    seconds = fmean([cell["training_seconds"] for cell in cells["model"]])
    return {"training_seconds": seconds, "samplers": samplers, "truth_against_truth": truth}


_MARKERS = {FLOW: (BLUE, "o"), FAST: (GREEN, "v"), INVERSE: ("black", "s"), LANGEVIN: (ORANGE, "^")}


def _figure(toys: Mapping[str, Result], settings: list[Setting]) -> Figure:
    figure, panels = open_panels(1.0 + 3.9 * len(toys), 4.0, 1, len(toys), sharex=True, sharey=True)
    for axes, (toy, result) in zip(panels, toys.items(), strict=True):
        for size, style in zip(sorted(result["truth_against_truth"], key=int, reverse=True), ("-", "--"), strict=False):
            truth = result["truth_against_truth"][size]["sliced_wasserstein"]
            label = f"truth against truth, {int(size):,} rows"
            axes.axhline(truth["mean"], color=GREY, linewidth=1.0, linestyle=style, label=label)
            axes.axhspan(truth["least"], truth["largest"], color=GREY, alpha=0.15, linewidth=0)
        for family in _MARKERS:
            _draw_family(axes, family, [s for s in settings if s.family == family], result["samplers"])
        axes.set(xscale="log", yscale="log", xlabel="score evaluations a row")
        axes.margins(x=0.14, y=0.12)
        axes.set_title(toy.replace("_", " "), fontsize=10)
    panels[0].set_ylabel("sliced Wasserstein distance to held-out rows")
    handles, labels = panels[0].get_legend_handles_labels()
    columns = len(labels) if len(toys) > 2 else 2
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=columns, loc="outside lower center")
    return figure


def _draw_family(axes: Axes, family: str, settings: list[Setting], samplers: Mapping[str, Result]) -> None:
    """Draw the settings of one sampler, with hollow markers if fewer rows were drawn."""
    colour, marker = _MARKERS[family]
    most = max(result["rows"] for result in samplers.values())
    points = [[samplers[s.name][key] for key in ("evaluations_per_row", "sliced_wasserstein")] for s in settings]
    line = [point for point, setting in zip(points, settings, strict=True) if setting.rows == most]
    axes.plot([x for x, _ in line], [y for _, y in line], "-", color=colour, linewidth=0.8, alpha=0.5)
    for index, (setting, (x, y)) in enumerate(zip(settings, points, strict=True)):
        comparable = setting.rows == most
        filling, label = colour if comparable else "white", family if index == 0 else None
        axes.plot([x], [y], marker, color=colour, markerfacecolor=filling, markersize=6, label=label)
        text = setting.label.split(" ")[0] + ("" if comparable else f"\n({setting.rows:,} rows)")
        axes.annotate(text, (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=7)


SAMPLING_COST = study(
    "sampling-cost", "what 10,000 toy rows cost by each sampler, and how good they are", PRESETS, body
)
