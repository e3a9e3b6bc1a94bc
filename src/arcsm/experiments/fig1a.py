"""Figure 1a: time and memory of one training step against the dimension of the data."""

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from arcsm import AutoregressiveModel, objectives
from arcsm.experiments.base import Count, Preset, Result, Study, parameter_count, study
from arcsm.experiments.gaussians import GaussianNetworks, conditional_scores, gaussian_rows
from arcsm.metrics.costs import extra_memory_mib, interleaved_medians
from arcsm.objectives.score_matching import denoising_score_matching, exact_score_matching, sliced_score_matching
from arcsm.reports.plots import open_panels


class Fig1a(GaussianNetworks):
    """Time and memory of exact score matching grow with the dimension: it is measured up to ``largest_for_sm``."""

    several_seeds: ClassVar[bool] = False
    features: tuple[Count, ...] = (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
    largest_for_sm: Count = 200
    repeats: Count = 7


PRESETS: Mapping[Preset, Fig1a] = {
    "smoke": Fig1a(features=(4,), hidden=8, head_hidden=8, batch=8, repeats=2),
    "cpu": Fig1a(),
    "paper": Fig1a(largest_for_sm=2000, hidden=512, head_hidden=64, repeats=21),
}

METHODS = ("SM", "SSM, 1 slice", "SSM, 10 slices", "DSM", "CSM, autograd", "CSM")  # the last by the fused walk


def body(run: Study[Fig1a]) -> Result:
    """Measure every method at every dimension, each in its own process, so that peaks of memory are its own."""
    settings = run.settings
    points = [(m, d) for d in settings.features for m in METHODS if m != "SM" or d <= settings.largest_for_sm]
    cells = run.compute_all({f"{m} D={d}": partial(_measure_in_subprocess, run, m, d) for m, d in points})
    table = {method: {str(d): cells[f"{m} D={d}"] for m, d in points if m == method} for method in METHODS}
    ratios = [cell["by_plain_step"] for d, cell in table["CSM"].items() if int(d) >= 10]
    return {
        "methods": table,
        "largest_ratio_of_csm_from_10_dimensions": max(ratios) if ratios else None,
        "figure": run.figure(_figure(table)),
    }


def _measure_in_subprocess(run: Study[Fig1a], method: str, features: int) -> Result:
    arguments = json.dumps([run.settings.model_dump(mode="json"), method, features, str(run.device)])
    code = f"from arcsm.experiments.fig1a import measure; measure({arguments!r}, {torch.get_num_threads()})"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise RuntimeError(f"fig1a: {method} at {features} dimensions failed: {process.stderr.strip()[-300:]}")
    return dict(json.loads(process.stdout.splitlines()[-1]))


def measure(arguments: str, threads: int) -> None:
    """Measure one cell and print its numbers as JSON; the entry point of the subprocess."""
    setting_values, method, features, device_name = json.loads(arguments)
    torch.set_num_threads(threads)
    settings, device = Fig1a.model_validate(setting_values), torch.device(device_name)
    torch.manual_seed(settings.first_seed)
    build = settings.build if method.startswith("CSM") else settings.build_joint
    network = build(features).to(device)
    generator = torch.Generator(device).manual_seed(settings.first_seed)
    x = gaussian_rows(settings.batch, features, generator)
    step = partial(_step, method, network, x, generator)

    def plain_step() -> None:
        conditional_scores(network, x).square().sum().backward()

    _step(method, network, x[:2], generator)  # allocate gradients and library buffers before measuring
    memory = extra_memory_mib(step, device)
    seconds, plain_seconds = interleaved_medians([step, plain_step], settings.repeats, device)
    numbers = {
        "milliseconds": 1e3 * seconds,
        "plain_step_milliseconds": 1e3 * plain_seconds,
        "by_plain_step": seconds / plain_seconds,
        "extra_memory_mib": memory,
        "data_mib": x.numel() * x.element_size() / 2**20,
        "parameters": parameter_count(network),
    }
    sys.stdout.write(json.dumps(numbers) + "\n")


def _step(method: str, network: nn.Module, x: Tensor, generator: torch.Generator) -> None:
    z = x.clone().requires_grad_()
    if isinstance(network, AutoregressiveModel):
        loss = objectives.csm(network, x) if method == "CSM" else _csm_by_autograd(network, x, z)
    elif method == "DSM":
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        loss = denoising_score_matching(network(x + 0.1 * noise), noise, 0.1)
    elif method == "SM":
        loss = exact_score_matching(network(z), z)
    else:
        loss = sliced_score_matching(network(z), z, int(method.split()[1]), generator=generator)
    loss.backward()


def _csm_by_autograd(model: AutoregressiveModel, x: Tensor, z: Tensor) -> Tensor:
    """Return composite score matching (Eq. 5), with the derivatives by a second backward pass, as in SM and SSM.

    ``z`` are the same rows as ``x``: the contexts read the latter, so derivatives by ``z`` are those of single scores.
    """
    s = model.head.score(model.contexts(x), z)
    ds = torch.autograd.grad(s.sum(), z, create_graph=True)[0]
    return (0.5 * s.square() + ds).sum(1).mean()


def _figure(table: Mapping[str, Result]) -> Figure:
    figure, panels = open_panels(11.0, 3.6, 1, 3)
    labels = {
        "milliseconds": "milliseconds per step",
        "by_plain_step": "time / forward and backward pass",
        "extra_memory_mib": "extra memory, MiB",
    }
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        for method, cells in table.items():
            values = [max(cell[key], 0.1) for cell in cells.values()]
            axes.plot([int(d) for d in cells], values, "o-", markersize=3, linewidth=1.2, label=method)
        axes.set(xscale="log", yscale="log", xlabel="dimensions D", ylabel=label)
    axes.legend(frameon=False, fontsize=8)
    return figure


FIG1A = study("fig1a", "time and memory of a step against the dimension (paper, Figure 1a)", PRESETS, body)
