"""Rows scored a second by adaptive quadrature, against a uniform grid of equal error.

python -m benchmarks.log_prob
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, TrainConfig, fit
from arcsm.conditionals.conditionals import Accuracy, Conditionals
from arcsm.data import digits, scale_images
from benchmarks.timing import show

_POINTS = 1 << 16  # points of a uniform grid at a time: memory must not slow the naive way


def trained(features: int) -> tuple[AutoregressiveModel, Tensor]:
    """Return a model of digits: 21 central pixels of the 8x8 images, or the images resized to 28x28."""
    pixels = scale_images(digits().pixels, 17)
    if features == 784:
        pixels = torch.nn.functional.interpolate(pixels, size=(28, 28), mode="nearest")
    rows = pixels.flatten(1)
    if features == 21:
        rows = rows[:, torch.arange(64)[rows.std(0) > 0.4][:21]]
    torch.manual_seed(0)
    model = AutoregressiveModel(
        MADE(features, 16, (256, 256)),
        ScoreHead(16, (64, 64), sinusoids=4, max_frequency=8.0),
        NoiseLadder(1.5, 0.1, 10),
    )
    fit(model, rows, config=TrainConfig(steps=200, batch_size=64, ema=0.95, dequantise=2 / 17, standardise="none"))
    return model, rows + 2 / 17 * torch.rand(rows.shape)


@torch.no_grad()
def adaptive(conditionals: Conditionals, x: Tensor) -> Tensor:
    return conditionals.log_prob(x)


@torch.no_grad()
def uniform_grid(conditionals: Conditionals, x: Tensor, nodes: int) -> Tensor:
    """Integrate the score and its exponential by the trapezoidal rule on a uniform grid, and interpolate."""
    half = float(conditionals.head.tail_start(conditionals.sigma))
    grid = torch.linspace(-half, half, nodes, dtype=torch.float64)
    width = grid[1] - grid[0]
    parts = []
    chunk = max(1, _POINTS // nodes)
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        points = grid.expand(len(x[rows]), -1)
        projection = conditionals.projection[rows].unsqueeze(1)
        s = conditionals.head.projected_score(projection, points.to(projection.dtype), conditionals.sigma).double()
        energy = torch.cat([torch.zeros(len(s), 1), (0.5 * width * (s[:, 1:] + s[:, :-1])).cumsum(1)], 1)
        log_mass = torch.logsumexp(energy, 1) + width.log()
        cell = ((x[rows].double() + half) / width).long().clamp(0, nodes - 2)[:, None]
        offset = x[rows, None].double() - grid[cell]
        left, right = s.gather(1, cell), s.gather(1, cell + 1)
        value = energy.gather(1, cell) + offset * left + 0.5 * offset.square() * (right - left) / width
        parts.append(value[:, 0] - log_mass)
    return torch.cat(parts).to(x.dtype)


def seconds_of(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def compare(features: int, rows: int) -> dict[str, float | int]:
    model, data = trained(features)
    z = model.standardise(data[:rows])
    with torch.no_grad():
        projection = model.head.project(model.context(z)).flatten(0, 1)
    x = z.flatten()
    path = model.path()

    def conditionals(tol: float, evaluations: int = 512) -> Conditionals:
        return Conditionals(model.head, projection, path, "quadrature", Accuracy(tol, evaluations))

    truth = adaptive(conditionals(1e-7, 1024), x)
    error = float((adaptive(conditionals(1e-4), x) - truth).abs().max())
    ours = min(seconds_of(lambda: adaptive(conditionals(1e-4), x)) for _ in range(3))
    nodes = 65
    while float((uniform_grid(conditionals(1e-4), x, nodes) - truth).abs().max()) > max(error, 1e-4) and nodes < 20_000:
        nodes = 2 * nodes - 1
    naive = min(seconds_of(lambda: uniform_grid(conditionals(1e-4), x, nodes)) for _ in range(2))
    flow = seconds_of(lambda: model.log_prob(data[:rows], tol=1e-4))
    return {
        "rows": rows,
        "largest_error_of_a_conditional_nats": round(error, 6),
        "rows_per_second_adaptive": round(rows / ours, 1),
        "uniform_grid_nodes_for_that_error": nodes,
        "rows_per_second_uniform_grid": round(rows / naive, 1),
        "times_faster": round(naive / ours, 1),
        "rows_per_second_flow_contexts_included": round(rows / flow, 1),
    }


def main() -> None:
    torch.set_num_threads(1)
    show("log_prob", {"features_21": compare(21, 20), "features_784": compare(784, 1)})


if __name__ == "__main__":
    main()
