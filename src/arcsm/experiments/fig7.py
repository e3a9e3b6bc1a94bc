"""Figure 7: all toy sets, samples of AR-CSM by each sampler and of the paper's own model, and the learned density."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from matplotlib.figure import Figure

from arcsm.data.toys import TOYS
from arcsm.experiments.base import Count, Preset, Result, Settings, Study, study
from arcsm.experiments.toys import PAPER, toy_rows, train_toy
from arcsm.metrics import energy_distance
from arcsm.reports.plots import scatter


class Fig7(Settings):
    """The paper shows samples and gives no sizes: models and training are those of the ``toy-*`` presets.

    The paper's own model, of the preset ``toy-paper``, takes as many steps.
    """

    several_seeds: ClassVar[bool] = False
    toys: tuple[str, ...] = tuple(TOYS)
    rows: Count = 50_000
    test_rows: Count = 2_000
    samples: Count = 2_000
    grid: Count = 100
    changes: tuple[str, ...] = ()
    paper_changes: tuple[str, ...] = ()  # of the paper's own model


PRESETS: Mapping[Preset, Fig7] = {
    "smoke": Fig7(
        toys=("eight_gaussians", "ring_and_blob"), rows=256, test_rows=40, samples=40, grid=10,
        changes=("train.steps=4", "model.context.hidden_features=[16, 16]", "model.head.hidden_features=[8, 8, 8]"),
        paper_changes=("train.steps=4", "model.context.hidden_features=[16, 16]"),
    ),
    "cpu": Fig7(),
    "paper": Fig7(
        rows=500_000, test_rows=10_000, samples=10_000, changes=("train.steps=20000",),
        paper_changes=("train.steps=20000",),
    ),
}  # fmt: skip

_SAMPLERS = ("langevin", "probability_flow", "inverse_cdf")  # fast_flow is in sampling-cost
_PAPER_MODEL = "paper"  # samples of the paper's own model
_LIMIT = 3.2  # of the axes, in standard deviations


def body(run: Study[Fig7]) -> Result:
    """Train a model on each set, sample from it, and compare its density with the truth."""
    names = run.settings.toys
    results = run.compute_all(
        {name: partial(_train, run, name) for name in names}
        | {f"{name}, paper": partial(_train_paper, run, name) for name in names}
    )
    cells = {name: _joined(results[name], results[f"{name}, paper"]) for name in names}
    toys = {name: {k: v for k, v in cell.items() if k not in ("drawn", "density")} for name, cell in cells.items()}
    return {"toys": toys, "figure": run.figure(_figure(run, cells))}


def _train(run: Study[Fig7], name: str) -> Result:
    settings, seed = run.settings, run.settings.first_seed
    model, rows, result = train_toy(name, settings.changes, settings.rows, settings.test_rows, seed, run.device)
    test = rows.test.to(run.device)
    truth = rows.true_log_prob(rows.test)
    found: Result = {"seconds": result.seconds, "true_nll": None if truth is None else -float(truth.mean())}
    for method in ("flow", "quadrature"):
        found[f"nll_{method}"] = -float(model.log_prob(test, method=method).mean())
    fresh = rows.add_noise(rows.train[: settings.samples], torch.Generator().manual_seed(seed + 1))
    found["energy_distance"] = {"data against data": energy_distance(fresh, rows.test)}
    drawn = {}
    for sampler in _SAMPLERS:
        samples = model.sample(settings.samples, sampler, run.generator(seed, 4)).cpu()
        found["energy_distance"][sampler] = energy_distance(samples, rows.test)
        drawn[sampler] = [[round(v, 4) for v in row] for row in samples.tolist()]
    axis = torch.linspace(-_LIMIT, _LIMIT, settings.grid, device=run.device)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)  # (G, G, 2), rows along y
    density = model.log_prob(grid).clamp(min=-50.0).tolist()
    return {**found, "sigma": rows.sigma, "drawn": drawn, "density": density}


def _train_paper(run: Study[Fig7], name: str) -> Result:
    """Train the paper's own model of a set, and draw from it by Langevin dynamics."""
    settings, seed = run.settings, run.settings.first_seed
    model, rows, result = train_toy(
        name, settings.paper_changes, settings.rows, settings.test_rows, seed, run.device, PAPER
    )
    samples = model.sample(settings.samples, "langevin", run.generator(seed, 4)).cpu()
    drawn = [[round(v, 4) for v in row] for row in samples.tolist()]
    return {"seconds": result.seconds, "energy_distance": energy_distance(samples, rows.test), "drawn": drawn}


def _joined(cell: Result, paper: Result) -> Result:
    distances = {**cell["energy_distance"], _PAPER_MODEL: paper["energy_distance"]}
    drawn = {**cell["drawn"], _PAPER_MODEL: paper["drawn"]}
    return {**cell, "energy_distance": distances, "drawn": drawn, "seconds_paper": paper["seconds"]}


def _figure(run: Study[Fig7], cells: Mapping[str, Result]) -> Figure:
    settings, labels = run.settings, ["data", _PAPER_MODEL, *_SAMPLERS, "log density"]
    figure = Figure(figsize=(1.75 * len(cells) + 0.4, 1.8 * len(labels)), layout="constrained")
    panels = figure.subplots(len(labels), len(cells), squeeze=False)
    for (*scatters, last), (name, cell) in zip(panels.T, cells.items(), strict=True):
        data = toy_rows(name, settings.rows, settings.test_rows, cell["sigma"], settings.first_seed).test
        for axes, label in zip(scatters, labels, strict=False):
            title = name.replace("_", " ") if label == "data" else ""
            scatter(axes, data if label == "data" else torch.tensor(cell["drawn"][label]), title, _LIMIT)
        values = torch.tensor(cell["density"])
        low, extent = float(values.max()) - 9.0, (-_LIMIT, _LIMIT, -_LIMIT, _LIMIT)
        last.imshow(values.clamp(min=low).numpy(), origin="lower", extent=extent, cmap="magma", aspect="equal")
        last.set(xticks=[], yticks=[])
    for axes, label in zip(panels[:, 0], labels, strict=True):
        axes.set_ylabel(label.replace("_", " "), fontsize=8)
    return figure


FIG7 = study("fig7", "AR-CSM on nine toy sets: samples by three samplers, densities (paper, Figure 7)", PRESETS, body)
