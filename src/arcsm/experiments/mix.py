"""The family between CSM and DSM: variance of the gradient at each noise level, and likelihood, against the mix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from arcsm.data.datasets import load_dataset
from arcsm.data.toys import TOYS
from arcsm.experiments.base import Count, Preset, Settings, Study, interval, over_seeds, study
from arcsm.experiments.toys import toy_rows
from arcsm.metrics import add_smallest_noise
from arcsm.model import AutoregressiveModel
from arcsm.reports.plots import BLUE, GREY, ORANGE, open_frame
from arcsm.training.density import fit
from arcsm.training.run_config import load_config

Mix = float | Literal["auto"]


class MixSettings(Settings):
    """Models and training are those of the ``toy-*`` presets and of ``mnist-made``, with some changes."""

    lists_cells: ClassVar[frozenset[str]] = frozenset({"seeds", "fresh_seeds", "toys", "mnist", "mixes"})

    fresh_seeds: int = Field(0, ge=0)  # more of "auto" and of the fixed mix that the other seeds found best

    toys: tuple[str, ...] = tuple(TOYS)
    mnist: bool = True
    mixes: tuple[Mix, ...] = (0.0, 0.1, 0.3, 1.0, "auto")
    rows: Count = 50_000
    test_rows: Count = 5_000
    steps: Count = 1_500
    toy_changes: tuple[str, ...] = ("model.head.max_frequency=20", "train.learning_rate=0.01")  # there are few steps
    mnist_steps: Count = 1_000
    mnist_test_rows: Count = 100
    mnist_changes: tuple[str, ...] = (
        "model.context.hidden_features=[256, 256]",
        "train.batch_size=32",
        "train.warmup_steps=100",
        "train.ema=0.995",
    )
    sigmas: Count = 8
    draws: int = Field(100, ge=2)
    draw_rows: Count = 256


PRESETS: Mapping[Preset, MixSettings] = {
    "smoke": MixSettings(
        fresh_seeds=2,
        toys=("eight_gaussians",),
        mixes=(0.0, "auto"),
        rows=256,
        test_rows=40,
        steps=4,
        mnist_steps=2,
        mnist_test_rows=2,
        mnist_changes=("model.context.hidden_features=[16, 16]", "model.head.hidden_features=[8, 8]"),
        sigmas=3,
        draws=4,
        draw_rows=16,
    ),
    "cpu": MixSettings(seeds=3, fresh_seeds=6, mnist_steps=600),
    "paper": MixSettings(
        seeds=5,
        fresh_seeds=10,
        steps=20_000,
        toy_changes=(),
        mnist_steps=50_000,
        mnist_test_rows=2_000,
        mnist_changes=(),
    ),
}


def body(run: Study[MixSettings]) -> dict[str, Any]:
    """Likelihoods by the mix, the gradient's variance by mix and noise level, and how ``auto`` fares."""
    settings = run.settings
    sets = [*settings.toys, *(["mnist"] * settings.mnist)]
    wanted = [(name, mix, seed) for name in sets for mix in settings.mixes for seed in settings.all_seeds()]
    found = run.each(_cells(run, wanted))
    nll = {name: {str(mix): _over_seeds(run, found, name, mix) for mix in settings.mixes} for name in sets}
    variance = {name: found[_cell(name, settings.mixes[-1], settings.first_seed)]["variance"] for name in sets}
    return {
        "nll": nll,
        "auto_minus_best_fixed": _auto_by_best(run, found, nll),
        "gradient_variance": variance,
        "figure": run.figure(_figure(nll, variance)),
    }


Wanted = tuple[str, Mix, int]  # a set, a mix and a seed


def _cell(name: str, mix: Mix, seed: int) -> str:
    return f"{name} mix {mix} seed {seed}"


def _cells(run: Study[MixSettings], wanted: Iterable[Wanted]) -> dict[str, Callable[[], dict[str, Any]]]:
    return {_cell(*each): partial(_trained, run, *each) for each in wanted}


def _over_seeds(run: Study[MixSettings], found: Mapping[str, Any], name: str, mix: Mix) -> dict[str, Any]:
    values = [found[_cell(name, mix, seed)]["nll"] for seed in run.settings.all_seeds()]
    return {**over_seeds(values), "per_seed": values}


def _auto_by_best(run: Study[MixSettings], found: Mapping[str, Any], nll: Mapping[str, Any]) -> dict[str, Any]:
    """By how much ``auto`` is behind the fixed mix that turned out best, seed by seed on the same rows.

    Once on the seeds that the best was chosen by, which flatters it, and once on seeds that chose nothing.
    """
    settings = run.settings
    fixed: list[Mix] = [mix for mix in settings.mixes if mix != "auto"]
    if not fixed or len(fixed) == len(settings.mixes):
        return {}
    best = {name: min((cells[str(mix)]["mean"], mix) for mix in fixed)[1] for name, cells in nll.items()}
    seeds = settings.all_seeds()
    fresh = range(seeds.stop, seeds.stop + settings.fresh_seeds)
    wanted: list[Wanted] = [(name, mix, seed) for seed in fresh for name in best for mix in (best[name], "auto")]
    cells = {**found, **run.each(_cells(run, wanted))}

    def difference(name: str, of: range) -> dict[str, Any]:
        auto, other = ([cells[_cell(name, mix, seed)]["nll"] for seed in of] for mix in ("auto", best[name]))
        return interval([a - b for a, b in zip(auto, other, strict=True)])

    return {
        name: {
            "best_fixed": str(mix),
            **difference(name, seeds),
            "on_fresh_seeds": difference(name, fresh) if fresh else None,
        }
        for name, mix in best.items()
    }


def _trained(run: Study[MixSettings], name: str, mix: Mix, seed: int) -> dict[str, Any]:
    """Held-out likelihood by the flow, in nats a row, and the variance of the gradient at every noise level."""
    settings = run.settings
    train = [f"train.mix={mix}", f"train.seed={seed}", f"train.device={run.device}", "train.standardise=none"]
    if name == "mnist":
        steps = ["train.epochs=null", f"train.steps={settings.mnist_steps}"]
        config = load_config("mnist-made", [*settings.mnist_changes, *train, *steps])
        dataset = load_dataset(config.data, seed)
        rows = dataset.train_rows()
        config = config.model_copy(update={"train": config.for_dataset(dataset)})
        test = dataset.dequantised(dataset.test[: settings.mnist_test_rows], seed)
        metadata = dataset.metadata
    else:
        config = load_config(
            f"toy-{name.replace('_', '-')}", [*settings.toy_changes, *train, f"train.steps={settings.steps}"]
        )
        assert config.model.noise is not None
        toy = toy_rows(name, settings.rows, settings.test_rows, config.model.noise["sigma_min"], seed)
        rows, test, metadata = toy.train, toy.test, {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = config.model.build(rows.shape[1], metadata)
    fit(model, rows, config=config.train)
    if name == "mnist":
        test = add_smallest_noise(model, test, seed + 1_000)
    with torch.no_grad():
        nll = -float(model.log_prob(test.to(run.device), tol=1e-4).mean())
    return {"nll": nll, "variance": _variance(run, model, rows, seed)}


def _variance(run: Study[MixSettings], model: AutoregressiveModel, rows: Tensor, seed: int) -> dict[str, Any]:
    """Noise of the gradient of all weights at each noise level, as a function of the mix.

    The gradient is g_0 + a g_1 in the mix a, so its variance is v_0 + 2 a c + a^2 v_1 with three numbers to measure;
    reported by the size of the variance at a = 0, with the best a.
    """
    assert model.noise is not None
    settings, generator = run.settings, run.generator(seed, 9)
    sigmas = model.noise.path(settings.sigmas - 1)
    grid = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    found: dict[str, Any] = {"sigma": list(sigmas), "mix": grid.tolist(), "variance": [], "best": []}
    for sigma in sigmas:
        pairs = [_gradients(run, model, rows, sigma, generator) for _ in range(settings.draws)]
        g0, g1 = (torch.stack([pair[i] for pair in pairs]) for i in (0, 1))
        g0, g1 = g0 - g0.mean(0), g1 - g1.mean(0)
        v0, v1, c = (float((a * b).sum()) / (len(pairs) - 1) for a, b in ((g0, g0), (g1, g1), (g0, g1)))
        found["variance"].append(((v0 + 2.0 * grid * c + grid.square() * v1) / max(v0, 1e-30)).tolist())
        found["best"].append(min(1.0, max(0.0, -c / max(v1, 1e-30))))
    return found


def _gradients(
    run: Study[MixSettings], model: AutoregressiveModel, rows: Tensor, sigma: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Gradients g_0 (of DSM) and g_1 (of what the mix adds) of a batch, over all weights."""
    assert model.noise is not None
    count = max(2, run.settings.draw_rows // model.features)
    index = torch.randint(len(rows), (count,), generator=generator, device=run.device).to(rows.device)
    x = rows[index].to(run.device)
    context_noise, noise = (torch.randn(x.shape, generator=generator, device=run.device) for _ in range(2))
    context = model.context(x + model.noise.sigma_min * context_noise)
    level = torch.full_like(x, sigma)
    s, ds = model.head.score_and_derivative(context, x + sigma * noise, level)
    weight, ratio = model.head.loss_weight(level), noise / sigma
    weights = list(model.parameters())
    found = []
    for loss in ((weight * (0.5 * s.square() + s * ratio)).sum(), (weight * (ds - s * ratio)).sum()):
        parts = torch.autograd.grad(loss / len(x), weights, retain_graph=True, allow_unused=True)
        found.append(torch.cat([part.flatten() for part in parts if part is not None]))
    return found[0], found[1]


def _figure(nll: Mapping[str, Any], variance: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(2.0 * len(nll) + 1.0, 5.0), layout="constrained")
    for column, name in enumerate(nll):
        _likelihoods(figure.add_subplot(2, len(nll), column + 1), nll[name], name, column == 0)
        axes = figure.add_subplot(2, len(nll), len(nll) + column + 1)
        curves = variance[name]
        for index, sigma in enumerate(curves["sigma"]):
            shade = index / max(1, len(curves["sigma"]) - 1)
            colour = (0.88 * (1 - shade) + 0.1 * shade, 0.48, 0.12 * (1 - shade) + 0.6 * shade)
            axes.plot(curves["mix"], curves["variance"][index], color=colour, linewidth=1.0, label=f"{sigma:.2g}")
        axes.set(xlabel="mix a", yscale="log")
        if column == 0:
            axes.set_ylabel("variance of the gradient\nby that of DSM")
        if column in (0, len(nll) - 1):  # toys and digits have ladders of their own
            axes.legend(frameon=False, fontsize=6, title="sigma", title_fontsize=6)
        open_frame(axes)
    return figure


def _likelihoods(axes: Axes, cells: Mapping[str, Any], name: str, first: bool) -> None:
    """Likelihoods by the mix, by the mean over the mixes of the same seed: seeds differ far more in their rows."""
    values = [cell["per_seed"] for cell in cells.values()]
    means = [fmean(of_seed) for of_seed in zip(*values, strict=True)]
    for index, (mix, own) in enumerate(zip(cells, values, strict=True)):
        colour = ORANGE if mix == "auto" else BLUE
        leads = [value - mean for value, mean in zip(own, means, strict=True)]
        axes.plot([index] * len(leads), leads, "o", markersize=2.5, color=GREY)
        axes.plot(index, fmean(leads), "o", markersize=5, color=colour)
    axes.axhline(0.0, color=GREY, linewidth=0.5)
    axes.set_xticks(range(len(cells)), list(cells), fontsize=7)
    axes.set_title(name.replace("_", " "), fontsize=8)
    if first:
        axes.set_ylabel("held-out NLL, nats,\nby its mean over the mixes")
    open_frame(axes)


MIX = study("mix", "the family between CSM and DSM: gradient variance and likelihood by the mix", PRESETS, body)
