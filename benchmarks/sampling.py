"""Sampling 64 rows of 784 dimensions from a MADE of 3 x 1024 units: incremental contexts, and the whole sampler.

python -m benchmarks.sampling
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead
from benchmarks.timing import median_seconds, show

ROWS, FEATURES, LANGEVIN_STEPS = 64, 784, 200


def build() -> AutoregressiveModel:
    torch.manual_seed(0)
    return AutoregressiveModel(
        MADE(FEATURES, 8, (1024, 1024, 1024)), ScoreHead(8, (64, 64)), NoiseLadder(1.0, 0.04, 10)
    ).eval()


def incremental_contexts(model: AutoregressiveModel, x: Tensor) -> None:
    state = model.context.begin((ROWS,))
    for d in range(FEATURES):
        model.context.step(state, x[:, d - 1] if d else None)


def full_forwards(model: AutoregressiveModel, x: Tensor, visit: Callable[[Tensor], object] = lambda _: None) -> None:
    """Compute the contexts of every dimension by a full forward pass each, as without an incremental network."""
    for d in range(FEATURES):
        visit(model.context(x)[:, d])


def langevin_steps(model: AutoregressiveModel, context: Tensor) -> None:
    """Run 200 Langevin steps of one dimension naively (paper, Eq. 22)."""
    x = torch.randn(ROWS)
    projection = model.head.project(context)
    for sigma in model.noise.sigmas if model.noise else ():
        for _ in range(LANGEVIN_STEPS // 10):
            x = x + 0.5 * 1e-3 * model.head.projected_score(projection, x, sigma) + 1e-3**0.5 * torch.randn(ROWS)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    model = build()
    x = torch.randn(ROWS, FEATURES)
    incremental = median_seconds(lambda: incremental_contexts(model, x), repeats=7)
    flow = median_seconds(lambda: model.sample(ROWS, "probability_flow"), repeats=3, warm_up=1)
    fast = median_seconds(lambda: model.sample(ROWS, "fast_flow", steps=4), repeats=3, warm_up=1)
    one_pass = median_seconds(lambda: model.context(x), repeats=7)
    begun = time.perf_counter()
    full_forwards(model, x)
    full = time.perf_counter() - begun
    begun = time.perf_counter()
    full_forwards(model, x, lambda context: langevin_steps(model, context))
    naive = time.perf_counter() - begun
    show(
        "sampling",
        {
            "sizes": {"rows": ROWS, "features": FEATURES, "hidden": [1024, 1024, 1024]},
            "seconds": {
                "one_forward_pass": round(one_pass, 4),
                "contexts_incremental": round(incremental, 4),
                "contexts_full_forwards": round(full, 2),
                "probability_flow_sample": round(flow, 3),
                "fast_flow_sample": round(fast, 3),
                "full_forwards_and_200_langevin_steps": round(naive, 2),
            },
            "contexts_times_faster": round(full / incremental, 1),
            "contexts_times_one_forward_pass": round(incremental / one_pass, 2),
            "sample_times_faster": round(naive / flow, 1),
            "fast_sample_times_faster": round(naive / fast, 1),
        },
    )


if __name__ == "__main__":
    main()
