"""Figure 7: all toy sets, samples of AR-CSM by each sampler, and the learned density beside the true one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from arcsm.data.toys import TOYS
from arcsm.experiments.base import Count, Preset, Settings, Study, study
from arcsm.experiments.toys import ToyRows, toy_rows
from arcsm.metrics import energy_distance
from arcsm.model import AutoregressiveModel
from arcsm.reports.plots import scatter
from arcsm.training.density import fit
from arcsm.training.run_config import load_config


class Fig7(Settings):
    """The paper shows samples and names no sizes: architecture and training are those of the ``toy-*`` presets."""

    many_seeds: ClassVar[bool] = False

    toys: tuple[str, ...] = tuple(TOYS)
    rows: Count = 50_000
    test_rows: Count = 2_000
    samples: Count = 2_000
    grid: Count = 100
    changes: tuple[str, ...] = ()


PRESETS: Mapping[Preset, Fig7] = {
    "smoke": Fig7(
        toys=("eight_gaussians", "ring_and_blob"),
        rows=256,
        test_rows=40,
        samples=40,
        grid=10,
        changes=("train.steps=4", "model.context.hidden_features=[16, 16]", "model.head.hidden_features=[8, 8, 8]"),
    ),
    "cpu": Fig7(),
    "paper": Fig7(rows=500_000, test_rows=10_000, samples=10_000, changes=("train.steps=20000",)),
}

_SAMPLERS = ("langevin", "probability_flow", "inverse_cdf")  # sampling-cost holds fast_flow against them
_LIMIT = 3.2  # of the pictures, in standard deviations


def body(run: Study[Fig7]) -> dict[str, Any]:
    """Train a model on each set, sample it, and hold its density against the truth."""
    found = run.each({name: partial(_toy, run, name) for name in run.settings.toys})
    metrics = {name: {k: v for k, v in cell.items() if k not in ("drawn", "density")} for name, cell in found.items()}
    return {"toys": metrics, "figure": run.figure(_figure(run, found))}


def _rows(run: Study[Fig7], name: str, sigma: float) -> ToyRows:
    settings = run.settings
    return toy_rows(name, settings.rows, settings.test_rows, sigma, settings.first_seed)


def _toy(run: Study[Fig7], name: str) -> dict[str, Any]:
    seed = run.settings.first_seed
    fixed = ["train.standardise=none", f"train.seed={seed}", f"train.device={run.device}"]
    config = load_config(f"toy-{name.replace('_', '-')}", [*run.settings.changes, *fixed])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = config.model.build(2, {})
    assert model.noise is not None
    rows = _rows(run, name, model.noise.sigma_min)
    result = fit(model, rows.train, config=config.train)
    test = rows.test.to(run.device)
    truth = rows.true_log_prob(rows.test)
    found: dict[str, Any] = {"seconds": result.seconds, "true_nll": None if truth is None else -float(truth.mean())}
    for method in ("flow", "quadrature"):
        found[f"nll_{method}"] = -float(model.log_prob(test, method=method).mean())
    fresh = rows.noisy(rows.train[: run.settings.samples], torch.Generator().manual_seed(seed + 1))
    found["energy_distance"] = {"data against data": energy_distance(fresh, rows.test)}
    drawn = {}
    for sampler in _SAMPLERS:
        samples = model.sample(run.settings.samples, sampler, run.generator(seed, 4)).cpu()
        found["energy_distance"][sampler] = energy_distance(samples, rows.test)
        drawn[sampler] = [[round(v, 4) for v in row] for row in samples.tolist()]
    return {**found, "sigma": rows.sigma, "drawn": drawn, "density": _on_grid(run, model).tolist()}


def _on_grid(run: Study[Fig7], model: AutoregressiveModel) -> Tensor:
    """Log density on a square grid, ``(G, G)``, rows along y."""
    axis = torch.linspace(-_LIMIT, _LIMIT, run.settings.grid, device=run.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return model.log_prob(torch.stack([x, y], -1)).clamp(min=-50.0).cpu()


def _figure(run: Study[Fig7], found: Mapping[str, dict[str, Any]]) -> Figure:
    lines = ["data", *_SAMPLERS, "log density"]
    figure = Figure(figsize=(1.75 * len(found) + 0.4, 1.8 * len(lines)), layout="constrained")
    for column, (name, cell) in enumerate(found.items()):
        data = _rows(run, name, cell["sigma"]).test
        for line, label in enumerate(lines):
            axes = figure.add_subplot(len(lines), len(found), line * len(found) + column + 1)
            title = name.replace("_", " ") if line == 0 else ""
            if label == "log density":
                values = torch.tensor(cell["density"])
                low = float(values.max()) - 9.0
                extent = (-_LIMIT, _LIMIT, -_LIMIT, _LIMIT)
                axes.imshow(values.clamp(min=low).numpy(), origin="lower", extent=extent, cmap="magma", aspect="equal")
                axes.set_xticks([])
                axes.set_yticks([])
            else:
                scatter(axes, data if label == "data" else torch.tensor(cell["drawn"][label]), title, _LIMIT)
            if column == 0:
                axes.set_ylabel(label.replace("_", " "), fontsize=8)
    return figure


FIG7 = study("fig7", "AR-CSM on nine toy sets: samples by three samplers, densities (paper, Figure 7)", PRESETS, body)
