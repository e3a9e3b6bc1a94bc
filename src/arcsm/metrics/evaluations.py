"""Count how often a score head is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from arcsm._runtime.memory import Workspace
from arcsm.heads import Head
from arcsm.heads.base import Sigma


@dataclass
class Count:
    """How often a head was asked, one value of one conditional at a time.

    Attributes:
        scores: For the score alone.
        with_derivative: For the score and its derivative, about twice the work.
    """

    scores: int = 0
    with_derivative: int = 0


@contextmanager
def counted(head: Head) -> Iterator[Count]:
    """Count what a head is asked for while the context lasts."""
    count = Count()
    at, prepare_score_and_derivative, evaluate = (
        head.prepare_score,
        head.prepare_score_and_derivative,
        head.projected_score_and_derivative,
    )

    def counted_at(sigma: Sigma) -> Callable[[Tensor, Tensor], Tensor]:
        score = at(sigma)

        def counted_score(projection: Tensor, x: Tensor) -> Tensor:
            before = count.with_derivative
            found = score(projection, x)
            count.scores, count.with_derivative = count.scores + x.numel(), before  # a head may leave it to evaluate
            return found

        return counted_score

    def counted_at_with_derivative(
        sigma: Sigma, workspace: Workspace | None = None
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        both = prepare_score_and_derivative(sigma, workspace)

        def counted_both(projection: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            before = count.with_derivative
            found = both(projection, x)
            count.with_derivative = before + x.numel()
            return found

        return counted_both

    def counted_evaluate(projection: Tensor, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        count.with_derivative += x.numel()
        return evaluate(projection, x, sigma)

    replaced = {
        "prepare_score": counted_at,
        "prepare_score_and_derivative": counted_at_with_derivative,
        "projected_score_and_derivative": counted_evaluate,
    }
    try:
        for name, function in replaced.items():  # on this head alone, over the methods of its class
            setattr(head, name, function)
        yield count
    finally:
        for name in replaced:
            delattr(head, name)
