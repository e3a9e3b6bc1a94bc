"""Log densities through the noise ladder, against plain evaluations and against their matrix products alone.

python -m benchmarks.flow
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from arcsm._runtime.memory import keep_freed_memory
from arcsm.conditionals.conditionals import Accuracy, Conditionals, EvaluationCache
from arcsm.conditionals.flow import flow_up
from arcsm.heads import ScoreHead
from arcsm.metrics.evaluations import count_evaluations
from benchmarks.log_prob import trained
from benchmarks.timing import interleaved_medians, show

_ROWS = 256
_FEATURES = 21
_PLAIN_TOLERANCE = 1e-6  # sigmas
_BLOCK = 1024  # conditionals multiplied at a time


class Plain(Conditionals):
    """Evaluate the whole batch at once and invert every step to a fixed tolerance."""

    def _base(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return flow_up(self.score_and_derivative, x, self.path, _PLAIN_TOLERANCE)[:2]

    def score_and_derivative(self, x: Tensor, rows: Tensor | slice, sigma: float | None) -> tuple[Tensor, Tensor]:
        projection = self.projection[rows]
        if x.ndim == 2:
            projection = projection.unsqueeze(1)
        return self.head.projected_score_and_derivative(projection, x.to(projection.dtype), sigma)


def fresh(conditionals: Conditionals) -> Conditionals:
    """Return the same conditionals without cached preparations, as at the start of ``log_prob``."""
    return replace(conditionals, prepared=EvaluationCache())


def products(head: ScoreHead, evaluations: int) -> Callable[[], None]:
    """Compute only the matrix products of so many evaluations of the score and its derivative."""
    weights = [weight for weight, _ in head.layers()[1:]]
    waves = weights[0].new_zeros(_BLOCK, 2 * head.sinusoids)
    first = weights[0].new_zeros(2 * head.sinusoids, weights[0].shape[1])
    hidden = weights[0].new_zeros(_BLOCK, weights[0].shape[1])

    def run() -> None:
        for _ in range(2 * evaluations // _BLOCK):  # values and slopes
            torch.mm(waves, first)
            for weight in weights:
                torch.mm(hidden, weight)

    return run


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    with torch.enable_grad():
        model, rows = trained(_FEATURES)
    model = model.double().eval()
    head = model.head
    assert isinstance(head, ScoreHead)
    x = model.standardise(rows[:_ROWS].double())
    projection = head.project(model.context(x)).flatten(0, 1)
    ours = Conditionals(head, projection, model.path(), "flow", Accuracy(tol=1e-3))
    plain = Plain(head, projection, model.path(), "flow", Accuracy(tol=1e-3))
    values = x.flatten()
    keep_freed_memory()  # for all three
    truth = replace(ours, accuracy=Accuracy(tol=1e-6)).log_prob(values)
    with count_evaluations(head) as count:
        found = fresh(ours).log_prob(values)
    with count_evaluations(head) as of_plain:
        plain.log_prob(values)
    seconds = interleaved_medians(
        {
            "ours": lambda: fresh(ours).log_prob(values),
            "plain": lambda: plain.log_prob(values),
            "matrix_products": products(head, count.with_derivative),
        },
        repeats=5,
    )
    numbers = {
        "rows": _ROWS,
        "features": _FEATURES,
        "rows_a_second": _ROWS / seconds["ours"],
        "evaluations_a_conditional": count.with_derivative / len(values),
        "evaluations_a_conditional_plain": of_plain.with_derivative / len(values),
        "largest_error_in_nats": float((found - truth).abs().max()),
        "times_faster_than_plain": seconds["plain"] / seconds["ours"],
        "times_the_matrix_products": seconds["ours"] / seconds["matrix_products"],
    }
    show("flow", numbers)


if __name__ == "__main__":
    main()
