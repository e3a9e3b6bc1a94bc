"""Draws of unknown values given known ones, and probabilities of events."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arcsm._runtime.batching import condition_rows, slices_of
from arcsm._runtime.conditions import Condition
from arcsm._runtime.progress import track
from arcsm._runtime.random import GivenUniforms, latin_hypercube, open_uniform_like
from arcsm._runtime.sizes import check_size
from arcsm.conditionals import Conditionals, EvaluationCache
from arcsm.conditionals.traversal import warn_unconverged
from arcsm.contexts import AnyOrder
from arcsm.contexts.base import Order
from arcsm.model import AutoregressiveModel
from arcsm.model.sampling import Adjustment
from arcsm.queries.constraints import Constraint, Levels
from arcsm.samplers import Sampler

_DRAWS_AT_A_TIME = 1 << 14
_ORDERS = 8  # more would cost time for small numbers of draws


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
        return _standard_error(self.weights_by_order)

    @property
    def weights_by_order(self) -> Tensor:
        """The mean weight of each order, not normalised, ``(N, orders)``, or those of all draws of a single one."""
        weights = self.log_weights.exp()
        if self.orders == 1:
            return weights
        return torch.stack([part.mean(1) for part in weights.tensor_split(self.orders, 1)], 1)


@torch.no_grad()
def complete(
    model: AutoregressiveModel,
    x: Tensor,
    n: int = 1,
    constraints: Mapping[int, Constraint] | None = None,
    generator: torch.Generator | None = None,
    condition: Condition | None = None,
    order: Order | None = None,
    sampler: str | Sampler | None = None,
    level: int = -1,
    progress: bool = False,
    adjust: Adjustment | None = None,
    last: Collection[int] = (),
) -> Completions:
    """Draw the unknown values of rows given their known ones.

    Known values come first in the chain rule, so the draws are as accurate as the sampler. Then follow the constrained
    columns, each drawn within its set, and then the others. The draws of a row cover each conditional evenly (Latin
    hypercube sampling), so that their means vary less than those of independent draws. With several constraints, the
    draws have different weights (sequential importance sampling).

    Arguments:
        model: A model whose context is an :class:`~arcsm.AnyOrder`.
        x: Rows ``(N, D)`` in data units; NaN marks an unknown value.
        n: Number of draws of each row.
        constraints: The set of possible values of each constrained column, the same for all rows. The column must be
            unknown in all of them. A dimension with a parent must then have a value, unless its parent is constrained
            too: then the set applies to the rows in which it has one.
        generator: Source of randomness, on the model's device.
        condition: Condition of each row, as in :meth:`arcsm.AutoregressiveModel.score`.
        order: Order in which unknown columns are drawn, a permutation of all columns. Default: up to eight random
            ones, each for an equal share of the draws. If the context has ``targets``, only these are drawn, and other
            unknown values stay NaN.
        sampler: As in :meth:`arcsm.AutoregressiveModel.sample`. Default: ``"inverse_cdf"`` for normalised heads and
            without a ladder, else ``"fast_flow"``.
        level: Noise level.
        progress: Show progress; see :func:`arcsm.fit`.
        adjust: As in :meth:`arcsm.AutoregressiveModel.sample`.
        last: Columns that follow the others in random orders, constrained or not. They should be those whose gaps
            depend on other columns: given a value of one, the conditionals of others are those of rows that have it.

    Raises:
        ValueError: If the model does not have every order, ``n`` is below one, a constraint does not fit its column, or
            a constrained column is known.

    Warns:
        AccuracyWarning: Once a call, if some integrals missed the sampler's tolerance.

    Example:
        >>> from arcsm import AnyOrder, AutoregressiveModel, GaussianHead
        >>> model = AutoregressiveModel(AnyOrder(3, 4, (8,), 8), GaussianHead(4))
        >>> completions = complete(model, torch.tensor([[0.5, torch.nan, torch.nan]]), n=10)
        >>> completions.rows.shape, completions.rows[0, :2, 0].tolist()
        (torch.Size([1, 10, 3]), [0.5, 0.5])
    """
    drawn, _ = _draw(
        model, x, n, {"constraints": constraints or {}}, generator, condition, order, sampler, level, progress, adjust,
        last,
    )  # fmt: skip
    known = every_order(model).resolved(x).to(drawn.rows)[:, None]
    return drawn._replace(rows=torch.where(known.isnan(), drawn.rows, known))


@torch.no_grad()
def probability(
    model: AutoregressiveModel,
    constraints: Mapping[int, Constraint],
    x: Tensor | None = None,
    n: int = 1000,
    generator: torch.Generator | None = None,
    condition: Condition | None = None,
    order: Order | None = None,
    level: int = -1,
    progress: bool = False,
    adjust: Adjustment | None = None,
    given: Mapping[int, Constraint] | None = None,
    last: Collection[int] = (),
) -> tuple[Tensor, Tensor]:
    """Return the probability of all constraints given known values, and its standard error, ``(N,)`` each.

    Only constrained columns are drawn, and others before those of ``last``. If a single column is drawn, the
    probability is an integral of one conditional, and the standard error 0.

    Arguments:
        constraints: The set of values of each column of the event.
        x: Rows ``(N, D)`` of known values; NaN marks an unknown one. Default: one row without known values.
        n: Number of draws.
        given: Sets of values that columns are known to have; the event may restrict them further. They are drawn before
            the other columns of the event, so that the probabilities of events that exclude each other sum to at most
            one. NaN results if the sets have probability 0. Default: none.

    Other arguments and errors are as in :func:`complete`.
    """
    if not constraints:
        raise ValueError("constraints: expected at least one column")
    check_size("probability", n=n)
    _check_columns(constraints, model.features, "constraints")
    known = torch.full((1, model.features), torch.nan) if x is None else x
    given = given or {}

    def draw(
        sets: Mapping[str, Mapping[int, Constraint]], n: int, generator: torch.Generator | None
    ) -> tuple[Completions, Completions | None]:
        return _draw(
            model, known, n, sets, generator, condition, order, None, level, progress, adjust, last,
            only_constrained=list(given), ranked_as_constrained=constraints,
        )  # fmt: skip

    if not given:
        context = every_order(model)
        x = context.resolved(known)
        unknown = [d for d in context.targets if bool(x[:, d].isnan().any())]
        needs_others = order is None and follow_unknown(constraints, unknown, last)
        single = len(constraints) == 1 and not needs_others and not _draws_parents(context, constraints, x)
        drawn, _ = draw({"constraints": constraints}, 1 if single else n, generator)
        return drawn.probability, torch.zeros_like(drawn.probability) if single else drawn.standard_error
    if generator is None:
        generator = torch.Generator(model.shift.device).manual_seed(int(torch.randint(2**31 - 1, ())))
    start = generator.get_state()
    both, first = draw({"given": given, "constraints": constraints}, n, generator)
    if first is None:
        generator.set_state(start)  # so that columns without events get the same values and places in both
        first, _ = draw({"given": given}, n, generator)
    of_both, of_given = both.weights_by_order, first.weights_by_order
    found, scale = of_both.mean(1) / of_given.mean(1), of_given.mean(1)
    return found, _standard_error(of_both - found.unsqueeze(1) * of_given) / scale


def _standard_error(values: Tensor) -> Tensor:
    """Return the standard error of the mean of values ``(N, K)``, ``(N,)``; NaN for a single one."""
    if not values.numel():
        return values.new_zeros(len(values))
    count = values.shape[1]
    return values.std(1) / math.sqrt(count) if count > 1 else torch.full_like(values[:, 0], math.nan)


def follow_unknown(columns: Collection[int], unknown: Collection[int], last: Collection[int]) -> bool:
    """Return whether some of the columns are among the ``last``, and unknown ones come before them."""
    return not {*last}.isdisjoint(columns) and not {*unknown} <= {*last}


def _draws_parents(context: AnyOrder, constraints: Mapping[int, Constraint], x: Tensor) -> bool:
    """Return whether the parent of a constrained dimension is unknown in some rows, but not in all."""
    parents = [context.parents[d] for d in constraints if context.parents[d] != -1]
    return any(bool(x[:, parent].isnan().any() & ~x[:, parent].isnan().all()) for parent in parents)


def _draw(
    model: AutoregressiveModel,
    x: Tensor,
    n: int,
    sets: Mapping[str, Mapping[int, Constraint]],
    generator: torch.Generator | None,
    condition: Condition | None,
    order: Order | None,
    sampler: str | Sampler | None,
    level: int,
    progress: bool,
    adjust: Adjustment | None,
    last: Collection[int],
    only_constrained: Sequence[int] | None = None,
    ranked_as_constrained: Collection[int] = (),
) -> tuple[Completions, Completions | None]:
    """Return draws within all sets, with their weights in the end and after the columns of the first of the sets.

    The latter are ``None`` if other sets restrict these columns further.
    """
    context = every_order(model)
    check_size("complete", n=n)
    if not isinstance(last, Collection):
        raise ValueError(f"last: expected columns from 0 to {model.features - 1}, got {last!r:.60}")
    _check_columns(last, model.features, "last")
    z = model.standardise(x)
    if z.ndim != 2:
        raise ValueError(f"x: expected rows (N, {model.features}), got {tuple(x.shape)}")
    model.check_levels(z)
    z = context.resolved(z)
    for name, of_one in sets.items():
        _check_constraints(z, of_one, context.targets, name)
    present = {d for of_one in sets.values() for d in of_one if context.parents[d] not in (-1, *of_one)}  # has a value
    first, *others = (_with_parents_of(of_one, context, z) for of_one in sets.values())
    constraints: Mapping[int, Constraint] | None = first
    for of_one in others:
        if constraints is not None:
            constraints = _common(constraints, of_one, context, present)
    orders = _orders(context, n, constraints or {}, order, generator, last, only_constrained, ranked_as_constrained)
    orders = [[d for d in columns if d in context.targets] for columns in orders]  # there are conditionals of these
    if constraints is None:
        impossible = z.new_full((len(z), n), -math.inf)
        rows = z.new_full((*impossible.shape, model.features), math.nan)
        return Completions(rows, impossible, len(orders)), None
    draw = model.drawing(sampler, default="fast_flow")
    build = model.conditionals_builder(level, cache=EvaluationCache())
    by_row = condition_rows(model.standardise_condition(condition, z.shape[:-1]), 1)
    found, log_weights, log_weights_of_first, unconverged = [], [], [], 0
    parts = list(slices_of(len(z), max(1, _DRAWS_AT_A_TIME // n)))
    shares = [len(share) for share in torch.arange(n).tensor_split(len(orders))]
    with track("drawing", sum(map(len, orders)) * len(parts), progress) as advance:
        for part in parts:
            fillings, begin = [], 0
            u = latin_hypercube((part.stop - part.start, n, model.features), z, generator)
            for columns, share in zip(orders, shares, strict=True):
                uniforms = u[:, begin : begin + share].flatten(0, 1)
                filling = _Filling(context, z[part].repeat_interleave(share, 0), share, uniforms, by_row(part))
                begin += share
                for d in columns:
                    if d in present:
                        filling.rule_out_absent(d)
                    unconverged += filling.fill(model, d, constraints.get(d), build, draw, generator, adjust)
                    if d in first:
                        filling.log_weights_of_first = filling.log_weights.clone()
                    advance()
                fillings.append(filling)
            found.append(torch.cat([f.z.view(-1, f.n, model.features) for f in fillings], 1))
            log_weights.append(torch.cat([f.log_weights.view(-1, f.n) for f in fillings], 1))
            log_weights_of_first.append(torch.cat([f.log_weights_of_first.view(-1, f.n) for f in fillings], 1))
    warn_unconverged(unconverged, len(z) * n * len(orders[0]))
    if not found:
        nothing = Completions(z.new_zeros(0, n, model.features), z.new_zeros(0, n), len(orders))
        return nothing, nothing
    rows = torch.cat(found) * model.scale + model.shift
    for d, constraint in constraints.items():
        rows[..., d] = constraint.nearest(rows[..., d])
    restricted = any(constraints.get(d) is not constraint for d, constraint in first.items())
    if only_constrained is not None and order is None:  # event columns may come before sets of columns in `last`
        restricted |= not {*last}.isdisjoint(first) and any(d not in last for d in {*constraints} - {*first})
    of_first = None if restricted else Completions(rows, torch.cat(log_weights_of_first), len(orders))
    return Completions(rows, torch.cat(log_weights), len(orders)), of_first


def _with_parents_of(constraints: Mapping[int, Constraint], context: AnyOrder, z: Tensor) -> Mapping[int, Constraint]:
    """Return the constraints, with level 0 of each unknown parent of a constrained dimension: it must have a value."""
    parents = {context.parents[d] for d in constraints} - {-1, *constraints}
    return {**{parent: Levels([0]) for parent in parents if bool(z[:, parent].isnan().all())}, **constraints}


def _common(
    first: Mapping[int, Constraint], second: Mapping[int, Constraint], context: AnyOrder, present: Collection[int]
) -> dict[int, Constraint] | None:
    """Return constraints that hold where both do; ``None`` if they exclude each other.

    Each of the two applies to a dimension with a parent where that has level 0. Sets that exclude each other leave the
    other levels, unless the dimension must be ``present``.
    """
    found, empty = {**first, **second}, []
    for d in {*first} & {*second}:
        both = first[d].intersection(second[d])
        if both is None:
            empty.append(d)
        else:
            found[d] = both
    for d in empty:
        parent = context.parents[d]
        if parent in (-1, *empty) or d in present or context.levels[parent] == 1:
            return None
        elsewhere = found[parent].intersection(Levels(range(1, context.levels[parent])))
        if elsewhere is None:
            return None
        found[parent] = elsewhere
        del found[d]
    return found


def _check_columns(columns: Collection[int], features: int, name: str) -> None:
    unknown = [d for d in columns if not isinstance(d, Integral) or not 0 <= d < features]
    if unknown:
        raise ValueError(f"{name}: expected columns from 0 to {features - 1}, got {unknown[0]!r:.60}")


def _check_constraints(z: Tensor, constraints: Mapping[int, Constraint], targets: Sequence[int], name: str) -> None:
    """Check that constraints belong to columns that are unknown in all rows ``z (N, D)``."""
    _check_columns(constraints, z.shape[1], name)
    for d, constraint in constraints.items():
        if not isinstance(constraint, Constraint):
            raise ValueError(f"{name}: expected Intervals or Levels for column {d}, got {constraint!r:.60}")
        if not bool(z[:, d].isnan().all()):
            raise ValueError(f"{name}: column {d} is known; leave it out, or make it NaN in x")
        if d not in targets:
            raise ValueError(f"{name}: the model has no conditionals of column {d}, which is not among its targets")


class _Filling:
    """Rows ``(B * n, D)`` that are being completed, in standardised units, and the uniform numbers of their draws."""

    def __init__(self, context: AnyOrder, z: Tensor, n: int, u: Tensor, condition: Condition | None) -> None:
        self.context, self.z, self.n, self.u = context, z, n, u
        self.log_weights = self.log_weights_of_first = z.new_zeros(len(z))
        self.state: Any = context.begin((len(z) // n,), condition)
        context.observe_all(self.state, z[::n])
        context.select(self.state, torch.arange(len(z) // n, device=z.device).repeat_interleave(n))

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
    ) -> int:
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


def _orders(
    context: AnyOrder,
    n: int,
    constraints: Mapping[int, Constraint],
    order: Order | None,
    generator: torch.Generator | None,
    last: Collection[int],
    only_constrained: Sequence[int] | None,
    ranked_as_constrained: Collection[int] = (),
) -> list[list[int]]:
    """Return the orders in which columns are drawn, constrained ones first: the given order, or random ones.

    They have only the constrained columns, beginning with those of ``only_constrained``, unless that is ``None``. All
    others come before constrained columns of ``last``; the place of some of them may be that of constrained ones.
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

    return [
        context.arranged(
            [
                d
                for d in sorted(columns, key=rank)
                if only_constrained is None or d in constraints or (follow and d not in last)
            ]
        )
        for columns in orders
    ]


def every_order(model: AutoregressiveModel) -> AnyOrder:
    """Return the context of a model that has every order.

    Raises:
        ValueError: If the context is not an :class:`~arcsm.AnyOrder`.
    """
    context = getattr(model.context, "_orig_mod", model.context)  # not compiled
    if not isinstance(context, AnyOrder):
        why = (
            "which takes an order, but no known values in its steps; derive it from AnyOrder"
            if context.any_order
            else "which knows the conditionals of one order only; arcsm.denoise.particle_filter accepts it"
        )
        raise ValueError(f"model: needs an AnyOrder context, got a {type(context).__name__}, {why}")
    return context
