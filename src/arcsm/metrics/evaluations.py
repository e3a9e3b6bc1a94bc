"""Count the evaluations of a head."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from arcsm.heads import Head
from arcsm.heads.base import Sigma

T = TypeVar("T")


@dataclass
class EvaluationCount:
    """Number of evaluations of a head, one for each value of each conditional."""

    scores: int = 0  # of the score alone
    with_derivative: int = 0  # of the score and its derivative, which cost about twice as much


@contextmanager
def count_evaluations(head: Head) -> Iterator[EvaluationCount]:
    """Count the evaluations of a head within the ``with`` block."""
    count = EvaluationCount()
    prepare_score, prepare_both = head.prepare_score, head.prepare_score_and_derivative

    def counting(function: Callable[..., T], scores: int = 0, with_derivative: int = 0) -> Callable[..., T]:
        def counted(projection: Tensor, x: Tensor, *sigma: Sigma) -> T:
            before = count.with_derivative  # by default, a head computes the score with its derivative
            result = function(projection, x, *sigma)
            count.scores += scores * x.numel()
            count.with_derivative = before + with_derivative * x.numel()
            return result

        return counted

    replacements = {
        "prepare_score": lambda sigma: counting(prepare_score(sigma), scores=1),
        "prepare_score_and_derivative": lambda *arguments: counting(prepare_both(*arguments), with_derivative=1),
        "projected_score_and_derivative": counting(head.projected_score_and_derivative, with_derivative=1),
    }
    try:
        for name, function in replacements.items():  # instance attributes shadow the methods of the class
            setattr(head, name, function)
        yield count
    finally:
        for name in replacements:
            delattr(head, name)
