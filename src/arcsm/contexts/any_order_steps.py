"""The state of an any-order context whose values become known one after another."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from arcsm._runtime.conditions import Condition
from arcsm.contexts.any_order_arguments import AnyOrderArguments
from arcsm.contexts.any_order_state import AnyOrderState
from arcsm.contexts.base import Order
from arcsm.contexts.linear_base import LinearBase
from arcsm.contexts.linear_features import LinearFeatures
from arcsm.contexts.parents import Parents
from arcsm.contexts.set_networks import SetNetworks, Sets
from arcsm.contexts.value_embedding import ValueEmbedding


class StepwiseAnyOrder(AnyOrderArguments):
    """The part of :class:`~arcsm.AnyOrder` that samplers and queries use: one dimension at a time."""

    values: ValueEmbedding
    networks: SetNetworks
    base: LinearBase | None
    linear: LinearFeatures | None
    _parents: Parents

    def _embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors of the values ``x (B, D)``, zero for those that sets leave out, and 1 for each other one."""
        is_missing = self._parents.left_out(x)
        known = (~is_missing).to(x)
        return self.values(torch.where(is_missing, 0.0, x)) * known.unsqueeze(-1), known  # (B, D, E), (B, D)

    @property
    def _columns_on_line(self) -> tuple[int, ...]:
        return () if self.base is None else self.base.index

    @torch.no_grad()
    def begin(
        self, batch_shape: Sequence[int], condition: Condition | None = None, order: Order | None = None
    ) -> AnyOrderState:
        """Return the state of rows without known values. An ``order (D,)`` applies to :meth:`step`."""
        shape = tuple(int(size) for size in batch_shape)
        order = self.check_order(order, ())
        rows = math.prod(shape)
        total = self.values.presence.new_zeros(rows, self.embedding_features)
        terms = self.networks.condition_terms(self.embed_condition(condition, shape), rows)
        needs_values = self.base is not None or self.linear is not None
        x = total.new_full((rows, self.features), torch.nan) if needs_values else None
        return AnyOrderState(tuple(order.tolist()), total, total.new_zeros(rows), terms, shape, x)

    @torch.no_grad()
    def step(self, state: AnyOrderState, x_previous: Tensor | None) -> Tensor:
        self.check_step(state.position, x_previous)
        if x_previous is not None:
            self.observe(state, state.order[state.position - 1], x_previous)
        contexts = self.conditional(state, state.order[state.position])
        state.position += 1
        return contexts

    @torch.no_grad()
    def observe(self, state: AnyOrderState, d: int, values: Tensor, rows: Tensor | None = None) -> None:
        """Add the values of dimension ``d``, which was not known, to a state; NaN adds nothing.

        There is one value for each row, ``(*,)``, or for each of some ``rows (n,)`` of a batch ``(B,)``.
        """
        values = values.reshape(-1).to(state.total)
        values = state.in_sets(d, values, self._parents, slice(None) if rows is None else rows)
        state.add(d, values, self.values.column(d, values.nan_to_num(nan=0.0)), rows)

    @torch.no_grad()
    def observe_all(self, state: AnyOrderState, x: Tensor) -> None:
        """Add all known values of rows ``(*, D)`` to a state; NaN marks those that are not known."""
        self.check_input(x)
        x = x.reshape(-1, self.features).to(state.total)
        state.add_all(x, *self._embed(x), self._parents)

    def absent(self, state: AnyOrderState, d: int) -> Tensor | None:
        """Return the rows ``(B,)`` in which dimension ``d`` has no value, or ``None`` if it has one in all."""
        return state.absent.get(d)

    @torch.no_grad()
    def conditional(self, state: AnyOrderState, d: int, rows: Tensor | None = None) -> Tensor:
        """Return the contexts of dimension ``d`` given what a state knows, ``(*, C)``, or of some rows ``(n, C)``."""
        chosen = slice(None) if rows is None else rows
        total, count = state.total[chosen], state.count[chosen].unsqueeze(-1)
        x = None if state.x is None else state.x[chosen]
        on_line = None if self.base is None or x is None else self.base(x, ~x.isnan())
        residuals = None if on_line is None else on_line.residuals[:, 0]  # of the one set of a row
        terms = [term[chosen] for term in state.condition_terms]
        linear = None if self.linear is None or x is None else self.linear(x, ~x.isnan())
        contexts = self.networks.of_one(Sets(total, count, terms, residuals, self._columns_on_line, linear), d)
        contexts = contexts if on_line is None else with_pairs(contexts, on_line.pairs[:, d])
        return contexts if rows is not None else contexts.reshape(*state.batch_shape, self.context_features)

    def select(self, state: AnyOrderState, rows: Tensor) -> None:
        self.check_selection(state.batch_shape)
        state.select(rows)


def with_pairs(contexts: Tensor, pairs: Tensor) -> Tensor:
    """Return contexts ``(*, C)`` with pairs ``(*, 2)``, whose precision they get: under autocast they come in half."""
    return torch.cat([contexts.to(pairs), pairs], -1)
