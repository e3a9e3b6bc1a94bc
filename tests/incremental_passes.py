"""Conditions and incremental passes, for the tests of all contexts."""

from __future__ import annotations

import torch
from torch import Tensor

from arcsm import Context
from arcsm._runtime.conditions import Condition


def condition_for(context: Context, shape: tuple[int, ...]) -> Condition | None:
    """Return a random condition of the kind that a context in double precision takes."""
    classes, size = context.classes, context.condition_features
    labels = torch.randint(classes, shape) if classes else None
    vectors = torch.randn(*shape, size, dtype=torch.float64) if size else None
    if labels is not None and vectors is not None:
        return {"classes": labels, "vector": vectors}
    return vectors if labels is None else labels


def incremental_contexts(context: Context, x: Tensor, condition: Condition | None = None) -> Tensor:
    """Return the contexts of rows ``(*, D)`` by ``begin`` and ``step``, ``(*, D, C)``."""
    state = context.begin(x.shape[:-1], condition)
    contexts: list[Tensor] = [torch.empty(0)] * context.features
    previous = None
    for d in context.order:
        contexts[d] = context.step(state, previous)
        previous = x[..., d]
    return torch.stack(contexts, -2)
