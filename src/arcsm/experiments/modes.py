"""The weight that each method gives to two far modes, and why annealing is needed.

Where data have a gap, their score in the gap is not learned from them: nothing falls there. Yet the integral of the
score across the gap is what says how much mass lies on either side. So without noise, or with little of it, the
weights of far modes are arbitrary: whatever the network happens to do in between. A ladder of noise fills the gap
from its upper levels, and the flow down the ladder carries the right weights to the smallest one.

In one dimension sliced score matching with Rademacher projections *is* CSM, as the square of each projection is one;
here its projections are Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from arcsm import objectives
from arcsm.contexts import MADE
from arcsm.experiments.base import Count, Positive, Preset, Settings, Share, Study, over_seeds, study
from arcsm.experiments.descent import descend
from arcsm.heads import ScoreHead
from arcsm.model import AutoregressiveModel
from arcsm.noise import NoiseLadder
from arcsm.reports.plots import BLUE, GREY, ORANGE, open_frame


class Modes(Settings):
    """None of it is in the paper."""

    left: float = Field(0.3, gt=0, lt=1)  # weight of the left mode
    width: Positive = 0.1  # standard deviation of both
    separations: tuple[Positive, ...] = (4.0, 8.0, 16.0, 40.0)  # between the modes, in widths
    shown: Positive = 16.0  # the separation whose densities are drawn
    small_sigma: Positive = 0.05  # the only level of DSM, the smallest of the ladder
    levels: Count = 30
    hidden: tuple[Count, ...] = (64, 64)
    sinusoids: int = Field(8, ge=0)
    batch: Count = 256
    steps: Count = 1500
    learning_rate: Positive = 2e-3  # down to zero along a cosine
    mix: Share = 0.1
    mle_steps: Count = 100
    mle_learning_rate: Positive = 5e-4
    mle_evaluations: Count = 128  # of the score, for one normaliser
    samples: Count = 2000


PRESETS: Mapping[Preset, Modes] = {
    "smoke": Modes(
        separations=(4.0, 8.0),
        shown=8.0,
        levels=4,
        hidden=(8,),
        sinusoids=2,
        batch=32,
        steps=10,
        mle_steps=3,
        mle_evaluations=64,
        samples=50,
    ),
    "cpu": Modes(seeds=4),
    "paper": Modes(seeds=10, batch=512, mle_evaluations=256, steps=10_000, mle_steps=1000, samples=20_000),
}

COLOURS: Mapping[str, str] = {
    "CSM": BLUE,
    "SSM": "#7fb3d1",
    "DSM, one level": "#8e5ea2",
    "ladder, quadrature": "#c9a227",
    "ladder, flow": ORANGE,
    "ladder, Langevin": "#b5482f",
    "ladder, MLE": "#3b8f5a",
}
_POINTS = 241  # of the grid that densities are drawn on
_FLOOR = -40.0  # of the log densities that are kept


def body(run: Study[Modes]) -> dict[str, Any]:
    """Every kind of model at every separation from several seeds."""
    settings = run.settings
    if settings.shown not in settings.separations:
        raise ValueError(f"shown: expected one of the separations {settings.separations}, got {settings.shown:g}")
    kinds: dict[str, Callable[[Study[Modes], float, int], dict[str, Any]]] = {
        "CSM": _csm,
        "SSM": _ssm,
        "DSM": _dsm,
        "ladder": _ladder,
    }
    cells = {
        f"{kind} at {separation:g} seed {seed}": (
            lambda kind=kind, separation=separation, seed=seed: kinds[kind](run, separation, seed)
        )
        for separation in settings.separations
        for seed in settings.all_seeds()
        for kind in kinds
    }
    found = run.each(cells)
    weights: dict[str, dict[str, list[float]]] = {name: {} for name in COLOURS}
    for separation in settings.separations:
        for seed in settings.all_seeds():
            for kind in kinds:
                for name, weight in found[f"{kind} at {separation:g} seed {seed}"]["weights"].items():
                    weights[name].setdefault(f"{separation:g}", []).append(weight)
    first = [found[f"{kind} at {settings.shown:g} seed {settings.first_seed}"] for kind in kinds]
    densities = {name: values for cell in first for name, values in cell["log_densities"].items()}
    return {
        "methods": {
            name: {key: _summary(settings, name, float(key), values) for key, values in of.items()}
            for name, of in weights.items()
        },
        "densities_at": settings.shown,
        "log_densities": densities,
        "figure": run.figure(_figure(settings, weights, densities)),
    }


def _summary(settings: Modes, name: str, separation: float, values: list[float]) -> dict[str, Any]:
    """Of the weights of all seeds; errors are against the mass left of zero with the noise that the method has."""
    truth = _true_weight(settings, separation, _noise_of(settings, name))
    return {
        "true_weight": truth,
        **over_seeds(values),
        "mean_absolute_error": sum(abs(value - truth) for value in values) / len(values),
        "per_seed": values,
    }


# Data ---------------------------------------------------------------------------------------------------------------


def _place(settings: Modes, separation: float) -> float:
    """Where the right mode is."""
    return 0.5 * separation * settings.width


def _std(settings: Modes, separation: float) -> float:
    """Standard deviation of the data."""
    between = 4.0 * settings.left * (1.0 - settings.left) * _place(settings, separation) ** 2
    return math.sqrt(between + settings.width**2)


def _rows(settings: Modes, separation: float, count: int, generator: torch.Generator) -> Tensor:
    """Fresh data, ``(count, 1)``."""
    shape, device = (count, 1), generator.device
    side = torch.where(torch.rand(shape, generator=generator, device=device) < settings.left, -1.0, 1.0)
    normal = torch.randn(shape, generator=generator, device=device)
    return _place(settings, separation) * side + settings.width * normal


def _noise_of(settings: Modes, name: str) -> float:
    """Noise on what a method models."""
    return 0.0 if name in ("CSM", "SSM") else settings.small_sigma


def _true_weight(settings: Modes, separation: float, sigma: float) -> float:
    """Mass left of zero of the data with noise."""
    beyond = 0.5 * math.erfc(_place(settings, separation) / math.sqrt(2.0 * (settings.width**2 + sigma**2)))
    return settings.left * (1.0 - beyond) + (1.0 - settings.left) * beyond


def _true_log_density(settings: Modes, separation: float, x: Tensor) -> Tensor:
    """Log density of the data without noise."""
    normal = torch.distributions.Normal(0.0, settings.width, validate_args=False)
    place = _place(settings, separation)
    left, right = math.log(settings.left), math.log(1.0 - settings.left)
    return torch.logaddexp(normal.log_prob(x + place) + left, normal.log_prob(x - place) + right)


def _grid(settings: Modes, separation: float) -> Tensor:
    reach = _place(settings, separation) + 4.0 * settings.width
    return torch.linspace(-reach, reach, _POINTS)


# Models -------------------------------------------------------------------------------------------------------------


def _csm(run: Study[Modes], separation: float, seed: int) -> dict[str, Any]:
    model = _model(run, separation, seed, None)
    _train(run, separation, seed, model, lambda x, g: objectives.csm(model, x))
    return _cell(run, separation, model, {"CSM": "quadrature"})


def _ssm(run: Study[Modes], separation: float, seed: int) -> dict[str, Any]:
    model = _model(run, separation, seed, None)
    _train(run, separation, seed, model, lambda x, g: objectives.ssm(model, x, 1, "gaussian", generator=g))
    return _cell(run, separation, model, {"SSM": "quadrature"})


def _dsm(run: Study[Modes], separation: float, seed: int) -> dict[str, Any]:
    sigma = run.settings.small_sigma
    model = _model(run, separation, seed, NoiseLadder(sigma, sigma, 1))
    _train(run, separation, seed, model, lambda x, g: objectives.dsm(model, x, generator=g))
    return _cell(run, separation, model, {"DSM, one level": "quadrature"})


def _ladder(run: Study[Modes], separation: float, seed: int) -> dict[str, Any]:
    """A ladder that spans the gap, asked in three ways, and then trained on by maximum likelihood."""
    settings = run.settings
    largest = 2.0 * (_place(settings, separation) + settings.width)
    model = _model(run, separation, seed, NoiseLadder(largest, settings.small_sigma, settings.levels))
    _train(run, separation, seed, model, lambda x, g: objectives.csm(model, x, settings.mix, generator=g))
    found = _cell(run, separation, model, {"ladder, quadrature": "quadrature", "ladder, flow": "flow"})
    drawn = model.sample(settings.samples, "langevin", run.generator(seed, 3), batch_size=settings.samples)
    found["weights"]["ladder, Langevin"] = float((drawn < 0.0).double().mean())

    def likelihood(x: Tensor, g: torch.Generator) -> Tensor:
        return objectives.mle(model, x, generator=g, max_evaluations=settings.mle_evaluations)

    _train(run, separation, seed, model, likelihood, settings.mle_steps, settings.mle_learning_rate)
    tuned = _cell(run, separation, model, {"ladder, MLE": "quadrature"})
    return {key: found[key] | tuned[key] for key in found}


def _model(run: Study[Modes], separation: float, seed: int, noise: NoiseLadder | None) -> AutoregressiveModel:
    settings = run.settings
    std = _std(settings, separation)
    sharpest = max(2.0, std / settings.width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ScoreHead(1, settings.hidden, settings.sinusoids, sharpest, data_std=std)
        return AutoregressiveModel(MADE(1, 1, ()), head, noise).to(run.device)


def _train(
    run: Study[Modes],
    separation: float,
    seed: int,
    model: AutoregressiveModel,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    steps: int | None = None,
    rate: float | None = None,
) -> None:
    """Adam on fresh data with a learning rate that falls to zero."""
    settings = run.settings
    steps = settings.steps if steps is None else steps
    rate = settings.learning_rate if rate is None else rate
    data, noise = run.generator(seed, 1), run.generator(seed, 2)

    def on_new_rows() -> Tensor:
        return loss(_rows(settings, separation, settings.batch, data), noise)

    for _ in descend(model, on_new_rows, steps, rate):
        pass


@torch.no_grad()
def _cell(run: Study[Modes], separation: float, model: AutoregressiveModel, asked: dict[str, str]) -> dict[str, Any]:
    """What a model says, by each way of asking: mass left of zero, and log densities on the grid."""
    zero = torch.zeros(1, 1, device=run.device)
    grid = _grid(run.settings, separation)[:, None].to(run.device)
    found: dict[str, Any] = {"weights": {}, "log_densities": {}}
    for name, method in asked.items():
        found["weights"][name] = float(model.cdf(zero, method=method, max_evaluations=4096))
        values = model.log_prob(grid, method=method, max_evaluations=4096).nan_to_num(nan=_FLOOR).clamp(_FLOOR, 40.0)
        found["log_densities"][name] = [round(float(value), 4) for value in values]
    return found


# Figure -------------------------------------------------------------------------------------------------------------


def _figure(
    settings: Modes, weights: Mapping[str, Mapping[str, list[float]]], densities: Mapping[str, list[float]]
) -> Figure:
    figure = Figure(figsize=(11.0, 4.4), layout="constrained")
    _draw_weights(figure.add_subplot(1, 2, 1), settings, weights)
    axes = figure.add_subplot(1, 2, 2)
    _draw_densities(axes, settings, densities)
    handles, labels = axes.get_legend_handles_labels()
    extra = figure.axes[0].get_legend_handles_labels()
    named = dict(zip([*extra[1], *labels], [*extra[0], *handles], strict=True))
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _draw_weights(axes: Axes, settings: Modes, weights: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Dots for the seeds, side by side, and lines through their means."""
    axes.axhline(settings.left, color=GREY, lw=1.2, ls="--", label="truth")
    for index, (name, of) in enumerate(weights.items()):
        aside = 1.0 + 0.035 * (index - 0.5 * (len(weights) - 1))
        places = [float(key) * aside for key in of]
        for place, values in zip(places, of.values(), strict=True):
            axes.plot([place] * len(values), values, "o", color=COLOURS[name], ms=3.5, alpha=0.7)
        means = [sum(values) / len(values) for values in of.values()]
        axes.plot(places, means, color=COLOURS[name], lw=1.3, label=name)
    axes.set_xscale("log")
    axes.set_xticks(settings.separations, [f"{value:g}" for value in settings.separations])
    axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("distance between the modes, in their standard deviations")
    axes.set_ylabel("weight of the left mode")
    open_frame(axes)


def _draw_densities(axes: Axes, settings: Modes, densities: Mapping[str, list[float]]) -> None:
    grid = _grid(settings, settings.shown)
    truth = _true_log_density(settings, settings.shown, grid)
    axes.plot(grid.tolist(), truth.tolist(), color=GREY, lw=2.5, ls="--", label="truth")
    for name, values in densities.items():
        axes.plot(grid.tolist(), values, color=COLOURS[name], lw=1.2, label=name)
    axes.set_ylim(-25.0, 4.0)
    axes.set_xlabel(f"x, modes {settings.shown:g} standard deviations apart")
    axes.set_ylabel("log density in nats")
    open_frame(axes)


MODES = study("modes", "the weight that each method gives to two far modes, and why annealing is needed", PRESETS, body)
