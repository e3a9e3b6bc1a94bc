"""Figure 1b: how much the objectives and their gradients vary over fresh noise on a fixed batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from arcsm import objectives
from arcsm.experiments.base import Count, Positive, Preset, Settings, Study, study
from arcsm.experiments.gaussians import autoregressive, gaussian_rows
from arcsm.model import AutoregressiveModel
from arcsm.reports.plots import BLUE, ORANGE, open_frame


class Fig1b(Settings):
    """The paper gives the dimension alone; the rest is ours."""

    features: Count = 100
    hidden: Count = 128
    context_features: Count = 4
    head_hidden: Count = 32
    batch: Count = 128
    draws: int = Field(200, ge=2)
    draws_of_many: int = Field(50, ge=2)  # with 100 slices and more, where a draw takes seconds
    slices: tuple[Count, ...] = (1, 10, 100, 1000)
    sigmas: tuple[Positive, ...] = (0.01, 0.03, 0.1)
    warm_up: int = Field(500, ge=0)
    learning_rate: Positive = 1e-3


PRESETS: Mapping[Preset, Fig1b] = {
    "smoke": Fig1b(features=5, hidden=16, batch=16, draws=4, slices=(1, 2), sigmas=(0.1,), warm_up=3),
    "cpu": Fig1b(draws=100, draws_of_many=8, batch=64, hidden=64),
    "paper": Fig1b(seeds=5, draws=1000),
}


def body(run: Study[Fig1b]) -> dict[str, Any]:
    """Every objective on one and the same model and batch, at the start and after some training."""
    cells = {
        f"{name} seed {seed}": lambda name=name, seed=seed: _measure(run, name, seed)
        for seed in run.settings.all_seeds()
        for name in _objectives(run.settings)
    }
    found = run.each(cells)
    methods = {
        name: {
            stage: {
                key: _mean([found[f"{name} seed {seed}"][stage][key] for seed in run.settings.all_seeds()])
                for key in ("objective_sd", "gradient_noise")
            }
            for stage in ("at the start", "after training")
        }
        for name in _objectives(run.settings)
    }
    return {"methods": methods, "figure": run.figure(_figure(methods))}


Objective = Callable[[AutoregressiveModel, Tensor, torch.Generator], Tensor]


def _objectives(settings: Fig1b) -> dict[str, Objective]:
    def ssm(
        model: AutoregressiveModel, x: Tensor, g: torch.Generator, slices: int, variance_reduced: bool = True
    ) -> Tensor:
        return objectives.ssm(model, x, slices, variance_reduced=variance_reduced, generator=g)

    def dsm(model: AutoregressiveModel, x: Tensor, g: torch.Generator, sigma: float) -> Tensor:
        return objectives.dsm(model, x, sigma, generator=g)

    def csm(model: AutoregressiveModel, x: Tensor, g: torch.Generator) -> Tensor:
        return objectives.csm(model, x)

    def csm_of_fresh_rows(model: AutoregressiveModel, x: Tensor, g: torch.Generator) -> Tensor:
        return objectives.csm(model, gaussian_rows(len(x), settings.features, g))

    found: dict[str, Objective] = {}
    for slices in settings.slices:
        found[f"SSM, {slices} slices"] = partial(ssm, slices=slices)
        found[f"SSM, {slices} slices, plain"] = partial(ssm, slices=slices, variance_reduced=False)
    for sigma in settings.sigmas:
        found[f"DSM, sigma {sigma:g}"] = partial(dsm, sigma=sigma)
    return {**found, "CSM": csm, "CSM, fresh batches": csm_of_fresh_rows}


def _measure(run: Study[Fig1b], name: str, seed: int) -> dict[str, Any]:
    model = _model(run, seed)
    found = {"at the start": _spread(run, model, name, seed)}
    optimizer = torch.optim.Adam(model.parameters(), lr=run.settings.learning_rate)
    generator = run.generator(seed, 1)
    for _ in range(run.settings.warm_up):
        optimizer.zero_grad()
        objectives.csm(model, gaussian_rows(run.settings.batch, run.settings.features, generator)).backward()
        optimizer.step()
    found["after training"] = _spread(run, model, name, seed)
    return found


def _model(run: Study[Fig1b], seed: int) -> AutoregressiveModel:
    settings = run.settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = (settings.features, settings.hidden, settings.context_features, settings.head_hidden)
        return autoregressive(*sizes).to(run.device)


def _spread(run: Study[Fig1b], model: AutoregressiveModel, name: str, seed: int) -> dict[str, float | None]:
    """Standard deviation of the objective; mean square of the gradient's noise by the square of its mean.

    The latter is ``None`` where the draws do not resolve the mean.
    """
    settings = run.settings
    objective = _objectives(settings)[name]
    x = gaussian_rows(settings.batch, settings.features, run.generator(seed, 2))
    generator = run.generator(seed, 3)
    values: list[float] = []
    mean, square = torch.zeros((), dtype=torch.float64, device=run.device), 0.0
    many = name.startswith("SSM") and int(name.split()[1]) >= 100
    draws = settings.draws_of_many if many else settings.draws
    for _ in range(draws):
        model.zero_grad()
        loss = objective(model, x, generator)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
        values.append(float(loss.detach()))
        mean, square = mean + gradient / draws, square + float(gradient.square().sum()) / draws
    size = float(mean.square().sum())
    noise = max(0.0, square - size) * draws / (draws - 1)
    signal = size - noise / draws  # unbiased: the mean of the draws still holds that much of the noise
    resolved = signal > 0.1 * size
    return {
        "objective_sd": float(torch.tensor(values).double().std()),
        "gradient_noise": noise / signal if resolved else None,
    }


def _mean(values: list[float | None]) -> float | None:
    """The mean, or nothing where one value is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _figure(methods: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    names = list(methods)
    for index, (key, title) in enumerate(
        (("objective_sd", "standard deviation of the objective"), ("gradient_noise", "gradient: noise² / mean²"))
    ):
        axes = figure.add_subplot(1, 2, index + 1)
        for stage, colour in (("at the start", ORANGE), ("after training", BLUE)):
            known = [(i, methods[name][stage][key]) for i, name in enumerate(names)]
            shown = [(i, max(value, 1e-12)) for i, value in known if value is not None]
            axes.plot([value for _, value in shown], [i for i, _ in shown], "o", color=colour, label=stage)
        axes.set_xscale("log")
        axes.set_yticks(range(len(names)), names if index == 0 else [""] * len(names), fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(title + " (1e-12: none)")
        open_frame(axes)
    axes.legend(frameon=False, fontsize=8)
    return figure


FIG1B = study("fig1b", "variance of the objectives and of their gradients (paper, Figure 1b)", PRESETS, body)
