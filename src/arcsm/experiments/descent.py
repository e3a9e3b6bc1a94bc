"""The training loop of experiments that compare objectives: Adam with linear warm-up and cosine decay."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from arcsm.errors import NonFiniteError


def descend(
    network: nn.Module,
    loss: Callable[[], Tensor],
    steps: int,
    learning_rate: float,
    clip: float = math.inf,
    warmup: int = 1,
) -> Iterator[float]:
    """Train a network; after each step, yield the loss that the step started from.

    ``loss`` returns the loss on a new batch, and ``clip`` is the largest norm of the gradient. The learning rate rises
    over ``warmup`` steps and then decays to zero. If a loss or gradient is not finite, a ``NonFiniteError`` is raised
    before the step.
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
            raise NonFiniteError(f"step {step}: loss {float(value.detach())}, gradient norm {float(norm)}")
        optimizer.step()
        schedule.step()
        yield float(value.detach())
