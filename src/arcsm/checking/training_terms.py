"""Tests of the conditionals that a training step evaluates, and of their weights."""

import itertools

import torch
from torch import Tensor

from arcsm._runtime.conditions import Condition, map_condition
from arcsm.checking.requirements import (
    MAX_JACOBIAN_ROWS,
    TOLERANCE,
    normal,
    random_condition,
    require,
    require_shape,
)
from arcsm.contexts import AnyOrder, Context

_MAX_ENUMERATED = 4  # features whose orders are enumerated; with more, random orders are drawn
_CONTEXTS = 2048  # of the random orders
_BATCHES, _ROWS = 32, 32  # of the training steps
_MISSING = 0.3  # of the values of some rows
_STANDARD_ERRORS, _ROUNDING = 6.0, 1e-5  # of means; weights may be computed in single precision


def check_training_terms(context: Context, generator: torch.Generator) -> None:
    """Check that the contexts of a training step see neither their own value nor other rows."""
    inherited = type(context).training_terms is Context.training_terms
    require(
        not (context.any_order and inherited),
        "any_order is True, but training_terms is that of one order; override it to draw orders",
    )
    x, condition = normal(generator, 3, context.features), random_condition(context, (3,), generator)
    _check_own_values(context, x, condition, generator)
    if context.missing:
        missing = torch.rand(x.shape, generator=generator) < _MISSING
        _check_own_values(context, x.masked_fill(missing, torch.nan), condition, generator)


def _check_own_values(context: Context, x: Tensor, condition: Condition | None, generator: torch.Generator) -> None:
    x.requires_grad_()
    terms = context.training_terms(x, condition, generator)
    count = len(terms.context)
    require_shape(terms.context, (count, context.context_features), "contexts")
    positions = terms.select(torch.arange(x.numel()).view_as(x)).tolist()
    require(len(positions) == count, f"{len(positions)} positions for {count} contexts")
    weights = normal(generator, context.context_features)
    chosen = torch.randperm(count, generator=generator)[:MAX_JACOBIAN_ROWS].tolist()
    for index in chosen if terms.context.requires_grad else ():
        total = (terms.context[index] * weights).sum()
        (influence,) = torch.autograd.grad(total, x, retain_graph=True, allow_unused=True)
        if influence is None:
            continue
        row, d = divmod(positions[index], context.features)
        influence = influence.nan_to_num(nan=0.0)  # of missing values
        others = influence.index_fill(0, torch.tensor([row]), 0.0)
        worst = max(float(influence[row, d].abs()), float(others.abs().max()))
        require(worst <= TOLERANCE, f"the context of value {d} depends on the value itself, or on another row")


@torch.no_grad()
def check_mean_of_terms(context: Context, generator: torch.Generator) -> None:
    """Check that the weighted terms of training steps have the mean of all conditionals over all orders.

    The weights of each value that is predicted must add up to 1 on average. If all values are predicted, each given
    only some of the others, a function of the contexts must have the same mean in training as over the orders.
    """
    if type(context).training_terms is Context.training_terms:
        return
    x, condition = normal(generator, context.features), random_condition(context, (), generator)
    direction, features = normal(generator, context.context_features), context.features
    batches = [_weighted_sums(context, x, condition, direction, generator) for _ in range(_BATCHES)]
    weights, sums = (torch.stack(parts) for parts in zip(*batches, strict=True))  # (R, D) each
    predicted = (weights != 0.0).any(0).to(weights)
    _require_means(weights.sum(1, keepdim=True), predicted.sum(0, keepdim=True), "the weights of a row")
    _require_means(weights, predicted, "the weights of value {}")
    has_parents = isinstance(context, AnyOrder) and max(context.parents) >= 0  # then some orders are impossible
    if bool(predicted.all()) and not has_parents:
        by_order = _in_all_orders(context, x, condition, generator) @ direction  # (M, D)
        drawn = context.any_order and features > _MAX_ENUMERATED
        error = by_order.var(0) / len(by_order) if drawn else torch.zeros_like(x)
        centre = by_order.mean(0)
        what = "a function of the contexts of value {}, less its mean over all orders"
        _require_means(sums - weights * centre, torch.zeros_like(x), what, error)


def _weighted_sums(
    context: Context, x: Tensor, condition: Condition | None, direction: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return, for each value of a row ``x (D,)``, its weight and its weighted contexts along a direction, ``(D,)``.

    Both are means over the rows of a training step that has the same row several times.
    """
    rows = x.repeat(_ROWS, 1)
    terms = context.training_terms(rows, _repeated(condition, _ROWS), generator)
    column = terms.select(torch.arange(context.features).expand_as(rows))
    weight = x.new_ones(len(column)) if terms.weight is None else terms.weight
    both = torch.stack([weight, weight * (terms.context @ direction)], 1)  # (N, 2)
    weights, sums = x.new_zeros(context.features, 2).index_add(0, column, both / _ROWS).unbind(1)
    return weights, sums


def _in_all_orders(context: Context, x: Tensor, condition: Condition | None, generator: torch.Generator) -> Tensor:
    """Return the contexts of a row ``x (D,)`` in all orders of a context, or in many random ones, ``(M, D, C)``."""
    features = context.features
    if not context.any_order:
        return context(x, condition).unsqueeze(0)
    if features <= _MAX_ENUMERATED:
        orders = torch.tensor(list(itertools.permutations(range(features))))
    else:
        orders = torch.rand(max(64, _CONTEXTS // features), features, generator=generator).argsort(1)
    rows = x.repeat(len(orders), 1)
    contexts: Tensor = context(rows, _repeated(condition, len(orders)), order=orders)
    return contexts


def _repeated(condition: Condition | None, rows: int) -> Condition | None:
    return map_condition(lambda part: part.expand(rows, *part.shape).clone(), condition)


def _require_means(samples: Tensor, expected: Tensor, what: str, variance: Tensor | float = 0.0) -> None:
    """Require that samples ``(R, K)`` have the expected means ``(K,)``, which are known up to a variance."""
    means = samples.mean(0)
    allowed = _STANDARD_ERRORS * (samples.var(0) / len(samples) + variance).sqrt() + _ROUNDING * expected.clamp(min=1.0)
    for k, (mean, value, most) in enumerate(zip(means.tolist(), expected.tolist(), allowed.tolist(), strict=True)):
        close = abs(mean - value) <= most
        require(close, f"{what.format(k)}: the mean is {mean:.4g}, expected {value:.4g} within {most:.2g}")
