"""How the conditionals of a model are visited: all of given rows at once, or one dimension after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from arcsm.batches import ROWS, each_part, keep_freed_memory, parts_for_cores, rows_of, warn_of_unsure
from arcsm.conditionals import Conditionals

if TYPE_CHECKING:
    from arcsm.model import AutoregressiveModel

_VALUES = 1 << 17  # whose conditionals are asked at a time, at most

#: Turns projections ``(N, P)`` into conditionals at a noise level; see :meth:`AutoregressiveModel.conditionals_of`.
Builder = Callable[[Tensor], Conditionals]


def ask_each(
    model: AutoregressiveModel,
    x: Tensor,
    condition: Tensor | None,
    build: Builder,
    ask: Callable[[Conditionals, Tensor], Tensor],
    with_gradients: bool = False,
    of_missing: bool = False,
) -> Tensor:
    """Ask every conditional about its own value: ``(*, D)`` data to ``(*, D)`` answers, in bounded memory.

    Arguments:
        model: The model.
        x: The data, in data units.
        condition: What the model is conditioned on, ``(*, F)`` or labels ``(*)``.
        build: What makes the conditionals.
        ask: The question: conditionals and their values ``(N,)``, standardised, to answers ``(N,)``.
        with_gradients: Let gradients flow, where they are wanted.
        of_missing: Whether the question needs no value; otherwise the answer for a missing one is NaN.
    """
    keep_freed_memory()
    z = model.standardise(x)
    flat = z.reshape(-1, model.features)
    rows = rows_of(condition, x.shape[:-1])

    def answers(part: slice) -> tuple[Tensor, int]:
        context = model.context(flat[part], rows(part))  # (B, D, C)
        conditionals = build(model.head.project(context).flatten(0, 1))
        values = flat[part].reshape(-1)
        found = ask(conditionals, values.nan_to_num(nan=0.0))
        found = found if of_missing else torch.where(values.isnan(), torch.nan, found)
        return found.view(-1, model.features), conditionals.unsure

    parts = parts_for_cores(len(flat), max(1, min(ROWS, _VALUES // model.features)), z.device)
    alone = with_gradients and torch.is_grad_enabled()
    found = [answers(part) for part in parts] if alone else each_part(answers, parts, z.device)
    warn_of_unsure(sum(unsure for _, unsure in found), flat.numel())
    return torch.cat([values for values, _ in found]).reshape(x.shape) if found else torch.zeros_like(z)


def walk(
    model: AutoregressiveModel,
    n: int,
    condition: Tensor | None,
    build: Builder,
    choose: Callable[[Conditionals, int], Tensor],
    advance: Callable[..., None] | None = None,
) -> tuple[Tensor, int]:
    """Choose the value of one dimension after the other, in the order of the context.

    Arguments:
        model: The model.
        n: Number of rows.
        condition: What they are conditioned on, ``(n, F)`` or labels ``(n,)``.
        build: What makes the conditionals.
        choose: The conditionals of a dimension ``d`` and ``d`` to its values ``(n,)``, standardised.
        advance: Called after each dimension.

    Returns:
        The values, ``(n, D)``, standardised, and the number of integrals that missed their accuracy.
    """
    keep_freed_memory()
    z = model.shift.new_zeros(n, model.features)
    state = model.context.begin((n,), condition)
    previous: Tensor | None = None
    unsure = 0
    for d in model.context.order:
        context = model.context.step(state, previous)  # (n, C)
        conditionals = build(model.head.project(context))
        previous = choose(conditionals, d)
        z[:, d] = previous
        unsure += conditionals.unsure
        if advance is not None:
            advance()
    return z, unsure
