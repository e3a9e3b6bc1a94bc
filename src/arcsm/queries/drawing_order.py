"""The orders in which unknown columns are drawn."""

from collections.abc import Collection, Mapping, Sequence

import torch

from arcsm.contexts import AnyOrder
from arcsm.contexts.base import Order
from arcsm.queries.constraints import Constraint

_ORDERS = 8  # more would cost time for small numbers of draws


def drawing_orders(
    context: AnyOrder,
    n: int,
    constraints: Mapping[int, Constraint],
    order: Order | None,
    generator: torch.Generator | None,
    last: Collection[int],
    only_constrained: Sequence[int] | None,
    ranked_as_constrained: Collection[int] = (),
) -> list[list[int]]:
    """Return the orders in which the targets of a context are drawn: the given order, or up to eight random ones.

    Arguments:
        constraints: The constraints of columns, which come first.
        last: Columns that follow all others in random orders.
        only_constrained: If not ``None``, only constrained columns are drawn, beginning with these, and, before
            constrained columns of ``last``, all others.
        ranked_as_constrained: Columns that come where constrained ones do.
    """
    if order is None:
        device = None if generator is None else generator.device
        random = [torch.randperm(context.features, generator=generator, device=device) for _ in range(min(n, _ORDERS))]
        orders = [context.arranged(one.tolist()) for one in random]
    else:
        orders = [context.check_order(order, ()).tolist()]
        last = ()
    follow = not {*last}.isdisjoint(constraints)

    def rank(d: int) -> tuple[bool, bool, bool]:
        is_constrained = d in constraints or d in ranked_as_constrained
        return d in last, not is_constrained, d not in (only_constrained or ())

    def is_drawn(d: int) -> bool:
        return only_constrained is None or d in constraints or (follow and d not in last)

    arranged = [context.arranged(list(filter(is_drawn, sorted(columns, key=rank)))) for columns in orders]
    return [[d for d in columns if d in context.targets] for columns in arranged]


def follow_unknown(columns: Collection[int], unknown: Collection[int], last: Collection[int]) -> bool:
    """Return whether some of the columns are among the ``last``, and unknown ones come before them."""
    return not {*last}.isdisjoint(columns) and not {*unknown} <= {*last}
