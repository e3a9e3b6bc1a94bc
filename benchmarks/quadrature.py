"""Error of the adaptive quadrature on trained score heads, against a uniform grid of 20,001 nodes.

python -m benchmarks.quadrature RUN [RUN ...]      folders that `arcsm train` made
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcsm.conditionals.conditionals import Accuracy, Conditionals
from arcsm.conditionals.piecewise import PiecewiseDensity, polynomial_of, rise_at
from arcsm.data.datasets import load_dataset
from arcsm.heads import Head
from arcsm.heads.score import ScoreHead
from arcsm.training.runs import load_run
from benchmarks.timing import show

_NODES = 20_001
_CONDITIONALS = 200
_NATS = 12.0  # modes further below the highest do not count
_TARGET_ERROR = 1e-4  # nats
_EVALUATIONS = (64, 128, 256, 512)
_FINE = range(32, 513, 16)  # numbers of evaluations to try


def known_everywhere(head: Head, projection: Tensor, points: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, slopes and log densities up to a constant on a very fine grid, ``(M,)`` each."""
    s, ds = head.projected_score_and_derivative(projection, points, sigma)
    step = points.diff()
    rise = 0.5 * step * (s[1:] + s[:-1]) + step.square() / 12.0 * (ds[:-1] - ds[1:])
    return s, ds, torch.cat([rise.new_zeros(1), rise.cumsum(0)])


def by_uniform_grid(head: Head, projection: Tensor, x: Tensor, sigma: float) -> tuple[Tensor, int]:
    """Return log densities at ``x (N,)`` from scores and slopes on a fine grid, and the largest number of modes."""
    assert isinstance(head, ScoreHead)
    half = float(head.tail_start(sigma, x))
    grid = torch.linspace(-half, half, _NODES, dtype=torch.float64)
    width = grid[1] - grid[0]
    found, most_modes = [], 0
    for row, value in zip(projection, x, strict=True):
        points = torch.cat([grid, value[None]]).sort().values
        s, _, energy = known_everywhere(head, row, points, sigma)
        peaks = (s[:-1] > 0) & (s[1:] <= 0) & (energy[:-1] > energy.max() - _NATS)
        most_modes = max(most_modes, int(peaks.sum()))
        place = int((points == value).nonzero()[0])
        weight = torch.cat([energy[:place], energy[place + 1 :]])  # on the uniform grid again
        found.append(energy[place] - torch.logsumexp(weight, 0) - width.log())
    return torch.stack(found), most_modes


@dataclass
class FineDensity:
    """One conditional on a very fine grid, and the error of a cell between any two of its points.

    Attributes:
        x: The grid, ``(M,)``.
        s: Scores, with their first and second derivatives, ``(3, M)``.
        energy: Log density, its maximum at zero, ``(M,)``.
        density: Normalised, ``(M,)``.
        below: Its distribution function, ``(M,)``.
        beyond: Mass on the far side of each point, seen from where the density is asked for, ``(M,)``.
    """

    x: NDArray[np.float64]
    s: NDArray[np.float64]
    energy: NDArray[np.float64]
    density: NDArray[np.float64]
    below: NDArray[np.float64]
    beyond: NDArray[np.float64]

    @classmethod
    def of(cls, head: Head, projection: Tensor, value: float, sigma: float, points: int = 40_001) -> FineDensity:
        assert isinstance(head, ScoreHead)
        half = float(head.tail_start(sigma, projection))
        x = torch.linspace(-half, half, points, dtype=torch.float64)
        width = float(x[1] - x[0])
        s, ds, energy = known_everywhere(head, projection, x, sigma)
        energy = energy - energy.max()
        density = energy.exp() / (energy.exp().sum() * width)
        below = density.cumsum(0) * width
        beyond = torch.where(x < value, below, 1.0 - below)
        slopes = torch.stack([s, ds, torch.gradient(ds, spacing=width)[0]])
        return cls(*(part.numpy() for part in (x, slopes, energy, density, below, beyond)))

    def error(self, i: int, j: int) -> float:
        """Error of the log density by the rule of :mod:`arcsm.conditionals.piecewise`, for a cell from point i to j."""
        some = np.unique(np.linspace(i, j, min(j - i + 1, 25)).astype(int))
        width = self.x[j] - self.x[i]
        sides = [torch.from_numpy(column[[i, j]]) for column in self.s]
        t = torch.from_numpy((self.x[some] - self.x[i]) / width)
        rise = rise_at(polynomial_of(torch.tensor(width), *sides), t).numpy()
        off = np.abs(rise - (self.energy[some] - self.energy[i]))
        share = self.below[j] - self.below[i]
        inside = (off * self.density[some]).sum() / max(self.density[some].sum(), 1e-300) * share
        return float(off[-1] * self.beyond[i : j + 1].max() + inside)

    def nodes(self, each: float) -> tuple[int, float]:
        """Return the number of nodes if each cell is as wide as an error of ``each`` allows, and the sum of errors."""
        last, start, count, total = len(self.x) - 1, 0, 1, 0.0
        while start < last:
            low, high = start + 1, min(start + 2, last)
            while high < last and self.error(start, high) <= each:
                low, high = high, min(start + 2 * (high - start), last)
            if self.error(start, high) <= each:
                low = high
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self.error(start, middle) <= each else (low, middle)
            total, start, count = total + self.error(start, low), low, count + 1
        return count, total

    def fewest_nodes(self) -> int:
        """Return the number of evaluations for the target error, with cells of equal error that do not compensate."""
        low, high = -12.0, -2.0  # log10 of the error of a cell
        for _ in range(10):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.nodes(10.0**middle)[1] <= _TARGET_ERROR else (low, middle)
        return self.nodes(10.0**low)[0] - 2  # the score at the ends is known


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
    part = Conditionals(model.head, projection, path, "quadrature")

    def integrated(evaluations: int) -> tuple[PiecewiseDensity, Tensor]:
        part.accuracy = Accuracy(1e-5, evaluations)
        density = part.density(slice(0, len(x)), path[-1], x)
        return density, (density.log_prob(x[:, None])[:, 0] - truth).abs()

    enough = torch.full((len(x),), _FINE[-1])
    for evaluations in reversed(_FINE):
        enough = torch.where(integrated(evaluations)[1] <= _TARGET_ERROR, evaluations, enough)
    worst = enough.argmax()
    found["evaluations_of_the_worst_for_1e-4"] = int(enough[worst])
    best = FineDensity.of(model.head, projection[worst], float(x[worst]), path[-1])
    found["evaluations_of_the_worst_by_the_best_placement"] = best.fewest_nodes()
    for evaluations in _EVALUATIONS:
        density, error = integrated(evaluations)
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
