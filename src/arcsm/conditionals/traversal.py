"""Traversal of the conditionals: all dimensions of given rows at once, or one dimension after another.

Both take a context and a head, in standardised units. The units of the data belong to the model.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from arcsm._runtime.batching import ROWS, condition_rows, map_slices, slices_for_cores
from arcsm._runtime.conditions import Condition, tensors_of
from arcsm._runtime.devices import constant
from arcsm._runtime.memory import keep_freed_memory
from arcsm.conditionals.conditionals import Conditionals, Count
from arcsm.contexts import Context
from arcsm.contexts.base import Order
from arcsm.errors import AccuracyWarning, warn, without_waiting
from arcsm.heads import Head

_VALUES_AT_A_TIME = 1 << 17


class Integration(TypedDict, total=False):
    """Keywords of :meth:`arcsm.AutoregressiveModel.log_prob` and others that control the integration."""

    #: Least number of steps of the flow; ``tol`` may ask for more. Default: as many as ``tol`` asks for, from level to
    #: level if the ladder is not continuous.
    steps: int | None
    tol: float  #: Target error of the log density of each conditional, in nats. Default: 1e-5.
    max_evaluations: int  #: Largest number of score evaluations for one conditional and integral. Default: 512.


def checked_integration(integration: Integration) -> Integration:
    """Return the keywords of an integration, or raise an error if one is unknown."""
    if unknown := sorted(set(integration) - Integration.__optional_keys__):
        raise TypeError(f"{unknown[0]}: unknown keyword; expected {', '.join(sorted(Integration.__optional_keys__))}")
    return integration


class ConditionalsBuilder(Protocol):
    """Turns projections ``(N, P)`` into conditionals; see :meth:`arcsm.AutoregressiveModel.conditionals_builder`."""

    def __call__(self, projection: Tensor, head: Head | None = None) -> Conditionals: ...


#: Maps conditionals, their values ``(N,)`` and the columns ``(K,)`` that these cycle through to results ``(N,)``.
ValueFunction = Callable[[Conditionals, Tensor, Sequence[int]], Tensor]


def map_conditionals(
    function: ValueFunction,
    context: Context,
    head: Head,
    z: Tensor,
    condition: Condition | None,
    build: ConditionalsBuilder,
    with_gradients: bool = False,
    needs_values: bool = True,
    order: Tensor | None = None,
    single: bool = False,
) -> Tensor:
    """Apply a function to the conditional of every value of every row, in bounded memory.

    Rows ``z (*, D)``, each with its own condition, give results ``(*, D)``. If the function ``needs_values``, the
    result of a missing value (NaN) is NaN. Gradients flow only ``with_gradients``; without them, a backward pass to
    rows or conditions raises a ``NotImplementedError``. Integrals that missed their tolerance cause one
    :class:`AccuracyWarning`. An ``order``, ``(D,)`` or ``(*, D)``, replaces that of the context. Contexts may be in
    ``single`` precision.
    """
    keep_freed_memory()
    features = context.features
    flat = z.reshape(-1, features)
    rows = condition_rows(condition, z.ndim - 1)
    head_parts = head.parts(features)
    by_part = [d for part in head_parts for d in part.columns]
    places = constant(tuple(by_part.index(d) for d in range(features)), torch.long, z.device)

    is_compiled = hasattr(context, "_orig_mod")
    contexts_of = context.in_single_precision if single and not is_compiled else context

    def order_of(part: slice) -> dict[str, Tensor]:
        if order is None:
            return {}
        return {"order": order if order.ndim == 1 else order.reshape(-1, features)[part]}

    def results(part: slice) -> tuple[Tensor, Count]:
        with without_waiting():  # rows have been checked
            contexts = contexts_of(flat[part], rows(part), **order_of(part))  # (B, D, C)
        found: list[Tensor] = []
        unconverged: Count = 0
        for one, columns in head_parts:
            its = slice(None) if len(columns) == features else constant(tuple(columns), torch.long, z.device)
            project = one.in_single_precision if single else one.project
            conditionals = build(project(contexts[:, its]).flatten(0, 1), one)
            values = flat[part][:, its].reshape(-1)
            result = function(conditionals, values.nan_to_num(nan=0.0), columns)
            result = torch.where(values.isnan(), torch.nan, result) if needs_values else result
            found.append(result.view(-1, len(columns)))
            unconverged += conditionals.unconverged
        return found[0] if len(found) == 1 else torch.cat(found, 1)[:, places], unconverged

    parts = slices_for_cores(len(flat), max(1, min(ROWS, _VALUES_AT_A_TIME // features)), z.device)
    in_this_thread = with_gradients and torch.is_grad_enabled()
    found = [results(part) for part in parts] if in_this_thread else map_slices(results, parts, z.device)
    warn_unconverged(sum(unconverged for _, unconverged in found), flat.numel())
    values = torch.cat([values for values, _ in found]).reshape(z.shape) if found else torch.zeros_like(z)
    if in_this_thread:
        return values
    return _reject_gradients(values, z, *tensors_of(condition), *context.parameters(), *head.parameters())


class _Integrated(torch.autograd.Function):
    """The identity for values that were computed without gradients, which a backward pass rejects."""

    @staticmethod
    def forward(values: Tensor, *_: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise NotImplementedError(
            "log_prob and cdf by integration have no gradients: train with arcsm.objectives.csm or mle, and use "
            "model.score for derivatives by values; a normalised head has gradients in closed form"
        )


def _reject_gradients(values: Tensor, *inputs: Tensor) -> Tensor:
    """Return values whose backward pass to the inputs raises an error.

    Leaves are weights here, as rows and conditions have been standardised. They require gradients in evaluations too,
    where nobody wants any, so they count only in transforms of ``torch.func``, which would return zeros for them.
    """
    is_transformed = torch._C._functorch.is_functorch_wrapped_tensor
    wanted = [t for t in inputs if t.requires_grad and (t.grad_fn is not None or is_transformed(t))]
    return _Integrated.apply(values, *wanted) if wanted and torch.is_grad_enabled() else values


def ancestral(
    choose: Callable[[Conditionals, int], Tensor],
    context: Context,
    head: Head,
    z: Tensor,
    condition: Condition | None,
    build: ConditionalsBuilder,
    advance: Callable[..., None] | None = None,
    order: Order | None = None,
) -> Count:
    """Choose the value of one dimension after another, by default in the order of the context (ancestral sampling).

    ``choose`` maps the conditionals of a dimension and its index to values ``(n,)``, which fill ``z (n, D)``. After
    each dimension, ``advance`` is called. Where a dimension has no value (:class:`AnyOrder`), it is NaN. Return the
    number of integrals that missed their tolerance.
    """
    keep_freed_memory()
    state = context.begin((len(z),), condition, *(() if order is None else (order,)))
    heads = {d: one for one, columns in head.parts(context.features) for d in columns}
    previous: Tensor | None = None
    unconverged: Count = 0
    for d in context.order if order is None else context.check_order(order, ()).tolist():
        with without_waiting():
            conditionals = build(heads[d].project(context.step(state, previous)), heads[d])
        previous = choose(conditionals, d)
        absent = context.absent(state, d)
        previous = previous if absent is None else previous.masked_fill(absent, torch.nan)
        z[:, d] = previous
        unconverged += conditionals.unconverged
        if advance is not None:
            advance()
    return unconverged


def warn_unconverged(unconverged: Count, total: int) -> None:
    """Warn if some integrals missed the requested tolerance; one conditional may have several."""
    if unconverged := int(unconverged):
        missed = f"{unconverged} integrals (of {total} conditionals) missed the tolerance"
        warn(f"{missed}; raise max_evaluations or tol", AccuracyWarning)
