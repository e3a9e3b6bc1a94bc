"""Figure 2: DSM, SSM and CSM on N(0, 0.1^2 I) in 100 dimensions, with the true divergence that the paper omits."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor, nn

from arcsm import AutoregressiveModel, objectives
from arcsm.errors import NonFiniteError
from arcsm.experiments.base import Count, Positive, Preset, Result, Study, parameter_count, seeded, study
from arcsm.experiments.comparisons import mean_and_sd
from arcsm.experiments.descent import descend
from arcsm.experiments.gaussians import STD, GaussianNetworks, conditional_scores, gaussian_rows
from arcsm.objectives.score_matching import Projections, denoising_score_matching, sliced_score_matching
from arcsm.reports.plots import open_panels


class Fig2(GaussianNetworks):
    """The paper gives the data, 20,000 iterations and three hidden layers; the rest is ours.

    Every method gets the learning rate with the smallest true divergence after ``tuning_steps`` steps: an oracle that
    does not exist in practice, and that favours methods that need tuning.
    """

    features: Count = 100
    hidden: Count = 64
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

_DIVERGED = 1e9  # replaces a loss or a divergence that is not finite
_JOINT = ", joint network"


@dataclass(frozen=True)
class Method:
    """An objective, ``loss(network, rows, generator)``, on one of the two networks."""

    label: str
    loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor]
    joint: bool = False


def methods(settings: Fig2) -> list[Method]:
    """Return all methods on the autoregressive network, and SSM and DSM also on a plain network."""
    found = [Method("CSM", _csm)]
    for joint in (False, True) if settings.joint_network else (False,):
        suffix = _JOINT if joint else ""
        found.append(Method(f"SSM{suffix}", _ssm, joint))
        found += [Method(f"DSM {sigma:g}{suffix}", partial(_dsm, sigma=sigma), joint) for sigma in settings.sigmas]
    # with Rademacher projections SSM has no variance on independent dimensions; these forms have
    found.append(Method("SSM Gaussian", partial(_ssm, projections="gaussian")))
    found.append(Method("SSM Gaussian plain", partial(_ssm, projections="gaussian", variance_reduced=False)))
    return found


def _csm(network: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    assert isinstance(network, AutoregressiveModel)
    return objectives.csm(network, x)


def _ssm(
    network: nn.Module,
    x: Tensor,
    generator: torch.Generator,
    projections: Projections = "rademacher",
    variance_reduced: bool = True,
) -> Tensor:
    z = x.requires_grad_()
    return sliced_score_matching(conditional_scores(network, z), z, 1, projections, variance_reduced, generator)


def _dsm(network: nn.Module, x: Tensor, generator: torch.Generator, sigma: float) -> Tensor:
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return denoising_score_matching(conditional_scores(network, x + sigma * noise), noise, sigma)


def body(run: Study[Fig2]) -> Result:
    """Tune and train all methods, and measure the true divergence of each."""
    settings = run.settings
    by_label = {method.label: method for method in methods(settings)}
    rates = run.tune(
        by_label,
        settings.learning_rates,
        lambda label, rate: _train(run, by_label[label], settings.first_seed, rate, tuning=True),
        lambda cell: None if cell["divergence"][-1] == _DIVERGED else cell["divergence"][-1],
    )
    cells = run.compute_seeds(
        {name: partial(_train, run, method, rate=rates[name]["learning_rate"]) for name, method in by_label.items()}
    )
    table = {}
    for label, curves in cells.items():
        final = mean_and_sd([curve["divergence"][-1] for curve in curves])
        table[label] = {
            "relative_divergence": final["mean"],
            "sd_over_seeds": final["sd"],
            **rates[label],
            "seconds": sum(curve["seconds"] for curve in curves) / len(curves),
            **{key: curves[0][key] for key in ("parameters", "floor")},
            "curves": [{key: curve[key] for key in ("step", "loss", "divergence")} for curve in curves],
        }
    return {"methods": table, "figure": run.figure(_figure(table))}


def _train(run: Study[Fig2], method: Method, seed: int, rate: float, tuning: bool = False) -> Result:
    """Train one method. Recorded losses are means over the steps since the last record."""
    settings = run.settings
    steps = settings.tuning_steps if tuning else settings.steps
    with seeded(seed):
        build = settings.build_joint if method.joint else settings.build
        network = build(settings.features).to(run.device)
    data, noise = run.generator(seed, 1), run.generator(seed, 2)
    # tuning has its own test rows
    test = gaussian_rows(settings.test_rows, settings.features, run.generator(seed, 4 if tuning else 3))
    curve: Result = {"step": [], "loss": [], "divergence": []}
    total, count, seconds = 0.0, 0, 0.0
    every = min(settings.record_every, steps)

    def loss() -> Tensor:
        return method.loss(network, gaussian_rows(settings.batch, settings.features, data), noise)

    descent = descend(network, loss, steps, rate, clip=1e4)
    for step in range(1, steps + 1):
        start = time.perf_counter()
        try:
            total, count = total + next(descent), count + 1
        except (NonFiniteError, StopIteration):  # all later steps have diverged, too
            total, count = _DIVERGED, 1
        seconds += time.perf_counter() - start
        if step % every == 0 or step == steps:
            curve["step"].append(step)
            curve["loss"].append(total / count)
            curve["divergence"].append(_DIVERGED if total == _DIVERGED else _divergence(network, test))
            total, count = 0.0, 0
    return {**curve, "seconds": seconds, "parameters": parameter_count(network), "floor": _bias(method.label)}


@torch.no_grad()
def _divergence(network: nn.Module, x: Tensor) -> float:
    """Return E |s - s*|^2 / E |s*|^2 with the true score s* = -x / 0.1^2 (paper, Eq. 3, relative)."""
    truth = -x / STD**2
    value = float((conditional_scores(network, x) - truth).square().sum() / truth.square().sum())
    return value if math.isfinite(value) else _DIVERGED


def _bias(label: str) -> float:
    """Return the relative divergence of a converged DSM, which learns the score of the noisy data."""
    if not label.startswith("DSM"):
        return 0.0
    sigma = float(label.split()[1].rstrip(","))
    return (sigma**2 / (STD**2 + sigma**2)) ** 2


def _figure(table: Mapping[str, Result]) -> Figure:
    figure, (left, right) = open_panels(11.0, 4.6, 1, 2)
    _draw_curves(left, table, "divergence", list(table))
    _draw_curves(right, table, "loss", [label for label in table if _JOINT not in label])
    left.axhline(0.01, color="black", linewidth=0.6, linestyle=":")
    left.set(yscale="log", ylabel="true relative divergence (Eq. 3)")
    left.legend(frameon=False, fontsize=7, ncols=2)
    right.set_ylabel("loss, each scaled to its own range")
    right.legend(frameon=False, fontsize=7)
    return figure


def _draw_curves(axes: Axes, table: Mapping[str, Result], key: str, labels: list[str]) -> None:
    colours = [label for label in table if _JOINT not in label]
    for label in labels:
        curves = table[label]["curves"]
        values = torch.tensor([curve[key] for curve in curves]).mean(0)
        if key == "loss":
            values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-30)
        style, colour = "--" if _JOINT in label else "-", colormaps["tab10"](colours.index(label.removesuffix(_JOINT)))
        axes.plot(curves[0]["step"], values, style, color=colour, linewidth=1.3, label=label)
    axes.set_xlabel("iteration")


FIG2 = study("fig2", "DSM, SSM and CSM on a Gaussian in 100 dimensions, true divergences (Figure 2)", PRESETS, body)
