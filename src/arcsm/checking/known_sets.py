"""Tests of the contexts that an :class:`~arcsm.AnyOrder` returns given any known values, against those of an order."""

import torch
from torch import Tensor

from arcsm._runtime.conditions import Condition
from arcsm.checking.requirements import normal, random_condition, require, require_equal, require_shape
from arcsm.contexts import AnyOrder, Context

_ROWS, _ORDERS = 4, 3
_ROWS_OF_ABSENT = 32  # among which are levels of all parents


@torch.no_grad()
def check_known_sets(context: Context, generator: torch.Generator) -> None:
    """Check the methods by which queries add known values and ask for conditionals."""
    if not isinstance(context, AnyOrder):
        return
    condition = random_condition(context, (_ROWS,), generator)
    for missing in (0.0, 0.4):
        x = normal(generator, _ROWS, context.features)
        x = x.masked_fill(torch.rand(x.shape, generator=generator) < missing, torch.nan)
        for _ in range(_ORDERS):
            order = context.arranged(torch.randperm(context.features, generator=generator).tolist())
            _check_observed(context, x, condition, order, generator)
        _check_given_others(context, x, condition)
        _check_resolved(context, x, condition)
    condition = random_condition(context, (_ROWS_OF_ABSENT,), generator)
    _check_absent(context, normal(generator, _ROWS_OF_ABSENT, context.features), condition)


def _check_observed(
    context: AnyOrder, x: Tensor, condition: Condition | None, order: list[int], generator: torch.Generator
) -> None:
    """Check ``observe``, ``observe_all``, ``conditional`` and ``select`` along an order."""
    expected = context(x, condition, order=torch.tensor(order))  # (B, D, C)
    rows = torch.randperm(len(x), generator=generator)[: len(x) // 2]
    state = context.begin((len(x),), condition)
    for position, d in enumerate(order):
        before = order[:position]
        given = f"of feature {d} given features {before}"
        require_equal(context.conditional(state, d), expected[:, d], f"conditional {given}, against forward")
        of_rows = context.conditional(state, d, rows)
        require_equal(of_rows, expected[rows, d], f"conditional {given} for some rows, against forward")
        known = torch.full_like(x, torch.nan)
        known[:, before] = x[:, before]
        at_once = context.begin((len(x),), condition)
        context.observe_all(at_once, known)
        found = context.conditional(at_once, d)
        require_equal(found, expected[:, d], f"conditional {given} after observe_all, against forward")
        if position % 2:
            context.observe(state, d, x[:, d])
        else:
            rest = torch.tensor([row for row in range(len(x)) if row not in rows.tolist()])
            for part in (rows, rest):
                context.observe(state, d, x[part, d], part)
        if position + 1 < len(order):
            chosen, after = torch.tensor([len(x) - 1, 0, len(x) - 1, 1]), order[position + 1]
            context.select(at_once, chosen)
            context.observe(at_once, d, x[chosen, d])
            found = context.conditional(at_once, after)
            require_equal(
                found, expected[chosen, after], f"conditional of feature {after} after select, against forward"
            )


def _check_given_others(context: AnyOrder, x: Tensor, condition: Condition | None) -> None:
    found = context.given_others(x, condition)
    require_shape(found, (*x.shape, context.context_features), "given_others")
    for d in range(context.features):
        children = [child for child, parent in enumerate(context.parents) if parent == d]
        others = context.arranged([*(e for e in range(context.features) if e not in (d, *children)), d])
        known = x.clone()
        known[:, children] = torch.nan  # they would say that the parent has level 0
        expected = context(known, condition, order=torch.tensor([*others, *children]))[:, d]
        require_equal(found[:, d], expected, f"given_others of feature {d}, against forward with that feature last")


def _check_resolved(context: AnyOrder, x: Tensor, condition: Condition | None) -> None:
    """Check that resolved rows say the same as the rows, and what the values of dimensions say about their parents."""
    found = context.resolved(x)
    for d, parent in enumerate(context.parents):
        if parent != -1:
            implied = bool((found[:, parent][~found[:, d].isnan()] == 0.0).all())
            require(implied, f"resolved: a value of feature {d} implies level 0 of its parent, feature {parent}")
    for d in context.arranged(range(context.features)):
        last = context.arranged([*(e for e in context.order if context.parents[e] != d and e != d), d])
        order = torch.tensor([*last, *(e for e in context.order if e not in last)])
        expected = context(x, condition, order=order)[:, d]
        actual = context(found, condition, order=order)[:, d]
        require_equal(actual, expected, f"forward of resolved rows, feature {d}, against that of the rows")


def _check_absent(context: AnyOrder, x: Tensor, condition: Condition | None) -> None:
    """Check that ``absent`` has the rows in which ``resolved`` leaves out a value, however the others became known."""
    ruled_out = context.resolved(x).isnan()
    by_value, at_once = context.begin((len(x),), condition), context.begin((len(x),), condition)
    context.observe_all(at_once, x)
    for d in context.arranged(range(context.features)):
        for state, way in ((by_value, "observe"), (at_once, "observe_all")):
            absent = context.absent(state, d)
            found = torch.zeros(len(x), dtype=torch.bool) if absent is None else absent
            same = bool((found == ruled_out[:, d]).all())
            require(same, f"absent after {way}: other rows without feature {d} than by resolved")
        context.observe(by_value, d, x[:, d])
