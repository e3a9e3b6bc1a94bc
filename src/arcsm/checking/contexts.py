"""Tests of contexts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from arcsm._runtime.conditions import CLASSES, VECTOR, Condition, flatten_rows, map_condition
from arcsm.checking.known_sets import check_known_sets
from arcsm.checking.modules import check_config, check_constructor, check_gradients
from arcsm.checking.requirements import (
    MAX_JACOBIAN_ROWS,
    TOLERANCE,
    normal,
    random_condition,
    require,
    require_equal,
    require_shape,
)
from arcsm.checking.training_terms import check_mean_of_terms, check_training_terms
from arcsm.contexts import Context

_ORDERS = 3
_STEP = 1e-6  # of the difference quotients
_ROWS, _SPREAD = 16, 2.0  # with which gradients reach all parameters
_DERIVATIVE_TOLERANCE = 1e-4


def _check_attributes(context: Context, _: torch.Generator) -> None:
    for name in ("features", "context_features"):
        size = getattr(context, name, None)
        require(isinstance(size, int) and size > 0, f"{name}: expected a positive integer, got {size!r}")
    features, order = context.features, getattr(context, "order", None)
    is_order = isinstance(order, tuple) and sorted(order) == list(range(features))
    require(is_order, f"order: expected a tuple, a permutation of range({features}), got {order!r:.80}")
    require(context.data_argument in ("features", "image_shape"), f"data_argument is {context.data_argument!r}")


def _check_batches(context: Context, generator: torch.Generator) -> None:
    features, size = context.features, context.context_features
    for shape in ((), (1,), (0,), (2, 3)):
        x, condition = normal(generator, *shape, features), random_condition(context, shape, generator)
        contexts = context(x, condition)
        require_shape(contexts, (*shape, features, size), f"forward of x {tuple(x.shape)}")
        by_row = None if condition is None else flatten_rows(condition, len(shape))
        flat = context(x.reshape(-1, features), by_row)
        require_equal(contexts.reshape(flat.shape), flat, f"forward of x {tuple(x.shape)} and of the same rows, flat")


def _check_causality(context: Context, generator: torch.Generator) -> None:
    for training in (False, True):  # some layers mix rows, and some contexts take faster paths, in training only
        _check_jacobian(context.train(training), generator)


def _check_jacobian(context: Context, generator: torch.Generator) -> None:
    x = normal(generator, 2, context.features).requires_grad_()
    contexts = context(x, random_condition(context, (2,), generator))  # (2, D, C)
    _require_causality(context, contexts, x, context.order, generator)


def _require_causality(
    context: Context, contexts: Tensor, x: Tensor, order: Sequence[int], generator: torch.Generator
) -> None:
    """Check that contexts ``(2, D, C)`` of ``x (2, D)`` depend only on the values before them and in their row."""
    weights = normal(generator, context.context_features)
    if not contexts.requires_grad:
        return
    count = min(context.features, MAX_JACOBIAN_ROWS)
    for position in torch.randperm(context.features, generator=generator)[:count].sort().values.tolist():
        d, later = order[position], list(order[position:])
        total = (contexts[0, d] * weights).sum()
        (influence,) = torch.autograd.grad(total, x, retain_graph=True, allow_unused=True)
        if influence is None:
            continue
        own, other = influence.abs()  # (D,) each
        most = float(other.max())
        require(most <= TOLERANCE, f"the contexts of a row depend on other rows (by {most:.2g})")
        worst = later[int(own[later].argmax())]
        require(
            float(own[worst]) <= TOLERANCE,
            f"the context of feature {d} depends on feature {worst}, which does not come before it in the order "
            f"(derivative {float(own[worst]):.2g})",
        )


def _check_derivative(context: Context, generator: torch.Generator) -> None:
    """Check the derivative of the contexts along a random direction against a difference quotient."""
    x, condition = normal(generator, context.features), random_condition(context, (), generator)
    direction = normal(generator, context.features)
    weights = normal(generator, context.features, context.context_features)

    def value(t: Tensor | float) -> Tensor:
        return (context(x + t * direction, condition) * weights).sum()

    t = torch.zeros((), dtype=x.dtype, requires_grad=True)
    at_zero = value(t)
    (found,) = torch.autograd.grad(at_zero, t, allow_unused=True) if at_zero.requires_grad else (None,)
    derivative = 0.0 if found is None else float(found)
    expected = float((value(_STEP) - value(-_STEP)).detach()) / (2.0 * _STEP)
    close = abs(derivative - expected) <= _DERIVATIVE_TOLERANCE * max(1.0, abs(expected))
    found_by = f"{derivative:.4g} by autograd, {expected:.4g} by differences"
    require(close, f"of the contexts along a direction of x: {found_by}; do not detach x")


def _check_steps(context: Context, generator: torch.Generator) -> None:
    for shape in ((3,), (), (2, 2)):
        x = normal(generator, *shape, context.features)
        _require_same_steps(context, x, random_condition(context, shape, generator))


def _require_same_steps(context: Context, x: Tensor, condition: Condition | None, order: Tensor | None = None) -> None:
    """Check :meth:`Context.step` against :meth:`Context.forward`, while a second pass goes on at the same time."""
    keywords = {} if order is None else {"order": order}
    expected, shape = context(x, condition, **keywords), x.shape[:-1]
    state, second = context.begin(shape, condition, **keywords), context.begin(shape, condition, **keywords)
    previous: Tensor | None = None
    for position, d in enumerate(context.order if order is None else order.tolist()):
        contexts = context.step(state, previous)
        require_equal(contexts, expected[..., d, :], f"step {position}, feature {d}, against forward")
        require(not contexts.requires_grad, "step records gradients; decorate it with torch.no_grad()")
        previous = x[..., d]
        context.step(second, None if position == 0 else torch.zeros_like(previous))


def _check_selection(context: Context, generator: torch.Generator) -> None:
    rows = torch.tensor([2, 0, 2, 1])
    x, condition = normal(generator, 3, context.features), random_condition(context, (3,), generator)
    expected = context(x[rows], map_condition(lambda part: part[rows], condition))
    state = context.begin((3,), condition)
    middle = (context.features + 1) // 2
    previous: Tensor | None = None
    for position, d in enumerate(context.order):
        if position == middle:
            try:
                context.select(state, rows)
            except NotImplementedError:
                return
            assert previous is not None
            x, previous = x[rows], previous[rows]
        contexts = context.step(state, previous)
        if position >= middle:
            require_equal(contexts, expected[:, d], f"step {position} after select, against forward")
        previous = x[:, d]


def _check_conditions(context: Context, generator: torch.Generator) -> None:
    shared, other = random_condition(context, (), generator), random_condition(context, (), generator)
    if shared is None or other is None:
        return
    x = normal(generator, 3, context.features)
    by_row = map_condition(lambda part: part.expand(3, *part.shape), shared)
    contexts, expanded = context(x, shared), context(x, by_row)
    require_equal(contexts, expanded, "a condition that all rows share, against one for each row")
    _require_same_steps(context, x, shared)
    for what, changed in _changed_conditions(context, shared, other).items():
        reached = not torch.allclose(contexts, context(x, changed), 0.0, TOLERANCE)
        require(reached, f"the contexts do not depend on {what}")


def _check_rows_of_conditions(context: Context, generator: torch.Generator) -> None:
    """Check that in training, too, the contexts of a row do not depend on the conditions of other rows."""
    condition = random_condition(context, (4,), generator)
    if condition is None:
        return
    x, changed = normal(generator, 4, context.features), map_condition(lambda part: part[[0, 1, 1, 1]], condition)
    context.train()
    found = []
    with torch.random.fork_rng(devices=[]):
        for each in (condition, changed):
            torch.manual_seed(0)  # of dropout
            found.append(context(x, each)[0])
    context.eval()
    require_equal(found[0], found[1], "the contexts of a row in training, if the conditions of other rows change")


def _changed_conditions(context: Context, condition: Condition, other: Condition) -> dict[str, Condition]:
    """Return conditions with another label, and with another vector, by what has changed."""
    if isinstance(condition, Mapping) and isinstance(other, Mapping):
        label = (condition[CLASSES] + 1) % context.classes
        changed: dict[str, Condition] = {"the vector of the condition": {**condition, VECTOR: other[VECTOR]}}
        return (
            changed
            if context.classes == 1
            else {"the class of the condition": {**condition, CLASSES: label}, **changed}
        )
    if isinstance(condition, Tensor) and context.classes:
        return {} if context.classes == 1 else {"the condition": (condition + 1) % context.classes}
    return {"the condition": other}


def _check_missing_values(context: Context, generator: torch.Generator) -> None:
    if not context.missing:
        return
    x = normal(generator, 4, context.features)
    x = x.masked_fill(torch.rand(x.shape, generator=generator) < 0.4, torch.nan)
    condition = random_condition(context, (4,), generator)
    require_shape(context(x, condition), (*x.shape, context.context_features), "forward of rows with NaN")
    _require_same_steps(context, x, condition)


def _check_orders(context: Context, generator: torch.Generator) -> None:
    """Check causality, steps and orders by row for contexts that take an order."""
    if not context.any_order:
        return
    condition = random_condition(context, (2,), generator)
    for _ in range(_ORDERS):
        drawn = torch.randperm(context.features, generator=generator)
        order, other = (torch.tensor(context.arranged(one.tolist())) for one in (drawn, drawn.flip(0)))
        x = normal(generator, 2, context.features).requires_grad_()
        contexts = context(x, condition, order=order)
        _require_causality(context, contexts, x, order.tolist(), generator)
        _require_same_steps(context, x.detach(), condition, order)
        orders = torch.stack([order, other])
        backwards = context(x, condition, order=orders[1])
        expected = torch.stack([contexts[0], backwards[1]])
        require_equal(context(x, condition, order=orders), expected, "forward in an order for each row, against one")


def _outputs(context: Context, generator: torch.Generator) -> Tensor:
    return context(normal(generator, 4, context.features), random_condition(context, (4,), generator))


def _check_gradients(context: Context, generator: torch.Generator) -> None:
    if context.features == 1:  # a single context is a constant
        return
    x = _SPREAD * normal(generator, _ROWS, context.features)  # among which are numbers of levels
    condition = random_condition(context, (_ROWS,), generator)
    outputs = [context(x, condition)]
    if context.any_order:  # so that the last dimension comes before others, too
        backwards = torch.tensor(context.arranged(list(context.order)[::-1]))
        outputs.append(context(x, condition, order=backwards))
    check_gradients(context, torch.cat(outputs), generator)


CONTEXT_CHECKS = {
    "attributes": _check_attributes,
    "forward": _check_batches,
    "causality": _check_causality,
    "begin and step": _check_steps,
    "derivative": _check_derivative,
    "select": _check_selection,
    "condition": _check_conditions,
    "conditions of rows": _check_rows_of_conditions,
    "missing values": _check_missing_values,
    "order": _check_orders,
    "known values": check_known_sets,
    "training terms": check_training_terms,
    "mean of training terms": check_mean_of_terms,
    "gradients": _check_gradients,
    "constructor": lambda context, _: check_constructor(context, "context_features", context.data_argument),
    "config": lambda context, _: check_config(context, _outputs),
}
