"""Figure 1a: time and memory of one training step against the dimension of the data."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from arcsm import objectives
from arcsm.experiments.base import Count, Preset, Settings, Study, study
from arcsm.experiments.gaussians import autoregressive, conditional_scores, gaussian_rows, joint, parameters
from arcsm.metrics.costs import extra_memory_mib, interleaved_medians
from arcsm.model import AutoregressiveModel
from arcsm.objectives.score_matching import denoising_score_matching, exact_score_matching, sliced_score_matching
from arcsm.reports.plots import open_frame


class Fig1a(Settings):
    """The paper gives three hidden layers and comparable numbers of parameters; the sizes are ours.

    Exact score matching is measured up to ``largest_for_sm`` dimensions: its time and memory grow with them.
    """

    many_seeds: ClassVar[bool] = False

    features: tuple[Count, ...] = (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
    largest_for_sm: Count = 200
    hidden: Count = 128
    context_features: Count = 4
    head_hidden: Count = 32
    batch: Count = 128
    repeats: Count = 7


PRESETS: Mapping[Preset, Fig1a] = {
    "smoke": Fig1a(features=(4,), hidden=8, head_hidden=8, batch=8, repeats=2),
    "cpu": Fig1a(),
    "paper": Fig1a(largest_for_sm=2000, hidden=512, head_hidden=64, repeats=21),
}

METHODS = ("SM", "SSM, 1 slice", "SSM, 10 slices", "DSM", "CSM")


def body(run: Study[Fig1a]) -> dict[str, Any]:
    """Every method at every dimension, each in a process of its own, so that peaks of memory are its own."""
    settings = run.settings
    points = [
        (method, features)
        for features in settings.features
        for method in METHODS
        if method != "SM" or features <= settings.largest_for_sm
    ]
    found = run.each({f"{method} D={d}": partial(_measure_apart, run, method, d) for method, d in points})
    table: dict[str, Any] = {method: {} for method in METHODS}
    for method, features in points:
        table[method][str(features)] = found[f"{method} D={features}"]
    checked = [cell["by_plain_step"] for d, cell in table["CSM"].items() if int(d) >= 10]
    return {
        "methods": table,
        "largest_ratio_of_csm_from_10_dimensions": max(checked) if checked else None,
        "figure": run.figure(_figure(table)),
    }


def _measure_apart(run: Study[Fig1a], method: str, features: int) -> dict[str, Any]:
    arguments = json.dumps([run.settings.model_dump(mode="json"), method, features, str(run.device)])
    code = f"from arcsm.experiments.fig1a import measure; measure({arguments!r}, {torch.get_num_threads()})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"fig1a: {method} at {features} dimensions failed: {done.stderr.strip()[-300:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(arguments: str, threads: int) -> None:
    """What the process of one cell does: prints its numbers as JSON."""
    given, method, features, device_name = json.loads(arguments)
    torch.set_num_threads(threads)
    settings, device = Fig1a.model_validate(given), torch.device(device_name)
    torch.manual_seed(settings.first_seed)
    sizes = (settings.hidden, settings.context_features, settings.head_hidden)
    network: nn.Module = autoregressive(features, *sizes)
    if method != "CSM":
        network = joint(features, parameters(network))
    network.to(device)
    generator = torch.Generator(device).manual_seed(settings.first_seed)
    x = gaussian_rows(settings.batch, features, generator)
    step, plain = partial(_step, method, network, x, generator), partial(_plain_step, network, x)

    _step(method, network, x[:2], generator)  # gradients and the library's buffers exist now
    memory = extra_memory_mib(step, device)
    seconds, plain_seconds = interleaved_medians([step, plain], settings.repeats, device)
    numbers = {
        "milliseconds": 1e3 * seconds,
        "plain_step_milliseconds": 1e3 * plain_seconds,
        "by_plain_step": seconds / plain_seconds,
        "extra_memory_mib": memory,
        "data_mib": x.numel() * x.element_size() / 2**20,
        "parameters": parameters(network),
    }
    sys.stdout.write(json.dumps(numbers) + "\n")


def _step(method: str, network: nn.Module, x: Tensor, generator: torch.Generator) -> None:
    """Loss and gradients of one batch."""
    _loss(method, network, x, generator).backward()


def _loss(method: str, network: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    if method == "CSM":
        assert isinstance(network, AutoregressiveModel)
        return objectives.csm(network, x)
    if method == "DSM":
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        return denoising_score_matching(network(x + 0.1 * noise), noise, 0.1)
    z = x.clone().requires_grad_()
    if method == "SM":
        return exact_score_matching(network(z), z)
    return sliced_score_matching(network(z), z, int(method.split()[1]), generator=generator)


def _plain_step(network: nn.Module, x: Tensor) -> None:
    """One forward and backward pass of the scores alone."""
    scores = conditional_scores(network, x) if isinstance(network, AutoregressiveModel) else network(x)
    scores.square().sum().backward()


def _figure(table: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(11.0, 3.6), layout="constrained")
    panels = (
        ("milliseconds", "milliseconds a step"),
        ("by_plain_step", "by a forward and backward pass"),
        ("extra_memory_mib", "extra memory, MiB"),
    )
    for index, (key, label) in enumerate(panels):
        axes = figure.add_subplot(1, 3, index + 1)
        for method, cells in table.items():
            features = [int(d) for d in cells]
            values = [max(cell[key], 0.1) for cell in cells.values()]
            axes.plot(features, values, "o-", markersize=3, linewidth=1.2, label=method)
        axes.set(xscale="log", yscale="log", xlabel="dimensions D", ylabel=label)
        open_frame(axes)
    axes.legend(frameon=False, fontsize=8)
    return figure


FIG1A = study("fig1a", "time and memory of a step against the dimension (paper, Figure 1a)", PRESETS, body)
