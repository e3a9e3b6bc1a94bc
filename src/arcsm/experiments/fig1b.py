"""Figure 1b: how much the objectives and their gradients vary over fresh noise on a fixed batch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from arcsm import AutoregressiveModel, objectives
from arcsm.experiments.base import Count, Positive, Preset, Result, Study, seeded, study
from arcsm.experiments.gaussians import GaussianNetworks, gaussian_rows
from arcsm.reports.plots import BLUE, ORANGE, open_panels


class Fig1b(GaussianNetworks):
    """The paper gives the dimension; the rest is ours."""

    features: Count = 100
    draws: int = Field(200, ge=2)
    draws_of_many: int = Field(50, ge=2)  # with 100 slices or more, where a draw takes seconds
    slices: tuple[Count, ...] = (1, 10, 100, 1000)
    sigmas: tuple[Positive, ...] = (0.01, 0.03, 0.1)
    warm_up: int = Field(500, ge=0)
    learning_rate: Positive = 1e-3


PRESETS: Mapping[Preset, Fig1b] = {
    "smoke": Fig1b(features=5, hidden=16, batch=16, draws=4, slices=(1, 2), sigmas=(0.1,), warm_up=3),
    "cpu": Fig1b(draws=100, draws_of_many=8, batch=64, hidden=64),
    "paper": Fig1b(seeds=5, draws=1000),
}

START, END = "at the start", "after training"
Objective = Callable[[AutoregressiveModel, Tensor, torch.Generator], Tensor]


def body(run: Study[Fig1b]) -> Result:
    """Measure every objective on the same model and batch, at the start and after some training."""
    cells = run.compute_seeds({name: partial(_measure, run, name) for name in _objectives(run.settings)})
    methods = {
        name: {
            stage: {key: _mean([cell[stage][key] for cell in by_seed]) for key in ("objective_sd", "gradient_noise")}
            for stage in (START, END)
        }
        for name, by_seed in cells.items()
    }
    return {"methods": methods, "figure": run.figure(_figure(methods))}


def _objectives(settings: Fig1b) -> dict[str, Objective]:
    def ssm(slices: int, variance_reduced: bool) -> Objective:
        return lambda model, x, g: objectives.ssm(model, x, slices, variance_reduced=variance_reduced, generator=g)

    def dsm(sigma: float) -> Objective:
        return lambda model, x, g: objectives.dsm(model, x, sigma, generator=g)

    forms = {"": True, ", plain": False}
    return {
        **{f"SSM, {k} slices{suffix}": ssm(k, reduced) for k in settings.slices for suffix, reduced in forms.items()},
        **{f"DSM, sigma {sigma:g}": dsm(sigma) for sigma in settings.sigmas},
        "CSM": lambda model, x, g: objectives.csm(model, x),
        "CSM, fresh batches": lambda model, x, g: objectives.csm(model, gaussian_rows(len(x), settings.features, g)),
    }


def _measure(run: Study[Fig1b], name: str, seed: int) -> Result:
    settings = run.settings
    with seeded(seed):
        model = settings.build(settings.features).to(run.device)
    at_start = _variation(run, model, name, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    generator = run.generator(seed, 1)
    for _ in range(settings.warm_up):
        optimizer.zero_grad()
        objectives.csm(model, gaussian_rows(settings.batch, settings.features, generator)).backward()
        optimizer.step()
    return {START: at_start, END: _variation(run, model, name, seed)}


def _variation(run: Study[Fig1b], model: AutoregressiveModel, name: str, seed: int) -> dict[str, float | None]:
    """Return the deviation of the objective, and the gradient's variance / squared mean, if the draws resolve it."""
    settings = run.settings
    objective = _objectives(settings)[name]
    x = gaussian_rows(settings.batch, settings.features, run.generator(seed, 2))
    generator = run.generator(seed, 3)
    values, mean, square = [], torch.zeros((), dtype=torch.float64, device=run.device), 0.0
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
    signal = size - noise / draws  # unbiased: the squared mean of the draws contains this much noise
    resolved = signal > 0.1 * size
    objective_sd = float(torch.tensor(values).double().std())
    return {"objective_sd": objective_sd, "gradient_noise": noise / signal if resolved else None}


def _mean(values: list[Any]) -> float | None:
    return None if None in values else sum(values) / len(values)


def _figure(methods: Mapping[str, Result]) -> Figure:
    figure, panels = open_panels(10.0, 4.2, 1, 2)
    titles = {"objective_sd": "standard deviation of the objective", "gradient_noise": "gradient: noise² / mean²"}
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        for stage, colour in ((START, ORANGE), (END, BLUE)):
            values = [(i, cell[stage][key]) for i, cell in enumerate(methods.values()) if cell[stage][key] is not None]
            axes.plot([max(v, 1e-12) for _, v in values], [i for i, _ in values], "o", color=colour, label=stage)
        axes.set(xscale="log", xlabel=f"{title} (1e-12: none)")
        axes.set_yticks(range(len(methods)), list(methods) if axes is panels[0] else [""] * len(methods), fontsize=8)
        axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8)
    return figure


FIG1B = study("fig1b", "variance of the objectives and of their gradients (paper, Figure 1b)", PRESETS, body)
