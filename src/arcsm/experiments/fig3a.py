"""Figure 3a: the likelihood that the same MADE reaches on MNIST when it is trained by each objective.

Every model has a likelihood in closed form, so the objectives can be compared in nats. Uniform dequantisation alone
leaves background pixels with conditionals that are 1/128 wide and jump at both ends; score matching is not well posed
for those. So Gaussian noise of a fixed size is added to every digit, and the smooth density of these noisy digits is
modelled and tested. Denoising score matching either adds further noise, as in the paper, or ("DSM, data noise") uses
the noise that defines the density, which no other method knows.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, LogisticMixtureHead, objectives
from arcsm._runtime.random import dequantised
from arcsm.data.datasets import Dataset, NamedImageData, load_dataset
from arcsm.errors import NonFiniteError
from arcsm.experiments.base import Count, Positive, Preset, Result, Settings, Study, seeded, study
from arcsm.experiments.descent import descend
from arcsm.reports.plots import BLUE, GREY, ORANGE, open_panels


class Fig3a(Settings):
    """The paper gives MADE, MNIST and the names of the methods. Sizes, noise and training are ours."""

    train_rows: Count = 54_000  # digits, at most
    data_noise: Positive = 0.1  # in units of pixels in [-1, 1]
    data_std: Positive = 0.5  # for the initial components, which then cover the pixels
    hidden: tuple[Count, ...] = (256, 256)
    context_features: Count = 4
    components: Count = 5
    slices: tuple[Count, ...] = (1, 5)
    sigmas: tuple[Positive, ...] = (0.05, 0.1, 0.3)
    batch: Count = 32
    steps: Count = 1200
    learning_rates: tuple[Positive, ...] = Field((3e-3, 1e-2, 3e-2), min_length=1)  # the best by validation likelihood
    tuning_steps: Count = 400  # after which rates are compared, with the first seed
    warmup: Count = 200  # steps; without them a large rate makes some methods diverge
    clip: Positive = 100.0  # gradient norm; with 2,000, score matching diverged on every second seed at a large rate
    checkpoints: int = Field(12, ge=1)
    test_rows: Count = 500
    validation_rows: Count = 500


PRESETS: Mapping[Preset, Fig3a] = {
    "smoke": Fig3a(
        hidden=(16,), context_features=2, components=2, slices=(1, 2), sigmas=(0.1,), batch=8, steps=8, tuning_steps=4,
        learning_rates=(1e-3, 3e-3), warmup=2, checkpoints=3, test_rows=8, validation_rows=8,
    ),
    "cpu": Fig3a(seeds=5, slices=(1, 2), train_rows=12_000, steps=10 * 375),  # 10 epochs
    "paper": Fig3a(
        seeds=5, hidden=(1024, 1024), context_features=8, components=10, batch=128,
        steps=20 * 422,  # 20 epochs of 54,000 digits
        learning_rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2), tuning_steps=2 * 422, checkpoints=20, test_rows=2000,
        validation_rows=2000,
    ),
}  # fmt: skip

#: ``objective(model, clean, noisy, generator)``: digits without and with the noise that defines the density.
Objective = Callable[[AutoregressiveModel, Tensor, Tensor, torch.Generator], Tensor]
Curve = list[dict[str, float]]
DATA_NOISE = "DSM, data noise"


def body(run: Study[Fig3a]) -> Result:
    """Train by every objective from the same initial weights, on the same batches."""
    settings = run.settings
    dataset = load_dataset(NamedImageData(kind="mnist"), settings.first_seed)
    methods = list(_objectives(settings))
    rates = run.tune(
        methods,
        settings.learning_rates,
        lambda name, rate: _train(run, dataset, name, rate, settings.first_seed, settings.tuning_steps),
        lambda cell: cell["valid_nll"],
    )
    train = {n: partial(_train, run, dataset, n, rates[n]["learning_rate"], steps=settings.steps) for n in methods}
    cells = run.compute_seeds(train, lambda name, seed: f"{name}, seed {seed}")
    results = {name: rates[name] | _over_seeds(by_seed) for name, by_seed in cells.items()}
    nll = {name: result["nll"] for name, result in results.items() if result["nll"] is not None}
    order = sorted(nll, key=nll.__getitem__)
    return {
        "methods": results,
        "order": order,
        "csm_is_best_of_score_matching": [name for name in order if name != "MLE"][:1] == ["CSM"],
        "figure": run.figure(_figure(results)),
    }


def _objectives(settings: Fig3a) -> dict[str, Objective]:
    """Return the losses. Score matching losses are in units of the data noise, so that gradients have similar size."""
    unit, sigma = settings.data_noise**2, settings.data_noise

    def joint(objective: Callable[..., Tensor], option: float) -> Objective:
        return lambda model, clean, x, g: unit * objective(model, x, option, generator=g, joint=True)

    return {
        "MLE": lambda model, clean, x, g: objectives.mle(model, x),
        "CSM": lambda model, clean, x, g: unit * objectives.csm(model, x),
        **{f"SSM, {k} slice{'s' if k > 1 else ''}": joint(objectives.ssm, k) for k in settings.slices},
        **{f"DSM, sigma {s:g}": joint(objectives.dsm, s) for s in settings.sigmas},
        DATA_NOISE: lambda model, clean, x, g: unit * objectives.dsm(model, clean, sigma, generator=g, joint=True),
    }


def _train(run: Study[Fig3a], dataset: Dataset, name: str, rate: float, seed: int, steps: int) -> Result:
    """Train one model; return its test likelihoods, its validation likelihood, and the step where it diverged."""
    settings = run.settings
    with seeded(seed):
        made = MADE(dataset.train.shape[1], settings.context_features, settings.hidden)
        head = LogisticMixtureHead(settings.context_features, settings.components, settings.data_std)
        model = AutoregressiveModel(made, head).to(run.device)
    test = _held_out(run, dataset, dataset.test[: settings.test_rows], 1)
    valid = _held_out(run, dataset, dataset.valid[: settings.validation_rows], 2)
    objective, generator = _objectives(settings)[name], run.generator(seed, 2)
    # measured more often at first, and at both ends
    checkpoints = {round(steps * (i / settings.checkpoints) ** 2) for i in range(settings.checkpoints + 1)}
    train_rows = min(settings.train_rows, len(dataset.train))
    rows = min(settings.batch, train_rows)  # of a step
    curve: Curve = []
    seconds, batches = 0.0, _batches(run, dataset, seed)
    descent = descend(
        model, lambda: objective(model, *next(batches), generator), steps, rate, settings.clip, settings.warmup
    )
    for step in range(steps + 1):
        if step in checkpoints:
            nll = _nll(model, test)
            if nll is None:
                return {"curve": curve, "valid_nll": None, "diverged_at": step}
            epoch = step * rows / train_rows
            curve.append({"step": step, "epoch": epoch, "seconds": seconds, "nll": nll})
        if step == steps:
            break
        start = time.perf_counter()
        try:
            next(descent)
        except NonFiniteError:
            return {"curve": curve, "valid_nll": None, "diverged_at": step}
        seconds += time.perf_counter() - start
    return {"curve": curve, "valid_nll": _nll(model, valid), "diverged_at": None}


def _batches(run: Study[Fig3a], dataset: Dataset, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield endless batches without and with fresh noise, the same for all methods."""
    generator = run.generator(seed, 1)
    train = dataset.train_rows()[: run.settings.train_rows].to(run.device)
    batch = min(run.settings.batch, len(train))
    while True:
        order = torch.randperm(len(train), generator=generator, device=run.device)
        for index in order[: len(order) // batch * batch].split(batch):
            yield _noisy(run.settings, dataset, train[index], generator)


def _held_out(run: Study[Fig3a], dataset: Dataset, rows: Tensor, purpose: int) -> Tensor:
    """Return rows with noise that is the same for all methods and seeds."""
    generator = torch.Generator().manual_seed(1_000_003 * run.settings.first_seed + 10 + purpose)
    return _noisy(run.settings, dataset, rows, generator)[1].to(run.device)


def _noisy(settings: Fig3a, dataset: Dataset, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return dequantised rows without and with the noise that defines the density."""
    clean = dequantised(rows, dataset.dequantise, generator)
    normal = torch.randn(rows.shape, generator=generator, device=rows.device)
    return clean, clean + settings.data_noise * normal


@torch.no_grad()
def _nll(model: AutoregressiveModel, rows: Tensor) -> float | None:
    """Return the mean negative log likelihood in nats; ``None`` if the model has diverged."""
    nll = -float(torch.cat([model.log_prob(part) for part in rows.split(100)]).double().mean())
    return nll if abs(nll) < 1e30 else None


def _over_seeds(cells: list[Result]) -> Result:
    final: list[Any] = [cell["curve"][-1]["nll"] if cell["valid_nll"] is not None else None for cell in cells]
    curves = [cell["curve"] for cell in cells]
    steps = sum(curve[-1]["step"] for curve in curves if curve)
    return {
        "nll": None if None in final else sum(final) / len(final),
        "nll_per_seed": final,
        "best_nll_on_the_way": min((row["nll"] for curve in curves for row in curve), default=None),
        "diverged_at": [cell["diverged_at"] for cell in cells],
        "seconds_per_step": sum(curve[-1]["seconds"] for curve in curves if curve) / steps if steps else None,
        "curves": curves,
    }


def _figure(results: Mapping[str, Result]) -> Figure:
    figure, (left, right) = open_panels(10.0, 4.6, 1, 2)
    for axes, key, label in ((left, "epoch", "epochs"), (right, "seconds", "seconds of training")):
        for name, result in results.items():
            _draw_curves(axes, key, name, result["curves"])
        axes.set(ylim=_limits(results), xlabel=label)
    left.set_xlim(left=0.0)
    left.set_ylabel("test negative log likelihood in nats")
    right.set_xscale("log")  # the slowest method takes ten times as long as the fastest
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _draw_curves(axes: Axes, key: str, name: str, curves: list[Curve]) -> None:
    """Draw a thin line for each seed, and the mean as far as all seeds go."""
    colour, style = _colour(name), "--" if name == "MLE" else "-"
    for curve in curves:
        axes.plot([row[key] for row in curve], [row["nll"] for row in curve], style, color=colour, lw=0.6, alpha=0.5)
    steps = list(zip(*curves, strict=False))
    x, y = ([sum(row[what] for row in rows) / len(rows) for rows in steps] for what in (key, "nll"))
    axes.plot(x, y, style, color=colour, lw=1.8, label=name)


def _colour(name: str) -> str:
    colours = {"MLE": GREY, "CSM": BLUE, "SSM, 1 slice": "#f2b880", DATA_NOISE: "#8e6bbf"}
    if name in colours:
        return colours[name]
    if name.startswith("SSM"):
        return ORANGE
    sigma = float(name.split()[-1])
    return "#1b5e3f" if sigma < 0.08 else "#4c9f70" if sigma < 0.2 else "#a5d6b7"


def _limits(results: Mapping[str, Result]) -> tuple[float, float]:
    """Return limits that show the best value and the end of every curve, but not the first steps."""
    curves = [curve for result in results.values() for curve in result["curves"] if curve]
    low = min(row["nll"] for curve in curves for row in curve)
    ends, starts = [curve[-1]["nll"] for curve in curves], [curve[0]["nll"] for curve in curves]
    high = max([end for end in ends if end < min(starts)], default=max(ends))
    margin = max(high - low, 1e-3)
    return low - 0.06 * margin, high + 0.25 * margin


FIG3A = study(
    "fig3a", "MADE with a logistic-mixture likelihood on MNIST by each objective (paper, Figure 3a)", PRESETS, body
)
