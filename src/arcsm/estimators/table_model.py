"""The model of a table: one network for every order of the columns, and the density that averages some orders."""

import copy
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from arcsm._runtime.progress import track
from arcsm.anomaly import tail_surprise
from arcsm.conditionals import SINGLE_TOLERANCE, Conditionals
from arcsm.conditionals.traversal import ValueFunction
from arcsm.contexts import AnyOrder
from arcsm.contexts.any_order_state import AnyOrderState
from arcsm.estimators.column_conditionals import ColumnConditionals
from arcsm.estimators.mirrors import add_images
from arcsm.estimators.model_columns import ModelColumns
from arcsm.estimators.order_mixture import choose_orders
from arcsm.estimators.table_config import TableConfig
from arcsm.model import AutoregressiveModel
from arcsm.queries import learned_order
from arcsm.stored_values import stored

CONDITIONALS_AT_A_TIME = 20_000
_LEAK = 5e-4  # probability beyond an end that is neglected
_SEARCH_TOLERANCE = 1e-2  # nats, of a conditional's log density, in the search for an order
_MAX_STANDARD_DEVIATIONS = 30.0  # values farther out are scored as if they lay there

Order = tuple[int, ...]
ConditionalFunction = Callable[[ColumnConditionals, Tensor], Tensor]


@stored
@dataclass
class TableModel:
    """A trained model that has every order of the columns, and the orders and the noise level of the density.

    Rows are encoded: numbers ``(N, M)``, NaN where a value is missing.

    Arguments:
        model: The model, in double precision.
        columns: The dimensions of the model that the columns have.
        orders: The orders that the density averages.
        order_weights: Their weights in the mixture, which sum to one. ``None`` if all are equal.
        cdf_order: The order of distribution functions and quantiles of rows. ``None`` for that of the table.
        level: The noise level at which densities are evaluated.
        config: The configuration of the model.
        reach: How far the density of each column leaks beyond its ends, where mirror images count.
        last: The columns whose gaps depend on the values of others, which they follow in draws.
        method: How conditionals are normalised. ``None`` for the method of the model.
        cells: Level widths of the columns, so that discrete values get their probability. ``None`` for the density at
            the middle of a level, which is faster and ranks rows as well.
    """

    model: AutoregressiveModel
    columns: ModelColumns
    orders: list[Order]
    level: int
    config: TableConfig
    cells: list[float] | None = None
    reach: dict[int, float] = field(default_factory=dict)
    order_weights: Sequence[float] | None = None
    cdf_order: Order | None = None
    last: Sequence[int] = ()
    method: str | None = None
    _single: AutoregressiveModel | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_single": None}  # a copy that is made again where it is needed

    def check_read(self) -> None:
        """Check that the parts fit together, after they were read from a file."""
        count, dimensions = self.columns.columns, range(self.model.features)
        columns, cells = self.columns, self.cells or [0.0] * self.model.features
        keys = [key for part in (columns.levels, columns.rarest, columns.ends, columns.spikes) for key in part]
        orders = [*self.orders, *([] if self.cdf_order is None else [self.cdf_order])]
        consistent = (
            len(columns.counts) == len(columns.widths) == len(cells) == len(dimensions)
            and len(columns.kinds) == count
            and all(key in range(count) for key in (*keys, *self.reach, *self.last, *columns.rough))
            and list(columns.spike_dimension) == list(columns.spikes)
            and sorted(columns.spike_dimension.values()) == list(dimensions[count:])
            and len(self.orders) > 0
            and all(sorted(order) == list(range(count)) for order in orders)
            and (self.order_weights is None or len(self.order_weights) == len(self.orders))
            and self.level in range(-len(self.sigmas), len(self.sigmas))
        )
        if not consistent:
            raise ValueError("TableModel: columns, orders and model do not fit together")

    def clip(self, x: Tensor) -> Tensor:
        """Clip the numbers of rows ``(N, M)`` to the range in which the model is evaluated; NaN and spikes stay."""
        shift, scale = (units[: self.columns.columns].to(x) for units in (self.model.shift, self.model.scale))
        bound = scale * _MAX_STANDARD_DEVIATIONS
        clipped = torch.where(torch.tensor(self.columns.nominal), x, torch.clamp(x, shift - bound, shift + bound))
        for m in self.columns.spikes:  # which may lie far from all other values
            clipped[:, m] = torch.where(self.columns.spike(m, x[:, m]) > 0.0, x[:, m], clipped[:, m])
        return clipped

    def inputs(self, x: Tensor) -> Tensor:
        """Return rows ``(N, M)`` as the model sees them, ``(N, D)``: clipped numbers, and levels."""
        return self.columns.inputs(self.clip(x)).to(self.model.shift)

    @property
    def columns_on_line(self) -> tuple[int, ...]:
        """The columns that lie near a line, given others."""
        base = self._context().base
        return () if base is None else tuple(base.index)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The standard deviations of the noise levels; one if the model was distilled from another."""
        return self.model.path() or (self.model.metadata["distillation"]["sigma"],)

    # Densities and quantiles --------------------------------------------------------------------------------------

    def log_conditionals(self, x: Tensor, level: int | None = None) -> Tensor:
        """Return each value's log density given the values before it, ``(K, N, M)`` in nats; 0 if it is missing.

        There is one for each of the ``K`` orders. By default the noise level is the table's own.
        """
        level, density = self.level if level is None else level, self._mirrored_density()

        def evaluate(x: Tensor, order: list[int]) -> Tensor:
            terms = self.model.evaluate(density, x, level, method=self.method, order=order, tol=self.config.tolerance)
            return torch.where(self.model.context.resolved(x).isnan(), 0.0, terms - self.model.scale.log())

        terms = self.columns.by_column(self._by_order(x, evaluate))
        found = torch.where(self.columns.seen(x), terms, 0.0) + self.columns.log_shares(x)
        for m in self.columns.ends:
            replace(self, level=level)._replace_special(found, self.clip(x), m)
        return found

    def _mirrored_density(self) -> ValueFunction:
        """Return the log density of numbers, or over the cells, mirrored at the ends of columns."""
        plain, ends = self.model.density_function(self.cells), self.columns.ends
        if not ends:
            return plain
        like = self.model.scale
        bounds, log_seen = torch.full_like(like, torch.nan).expand(2, -1).clone(), torch.zeros_like(like)
        reach, half = torch.zeros_like(like), torch.zeros_like(like)
        for m, of_column in ends.items():
            bounds[:, m] = (torch.tensor(of_column).to(like) - self.model.shift[m]) / like[m]
            reach[m], half[m] = self.reach.get(m, 0.0) / like[m], 0.5 * (self.cells[m] if self.cells else 0.0) / like[m]
            log_seen[m] = math.log1p(-math.exp(self.columns.log_unseen[m]))

        def density(conditionals: Conditionals, values: Tensor, columns: Sequence[int]) -> Tensor:
            found = plain(conditionals, values, columns)
            if conditionals.head.discrete:
                return found
            d = torch.tensor(columns, device=values.device).repeat(len(values) // len(columns))

            def evaluate(x: Tensor, rows: Tensor, half: Tensor | None = None) -> Tensor:
                if half is None:
                    return conditionals.apply(lambda part: part.log_prob(x), rows)
                return conditionals.apply(lambda part: part.log_mean_density(x, half), rows)

            return add_images(found, evaluate, values, bounds[:, d], reach[d], half[d]) + log_seen[d]

        return density

    def _replace_special(self, terms: Tensor, x: Tensor, m: int) -> None:
        """Replace the terms of spikes on a grid, which other numbers hit, too, and of numbers beyond the ends.

        ``terms (K, N, M)`` change in place.
        """
        (low, high), numbers = self.columns.ends[m], x[:, m]
        special = (numbers <= low) | (numbers >= high)
        if m in self.columns.spikes and self.columns.widths[m]:
            special |= self.columns.spike(m, numbers) > 0.0
        rows = special.nonzero()[:, 0]
        if not len(rows):
            return
        before = torch.full((len(self.orders), len(rows), x.shape[1]), torch.nan, dtype=x.dtype)
        for before_of_order, order in zip(before, self.orders, strict=True):
            first = list(order[: order.index(m)])
            before_of_order[:, first] = x[rows][:, first]
        arguments = numbers[rows].repeat(len(self.orders))[:, None]
        found = self.evaluate_given(before.flatten(0, 1), m, arguments, ColumnConditionals.log_prob)
        terms[:, rows, m] = found.view(len(self.orders), len(rows)).to(terms)

    @torch.no_grad()
    def measure_reach(self, x: Tensor) -> None:
        """Set :attr:`reach` by the conditionals of rows ``(N, M)``, given all other values and given none."""
        unknown = torch.full_like(x[:1], torch.nan)
        for m in self.columns.ends:
            others = x.clone()
            others[:, m] = torch.nan
            leaks = self.conditionals_given(torch.cat([others, unknown]), m).leak(_LEAK)
            self.reach[m] = float(leaks.max()) + self.columns.widths[m]

    def log_prob_given(self, x: Tensor, given: Sequence[int]) -> Tensor:
        """Return each row's log density given its columns ``given``, ``(K, N)`` in nats, one for each order."""
        first = list(given)
        others = [m for m in range(x.shape[1]) if m not in first]
        orders = [(*first, *(m for m in order if m in others)) for order in self.orders]
        return replace(self, orders=orders).log_conditionals(x)[..., others].sum(-1)

    def learn_order(
        self,
        x: Tensor,
        evaluations: int,
        worst: bool = False,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Order:
        """Return an order of the columns in which rows ``(N, M)`` have a high density, or the ``worst`` one.

        The search is :func:`arcsm.queries.learned_order`, which has the arguments.
        """
        found = learned_order(
            self.model, self.inputs(x), self.level, cells=self.cells, evaluations=evaluations, worst=worst,
            generator=generator, progress=progress, tol=_SEARCH_TOLERANCE,
        )  # fmt: skip
        return with_last([d for d in found if d < self.columns.columns], self.last)

    @property
    def weights(self) -> list[float]:
        """The weights of the orders in the mixture, which sum to one."""
        return [1.0 / len(self.orders)] * len(self.orders) if self.order_weights is None else [*self.order_weights]

    def choose_orders(self, x: Tensor, candidates: Sequence[Order], count: int) -> None:
        """Set the orders, at most ``count``, and their weights by what gives rows ``(N, M)`` a high density."""
        rough = replace(self.config, tolerance=_SEARCH_TOLERANCE)
        terms = replace(self, orders=list(candidates), config=rough).log_conditionals(x)
        chosen, weights = choose_orders(terms.sum(-1).T.double().numpy(), count)
        self.orders, self.order_weights = [candidates[k] for k in chosen], weights.tolist()

    def score_norms(self, x: Tensor, level: int) -> Tensor:
        """Return the norm of each row's scores at a noise level, ``(K, N)`` in units of :math:`1 / \\sigma`."""
        sigma = self.sigmas[level]

        def norms(x: Tensor, order: list[int]) -> Tensor:
            z = self.model.standardise(x)
            contexts = self.model.contexts(z, None, order)
            s = self.model.head.score(contexts, z, self.model.sigma(level))  # (N, M)
            return (sigma * self.model.noise_units(contexts) * s).nan_to_num(nan=0.0).norm(dim=-1)

        return self._by_order(x, norms)

    def tail_surprises(self, x: Tensor) -> Tensor:
        """Return how far in the tails of their conditionals each row's values are, ``(K, N)``; see `tail_surprise`.

        A value with a probability counts as the middle of its step of the distribution function.
        """
        with track("evaluating", len(self.orders)) as work:
            u = [self._in_order(x, order, ColumnConditionals.middle) for order in work.over(self.orders)]
        return torch.stack([tail_surprise(one.nan_to_num(nan=0.5)) for one in u])

    @torch.no_grad()
    def _by_order(self, x: Tensor, evaluate: Callable[[Tensor, list[int]], Tensor]) -> Tensor:
        inputs = self.inputs(x)
        with track("evaluating", len(self.orders)) as work:
            return torch.stack(
                [evaluate(inputs, self.columns.dimensions(order)).cpu() for order in work.over(self.orders)]
            )

    def cdf(self, x: Tensor) -> Tensor:
        """Return the distribution function of each value given the columns before it in the first order, ``(N, M)``."""
        return self._in_order(x, self.cdf_order or tuple(range(x.shape[1])), ColumnConditionals.cdf)

    def icdf(self, u: Tensor) -> Tensor:
        """Return the inverse of :meth:`cdf`, ``(N, M)``."""
        return self._in_order(u, self.cdf_order or tuple(range(u.shape[1])), ColumnConditionals.icdf, generate=True)

    @torch.no_grad()
    def _in_order(
        self,
        x: Tensor,
        order: Order,
        function: ConditionalFunction,
        generate: bool = False,
    ) -> Tensor:
        """Apply a function to the conditional of one column after another and to ``x (N, M)``, ``(N, M)``.

        The values before a column are those of ``x`` or, to ``generate`` rows, the results. The result of a value that
        is missing or has no level is NaN.
        """
        found = torch.full_like(x, torch.nan)
        context, numbers_of_all = self._context(), x if generate else self.clip(x)
        for rows in torch.arange(len(x)).split(CONDITIONALS_AT_A_TIME):
            state = context.begin((len(rows),))
            for m in order:
                conditionals = self._conditionals(context, state, m)
                numbers = numbers_of_all[rows, m].to(self.model.shift)
                result = function(conditionals, numbers.nan_to_num(nan=0.0))
                found[rows, m] = torch.where(numbers.isnan(), torch.nan, result).to(found)
                self._observe(context, state, m, found[rows, m] if generate else x[rows, m])
        return found

    def _observe(self, context: AnyOrder, state: AnyOrderState, m: int, numbers: Tensor) -> None:
        """Add numbers ``(N,)`` of a column to a state."""
        row = torch.full((len(numbers), self.columns.columns), torch.nan, dtype=numbers.dtype)
        row[:, m] = numbers
        z = self.model.standardise(self.inputs(row))
        for d in self.columns.dimensions((m,)):
            context.observe(state, d, z[:, d])

    def _conditionals(self, context: AnyOrder, state: AnyOrderState, m: int, repeats: int = 1) -> ColumnConditionals:
        """Return the conditional of a column given a state, ``repeats`` times for each of its rows."""
        model, columns = self.model, self.columns
        head, masses = model.head_of(m), torch.ones(len(state.total), 1).to(model.shift)
        if m in columns.spikes:
            d = columns.spike_dimension[m]
            masses = model.head_of(d).project(context.conditional(state, d)).exp()
        build = model.conditionals_builder(self.level, self.method, tol=self.config.tolerance)
        project = head.in_single_precision if self.config.tolerance >= SINGLE_TOLERANCE else head.project
        values = build(project(context.conditional(state, m)).repeat_interleave(repeats, 0), head)
        width = 0.0 if self.cells is None else self.cells[m]
        masses = masses.repeat_interleave(repeats, 0)
        reach = self.reach.get(m, 0.0)
        return ColumnConditionals(columns, m, values, model.shift[m], model.scale[m], masses, width, reach)

    def log_prob_of_last(self, x: Tensor, columns: Sequence[int]) -> Tensor:
        """Return each row's log density of the last columns, in their order, given all others, ``(N,)`` in nats."""
        total = torch.zeros(len(x), dtype=x.dtype)
        for m in columns:
            before = x.clone()
            before[:, m:] = torch.nan
            terms = self.evaluate_given(before, m, x[:, m : m + 1], ColumnConditionals.log_prob)[:, 0]
            total += terms.nan_to_num(nan=0.0).to(x)
        return total

    def log_prob_given_others(self, x: Tensor) -> Tensor:
        """Return each value's log density given all other known values of its row, ``(N, M)``; NaN if it is missing."""
        return self._of_every_value(x, x, ColumnConditionals.log_prob)

    def quantiles(self, x: Tensor, u: Tensor) -> Tensor:
        """Return a quantile, ``u (M,)`` or one number, of every value given all others of its row, ``(N, M)``."""
        return self._of_every_value(x, u.to(x).expand_as(x), ColumnConditionals.icdf)

    def centrality(self, x: Tensor) -> Tensor:
        """Return the probability of the central interval that ends at each value, given all others, ``(N, M)``.

        It is :math:`|2 F(x) - 1|`, in the middle of a step of :math:`F`; NaN for missing values.
        """
        return (2.0 * self._of_every_value(x, x, ColumnConditionals.middle) - 1.0).abs()

    def _of_every_value(self, x: Tensor, arguments: Tensor, function: ConditionalFunction) -> Tensor:
        """Apply a function to the conditional of every value given all others, and to arguments ``(N, M)``."""
        rows, columns = (index.flatten() for index in torch.meshgrid(*map(torch.arange, x.shape), indexing="ij"))
        return self._given_others(x[rows], columns, arguments.reshape(-1, 1), function).view_as(x)

    def conditional_quantiles(self, x: Tensor, columns: Tensor, u: Tensor) -> Tensor:
        """Return quantiles ``u (Q,)`` of one column ``(N,)`` of each row ``(N, M)`` given all others, ``(N, Q)``."""
        return self._given_others(x, columns, u.expand(len(x), -1), ColumnConditionals.icdf)

    def conditional_log_density(self, x: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        """Return log densities at ``values (N, Q)`` of one column of each row given all others, ``(N, Q)``.

        Levels and spikes have log probabilities.
        """
        return self._given_others(x, columns, values, ColumnConditionals.log_prob)

    def _given_others(self, x: Tensor, columns: Tensor, arguments: Tensor, function: ConditionalFunction) -> Tensor:
        """Apply a function to the conditional of one column of each row given all others, and to arguments."""
        others = x.scatter(1, columns[:, None], torch.nan)
        found = torch.empty(arguments.shape, dtype=x.dtype)
        for m in columns.unique().tolist():
            rows = columns == m
            found[rows] = self.evaluate_given(others[rows], m, arguments[rows], function).to(found)
        return found

    @torch.no_grad()
    def evaluate_given(self, x: Tensor, m: int, arguments: Tensor, function: ConditionalFunction) -> Tensor:
        """Apply a function to the conditional of a column given the known values of each row, and to arguments.

        Both the arguments and the results are ``(N, Q)``; a missing argument gives NaN.
        """
        found = torch.empty(arguments.shape, dtype=torch.float64)
        count = arguments.shape[1]
        for rows in torch.arange(len(x)).split(max(1, CONDITIONALS_AT_A_TIME // max(1, count))):
            values = arguments[rows].to(self.model.shift).flatten()
            results = function(self.conditionals_given(x[rows], m, repeats=count), values.nan_to_num(nan=0.0))
            found[rows] = torch.where(values.isnan(), torch.nan, results).view(len(rows), count).to(found)
        return found

    @torch.no_grad()
    def conditionals_given(self, x: Tensor, m: int, repeats: int = 1) -> ColumnConditionals:
        """Return the conditional of a column given the known values of each row ``(N, M)``, ``repeats`` times."""
        context, state = self._context(), self._context().begin((len(x),))
        context.observe_all(state, self.model.standardise(self.inputs(x)))
        return self._conditionals(context, state, m, repeats)

    @torch.no_grad()
    def level_probabilities(self, x: Tensor, m: int, numbers: Tensor) -> Tensor:
        """Return the probability of each of the ``numbers (K,)`` of a nominal column given known values, ``(N, K)``.

        The numbers are all that occur: their probabilities sum to 1.
        """
        levels, shares = self.columns.level(m, numbers).long(), self.columns.log_share(m, numbers)
        found = [torch.empty(0, len(numbers), dtype=torch.float64)]
        for rows in x.split(CONDITIONALS_AT_A_TIME):
            log_probs = self.conditionals_given(rows, m).values.projection.cpu().double()
            found.append((log_probs[:, levels] + shares).softmax(-1))
        return torch.cat(found)

    def _context(self) -> AnyOrder:
        context = self.model.context
        assert isinstance(context, AnyOrder)
        return context

    def in_single_precision(self) -> AutoregressiveModel:
        """Return a copy of the model in single precision, in which draws take half of the time."""
        if self._single is None:
            self._single = copy.deepcopy(self.model).float()
        return self._single


def with_last(order: Sequence[int], last: Collection[int]) -> Order:
    """Return an order in which some columns are ``last``, otherwise unchanged."""
    return tuple(sorted(order, key=lambda m: m in last))
