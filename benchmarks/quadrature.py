"""Error of the adaptive quadrature on trained score heads, against a uniform grid of 20,001 nodes.

python -m benchmarks.quadrature RUN [RUN ...]      folders that `arcsm train` made
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
from torch import Tensor

from arcsm.conditionals import Accuracy, Conditionals
from arcsm.data.datasets import load_dataset
from arcsm.heads import Head
from arcsm.heads.score import ScoreHead
from arcsm.runs import load_run
from benchmarks.timing import show

_NODES = 20_001
_CONDITIONALS = 200
_NATS = 12.0  # below the highest mode, where a mode no longer counts


def by_uniform_grid(head: Head, projection: Tensor, x: Tensor, sigma: float) -> tuple[Tensor, int]:
    """Log densities at ``x (N,)`` in double precision, from scores and slopes on a fine grid, and the most modes."""
    assert isinstance(head, ScoreHead)
    half = float(head.support(sigma, x))
    grid = torch.linspace(-half, half, _NODES, dtype=torch.float64)
    width = grid[1] - grid[0]
    found, most_modes = [], 0
    for row, value in zip(projection, x, strict=True):
        points = torch.cat([grid, value[None]]).sort().values
        s, ds = head.evaluate(row, points, sigma)
        step = points.diff()
        rise = 0.5 * step * (s[1:] + s[:-1]) + step.square() / 12.0 * (ds[:-1] - ds[1:])
        energy = torch.cat([rise.new_zeros(1), rise.cumsum(0)])
        peaks = (s[:-1] > 0) & (s[1:] <= 0) & (energy[:-1] > energy.max() - _NATS)
        most_modes = max(most_modes, int(peaks.sum()))
        place = int((points == value).nonzero()[0])
        weight = torch.cat([energy[:place], energy[place + 1 :]])  # back on the uniform grid
        found.append(energy[place] - torch.logsumexp(weight, 0) - width.log())
    return torch.stack(found), most_modes


@torch.no_grad()
def errors(folder: str) -> dict[str, float]:
    run = load_run(folder)
    dataset = load_dataset(run.config.data, run.config.train.seed)
    model = copy.deepcopy(run.model).double()
    rows = dataset.dequantised(dataset.test[: max(1, 2 * _CONDITIONALS // model.features)], seed=1).double()
    z = model.standardise(rows)
    chosen = torch.randperm(z.numel(), generator=torch.Generator().manual_seed(0))[:_CONDITIONALS]
    projection = model.head.project(model.context(z)).flatten(0, 1)[chosen]
    x, path = z.flatten()[chosen], model.path()
    truth, most_modes = by_uniform_grid(model.head, projection, x, path[-1])
    found: dict[str, float] = {"most_modes": most_modes}
    for evaluations in (64, 128, 256, 512):
        part = Conditionals(model.head, projection, path, "quadrature", Accuracy(1e-5, evaluations))
        density = part.density(slice(0, len(x)), path[-1], x)
        error = (density.log_prob(x[:, None])[:, 0] - truth).abs()
        honest = (error <= 10.0 * density.error.clamp(min=1e-7))[density.converged]
        found[f"largest_error_{evaluations}"] = float(error.max())
        found[f"share_converged_{evaluations}"] = float(density.converged.double().mean())
        if len(honest):
            found[f"share_honest_of_converged_{evaluations}"] = float(honest.double().mean())
    return found


def main() -> None:
    torch.set_num_threads(1)
    show("quadrature", {Path(folder).name: errors(folder) for folder in sys.argv[1:]})


if __name__ == "__main__":
    main()
