"""The weight that each method gives to two far modes, and why annealing is needed.

If the data have a gap, the score in the gap is not learned, because no data fall there. But the integral of the score
across the gap decides how much mass lies on either side. So without noise, or with little of it, the weights of far
modes are arbitrary. A noise ladder fills the gap at its upper levels, and the flow down the ladder carries the right
weights to the smallest one.

In one dimension, sliced score matching with Rademacher projections *is* CSM, because the square of each projection is
one; the projections here are Gaussian.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, objectives
from arcsm.experiments.base import Count, Positive, Preset, Result, Settings, Share, Study, seeded, study
from arcsm.experiments.comparisons import mean_and_sd
from arcsm.experiments.descent import descend
from arcsm.reports.plots import BLUE, GREY, ORANGE, open_panels


class Modes(Settings):
    """None of this is in the paper."""

    left: float = Field(0.3, gt=0, lt=1)  # weight of the left mode
    width: Positive = 0.1  # standard deviation of both modes
    separations: tuple[Positive, ...] = (4.0, 8.0, 16.0, 40.0)  # between the modes, in widths
    shown: Positive = 16.0  # the separation whose densities are drawn
    small_sigma: Positive = 0.05  # the only level of DSM, the smallest of the ladder
    levels: Count = 30
    hidden: tuple[Count, ...] = (64, 64)
    sinusoids: int = Field(8, ge=0)
    batch: Count = 256
    steps: Count = 1500
    learning_rate: Positive = 2e-3
    mix: Share = 0.1
    mle_steps: Count = 100
    mle_learning_rate: Positive = 5e-4
    mle_evaluations: Count = 128  # of the score, for one normaliser
    samples: Count = 2000


PRESETS: Mapping[Preset, Modes] = {
    "smoke": Modes(
        separations=(4.0, 8.0), shown=8.0, levels=4, hidden=(8,), sinusoids=2, batch=32, steps=10, mle_steps=3,
        mle_evaluations=64, samples=50,
    ),
    "cpu": Modes(seeds=4),
    "paper": Modes(seeds=10, batch=512, mle_evaluations=256, steps=10_000, mle_steps=1000, samples=20_000),
}  # fmt: skip

COLOURS: Mapping[str, str] = {
    "CSM": BLUE,
    "SSM": "#7fb3d1",
    "DSM, one level": "#8e5ea2",
    "ladder, quadrature": "#c9a227",
    "ladder, flow": ORANGE,
    "ladder, Langevin": "#b5482f",
    "ladder, MLE": "#3b8f5a",
}
KINDS = {"CSM": "CSM", "SSM": "SSM", "DSM": "DSM, one level"}  # names of models without a ladder
_GRID_POINTS = 241
_MIN_LOG_DENSITY = -40.0


def body(run: Study[Modes]) -> Result:
    """Train every kind of model at every separation with several seeds."""
    settings = run.settings
    if settings.shown not in settings.separations:
        raise ValueError(f"shown: expected one of the separations {settings.separations}, got {settings.shown:g}")
    kinds: dict[str, Callable[..., Result]] = {kind: partial(_train_one_level, kind=kind) for kind in KINDS}
    kinds["ladder"] = _ladder
    cells = {(kind, s): partial(train, run, s) for s in settings.separations for kind, train in kinds.items()}
    results = run.compute_seeds(cells, lambda key, seed: f"{key[0]} at {key[1]:g} seed {seed}")
    weights: dict[str, dict[str, list[float]]] = {name: {} for name in COLOURS}
    densities: dict[str, list[float]] = {}
    for (_, separation), by_seed in results.items():
        for name in by_seed[0]["weights"]:
            weights[name][f"{separation:g}"] = [cell["weights"][name] for cell in by_seed]
        if separation == settings.shown:
            densities |= by_seed[0]["log_densities"]
    return {
        "methods": {
            name: {key: _over_seeds(settings, name, float(key), values) for key, values in by_separation.items()}
            for name, by_separation in weights.items()
        },
        "densities_at": settings.shown,
        "log_densities": densities,
        "figure": run.figure(_figure(settings, weights, densities)),
    }


def _over_seeds(settings: Modes, name: str, separation: float, values: list[float]) -> Result:
    """Summarise weights. The true weight is the mass left of zero with the noise of the method's density."""
    truth = _true_weight(settings, separation, 0.0 if name in ("CSM", "SSM") else settings.small_sigma)
    return {
        "true_weight": truth,
        **mean_and_sd(values),
        "mean_absolute_error": sum(abs(value - truth) for value in values) / len(values),
        "per_seed": values,
    }


def _centre(settings: Modes, separation: float) -> float:
    """Return the centre of the right mode; the left one is at its negative."""
    return 0.5 * separation * settings.width


def _rows(settings: Modes, separation: float, count: int, generator: torch.Generator) -> Tensor:
    shape, device = (count, 1), generator.device
    sign = torch.where(torch.rand(shape, generator=generator, device=device) < settings.left, -1.0, 1.0)
    normal = torch.randn(shape, generator=generator, device=device)
    return _centre(settings, separation) * sign + settings.width * normal


def _true_weight(settings: Modes, separation: float, sigma: float) -> float:
    """Return the mass left of zero of the data with noise."""
    beyond = 0.5 * math.erfc(_centre(settings, separation) / math.sqrt(2.0 * (settings.width**2 + sigma**2)))
    return settings.left * (1.0 - beyond) + (1.0 - settings.left) * beyond


def _grid(settings: Modes, separation: float) -> Tensor:
    limit = _centre(settings, separation) + 4.0 * settings.width
    return torch.linspace(-limit, limit, _GRID_POINTS)


def _train_one_level(run: Study[Modes], separation: float, seed: int, kind: str) -> Result:
    """Train by CSM or SSM without noise, or by DSM with one level of it, and normalise by quadrature."""
    sigma = run.settings.small_sigma
    model = _model(run, separation, seed, NoiseLadder(sigma, sigma, 1) if kind == "DSM" else None)
    losses: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
        "CSM": lambda x, g: objectives.csm(model, x),
        "SSM": lambda x, g: objectives.ssm(model, x, 1, "gaussian", generator=g),
        "DSM": lambda x, g: objectives.dsm(model, x, generator=g),
    }
    _train(run, separation, seed, model, losses[kind])
    return _measure(run, separation, model, {KINDS[kind]: "quadrature"})


def _ladder(run: Study[Modes], separation: float, seed: int) -> Result:
    """Train a ladder that spans the gap, measure it in three ways, and fine-tune it by maximum likelihood."""
    settings = run.settings
    largest = 2.0 * (_centre(settings, separation) + settings.width)
    model = _model(run, separation, seed, NoiseLadder(largest, settings.small_sigma, settings.levels))
    _train(run, separation, seed, model, lambda x, g: objectives.csm(model, x, settings.mix, generator=g))
    scores = _measure(run, separation, model, {"ladder, quadrature": "quadrature", "ladder, flow": "flow"})
    samples = model.sample(settings.samples, "langevin", run.generator(seed, 3), batch_size=settings.samples)
    scores["weights"]["ladder, Langevin"] = float((samples < 0.0).double().mean())

    def likelihood(x: Tensor, g: torch.Generator) -> Tensor:
        return objectives.mle(model, x, generator=g, max_evaluations=settings.mle_evaluations)

    _train(run, separation, seed, model, likelihood, settings.mle_steps, settings.mle_learning_rate)
    tuned = _measure(run, separation, model, {"ladder, MLE": "quadrature"})
    return {key: scores[key] | tuned[key] for key in scores}


def _model(run: Study[Modes], separation: float, seed: int, noise: NoiseLadder | None) -> AutoregressiveModel:
    settings = run.settings
    between = 4.0 * settings.left * (1.0 - settings.left) * _centre(settings, separation) ** 2
    std = math.sqrt(between + settings.width**2)
    max_frequency = max(2.0, std / settings.width)
    with seeded(seed):
        head = ScoreHead(1, settings.hidden, settings.sinusoids, max_frequency, data_std=std)
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
    settings, data, noise = run.settings, run.generator(seed, 1), run.generator(seed, 2)

    def batch_loss() -> Tensor:
        return loss(_rows(settings, separation, settings.batch, data), noise)

    for _ in descend(model, batch_loss, steps or settings.steps, rate or settings.learning_rate):
        pass


@torch.no_grad()
def _measure(run: Study[Modes], separation: float, model: AutoregressiveModel, methods: dict[str, str]) -> Result:
    """Return the mass left of zero and log densities on the grid by each method of normalising."""
    zero = torch.zeros(1, 1, device=run.device)
    grid = _grid(run.settings, separation)[:, None].to(run.device)
    found: Result = {"weights": {}, "log_densities": {}}
    for name, method in methods.items():
        found["weights"][name] = float(model.cdf(zero, method=method, max_evaluations=4096))
        values = model.log_prob(grid, method=method, max_evaluations=4096)
        values = values.nan_to_num(nan=_MIN_LOG_DENSITY).clamp(_MIN_LOG_DENSITY, 40.0)
        found["log_densities"][name] = [round(float(value), 4) for value in values]
    return found


def _figure(
    settings: Modes, weights: Mapping[str, Mapping[str, list[float]]], densities: Mapping[str, list[float]]
) -> Figure:
    figure, (left, right) = open_panels(11.0, 4.4, 1, 2)
    _draw_weights(left, settings, weights)
    _draw_densities(right, settings, densities)
    (handles, labels), (more, more_labels) = (axes.get_legend_handles_labels() for axes in (left, right))
    legend = dict(zip([*labels, *more_labels], [*handles, *more], strict=True))
    figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _draw_weights(axes: Axes, settings: Modes, weights: Mapping[str, Mapping[str, list[float]]]) -> None:
    axes.axhline(settings.left, color=GREY, lw=1.2, ls="--", label="truth")
    for index, (name, by_separation) in enumerate(weights.items()):
        shift = 1.0 + 0.035 * (index - 0.5 * (len(weights) - 1))
        x = [float(key) * shift for key in by_separation]
        for place, values in zip(x, by_separation.values(), strict=True):
            axes.plot([place] * len(values), values, "o", color=COLOURS[name], ms=3.5, alpha=0.7)
        means = [sum(values) / len(values) for values in by_separation.values()]
        axes.plot(x, means, color=COLOURS[name], lw=1.3, label=name)
    axes.set(xscale="log", ylim=(-0.03, 1.03), ylabel="weight of the left mode")
    axes.set_xticks(settings.separations, [f"{value:g}" for value in settings.separations])
    axes.minorticks_off()
    axes.set_xlabel("distance between the modes, in their standard deviations")


def _draw_densities(axes: Axes, settings: Modes, densities: Mapping[str, list[float]]) -> None:
    grid = _grid(settings, settings.shown)
    normal = torch.distributions.Normal(0.0, settings.width, validate_args=False)
    centre, left, right = _centre(settings, settings.shown), math.log(settings.left), math.log(1.0 - settings.left)
    truth = torch.logaddexp(normal.log_prob(grid + centre) + left, normal.log_prob(grid - centre) + right)
    axes.plot(grid.tolist(), truth.tolist(), color=GREY, lw=2.5, ls="--", label="truth")
    for name, values in densities.items():
        axes.plot(grid.tolist(), values, color=COLOURS[name], lw=1.2, label=name)
    axes.set(ylim=(-25.0, 4.0), ylabel="log density in nats")
    axes.set_xlabel(f"x, modes {settings.shown:g} standard deviations apart")


MODES = study("modes", "the weight that each method gives to two far modes, and why annealing is needed", PRESETS, body)
