"""Any-order contexts of every kind, with random weights."""

from typing import Any

import torch
from torch import Tensor

from arcsm import AnyOrder
from arcsm.contexts.normal_moments import Moments

LEVELS = (0, 3, 0, 0, 4, 0, 5)
ANY_ORDER: dict[str, dict[str, Any]] = {
    "numbers": {"levels": None},
    "levels": {"sinusoids": 3},
    "ordered levels": {"ordered": (4, 6), "sinusoid_decay": 1.0, "sinusoids": 2},
    "levels alone": {"levels": (3, 2, 4, 2, 2, 3, 2)},
    "parents": {"levels": (0, 2, 0, 0, 4, 0, 5), "parents": (1, -1, -1, -1, -1, -1, -1)},
    "condition": {"condition_features": 2, "classes": 3},
    "one layer": {"hidden_features": (13,)},
    "deep": {"hidden_features": (17, 17, 17, 17), "embedding_features": 9},
    "dropout": {"dropout": 0.3},
    "small sets": {"small_sets": 2},
    "linear features": {"linear_features": True},
    "small sets with linear features": {"linear_features": True, "small_sets": 2},
    "located": {"located": True, "context_features": 6},
    "located with small sets": {"located": True, "small_sets": 1, "context_features": 5},
}


def any_order_context(kind: str, dtype: torch.dtype = torch.float32) -> AnyOrder:
    """Return a context of seven dimensions whose weights are all random."""
    arguments = {"context_features": 3, "hidden_features": (19, 19), "embedding_features": 11, "levels": LEVELS}
    torch.manual_seed(0)
    context = AnyOrder(7, **{**arguments, **ANY_ORDER[kind]})
    with torch.no_grad():
        for parameter in context.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if context.linear is not None:
        units = context.linear.units
        mean, correlation = torch.zeros(units), 0.7 * torch.eye(units) + 0.3
        context.linear.set_moments(Moments(mean.double(), torch.ones(units).double(), correlation.double()))
    if context.base is not None:
        nearly = torch.eye(7).double()
        nearly[0, 2] = nearly[2, 0] = 0.9999
        context.base.set_moments(Moments(torch.zeros(7).double(), torch.ones(7).double(), nearly))
    return context.to(dtype)


def rows_of(context: AnyOrder, rows: int, missing: bool = True) -> Tensor:
    """Return rows, of numbers and of levels, some of them ``missing``."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, context.features, generator=generator)
    for d, levels in enumerate(context.levels):
        if levels:
            x[:, d] = torch.randint(levels, (rows,), generator=generator).float()
    if missing:
        x[torch.rand(x.shape, generator=generator) < 0.1] = torch.nan
    return context.resolved(x)


def condition_of(context: AnyOrder, rows: int) -> Any:
    if not context.is_conditional:
        return None
    generator = torch.Generator().manual_seed(2)
    vector = torch.randn(rows, context.condition_features, generator=generator)
    return {"vector": vector, "classes": torch.randint(context.classes, (rows,), generator=generator)}
