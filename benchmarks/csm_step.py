"""One CSM step of a score head: fused (with and without C), forward mode, double backward, and bare matrix products.

python -m benchmarks.csm_step
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from arcsm import ScoreHead
from arcsm.metrics.costs import extra_memory_mib as extra_memory
from arcsm.objectives.fused import CHUNK_POINTS, fused_score_matching
from benchmarks.timing import interleaved_medians, show

BATCH, FEATURES, CONTEXT, HIDDEN = 64, 784, 8, 64


def problem(features: int) -> tuple[ScoreHead, Tensor, Tensor]:
    torch.manual_seed(0)
    head = ScoreHead(CONTEXT, (HIDDEN, HIDDEN))
    points = BATCH * features
    return head, torch.randn(points, CONTEXT, requires_grad=True), torch.randn(points)


def double_backward(head: ScoreHead, context: Tensor, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    s = head.projected_score(head.project(context), x, None)
    ds = torch.autograd.grad(s.sum(), x, create_graph=True)[0]
    (0.5 * s.square() + ds).sum().backward()


def forward_mode(head: ScoreHead, context: Tensor, x: Tensor) -> None:
    s, ds = head.score_and_derivative(context, x, None)
    (0.5 * s.square() + ds).sum().backward()


def fused(head: ScoreHead, context: Tensor, x: Tensor, compiled: bool = False) -> None:
    one, zero = x.new_ones(()), x.new_zeros(())
    fused_score_matching(head, context, x, None, one, one, zero, compiled).backward()


def matrix_products(head: ScoreHead, context: Tensor, x: Tensor) -> None:
    """Compute only the matrix products that every such step needs, forward and backward."""
    first, second = (weight.detach() for weight, _ in head.layers())
    first = torch.cat([first[:, :CONTEXT], first[:, -1:]], 1)  # the columns for the noise level are unused
    out = head.output.weight.detach()[0]
    inputs = torch.randn(min(CHUNK_POINTS, len(x)), CONTEXT + 1)
    for start in range(0, len(x), CHUNK_POINTS):
        u = inputs[: min(CHUNK_POINTS, len(x) - start)]
        z = u @ first.T
        for _ in ("value", "derivative"):
            top = z @ second.T
            s = top @ out
            s @ top
            top.T @ z
            below = top @ second
        u.T @ below
        first[:, :CONTEXT].T @ below.T


METHODS: dict[str, Callable[[ScoreHead, Tensor, Tensor], None]] = {
    "double_backward": double_backward,
    "forward_mode": forward_mode,
    "fused": fused,
    "fused_compiled": lambda h, c, x: fused(h, c, x, compiled=True),
    "matrix_products": matrix_products,
}


def extra_memory_mib(method: str, features: int) -> float:
    """Return the peak memory of one step beyond that of the inputs, in a fresh process."""
    code = f"from benchmarks.csm_step import report_memory; report_memory({method!r}, {features})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def report_memory(method: str, features: int) -> None:
    torch.set_num_threads(1)
    small = problem(8)
    METHODS[method](*small)  # library buffers
    head, context, x = problem(features)
    context.grad = torch.zeros_like(context)
    print(extra_memory(lambda: METHODS[method](head, context, x), torch.device("cpu")))


def main() -> None:
    torch.set_num_threads(1)
    head, context, x = problem(FEATURES)
    seconds = interleaved_medians(
        {name: lambda method=method: method(head, context, x) for name, method in METHODS.items()}, repeats=25
    )
    naive, limit = seconds["double_backward"], seconds["matrix_products"]
    memory = {name: extra_memory_mib(name, 3072) for name in ("double_backward", "forward_mode", "fused")}
    show(
        "csm_step",
        {
            "sizes": {"batch": BATCH, "features": FEATURES, "context": CONTEXT, "hidden": [HIDDEN, HIDDEN]},
            "milliseconds": {name: round(1e3 * value, 1) for name, value in seconds.items()},
            "times_faster_than_double_backward": {name: round(naive / value, 2) for name, value in seconds.items()},
            "times_the_matrix_products": {name: round(value / limit, 2) for name, value in seconds.items()},
            "extra_memory_mib_at_3072_features": {name: round(value) for name, value in memory.items()},
            "memory_of_double_backward_by_fused": round(memory["double_backward"] / memory["fused"], 1),
        },
    )


if __name__ == "__main__":
    main()
