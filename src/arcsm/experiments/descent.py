"""The plain training loop of the experiments that compare objectives: Adam, up along a line, down along a cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


class NonFiniteError(RuntimeError):
    """A loss or a gradient was not finite; the weights are those before that step."""


def descend(
    network: nn.Module,
    loss: Callable[[], Tensor],
    steps: int,
    learning_rate: float,
    clip: float = math.inf,
    warmup: int = 1,
) -> Iterator[float]:
    """Make ``steps`` steps and yield the loss that each one started from, once it is made.

    Arguments:
        network: Whose weights to train.
        loss: The loss on a new batch at every call.
        steps: How many.
        learning_rate: Where it begins to fall; it is zero at the end.
        clip: Largest norm of the gradient.
        warmup: Steps over which the learning rate rises.

    Raises:
        NonFiniteError: at the first loss or gradient that is not finite.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
    )
    for step in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), clip)
        if not bool(value.isfinite() & norm.isfinite()):
            raise NonFiniteError(f"step {step}: loss {float(value.detach())}, norm of the gradient {float(norm)}")
        optimizer.step()
        schedule.step()
        yield float(value.detach())
