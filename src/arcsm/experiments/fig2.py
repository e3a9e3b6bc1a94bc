"""Figure 2: DSM, SSM and CSM on N(0, 0.1^2 I) in 100 dimensions, beside the true divergence that the paper omits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor, nn

from arcsm import objectives
from arcsm.experiments.base import Count, Positive, Preset, Settings, Study, over_seeds, study
from arcsm.experiments.descent import NonFiniteError, descend
from arcsm.experiments.gaussians import STD, autoregressive, conditional_scores, gaussian_rows, joint, parameters
from arcsm.model import AutoregressiveModel
from arcsm.objectives.score_matching import Projections, denoising_score_matching, sliced_score_matching
from arcsm.reports.plots import open_frame


class Fig2(Settings):
    """The paper gives the data, 20,000 iterations and three hidden layers; the rest is ours.

    Every method gets the learning rate, of those listed, that leads to the smallest true divergence after
    ``tuning_steps`` steps: an oracle that no one has in practice, and that favours whoever needs tuning.
    """

    features: Count = 100
    hidden: Count = 64
    context_features: Count = 4
    head_hidden: Count = 32
    batch: Count = 64
    steps: int = Field(20_000, ge=1)
    record_every: int = Field(400, ge=1)
    sigmas: tuple[Positive, ...] = (0.01, 0.03, 0.1)
    learning_rates: tuple[Positive, ...] = Field((1e-3, 3e-3, 1e-2, 3e-2), min_length=1)
    tuning_steps: Count = 2_000
    joint_network: bool = True
    test_rows: Count = 2_000


PRESETS: Mapping[Preset, Fig2] = {
    "smoke": Fig2(
        features=4, hidden=16, batch=8, steps=6, record_every=3, sigmas=(0.1,), learning_rates=(1e-3,), tuning_steps=2
    ),
    "cpu": Fig2(seeds=3, tuning_steps=1_000),
    "paper": Fig2(seeds=5, hidden=256, head_hidden=64, batch=128),
}

_BROKEN = 1e9  # stands for a loss or a divergence that is not finite

ScoreField = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """An objective on a network: ``loss(network, field, rows, generator)``."""

    label: str
    loss: Callable[[nn.Module, ScoreField, Tensor, torch.Generator], Tensor]
    autoregressive: bool = True


def methods(settings: Fig2) -> list[Method]:
    """All methods on the autoregressive network; SSM and DSM also on a plain network for the joint score."""
    found = [Method("CSM", _csm)]
    for autoregressive_, where in ((True, ""), *(((False, ", joint network"),) * settings.joint_network)):
        found.append(Method(f"SSM{where}", _ssm, autoregressive_))
        for sigma in settings.sigmas:
            found.append(Method(f"DSM {sigma:g}{where}", partial(_dsm, sigma=sigma), autoregressive_))
    # with signs as projections SSM of independent dimensions has no variance at all: these are the forms that have
    found.append(Method("SSM Gaussian", partial(_ssm, projections="gaussian")))
    found.append(Method("SSM Gaussian plain", partial(_ssm, projections="gaussian", variance_reduced=False)))
    return found


def _csm(network: nn.Module, field: ScoreField, x: Tensor, generator: torch.Generator) -> Tensor:
    assert isinstance(network, AutoregressiveModel)
    return objectives.csm(network, x)


def _ssm(
    network: nn.Module,
    field: ScoreField,
    x: Tensor,
    generator: torch.Generator,
    projections: Projections = "rademacher",
    variance_reduced: bool = True,
) -> Tensor:
    z = x.requires_grad_()
    return sliced_score_matching(field(network, z), z, 1, projections, variance_reduced, generator)


def _dsm(network: nn.Module, field: ScoreField, x: Tensor, generator: torch.Generator, sigma: float) -> Tensor:
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return denoising_score_matching(field(network, x + sigma * noise), noise, sigma)


def _field_of(method: Method) -> ScoreField:
    def of_model(network: nn.Module, z: Tensor) -> Tensor:
        assert isinstance(network, AutoregressiveModel)
        return conditional_scores(network, z)

    return of_model if method.autoregressive else lambda network, z: network(z)


def body(run: Study[Fig2]) -> dict[str, Any]:
    """Tune, train all methods and seeds, and put the true divergence of each on one axis."""
    settings = run.settings
    of_label = {method.label: method for method in methods(settings)}
    rates = run.tune(
        of_label,
        settings.learning_rates,
        lambda label, rate: _train(run, of_label[label], settings.first_seed, rate, settings.tuning_steps, tuning=True),
        lambda cell: None if cell["divergence"][-1] == _BROKEN else cell["divergence"][-1],
    )
    cells = {
        f"{method.label} seed {seed}": partial(
            _train, run, method, seed, rates[method.label]["learning_rate"], settings.steps
        )
        for seed in settings.all_seeds()
        for method in methods(settings)
    }
    found = run.each(cells)
    table = {}
    for method in methods(settings):
        curves = [found[f"{method.label} seed {seed}"] for seed in settings.all_seeds()]
        final = over_seeds([curve["divergence"][-1] for curve in curves])
        table[method.label] = {
            "relative_divergence": final["mean"],
            "sd_over_seeds": final["sd"],
            **rates[method.label],
            "seconds": sum(curve["seconds"] for curve in curves) / len(curves),
            "parameters": curves[0]["parameters"],
            "floor": curves[0]["floor"],
            "curves": [{key: curve[key] for key in ("step", "loss", "divergence")} for curve in curves],
        }
    return {"methods": table, "figure": run.figure(_figure(table))}


def _network(run: Study[Fig2], method: Method, seed: int) -> nn.Module:
    settings = run.settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = (settings.features, settings.hidden, settings.context_features, settings.head_hidden)
        model: nn.Module = autoregressive(*sizes)
        if not method.autoregressive:
            model = joint(settings.features, parameters(model))
    return model.to(run.device)


def _train(
    run: Study[Fig2], method: Method, seed: int, learning_rate: float, steps: int, tuning: bool = False
) -> dict[str, Any]:
    """Adam with a cosine schedule; the loss is a mean over the steps since the last record."""
    settings = run.settings
    network, field = _network(run, method, seed), _field_of(method)
    data, noise = run.generator(seed, 1), run.generator(seed, 2)
    # what tunes is judged on rows of its own
    test = gaussian_rows(settings.test_rows, settings.features, run.generator(seed, 4 if tuning else 3))
    found: dict[str, Any] = {"step": [], "loss": [], "divergence": []}
    total, since, seconds = 0.0, 0, 0.0
    every = min(settings.record_every, steps)

    def on_new_rows() -> Tensor:
        return method.loss(network, field, gaussian_rows(settings.batch, settings.features, data), noise)

    descent = descend(network, on_new_rows, steps, learning_rate, clip=1e4)
    for step in range(1, steps + 1):
        begun = time.perf_counter()
        try:
            total, since = total + next(descent), since + 1
        except (NonFiniteError, StopIteration):  # it stays where it broke
            total, since = _BROKEN, 1
        seconds += time.perf_counter() - begun
        if step % every == 0 or step == steps:
            found["step"].append(step)
            found["loss"].append(total / since)
            found["divergence"].append(_BROKEN if total == _BROKEN else _divergence(network, field, test))
            total, since = 0.0, 0
    floor = _bias(method.label)
    return {**found, "seconds": seconds, "parameters": parameters(network), "floor": floor}


@torch.no_grad()
def _divergence(network: nn.Module, field: ScoreField, x: Tensor) -> float:
    """E |s - s*|^2 / E |s*|^2 with the true score s* = -x / 0.1^2 (paper, Eq. 3, relative)."""
    truth = -x / STD**2
    value = float((field(network, x) - truth).square().sum() / truth.square().sum())
    return value if math.isfinite(value) else _BROKEN


def _bias(label: str) -> float:
    """What is left of the relative divergence when DSM is converged exactly: it learns the score of the noisy data."""
    if not label.startswith("DSM"):
        return 0.0
    sigma = float(label.split()[1].rstrip(","))
    return (sigma**2 / (STD**2 + sigma**2)) ** 2


def _figure(table: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    axes = figure.add_subplot(1, 2, 1)
    for index, (label, found) in enumerate(table.items()):
        style = "--" if "joint" in label else "-"
        curves = found["curves"]
        mean = torch.tensor([curve["divergence"] for curve in curves]).mean(0)
        axes.plot(curves[0]["step"], mean, style, color=_colour(index, table), linewidth=1.4, label=label)
    axes.set_yscale("log")
    axes.axhline(0.01, color="black", linewidth=0.6, linestyle=":")
    axes.set_xlabel("iteration")
    axes.set_ylabel("true relative divergence (Eq. 3)")
    axes.legend(frameon=False, fontsize=7, ncols=2)
    open_frame(axes)
    _losses(figure, table)
    return figure


def _losses(figure: Figure, table: Mapping[str, Any]) -> None:
    """The losses, as in the paper: each on an axis of its own, from its worst to its best."""
    axes = figure.add_subplot(1, 2, 2)
    for index, (label, found) in enumerate(table.items()):
        if "joint" in label:
            continue
        loss = torch.tensor([curve["loss"] for curve in found["curves"]]).mean(0)
        scaled = (loss - loss.min()) / (loss.max() - loss.min()).clamp(min=1e-30)
        axes.plot(found["curves"][0]["step"], scaled, color=_colour(index, table), linewidth=1.2, label=label)
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss, each scaled to its own range")
    axes.legend(frameon=False, fontsize=7)
    open_frame(axes)


def _colour(index: int, labels: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """One colour for a method on either network."""
    plain = [label for label in labels if "joint" not in label]
    name = list(labels)[index].split(",")[0]
    return colormaps["tab10"](plain.index(name))


FIG2 = study("fig2", "DSM, SSM and CSM on a Gaussian in 100 dimensions, true divergences (Figure 2)", PRESETS, body)
