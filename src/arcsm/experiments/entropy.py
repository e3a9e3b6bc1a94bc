"""Errors of entropy gradients by every estimator on a known distribution, by samples and dimension.

The sampler is autoregressive and not Gaussian, with two modes in every conditional if b > 0:

    z_d = a z_{d-1} + w_d (e_d + b tanh(3 e_d)),        e_d standard normal

Its entropy is sum_d [log w_d + E log(1 + 3 b sech^2 3 e)] plus a constant. Its gradient is one for each log w_d, zero
for a, and a one-dimensional integral for b. (The map from noise to a mixture of normals has no closed form; this
transformed normal has.) The paper has no such check.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from matplotlib.figure import Figure
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, ScoreHead, implicit
from arcsm.experiments.base import Count, Positive, Preset, Result, Settings, Study, seeded, study
from arcsm.experiments.comparisons import mean_and_sd
from arcsm.reports.plots import BLUE, GREY, ORANGE, open_panels


class Entropy(Settings):
    """All of this is ours. Learned scores see every sample once; kernels see groups of samples."""

    features: tuple[Count, ...] = (2, 8, 32)
    samples: tuple[Count, ...] = (1_000, 10_000, 100_000)
    bends: tuple[float, ...] = (0.0, 0.8)
    coupling: float = 0.7
    batch: Count = 100  # samples of an update
    group: Count = 500  # samples of a kernel, whose cost grows cubically
    evaluated: Count = 20_000  # fresh samples for the gradient
    learning_rate: Positive = 2e-3
    hidden: tuple[Count, ...] = (64, 64)  # of the joint network and of the MADE
    context_features: Count = 8
    head_hidden: tuple[Count, ...] = (32, 32)


PRESETS: Mapping[Preset, Entropy] = {
    "smoke": Entropy(
        features=(2,), samples=(200,), bends=(0.8,), group=50, evaluated=200, hidden=(8,), head_hidden=(8,)
    ),
    "cpu": Entropy(seeds=3),
    "paper": Entropy(seeds=10, samples=(1_000, 10_000, 100_000, 1_000_000), evaluated=200_000),
}

TRUE, STEIN, SPECTRAL = "the true scores", "Stein", "spectral"
SSM, SSM_AR, CSM, STANDARDISED = "SSM", "SSM-AR", "CSM", "CSM, standardised"
METHODS = (TRUE, STEIN, SPECTRAL, SSM, SSM_AR, CSM, STANDARDISED)
MEASURES = ("cosine", "relative_error", "pressure", "seconds")


@dataclass
class Sampler:
    """The distribution, in double precision."""

    log_widths: Tensor  # log w_d, (D,)
    coupling: Tensor  # a
    bend: Tensor  # b

    @classmethod
    def of(cls, features: int, coupling: float, bend: float) -> Self:
        widths = torch.linspace(-0.7, 0.7, features, dtype=torch.float64)
        tensors = (widths, torch.tensor(coupling, dtype=torch.float64), torch.tensor(bend, dtype=torch.float64))
        return cls(*(t.requires_grad_() for t in tensors))

    def __call__(self, e: Tensor) -> Tensor:
        """Map noise ``(B, K, D)`` to samples ``(B, K, D)``."""
        noise = self.log_widths.exp() * (e + self.bend * torch.tanh(3.0 * e))
        columns = [noise[..., 0]]
        for d in range(1, e.shape[-1]):
            columns.append(self.coupling * columns[-1] + noise[..., d])
        return torch.stack(columns, -1)

    @torch.no_grad()
    def conditional_scores(self, e: Tensor) -> Tensor:
        """Return the conditional scores at the samples of some noise."""
        sech2 = torch.cosh(3.0 * e).pow(-2)
        slope = 1.0 + 3.0 * self.bend * sech2
        dslope = -18.0 * self.bend * sech2 * torch.tanh(3.0 * e)
        return (-e - dslope / slope) / (slope * self.log_widths.exp())

    @torch.no_grad()
    def moments(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return means and log standard deviations of the conditionals, ``(B, K, D)`` each. The noise has mean zero."""
        before = torch.cat([torch.zeros_like(z[..., :1]), self.coupling * z[..., :-1]], -1)
        e, density = _normal_density()
        variance = torch.trapezoid(density * (e + self.bend * torch.tanh(3.0 * e)).square(), e)
        return before, (self.log_widths + 0.5 * torch.log(variance)).expand_as(z)

    def parameters(self) -> list[Tensor]:
        return [self.log_widths, self.coupling, self.bend]

    def true_gradient(self) -> Tensor:
        """Return the gradient of the entropy by log widths, coupling and bend, ``(D + 2,)``."""
        e, density = _normal_density()
        steep = 3.0 / torch.cosh(3.0 * e).square()
        mean = float(torch.trapezoid(density * steep / (1.0 + self.bend.detach() * steep), e))
        features = len(self.log_widths)
        tail = torch.tensor([0.0, features * mean], dtype=torch.float64)
        return torch.cat([torch.ones(features, dtype=torch.float64), tail])


def _normal_density() -> tuple[Tensor, Tensor]:
    """Return a fine grid and the density of the noise on it."""
    e = torch.linspace(-10.0, 10.0, 20_001, dtype=torch.float64)
    return e, torch.exp(-0.5 * e.square()) / math.sqrt(2.0 * math.pi)


class Truth(implicit.EntropyGradient):
    """The true scores at the samples of some noise."""

    def __init__(self, sampler: Sampler, e: Tensor) -> None:
        self.sampler, self.e = sampler, e

    def score(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.sampler.conditional_scores(self.e)


def body(run: Study[Entropy]) -> Result:
    """Run every estimator on every distribution."""
    settings = run.settings
    keys = itertools.product(METHODS, settings.features, settings.samples, settings.bends)
    names = {(method, d, n, b): f"{method}, D {d}, {n} samples, b {b:g}" for method, d, n, b in keys}
    estimates = {key: partial(_estimate, run, *key) for key in names}
    results = run.compute_seeds(estimates, lambda key, seed: f"{names[key]}, seed {seed}")
    cells: list[Result] = [
        dict(zip(("method", "features", "samples", "bend"), key, strict=True))
        | {what: mean_and_sd([result[what] for result in by_seed]) for what in MEASURES}
        for key, by_seed in results.items()
    ]
    return {"cells": cells, "figure": run.figure(_figure(settings, cells))}


def _estimate(run: Study[Entropy], method: str, features: int, samples: int, bend: float, seed: int) -> Result:
    """Return cosine and relative error of the gradient with respect to all parameters, and the pressure."""
    settings = run.settings
    sampler = Sampler.of(features, settings.coupling, bend)
    generator = torch.Generator().manual_seed(1_000_003 * seed + 1)
    noise = partial(torch.randn, generator=generator, dtype=torch.float64)
    start = time.monotonic()
    estimator: implicit.EntropyGradient
    e = noise(1, settings.evaluated, features)
    if method == TRUE:
        estimator = Truth(sampler, e)
    elif method in (STEIN, SPECTRAL):
        estimator = implicit.Stein() if method == STEIN else implicit.Spectral()
        group = min(settings.group, samples)
        e = noise(-(-min(samples, settings.evaluated) // group), group, features)
    else:
        estimator = _learner(settings, method, sampler, seed)
        for _ in range(samples // settings.batch):
            with torch.no_grad():
                z = sampler(noise(1, settings.batch, features))
            estimator.update(z, generator=generator)
    z = sampler(e)
    gradients = torch.autograd.grad(estimator.surrogate(z), sampler.parameters())
    estimate, truth = torch.cat([g.flatten() for g in gradients]), sampler.true_gradient()
    return {
        "cosine": float(torch.cosine_similarity(estimate, truth, 0)),
        "relative_error": float((estimate - truth).norm() / truth.norm()),
        "pressure": float(estimator.entropy_ratio(z.detach()).mean()),
        "seconds": time.monotonic() - start,
    }


def _learner(settings: Entropy, method: str, sampler: Sampler, seed: int) -> implicit.EntropyGradient:
    features = len(sampler.log_widths)
    with seeded(seed):
        if method == SSM:
            network = implicit.ScoreNetwork(features, 0, settings.hidden).double()
            return implicit.JointScore(network, settings.learning_rate)
        context = MADE(features, settings.context_features, settings.hidden)
        head = ScoreHead(settings.context_features, settings.head_hidden)
        model = AutoregressiveModel(context, head).double()
    score = implicit.AutoregressiveScore(model, "ssm" if method == SSM_AR else "csm", settings.learning_rate)
    return implicit.ConditionalUnits(score, sampler.moments) if method == STANDARDISED else score


_STYLE: Mapping[str, tuple[str, str]] = {
    TRUE: (GREY, ":"), STEIN: ("#8e6bbf", "-"), SPECTRAL: ("#4c9f70", "-"), SSM: (ORANGE, "-"), SSM_AR: (BLUE, "--"),
    CSM: (BLUE, "-"), STANDARDISED: ("black", "-"),
}  # fmt: skip
_DRAWN: Mapping[str, Callable[[Result], float]] = {
    "relative error of\nthe entropy gradient": lambda cell: float(cell["relative_error"]["mean"]),
    "1 - its cosine": lambda cell: 1.0 - float(cell["cosine"]["mean"]),
}


def _figure(settings: Entropy, cells: list[Result]) -> Figure:
    rows, columns = len(settings.bends) * len(_DRAWN), len(settings.features)
    figure, panels = open_panels(2.9 * columns + 0.6, 2.2 * rows + 0.8, rows, columns, sharex=True, sharey="row")
    drawn = itertools.product(settings.bends, _DRAWN.items(), settings.features)
    for axes, (bend, (what, measure), features) in zip(panels, drawn, strict=True):
        for method, (colour, style) in _STYLE.items():
            curve = [c for c in cells if (c["method"], c["features"], c["bend"]) == (method, features, bend)]
            x, y = [c["samples"] for c in curve], [measure(c) for c in curve]
            axes.plot(x, y, style, marker="o", markersize=3, color=colour, label=method)
        axes.set(xscale="log", yscale="log")
        axes.set_title(f"D = {features}, {'two modes' if bend else 'Gaussian'}", fontsize=9)
        if features == settings.features[0]:
            axes.set_ylabel(what, fontsize=8)
    for axes in panels[-columns:]:
        axes.set_xlabel("samples", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=len(labels), loc="outside upper center")
    return figure


ENTROPY = study(
    "entropy", "entropy gradients of a known implicit distribution by every estimator (Section 6)", PRESETS, body
)
