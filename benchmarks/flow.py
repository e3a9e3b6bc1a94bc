"""Log densities through the noise ladder, against a Runge-Kutta method as accurate, and against matrix products alone.

python -m benchmarks.flow
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arcsm._runtime.memory import keep_freed_memory
from arcsm.conditionals import compiled_scores
from arcsm.conditionals.conditionals import Accuracy, Conditionals, EvaluationCache
from arcsm.heads import ScoreHead
from arcsm.metrics.evaluations import count_evaluations
from benchmarks.log_prob import trained
from benchmarks.timing import interleaved_medians, show

_ROWS = 256
_FEATURES = 21
_TOLERANCE = 1e-3  # nats
_BLOCK = 1024  # conditionals multiplied at a time
_FEWEST_STEPS = 8


@dataclass
class RungeKutta(Conditionals):
    """The flow by the classical method of fourth order, with equal steps in log sigma and evaluations by torch."""

    steps: int = _FEWEST_STEPS

    def log_prob(self, x: Tensor) -> Tensor:
        log_slope = torch.zeros_like(x)
        low, high = math.log(self.path[-1]), math.log(self.path[0])
        times = torch.linspace(low, high, self.steps + 1).tolist()
        for start, end in itertools.pairwise(times):
            h, middle = end - start, 0.5 * (start + end)
            first, a = self._velocity(x, start)
            second, b = self._velocity(x + 0.5 * h * first, middle)
            third, c = self._velocity(x + 0.5 * h * second, middle)
            fourth, d = self._velocity(x + h * third, end)
            x = x + h / 6.0 * (first + 2.0 * second + 2.0 * third + fourth)
            log_slope = log_slope + h / 6.0 * (a + 2.0 * b + 2.0 * c + d)
        return replace(self, path=self.path[:1], method="quadrature")._at_largest_noise(x) + log_slope

    def _at_largest_noise(self, x: Tensor) -> Tensor:
        return super().log_prob(x)

    def _velocity(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        sigma = math.exp(t)
        s, ds = self.score_and_derivative(x, slice(None), sigma)
        return -(sigma**2) * s, -(sigma**2) * ds


def fresh(conditionals: Conditionals) -> Conditionals:
    """Return the same conditionals without cached preparations, as at the start of ``log_prob``."""
    compiled = None if conditionals.compiled is None else compiled_scores(conditionals.head)
    return replace(conditionals, cache=EvaluationCache(), compiled=compiled)


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
    model.eval()
    head = model.head
    assert isinstance(head, ScoreHead)
    x = model.standardise(rows[:_ROWS])
    projection = head.project(model.context(x)).flatten(0, 1)
    path, values, accuracy = model.path(), x.flatten(), Accuracy(_TOLERANCE)
    ours = Conditionals(head, projection, path, "flow", accuracy, continuous=True, compiled=compiled_scores(head))
    keep_freed_memory()  # for all three
    in_double = Conditionals(head.double(), projection.double(), path, "flow", Accuracy(1e-7, 4096), continuous=True)
    truth = in_double.log_prob(values.double())
    head.float()

    def error(found: Tensor) -> float:
        return float((found - truth).square().mean().sqrt())

    found = ours.log_prob(values)
    with count_evaluations(head) as count:
        fresh(replace(ours, compiled=None)).log_prob(values)
    plain = RungeKutta(head, projection, path, "flow", accuracy)
    while error(plain.log_prob(values)) > error(found):
        plain = replace(plain, steps=plain.steps + 1)
    with count_evaluations(head) as of_plain:
        fresh(plain).log_prob(values)
    seconds = interleaved_medians(
        {
            "ours": lambda: fresh(ours).log_prob(values),
            "ours_without_c": lambda: fresh(replace(ours, compiled=None)).log_prob(values),
            "plain": lambda: fresh(plain).log_prob(values),
            "matrix_products": products(head, count.with_derivative),
        },
        repeats=5,
    )
    numbers = {
        "rows": _ROWS,
        "features": _FEATURES,
        "tolerance": _TOLERANCE,
        "rows_a_second": _ROWS / seconds["ours"],
        "evaluations_a_conditional": count.with_derivative / len(values),
        "evaluations_a_conditional_plain": of_plain.with_derivative / len(values),
        "error_in_nats": error(found),
        "error_in_nats_plain": error(plain.log_prob(values)),
        "largest_error_in_nats": float((found - truth).abs().max()),
        "times_faster_than_plain": seconds["plain"] / seconds["ours"],
        "times_faster_than_without_c": seconds["ours_without_c"] / seconds["ours"],
        "times_the_matrix_products": seconds["ours"] / seconds["matrix_products"],
    }
    show("flow", numbers)


if __name__ == "__main__":
    main()
