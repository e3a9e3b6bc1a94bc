"""Densities of some columns given others."""

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from arcsm._runtime.conditions import Condition
from arcsm._runtime.sizes import whole_numbers
from arcsm.conditionals.traversal import Integration, map_conditionals
from arcsm.contexts import AnyOrder
from arcsm.contexts.base import Order
from arcsm.model import AutoregressiveModel
from arcsm.queries.every_order import every_order


def log_prob_given(
    model: AutoregressiveModel,
    x: Tensor,
    given: Sequence[int],
    level: int = -1,
    condition: Condition | None = None,
    order: Order | None = None,
    **integration: Unpack[Integration],
) -> Tensor:
    """Return the log density of the known values of rows given some of them, ``(N,)`` in nats.

    .. math:: \\log q(x_A \\mid x_G), \\qquad A = \\text{known columns that are not in } G

    Unknown values (NaN) are left out, so that any set of columns can be evaluated given any other. Different orders of
    the columns of :math:`A` give densities that differ as far as the network is inconsistent.

    Arguments:
        model: A model whose context is an :class:`~arcsm.AnyOrder`.
        x: Rows ``(N, D)`` in data units.
        given: The columns :math:`G`; with a dimension that has a parent, the parent too.
        order: Order of the other columns, a permutation of all columns. Default: that of the context.

    Other arguments, errors and warnings are as in :meth:`arcsm.AutoregressiveModel.log_prob`.
    """
    context = every_order(model)
    model.check_levels(x.reshape(-1, x.shape[-1]))
    given = whole_numbers("given", given)
    unknown = sorted(set(given) - set(range(model.features)))
    if unknown:
        raise ValueError(f"given: expected columns from 0 to {model.features - 1}, got {unknown[0]}")
    columns = context.check_order(order, ()).tolist()
    for d in given:
        if context.parents[d] not in (-1, *given):
            raise ValueError(f"given: column {d} has the parent {context.parents[d]}; give it, too")
    first, rest = [d for d in columns if d in given], [d for d in columns if d not in given]
    if not rest:
        raise ValueError("given: expected columns without the ones whose density is wanted, got all")
    terms = model.log_prob(x, level, condition, reduce=False, order=first + rest, **integration)
    return terms[..., rest].sum(-1)


def log_prob_given_others(
    model: AutoregressiveModel,
    x: Tensor,
    level: int = -1,
    condition: Condition | None = None,
    method: str | None = None,
    **integration: Unpack[Integration],
) -> Tensor:
    """Return the log density of every value given all other known values of its row, ``(*, D)`` in nats.

    .. math:: \\log q(x_d \\mid x_{\\ne d})

    It is 0 for a missing value. Their sum is a pseudo-likelihood, not the density of the row.

    Arguments:
        model: A model whose context is an :class:`~arcsm.AnyOrder`.
        x: Rows ``(*, D)`` in data units.

    Other arguments, errors and warnings are as in :meth:`arcsm.AutoregressiveModel.log_prob`.
    """
    others: Any = _GivenOthers(every_order(model))
    x = model.context.resolved(x)
    model.check_levels(x.reshape(-1, x.shape[-1]))
    terms = map_conditionals(
        lambda conditionals, values, _: conditionals.log_prob(values),
        others, model.head, model.standardise(x), model.standardise_condition(condition, x.shape[:-1]),
        model.conditionals_builder(level, method, **integration),
        with_gradients=model.head.normalised and method in (None, "closed_form"),
    )  # fmt: skip
    return torch.where(x.to(terms.device).isnan(), 0.0, terms - torch.log(model.scale))


class _GivenOthers(nn.Module):
    """The contexts of all dimensions given all others, in the form of a :class:`~arcsm.Context`."""

    def __init__(self, context: AnyOrder) -> None:
        super().__init__()
        self.context, self.features = context, context.features

    context: AnyOrder

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        return self.context.given_others(x, condition)
