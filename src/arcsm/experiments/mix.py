"""The family between CSM and DSM: gradient variance at each noise level, and likelihood, against the mix."""

from collections.abc import Iterable, Mapping
from functools import partial
from statistics import fmean
from typing import ClassVar, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from arcsm import AutoregressiveModel, fit
from arcsm.data.datasets import load_dataset
from arcsm.data.toys import TOYS
from arcsm.experiments.base import Count, Preset, Result, Settings, Study, seeded, study
from arcsm.experiments.comparisons import confidence_interval, mean_and_sd
from arcsm.experiments.toys import train_toy
from arcsm.metrics import add_smallest_noise
from arcsm.reports.plots import BLUE, GREY, ORANGE, open_panels
from arcsm.training.run_config import load_config

Mix = float | Literal["auto"]
Key = tuple[str, Mix, int]  #: a set, a mix and a seed


class MixSettings(Settings):
    """Models and training are those of the ``toy-*`` presets and of ``mnist-made``, with some changes."""

    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds", "fresh_seeds", "toys", "mnist", "mixes"})
    fresh_seeds: int = Field(0, ge=0)  # further seeds for "auto" and the best fixed mix of the other seeds
    toys: tuple[str, ...] = tuple(TOYS)
    mnist: bool = True
    mixes: tuple[Mix, ...] = (0.0, 0.1, 0.3, 1.0, "auto")
    rows: Count = 50_000
    test_rows: Count = 5_000
    steps: Count = 1_500
    toy_changes: tuple[str, ...] = ("model.head.max_frequency=20", "train.learning_rate=0.01")  # for few steps
    mnist_steps: Count = 1_000
    mnist_test_rows: Count = 100
    mnist_changes: tuple[str, ...] = (
        "model.context.hidden_features=[256, 256]", "train.batch_size=32", "train.warmup_steps=100", "train.ema=0.995",
    )  # fmt: skip
    sigmas: Count = 8
    draws: int = Field(100, ge=2)
    draw_rows: Count = 256


PRESETS: Mapping[Preset, MixSettings] = {
    "smoke": MixSettings(
        fresh_seeds=2, toys=("eight_gaussians",), mixes=(0.0, "auto"), rows=256, test_rows=40, steps=4, mnist_steps=2,
        mnist_test_rows=2, sigmas=3, draws=4, draw_rows=16,
        mnist_changes=("model.context.hidden_features=[16, 16]", "model.head.hidden_features=[8, 8]"),
    ),
    "cpu": MixSettings(seeds=3, fresh_seeds=6, mnist_steps=600),
    "paper": MixSettings(
        seeds=5, fresh_seeds=10, steps=20_000, toy_changes=(), mnist_steps=50_000, mnist_test_rows=2_000,
        mnist_changes=(),
    ),
}  # fmt: skip


def body(run: Study[MixSettings]) -> Result:
    """Measure likelihood by mix, gradient variance by mix and noise level, and how ``auto`` compares."""
    settings, seeds = run.settings, run.settings.seed_range
    sets = [*settings.toys, *(["mnist"] * settings.mnist)]
    cells = _compute(run, [(name, mix, seed) for name in sets for mix in settings.mixes for seed in seeds])
    nll: Result = {name: {} for name in sets}
    for name in sets:
        for mix in settings.mixes:
            values = [cells[name, mix, seed]["nll"] for seed in seeds]
            nll[name][str(mix)] = {**mean_and_sd(values), "per_seed": values}
    variance = {name: cells[name, settings.mixes[-1], settings.first_seed]["variance"] for name in sets}
    return {
        "nll": nll,
        "auto_minus_best_fixed": _compare_auto(run, cells, nll),
        "gradient_variance": variance,
        "figure": run.figure(_figure(nll, variance)),
    }


def _compute(run: Study[MixSettings], keys: Iterable[Key]) -> dict[Key, Result]:
    names = {key: f"{key[0]} mix {key[1]} seed {key[2]}" for key in keys}
    cells = run.compute_all({name: partial(_train, run, *key) for key, name in names.items()})
    return {key: cells[name] for key, name in names.items()}


def _compare_auto(run: Study[MixSettings], cells: Mapping[Key, Result], nll: Mapping[str, Result]) -> Result:
    """Compare ``auto`` with the best fixed mix on the seeds that chose it, which favours it, and on fresh ones."""
    settings, seeds = run.settings, run.settings.seed_range
    fixed: list[Mix] = [mix for mix in settings.mixes if mix != "auto"]
    if not fixed or len(fixed) == len(settings.mixes):
        return {}
    best = {name: min((by_mix[str(mix)]["mean"], mix) for mix in fixed)[1] for name, by_mix in nll.items()}
    fresh = range(seeds.stop, seeds.stop + settings.fresh_seeds)
    pairs: list[Key] = [(name, mix, seed) for seed in fresh for name in best for mix in (best[name], "auto")]
    every = {**cells, **_compute(run, pairs)}

    def difference(name: str, seeds: range) -> Result:
        nll = ([every[name, mix, seed]["nll"] for seed in seeds] for mix in ("auto", best[name]))
        return confidence_interval([auto - fixed for auto, fixed in zip(*nll, strict=True)])

    found = {}
    for name, mix in best.items():
        on_fresh_seeds = difference(name, fresh) if fresh else None
        found[name] = {"best_fixed": str(mix), **difference(name, seeds), "on_fresh_seeds": on_fresh_seeds}
    return found


def _train(run: Study[MixSettings], name: str, mix: Mix, seed: int) -> Result:
    """Return the held-out NLL by the flow, in nats a row, and the variance of the gradient at every noise level."""
    settings, mix_change = run.settings, f"train.mix={mix}"
    if name == "mnist":
        steps = ["train.epochs=null", f"train.steps={settings.mnist_steps}", "train.standardise=none"]
        run_changes = [mix_change, f"train.seed={seed}", f"train.device={run.device}", *steps]
        config = load_config("mnist-made", [*settings.mnist_changes, *run_changes])
        dataset = load_dataset(config.data, seed)
        rows = dataset.train_rows()
        with seeded(seed):
            model = config.model.build(rows.shape[1], dataset.metadata)
        fit(model, rows, config=config.for_dataset(dataset))
        test = dataset.dequantised(dataset.test[: settings.mnist_test_rows], seed)
        test = add_smallest_noise(model, test, seed + 1_000)
    else:
        changes = [*settings.toy_changes, mix_change, f"train.steps={settings.steps}"]
        model, toy, _ = train_toy(name, changes, settings.rows, settings.test_rows, seed, run.device)
        rows, test = toy.train, toy.test
    with torch.no_grad():
        nll = -float(model.log_prob(test.to(run.device), tol=1e-4).mean())
    return {"nll": nll, "variance": _gradient_variance(run, model, rows, seed)}


def _gradient_variance(run: Study[MixSettings], model: AutoregressiveModel, rows: Tensor, seed: int) -> Result:
    """Return the variance of the gradient of all weights at each noise level, as a multiple of that at mix 0.

    The gradient at mix a is g_0 + a g_1, so its variance is v_0 + 2 a c + a^2 v_1.
    """
    assert model.noise is not None
    settings, generator = run.settings, run.generator(seed, 9)
    sigmas = model.noise.path(settings.sigmas - 1)
    grid = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    found: Result = {"sigma": list(sigmas), "mix": grid.tolist(), "variance": [], "best": []}
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
    """Return the gradients g_0 (of DSM) and g_1 (of what the mix adds) on a random batch."""
    assert model.noise is not None
    count = max(2, run.settings.draw_rows // model.features)
    index = torch.randint(len(rows), (count,), generator=generator, device=run.device).to(rows.device)
    x = rows[index].to(run.device)
    context_noise, noise = (torch.randn(x.shape, generator=generator, device=run.device) for _ in range(2))
    context = model.context(x + model.noise.sigma_min * context_noise)
    level = torch.full_like(x, sigma)
    s, ds = model.head.score_and_derivative(context, x + sigma * noise, level)
    weight, ratio = model.head.loss_weight(level), noise / sigma
    parameters = list(model.parameters())

    def gradient(loss: Tensor) -> Tensor:
        parts = torch.autograd.grad(loss.sum() / len(x), parameters, retain_graph=True, allow_unused=True)
        return torch.cat([part.flatten() for part in parts if part is not None])

    return gradient(weight * (0.5 * s.square() + s * ratio)), gradient(weight * (ds - s * ratio))


def _figure(nll: Mapping[str, Result], variance: Mapping[str, Result]) -> Figure:
    figure, panels = open_panels(2.0 * len(nll) + 1.0, 5.0, 2, len(nll))
    above, below = panels[: len(nll)], panels[len(nll) :]
    for upper, lower, name in zip(above, below, nll, strict=True):
        _draw_likelihoods(upper, nll[name], name)
        _draw_variance(lower, variance[name])
    above[0].set_ylabel("held-out NLL, nats,\nminus its mean over the mixes")
    below[0].set_ylabel("gradient variance\n/ that of DSM")
    for axes in {below[0], below[-1]}:  # toys and digits have different ladders
        axes.legend(frameon=False, fontsize=6, title="sigma", title_fontsize=6)
    return figure


def _draw_variance(axes: Axes, curves: Result) -> None:
    for index, sigma in enumerate(curves["sigma"]):
        shade = index / max(1, len(curves["sigma"]) - 1)
        colour = (0.88 * (1 - shade) + 0.1 * shade, 0.48, 0.12 * (1 - shade) + 0.6 * shade)
        axes.plot(curves["mix"], curves["variance"][index], color=colour, linewidth=1.0, label=f"{sigma:.2g}")
    axes.set(xlabel="mix a", yscale="log")


def _draw_likelihoods(axes: Axes, by_mix: Mapping[str, Result], name: str) -> None:
    """Draw likelihoods relative to the mean over the mixes with the same seed, which removes most of the variance."""
    values = [cell["per_seed"] for cell in by_mix.values()]
    means = [fmean(seed) for seed in zip(*values, strict=True)]
    for index, (mix, nll) in enumerate(zip(by_mix, values, strict=True)):
        relative = [value - mean for value, mean in zip(nll, means, strict=True)]
        axes.plot([index] * len(relative), relative, "o", markersize=2.5, color=GREY)
        axes.plot(index, fmean(relative), "o", markersize=5, color=ORANGE if mix == "auto" else BLUE)
    axes.axhline(0.0, color=GREY, linewidth=0.5)
    axes.set_xticks(range(len(by_mix)), list(by_mix), fontsize=7)
    axes.set_title(name.replace("_", " "), fontsize=8)


MIX = study("mix", "the family between CSM and DSM: gradient variance and likelihood by the mix", PRESETS, body)
