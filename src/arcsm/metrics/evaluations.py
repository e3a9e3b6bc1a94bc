"""Count the evaluations of a head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from arcsm._runtime.memory import Workspace
from arcsm.heads import Head
from arcsm.heads.base import Sigma

T = TypeVar("T")


@dataclass
class EvaluationCount:
    """Number of evaluations of a head, one for each value of each conditional.

    Attributes:
        scores: Evaluations of the score alone.
        with_derivative: Evaluations of the score and its derivative, which cost about twice as much.
    """

    scores: int = 0
    with_derivative: int = 0


@contextmanager
def count_evaluations(head: Head) -> Iterator[EvaluationCount]:
    """Count the evaluations of a head within the ``with`` block."""
    count = EvaluationCount()
    prepare_score, prepare_both = head.prepare_score, head.prepare_score_and_derivative
    evaluate_both = head.projected_score_and_derivative

    def counting(
        function: Callable[[Tensor, Tensor], T], scores: int = 0, with_derivative: int = 0
    ) -> Callable[[Tensor, Tensor], T]:
        def counted(projection: Tensor, x: Tensor) -> T:
            before = count.with_derivative  # the default implementations of a head call evaluate_both, too
            result = function(projection, x)
            count.scores += scores * x.numel()
            count.with_derivative = before + with_derivative * x.numel()
            return result

        return counted

    def counted_prepare_score(sigma: Sigma) -> Callable[[Tensor, Tensor], Tensor]:
        return counting(prepare_score(sigma), scores=1)

    def counted_prepare_both(
        sigma: Sigma, workspace: Workspace | None = None
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return counting(prepare_both(sigma, workspace), with_derivative=1)

    def counted_evaluate_both(projection: Tensor, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        count.with_derivative += x.numel()
        return evaluate_both(projection, x, sigma)

    replacements = {
        "prepare_score": counted_prepare_score,
        "prepare_score_and_derivative": counted_prepare_both,
        "projected_score_and_derivative": counted_evaluate_both,
    }
    try:
        for name, function in replacements.items():  # instance attributes shadow the methods of the class
            setattr(head, name, function)
        yield count
    finally:
        for name in replacements:
            delattr(head, name)
