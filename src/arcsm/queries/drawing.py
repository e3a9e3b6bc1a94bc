"""Draws of the unknown values of rows, one column after another, with the weights of constraints."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arcsm._runtime.batching import condition_rows, slices_of
from arcsm._runtime.conditions import Condition
from arcsm._runtime.progress import track
from arcsm._runtime.random import GivenUniforms, latin_hypercube, open_uniform_like
from arcsm._runtime.sizes import check_size
from arcsm.conditionals import Conditionals, Count, EvaluationCache
from arcsm.conditionals.traversal import warn_unconverged
from arcsm.contexts import AnyOrder
from arcsm.contexts.base import Order
from arcsm.model import AutoregressiveModel
from arcsm.model.sampling import Adjustment
from arcsm.queries.constraint_sets import check_columns, check_constraints, in_common, with_parents_of
from arcsm.queries.constraints import Constraint
from arcsm.queries.drawing_order import drawing_orders
from arcsm.queries.every_order import every_order
from arcsm.samplers import Sampler

_DRAWS_AT_A_TIME = 1 << 14


class Completions(NamedTuple):
    """Completions of ``N`` rows, ``n`` of each.

    The weighted completions of a row are draws given its known values and the constraints. Without constraints, all
    weights are equal.
    """

    rows: Tensor  #: ``(N, n, D)`` in data units.
    log_weights: Tensor  #: ``(N, n)``, the log probability of the constraints along each draw.
    orders: int = 1  #: Number of orders of the columns; each has an equal share of consecutive draws.

    @property
    def weights(self) -> Tensor:
        """The weights, ``(N, n)``, which sum to one for each row; NaN if the constraints have no probability."""
        return torch.softmax(self.log_weights, 1)

    @property
    def probability(self) -> Tensor:
        """The probability of the constraints given the known values, ``(N,)``; an unbiased estimate."""
        return self.log_weights.exp().mean(1)

    @property
    def standard_error(self) -> Tensor:
        """The standard error of :attr:`probability`, ``(N,)``; NaN for a single draw.

        With several orders it includes their differences, by which the network is inconsistent. With a single one it is
        that of independent draws, and so too large: the draws of a row cover each conditional evenly.
        """
        return standard_error_of_mean(self.weights_by_order)

    @property
    def weights_by_order(self) -> Tensor:
        """The mean weight of each order, not normalised, ``(N, orders)``, or those of all draws of a single one."""
        weights = self.log_weights.exp()
        if self.orders == 1:
            return weights
        return torch.stack([part.mean(1) for part in weights.tensor_split(self.orders, 1)], 1)


@dataclass(frozen=True)
class Drawing:
    """How unknown values are drawn. The fields are arguments of :func:`~arcsm.queries.complete`."""

    model: AutoregressiveModel
    n: int
    generator: torch.Generator | None
    condition: Condition | None
    order: Order | None
    sampler: str | Sampler | None
    level: int
    progress: bool
    adjust: Adjustment | None
    last: Collection[int]

    @property
    def context(self) -> AnyOrder:
        """The context of the model, which must have every order."""
        return every_order(self.model)

    def draw(
        self,
        x: Tensor,
        sets: Mapping[str, Mapping[int, Constraint]],
        only_constrained: Sequence[int] | None = None,
        ranked_as_constrained: Collection[int] = (),
    ) -> tuple[Completions, Completions | None]:
        """Return draws within all sets, with their weights in the end and after the columns of the first of the sets.

        The latter are ``None`` if other sets restrict these columns further. The last two arguments are those of
        :func:`drawing_orders`.
        """
        model, context, n = self.model, self.context, self.n
        z = self._checked(x, sets)
        present = {d for of_one in sets.values() for d in of_one if context.parents[d] not in (-1, *of_one)}
        first, *others = (with_parents_of(of_one, context, z) for of_one in sets.values())
        constraints: Mapping[int, Constraint] | None = first
        for of_one in others:
            if constraints is not None:
                constraints = in_common(constraints, of_one, context, present)
        orders = drawing_orders(
            context, n, constraints or {}, self.order, self.generator, self.last, only_constrained,
            ranked_as_constrained,
        )  # fmt: skip
        if constraints is None:
            impossible = z.new_full((len(z), n), -math.inf)
            rows = z.new_full((*impossible.shape, model.features), math.nan)
            return Completions(rows, impossible, len(orders)), None
        columns = _Columns(orders, constraints, first, present)
        z, log_weights, log_weights_of_first = self._fill(z, columns)
        rows = z * model.scale + model.shift
        for d, constraint in constraints.items():
            rows[..., d] = constraint.nearest(rows[..., d])
        restricted = any(constraints.get(d) is not constraint for d, constraint in first.items())
        if only_constrained is not None and self.order is None:  # these may come before sets of columns in `last`
            restricted |= not {*self.last}.isdisjoint(first) and any(
                d not in self.last for d in {*constraints} - {*first}
            )
        of_first = None if restricted else Completions(rows, log_weights_of_first, len(orders))
        return Completions(rows, log_weights, len(orders)), of_first

    def _checked(self, x: Tensor, sets: Mapping[str, Mapping[int, Constraint]]) -> Tensor:
        """Return standardised rows, with what their values imply about one another."""
        model, context = self.model, self.context
        check_size("complete", n=self.n)
        if not isinstance(self.last, Collection):
            raise ValueError(f"last: expected columns from 0 to {model.features - 1}, got {self.last!r:.60}")
        check_columns(self.last, model.features, "last")
        z = model.standardise(x)
        if z.ndim != 2:
            raise ValueError(f"x: expected rows (N, {model.features}), got {tuple(x.shape)}")
        model.check_levels(z)
        z = context.resolved(z)
        for name, of_one in sets.items():
            check_constraints(z, of_one, context.targets, name)
        return z

    def _fill(self, z: Tensor, columns: "_Columns") -> tuple[Tensor, Tensor, Tensor]:
        """Return ``n`` completions of each row, ``(N, n, D)`` in standardised units, and the two log weights."""
        model, context, n, orders = self.model, self.context, self.n, columns.orders
        draw = model.drawing(self.sampler, default="fast_flow")
        build = model.conditionals_builder(self.level, cache=EvaluationCache())
        by_row = condition_rows(model.standardise_condition(self.condition, z.shape[:-1]), 1)
        parts = list(slices_of(len(z), max(1, _DRAWS_AT_A_TIME // n)))
        shares = [len(share) for share in torch.arange(n).tensor_split(len(orders))]
        found: list[tuple[Tensor, ...]] = []
        unconverged: Count = 0
        with track("drawing", sum(map(len, orders)) * len(parts), self.progress) as advance:
            for part in parts:
                fillings, begin = list[_Filling](), 0
                u = latin_hypercube((part.stop - part.start, n, model.features), z, self.generator)
                for order, share in zip(orders, shares, strict=True):
                    uniforms = u[:, begin : begin + share].flatten(0, 1)
                    filling = _Filling(context, z[part].repeat_interleave(share, 0), share, uniforms, by_row(part))
                    begin += share
                    for d in order:
                        if d in columns.present:
                            filling.rule_out_absent(d)
                        constraint = columns.constraints.get(d)
                        unconverged += filling.fill(model, d, constraint, build, draw, self.generator, self.adjust)
                        if d in columns.first:
                            filling.log_weights_of_first = filling.log_weights.clone()
                        advance()
                    fillings.append(filling)
                by_order = zip(*(filling.results() for filling in fillings), strict=True)
                found.append(tuple(torch.cat(one, 1) for one in by_order))
        warn_unconverged(unconverged, len(z) * n * len(orders[0]))
        if not found:
            return z.new_zeros(0, n, model.features), z.new_zeros(0, n), z.new_zeros(0, n)
        rows, log_weights, log_weights_of_first = (torch.cat(one) for one in zip(*found, strict=True))
        return rows, log_weights, log_weights_of_first


class _Columns(NamedTuple):
    """The columns that are drawn."""

    orders: list[list[int]]
    constraints: Mapping[int, Constraint]
    first: Collection[int]  # the columns of the first of the sets
    present: Collection[int]  # dimensions that must have a value


class _Filling:
    """Rows ``(B * n, D)`` that are being completed, in standardised units, and the uniform numbers of their draws."""

    def __init__(self, context: AnyOrder, z: Tensor, n: int, u: Tensor, condition: Condition | None) -> None:
        self.context, self.z, self.n, self.u = context, z, n, u
        self.log_weights = self.log_weights_of_first = z.new_zeros(len(z))
        self.state: Any = context.begin((len(z) // n,), condition)
        context.observe_all(self.state, z[::n])
        context.select(self.state, torch.arange(len(z) // n, device=z.device).repeat_interleave(n))

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows, ``(B, n, D)``, their log weights, and those after the first columns, ``(B, n)``."""
        by_row = (-1, self.n)
        return self.z.unflatten(0, by_row), self.log_weights.view(by_row), self.log_weights_of_first.view(by_row)

    def rule_out_absent(self, d: int) -> None:
        """Give rows in which a dimension has no value the weight zero."""
        absent = self.context.absent(self.state, d)
        if absent is not None:
            self.log_weights[absent] = -math.inf

    def fill(
        self,
        model: AutoregressiveModel,
        d: int,
        constraint: Constraint | None,
        build: Callable[..., Conditionals],
        draw: Callable[..., Tensor],
        generator: torch.Generator | None,
        adjust: Adjustment | None,
    ) -> Count:
        """Draw column ``d`` where it is unknown; return the number of integrals that missed their tolerance."""
        unknown, absent = self.z[:, d].isnan(), self.context.absent(self.state, d)
        rows = (unknown if absent is None else unknown & ~absent).nonzero()[:, 0]
        if not len(rows):
            return 0
        head = model.head_of(d)
        conditionals = build(head.project(self.context.conditional(self.state, d, rows)), head)
        source = GivenUniforms(generator, self.u[rows, d])
        if constraint is None:
            values = draw(conditionals, source)
        else:
            u = open_uniform_like(self.z[rows, d], source)
            shift, scale = float(model.shift[d]), float(model.scale[d])
            values, log_probability = constraint.draw(conditionals, u, shift, scale)
            self.log_weights[rows] += log_probability.to(self.log_weights)
        self.z[rows, d] = (values if adjust is None else model.adjusted(adjust, d, values)).to(self.z)
        self.context.observe(self.state, d, self.z[rows, d], rows)
        return conditionals.unconverged


def standard_error_of_mean(values: Tensor) -> Tensor:
    """Return the standard error of the mean of values ``(N, K)``, ``(N,)``; NaN for a single one."""
    if not values.numel():
        return values.new_zeros(len(values))
    count = values.shape[1]
    return values.std(1) / math.sqrt(count) if count > 1 else torch.full_like(values[:, 0], math.nan)
