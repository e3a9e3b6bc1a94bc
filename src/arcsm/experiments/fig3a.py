"""Figure 3a: the likelihood that one and the same MADE reaches on MNIST when it is trained by each objective.

Every model here has a likelihood in closed form, so that the objectives can be compared in nats. Uniform
dequantisation alone leaves background pixels with conditionals that are 1/128 wide and jump at both ends. No score
matching is well posed on those: it asks for a density that is smooth and falls to zero without a jump. So Gaussian
noise of a fixed size is added to every digit, the same for all methods and for the test; what is modelled and tested
is the smooth density of those noisy digits. Denoising score matching either adds noise of its own on top of that,
as the paper has it, or ("DSM, data noise") takes the very noise that the density is defined with, which no other
method is told of, as its own: then, like the rest, it aims at the density that is tested.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from arcsm import objectives
from arcsm._runtime.random import dequantised
from arcsm.contexts import MADE
from arcsm.data.datasets import Dataset, NamedImageData, load_dataset
from arcsm.experiments.base import Count, Positive, Preset, Settings, Study, study
from arcsm.experiments.descent import NonFiniteError, descend
from arcsm.heads import LogisticMixtureHead
from arcsm.model import AutoregressiveModel
from arcsm.reports.plots import BLUE, GREY, ORANGE, open_frame


class Fig3a(Settings):
    """The paper says MADE, MNIST and the names of the methods. Sizes, noise, training and its length are ours."""

    data_noise: Positive = 0.1  # in units of pixels in [-1, 1]
    hidden: tuple[Count, ...] = (256, 256)
    context_features: Count = 4
    components: Count = 5
    slices: tuple[Count, ...] = (1, 5)
    sigmas: tuple[Positive, ...] = (0.05, 0.1, 0.3)
    batch: Count = 32
    steps: Count = 1200
    learning_rates: tuple[Positive, ...] = Field(
        (3e-3, 1e-2), min_length=1
    )  # each method keeps that of the best validation likelihood
    tuning_steps: Count = 400  # after which the rates are compared, with the first seed
    warmup: Count = 200  # steps; without them a large rate breaks whoever needs it most
    clip: Positive = 100.0  # norm of the gradient; with 2,000 the score matching of a seed in two broke at a large rate
    checkpoints: int = Field(12, ge=1)
    test_rows: Count = 500
    validation_rows: Count = 500


PRESETS: Mapping[Preset, Fig3a] = {
    "smoke": Fig3a(
        hidden=(16,),
        context_features=2,
        components=2,
        slices=(1, 2),
        sigmas=(0.1,),
        batch=8,
        steps=8,
        learning_rates=(1e-3, 3e-3),
        tuning_steps=4,
        warmup=2,
        checkpoints=3,
        test_rows=8,
        validation_rows=8,
    ),
    "cpu": Fig3a(seeds=3, slices=(1, 2)),
    "paper": Fig3a(
        seeds=3,
        hidden=(1024, 1024),
        context_features=8,
        components=10,
        batch=128,
        steps=20 * 422,  # 20 epochs of 54,000 digits
        learning_rates=(3e-4, 1e-3, 3e-3, 1e-2),
        tuning_steps=2 * 422,
        checkpoints=20,
        test_rows=2000,
        validation_rows=2000,
    ),
}

#: ``objective(model, clean, noisy, generator)``: digits without and with the noise of the data.
Objective = Callable[[AutoregressiveModel, Tensor, Tensor, torch.Generator], Tensor]
Curve = list[dict[str, float]]
DATA_NOISE = "DSM, data noise"


def body(run: Study[Fig3a]) -> dict[str, Any]:
    """Every objective on the same weights to start from and the same batches."""
    settings = run.settings
    dataset = load_dataset(NamedImageData(kind="mnist"), settings.first_seed)
    methods = list(_objectives(settings))
    rates = run.tune(
        methods,
        settings.learning_rates,
        lambda name, rate: _train(run, dataset, name, rate, settings.first_seed, settings.tuning_steps),
        lambda cell: cell["valid_nll"],
    )
    found = run.each(
        {
            _cell(name, seed): partial(_train, run, dataset, name, rates[name]["learning_rate"], seed, settings.steps)
            for seed in settings.all_seeds()
            for name in methods
        }
    )
    results = {
        name: {**rates[name], **_result([found[_cell(name, seed)] for seed in settings.all_seeds()])}
        for name in methods
    }
    done = {name: result["nll"] for name, result in results.items() if result["nll"] is not None}
    order = sorted(done, key=done.__getitem__)
    matching = [name for name in order if name != "MLE"]
    return {
        "methods": results,
        "order": order,
        "csm_is_best_of_score_matching": matching[:1] == ["CSM"],
        "figure": run.figure(_figure(results)),
    }


def _objectives(settings: Fig3a) -> dict[str, Objective]:
    """The losses; those of score matching in units of the noise on the data, so that gradients are of like size."""
    unit = settings.data_noise**2

    def mle(model: AutoregressiveModel, clean: Tensor, x: Tensor, g: torch.Generator) -> Tensor:
        return objectives.mle(model, x)

    def csm(model: AutoregressiveModel, clean: Tensor, x: Tensor, g: torch.Generator) -> Tensor:
        return unit * objectives.csm(model, x)

    def ssm(model: AutoregressiveModel, clean: Tensor, x: Tensor, g: torch.Generator, slices: int) -> Tensor:
        return unit * objectives.ssm(model, x, slices, generator=g, joint=True)

    def dsm(model: AutoregressiveModel, clean: Tensor, x: Tensor, g: torch.Generator, sigma: float) -> Tensor:
        return unit * objectives.dsm(model, x, sigma, generator=g, joint=True)

    def dsm_of_the_data(model: AutoregressiveModel, clean: Tensor, x: Tensor, g: torch.Generator) -> Tensor:
        return unit * objectives.dsm(model, clean, settings.data_noise, generator=g, joint=True)

    found: dict[str, Objective] = {"MLE": mle, "CSM": csm}
    for slices in settings.slices:
        found[f"SSM, {slices} slice{'s' if slices > 1 else ''}"] = partial(ssm, slices=slices)
    for sigma in settings.sigmas:
        found[f"DSM, sigma {sigma:g}"] = partial(dsm, sigma=sigma)
    return {**found, DATA_NOISE: dsm_of_the_data}


def _cell(name: str, seed: int) -> str:
    return f"{name}, seed {seed}"


# Training -----------------------------------------------------------------------------------------------------------


def _train(run: Study[Fig3a], dataset: Dataset, name: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """Test likelihoods along one training, the last validation likelihood, and the step at which it broke, if any."""
    settings = run.settings
    model = _model(run, seed)
    test = _held_out(run, dataset, dataset.test[: settings.test_rows], 1)
    valid = _held_out(run, dataset, dataset.valid[: settings.validation_rows], 2)
    objective, generator = _objectives(settings)[name], run.generator(seed, 2)
    measured_at = _checkpoints(settings.checkpoints, steps)
    rows_per_step = min(settings.batch, len(dataset.train))
    curve: Curve = []
    seconds = 0.0
    batches = _batches(run, dataset, seed)
    descent = descend(
        model, lambda: objective(model, *next(batches), generator), steps, rate, settings.clip, settings.warmup
    )
    for step in range(steps + 1):
        if step in measured_at:
            nll = _nll(model, test)
            if not _finite(nll):
                return {"curve": curve, "valid_nll": None, "diverged_at": step}
            epoch = step * rows_per_step / len(dataset.train)
            curve.append({"step": step, "epoch": epoch, "seconds": seconds, "nll": nll})
        if step == steps:
            break
        begun = time.perf_counter()
        try:
            next(descent)
        except NonFiniteError:
            return {"curve": curve, "valid_nll": None, "diverged_at": step}
        seconds += time.perf_counter() - begun
    last = _nll(model, valid)
    return {"curve": curve, "valid_nll": last if _finite(last) else None, "diverged_at": None}


def _model(run: Study[Fig3a], seed: int) -> AutoregressiveModel:
    settings = run.settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = MADE(784, settings.context_features, settings.hidden)
        return AutoregressiveModel(made, LogisticMixtureHead(settings.context_features, settings.components)).to(
            run.device
        )


def _batches(run: Study[Fig3a], dataset: Dataset, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without and with fresh noise, for ever: the same for all methods."""
    generator = run.generator(seed, 1)
    train = dataset.train_rows().to(run.device)
    batch = min(run.settings.batch, len(train))
    while True:
        order = torch.randperm(len(train), generator=generator, device=run.device)
        for index in order[: len(order) // batch * batch].split(batch):
            yield _noisy(run.settings, dataset, train[index], generator)


def _held_out(run: Study[Fig3a], dataset: Dataset, rows: Tensor, purpose: int) -> Tensor:
    """Rows with noise that is the same for all methods and seeds."""
    generator = torch.Generator().manual_seed(1_000_003 * run.settings.first_seed + 10 + purpose)
    return _noisy(run.settings, dataset, rows, generator)[1].to(run.device)


def _noisy(settings: Fig3a, dataset: Dataset, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows, dequantised, without and with the fixed Gaussian noise."""
    clean = dequantised(rows, dataset.dequantise, generator)
    normal = torch.randn(rows.shape, generator=generator, device=rows.device)
    return clean, clean + settings.data_noise * normal


@torch.no_grad()
def _nll(model: AutoregressiveModel, rows: Tensor) -> float:
    """Mean negative log likelihood in nats."""
    return -float(torch.cat([model.log_prob(part) for part in rows.split(100)]).double().mean())


def _finite(value: float) -> bool:
    return abs(value) < 1e30


def _checkpoints(count: int, steps: int) -> set[int]:
    """Steps to measure at, closer together at first, both ends included."""
    return {round(steps * (i / count) ** 2) for i in range(count + 1)}


# Results ------------------------------------------------------------------------------------------------------------


def _result(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """A method's cells, one for each seed."""
    finals: list[Any] = [cell["curve"][-1]["nll"] if cell["valid_nll"] is not None else None for cell in cells]
    lowest = [min(row["nll"] for row in cell["curve"]) for cell in cells if cell["curve"]]
    return {
        "nll": None if None in finals else sum(finals) / len(finals),  # of all seeds or of none
        "nll_per_seed": finals,
        "best_nll_on_the_way": min(lowest, default=None),
        "diverged_at": [cell["diverged_at"] for cell in cells],
        "seconds_per_step": _seconds_per_step([cell["curve"] for cell in cells]),
        "curves": [cell["curve"] for cell in cells],
    }


def _seconds_per_step(curves: list[Curve]) -> float | None:
    steps = sum(curve[-1]["step"] for curve in curves if curve)
    return sum(curve[-1]["seconds"] for curve in curves if curve) / steps if steps else None


def _figure(results: Mapping[str, dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(10.0, 4.6), layout="constrained")
    limits = _limits(results)
    for index, (key, label) in enumerate((("epoch", "epochs"), ("seconds", "seconds of training"))):
        axes = figure.add_subplot(1, 2, index + 1)
        for name, result in results.items():
            _lines(axes, key, name, result["curves"])
        axes.set_ylim(*limits)
        axes.set_xlabel(label)
        if index == 0:
            axes.set_xlim(left=0.0)
            axes.set_ylabel("test negative log likelihood in nats")
        else:
            axes.set_xscale("log")  # the slowest method takes ten times as long as the fastest
        open_frame(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _lines(axes: Axes, key: str, name: str, curves: list[Curve]) -> None:
    """A thin line for each seed and the mean over the seeds, as far as all of them go."""
    colour, style = _colour(name), "--" if name == "MLE" else "-"
    for curve in curves:
        axes.plot([row[key] for row in curve], [row["nll"] for row in curve], style, color=colour, lw=0.6, alpha=0.5)
    rows = list(zip(*curves, strict=False))
    x, y = ([sum(row[what] for row in same) / len(same) for same in rows] for what in (key, "nll"))
    axes.plot(x, y, style, color=colour, lw=1.8, label=name)


def _colour(name: str) -> str:
    """One colour for a method, one shade for each of its numbers."""
    fixed = {"MLE": GREY, "CSM": BLUE, "SSM, 1 slice": "#f2b880", DATA_NOISE: "#8e6bbf"}
    if name in fixed:
        return fixed[name]
    if name.startswith("SSM"):
        return ORANGE
    sigma = float(name.split()[-1])
    return "#1b5e3f" if sigma < 0.08 else "#4c9f70" if sigma < 0.2 else "#a5d6b7"


def _limits(results: Mapping[str, dict[str, Any]]) -> tuple[float, float]:
    """From below the best value to above the last one of every method that came near; the first ones are cut off."""
    curves = [curve for result in results.values() for curve in result["curves"] if curve]
    low = min(row["nll"] for curve in curves for row in curve)
    ends, starts = [curve[-1]["nll"] for curve in curves], [curve[0]["nll"] for curve in curves]
    high = max([end for end in ends if end < min(starts)], default=max(ends))
    room = max(high - low, 1e-3)
    return low - 0.06 * room, high + 0.25 * room


FIG3A = study(
    "fig3a",
    "MADE with a logistic-mixture likelihood on MNIST by each objective (paper, Figure 3a)",
    PRESETS,
    body,
)
