"""The model of a table: one network for every order of the columns, and the density that averages some orders."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from arcsm._runtime.progress import track
from arcsm.anomaly import tail_surprise
from arcsm.contexts import AnyOrder
from arcsm.contexts.any_order import AnyOrderState
from arcsm.errors import TrainingWarning
from arcsm.estimators.column_conditionals import ColumnConditionals
from arcsm.estimators.level_calibration import calibrate_levels
from arcsm.estimators.model_columns import ModelColumns
from arcsm.estimators.table_config import TableConfig
from arcsm.model import AutoregressiveModel
from arcsm.queries import Completions, Constraint, complete, probability
from arcsm.training.callbacks import TrainingState
from arcsm.training.density import fit

_MIN_VALIDATION_ROWS = 512  # held-out rows repeat with fresh noise up to this number
_MAX_SELECTION_ROWS = 250  # held-out rows that choose the weights, the noise level and the configuration
_SELECTION_TOLERANCE = 1e-2  # nats, of a conditional's log density
_CONDITIONALS_AT_A_TIME = 20_000
_MAX_STANDARD_DEVIATIONS = 30.0  # values farther out are scored as if they lay there
_SNAPSHOTS = (0.4, 0.7, 1.0)  # shares of the steps of a training after which its weights are compared
_LEVELS_TRIED = 10  # below the last
_WORSE = 0.02  # nats below the best noise level, at which the search ends
_SELECTION_TIME = 0.2  # of a model's noise level, relative to its training; sets the pace of the progress bar

Order = tuple[int, ...]


@dataclass
class TableModel:
    """A trained model that has every order of the columns, and the orders and the noise level of the density.

    Rows are encoded: numbers ``(N, M)``, NaN where a value is missing.

    Arguments:
        model: The model, in double precision.
        columns: The dimensions of the model that the columns have.
        orders: The orders that the density averages. The first is that of the table.
        level: The noise level at which densities are evaluated.
        config: The configuration of the model.
        cells: Level widths of the columns, so that discrete values get their probability. ``None`` for the density at
            the middle of a level, which is faster and ranks rows as well.
    """

    model: AutoregressiveModel
    columns: ModelColumns
    orders: list[Order]
    level: int
    config: TableConfig
    cells: list[float] | None = None
    _single: AutoregressiveModel | None = field(default=None, repr=False, compare=False)

    @classmethod
    def train(
        cls,
        train: Tensor,
        valid: Tensor,
        columns: ModelColumns,
        configs: Sequence[TableConfig],
        seed: int,
        device: str,
        progress: bool,
        choose_level: bool = True,
    ) -> Self:
        """Train a model with each configuration, and keep the one that gives held-out rows ``(N, M)`` most density.

        Held-out rows choose the step of the training and the noise level, too: those with the highest density. Without
        ``choose_level`` there is one configuration, whose loss on held-out rows ends the training, and the noise level
        is the smallest.
        """
        below = 0.5 * torch.tensor(columns.widths, dtype=train.dtype)  # dequantisation adds noise in [0, width)
        inputs = (columns.inputs(train) - below).float()
        repeats = max(1, -(-_MIN_VALIDATION_ROWS // len(valid)))
        held_out = None if choose_level else (columns.inputs(valid) - below).float().repeat(repeats, 1)
        valid = valid[:_MAX_SELECTION_ROWS]
        orders = _orders(train.shape[1], configs[0].orders, seed)
        steps = sum(config.max_steps for config in configs)
        selection = _SELECTION_TIME * steps if choose_level else 0.0
        cells = list(columns.widths) if choose_level and any(columns.widths) else None
        candidates = list[tuple[float, Self]]()
        with track("fitting", steps + selection, progress) as work:
            for config in configs:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    model = config.build_model(columns.counts, columns.parents).float()
                snapshots = _Snapshots(config.max_steps) if choose_level else None
                with work.part(config.max_steps), warnings.catch_warnings():
                    if choose_level:  # the weights of several steps are compared below
                        warnings.simplefilter("ignore", TrainingWarning)
                    training = config.train_config(columns.widths, seed, device, choose_level)
                    fit(model, inputs, held_out, training, callbacks=() if snapshots is None else [snapshots])
                candidate = cls(model.double().eval(), columns, orders, config.noise_levels - 1, config, cells)
                with work.part(selection / len(configs)):
                    density = -math.inf if snapshots is None else candidate._choose(snapshots.weights, valid)
                candidates.append((density, candidate))
            chosen = max(candidates, key=lambda pair: pair[0])[1]
            if any(columns.counts):
                rows, others = (columns.inputs(part).to(chosen.model.shift) for part in (train, valid))
                calibrate_levels(chosen.model, rows, others, seed)
        return chosen

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_single": None}  # a copy that is made again where it is needed

    def clip(self, x: Tensor) -> Tensor:
        """Clip the numbers of rows ``(N, M)`` to the range in which the model is evaluated; NaN and spikes stay."""
        shift, scale = (units[: self.columns.columns].to(x) for units in (self.model.shift, self.model.scale))
        bound = scale * _MAX_STANDARD_DEVIATIONS
        clipped = torch.where(torch.tensor(self.columns.nominal), x, torch.clamp(x, shift - bound, shift + bound))
        for m in self.columns.spikes:  # which may lie far from all other values
            clipped[:, m] = torch.where(self.columns.spike(m, x[:, m]) > 0.0, x[:, m], clipped[:, m])
        return clipped

    def inputs(self, x: Tensor) -> Tensor:
        """Return rows ``(N, M)`` as the model sees them, ``(N, D)``: clipped, and NaN for numbers without a level."""
        return self.columns.inputs(self.clip(x)).to(self.model.shift)

    # Densities and quantiles --------------------------------------------------------------------------------------

    def log_conditionals(self, x: Tensor, level: int | None = None, method: str | None = None) -> Tensor:
        """Return each value's log density given the values before it, ``(K, N, M)`` in nats; 0 if it is missing.

        There is one for each of the ``K`` orders. By default the noise level is the table's own, and the normalisation
        method the model's own.
        """
        options: dict[str, Any] = {"method": method, "tol": self.config.tolerance, "cells": self.cells}
        level = self.level if level is None else level
        terms = self._by_order(x, lambda x, order: self.model.log_prob(x, level, reduce=False, order=order, **options))
        found = self.columns.by_column(terms) + self.columns.log_shares(x)
        for m in self.columns.spikes:
            if self.columns.widths[m]:
                self._add_neighbours_of_spikes(found, x, m)
        return found

    def _add_neighbours_of_spikes(self, terms: Tensor, x: Tensor, m: int) -> None:
        """Add to the probabilities of spikes on a grid what the density of other numbers has within their steps.

        ``terms (K, N, M)`` change in place.
        """
        rows = (self.columns.spike(m, x[:, m]) > 0.0).nonzero()[:, 0]
        for k in range(len(self.orders)):
            orders = torch.full((len(rows),), k)
            within = self._by_conditional(
                x[rows], torch.full((len(rows),), m), orders, x[rows, m : m + 1],
                lambda conditionals, numbers, m: conditionals.log_mean_density(numbers, self.columns.widths[m]),
            )  # fmt: skip
            terms[k, rows, m] = torch.logaddexp(terms[k, rows, m], within[:, 0].to(terms))

    def log_prob_given(self, x: Tensor, given: Sequence[int]) -> Tensor:
        """Return each row's log density given its columns ``given``, ``(K, N)`` in nats, one for each order."""
        first = list(given)
        others = [m for m in range(x.shape[1]) if m not in first]
        orders = [(*first, *(m for m in order if m in others)) for order in self.orders]
        return replace(self, orders=orders).log_conditionals(x)[..., others].sum(-1)

    def score_norms(self, x: Tensor, level: int) -> Tensor:
        """Return the norm of each row's scores at a noise level, ``(K, N)`` in units of :math:`1 / \\sigma`."""
        sigma = self.model.path(level)[-1]

        def norms(x: Tensor, order: list[int]) -> Tensor:
            s, _ = self.model.score(x, level, order=order)  # (N, M)
            return (sigma * self.model.scale * s).nan_to_num(nan=0.0).norm(dim=-1)

        return self._by_order(x, norms)

    def tail_surprises(self, x: Tensor) -> Tensor:
        """Return how far in the tails of their conditionals each row's values are, ``(K, N)``; see `tail_surprise`.

        A value with a probability counts as the middle of its step of the distribution function.
        """
        with track("evaluating", len(self.orders)) as work:
            u = [
                self._in_order(x, order, lambda conditionals, numbers: conditionals.middle(numbers))
                for order in work.over(self.orders)
            ]
        return torch.stack([tail_surprise(one.nan_to_num(nan=0.5)) for one in u])

    @torch.no_grad()
    def _by_order(self, x: Tensor, evaluate: Callable[[Tensor, list[int]], Tensor]) -> Tensor:
        inputs = self.inputs(x)
        with track("evaluating", len(self.orders)) as work:
            return torch.stack(
                [evaluate(inputs, self.columns.dimensions(order)).cpu() for order in work.over(self.orders)]
            )

    def cdf(self, x: Tensor) -> Tensor:
        """Return the distribution function of each value given the columns before it in the table, ``(N, M)``."""
        return self._in_order(x, self.orders[0], lambda conditionals, numbers: conditionals.cdf(numbers))

    def icdf(self, u: Tensor) -> Tensor:
        """Return the inverse of :meth:`cdf`, ``(N, M)``."""
        return self._in_order(u, self.orders[0], lambda conditionals, u: conditionals.icdf(u), generate=True)

    @torch.no_grad()
    def _in_order(
        self,
        x: Tensor,
        order: Order,
        function: Callable[[ColumnConditionals, Tensor], Tensor],
        generate: bool = False,
    ) -> Tensor:
        """Apply a function to the conditional of one column after another and to ``x (N, M)``, ``(N, M)``.

        The values before a column are those of ``x`` or, to ``generate`` rows, the results. The result of a value that
        is missing or has no level is NaN.
        """
        found = torch.full_like(x, torch.nan)
        context = self._context()
        for rows in torch.arange(len(x)).split(_CONDITIONALS_AT_A_TIME):
            state = context.begin((len(rows),))
            for m in order:
                conditionals = self._conditionals(context, state, m)
                numbers = (x[rows, m] if generate else self._evaluable(m, x[rows])).to(self.model.shift)
                result = function(conditionals, numbers.nan_to_num(nan=0.0))
                found[rows, m] = torch.where(numbers.isnan(), torch.nan, result).to(found)
                self._observe(context, state, m, found[rows, m] if generate else x[rows, m])
        return found

    def _evaluable(self, m: int, x: Tensor) -> Tensor:
        """Return the numbers or levels of a column at which its conditional can be evaluated; NaN for unknown ones."""
        return self.columns.level(m, x[:, m]) if self.columns.nominal[m] else self.clip(x)[:, m]

    def _observe(self, context: AnyOrder, state: AnyOrderState, m: int, numbers: Tensor) -> None:
        """Add numbers ``(N,)`` of a column to a state."""
        row = torch.full((len(numbers), self.columns.columns), torch.nan, dtype=numbers.dtype)
        row[:, m] = numbers
        z = self.model.standardise(self.inputs(row))
        for d in self.columns.dimensions((m,)):
            context.observe(state, d, z[:, d])

    def _conditionals(self, context: AnyOrder, state: AnyOrderState, m: int, repeats: int = 1) -> ColumnConditionals:
        """Return the conditional of a column given a state, ``repeats`` times for each of its rows."""
        model = self.model
        build = model.conditionals_builder(self.level, tol=self.config.tolerance)
        spikes = self.columns.spikes.get(m, torch.zeros(0)).to(model.shift)
        masses = torch.ones(len(state.total), 1).to(model.shift)
        if m in self.columns.spike_dimension:
            d = self.columns.spike_dimension[m]
            masses = model.head_of(d).project(context.conditional(state, d)).exp()
        head = model.head_of(m)
        projection = head.project(context.conditional(state, m)).repeat_interleave(repeats, 0)
        numbers = self.columns.levels[m].to(model.shift) if m in self.columns.levels else None
        masses = masses.repeat_interleave(repeats, 0)
        return ColumnConditionals(build(projection, head), model.shift[m], model.scale[m], spikes, masses, numbers)

    def most_surprised_orders(self, x: Tensor) -> Tensor:
        """Return the index of the order that gives each value of rows ``(N, M)`` the lowest density, ``(N, M)``.

        For a missing value it is the order in which the column comes last.
        """
        return torch.where(x.isnan(), self._places().argmax(0), self.log_conditionals(x).argmin(0))

    def _places(self) -> Tensor:
        """Return the place of each column in each order, ``(K, M)``."""
        return torch.tensor([[order.index(m) for m in range(len(order))] for order in self.orders])

    def quantiles(self, x: Tensor, u: float, orders: Tensor | None = None) -> Tensor:
        """Return the ``u``-quantile of every value given the values before it, ``(N, M)``.

        The order of each value is given by its index, by default that of :meth:`most_surprised_orders`.
        """
        orders = self.most_surprised_orders(x) if orders is None else orders
        rows, columns = (index.flatten() for index in torch.meshgrid(*map(torch.arange, x.shape), indexing="ij"))
        u_of_all = torch.tensor([u], dtype=x.dtype)
        return self.conditional_quantiles(x[rows], columns, orders.flatten(), u_of_all).view_as(x)

    def conditional_quantiles(self, x: Tensor, columns: Tensor, orders: Tensor, u: Tensor) -> Tensor:
        """Return quantiles ``u (Q,)`` of one conditional of each row ``x (N, M)``, ``(N, Q)``.

        It is the conditional of a column in an order, given by their indices ``(N,)``, given the values before it.
        """
        return self._by_conditional(
            x, columns, orders, u.expand(len(x), -1), lambda conditionals, u, _: conditionals.icdf(u)
        )

    def conditional_log_density(self, x: Tensor, columns: Tensor, orders: Tensor, values: Tensor) -> Tensor:
        """Return log densities at ``values (N, Q)`` of conditionals as in :meth:`conditional_quantiles`, ``(N, Q)``.

        Levels have log probabilities. A spike has that of its probability, spread over the noise of the density or over
        a step of a discrete column.
        """

        def log_density(conditionals: ColumnConditionals, numbers: Tensor, m: int) -> Tensor:
            if self.columns.nominal[m]:
                levels = self.columns.level(m, numbers)
                found = conditionals.values.log_prob(levels.nan_to_num(nan=0.0))
                return torch.where(levels.isnan(), 0.0, found) + self.columns.log_share(m, numbers)
            found = conditionals.log_prob(numbers)
            if m not in self.columns.spikes:
                return found
            noise = math.sqrt(2.0 * math.pi) * self.model.path(self.level)[-1] * conditionals.scale
            width = self.columns.widths[m] or float(noise)
            spike = self.columns.spike(m, numbers).long()
            masses = conditionals.masses.gather(-1, spike.unsqueeze(-1))[:, 0]
            return torch.where(spike > 0, masses.log() - math.log(width), found)

        return self._by_conditional(x, columns, orders, values, log_density)

    @torch.no_grad()
    def _by_conditional(
        self,
        x: Tensor,
        columns: Tensor,
        orders: Tensor,
        arguments: Tensor,
        function: Callable[[ColumnConditionals, Tensor, int], Tensor],
    ) -> Tensor:
        """Apply a function to one conditional of each row and its arguments ``(N, Q)``, and to the column."""
        context, places = self._context(), self._places()
        found = torch.empty(arguments.shape, dtype=x.dtype)
        for m in columns.unique().tolist():
            for rows in (columns == m).nonzero()[:, 0].split(max(1, _CONDITIONALS_AT_A_TIME // arguments.shape[1])):
                place = places[orders[rows]]  # (n, M)
                before = x[rows].masked_fill(place >= place[:, m : m + 1], torch.nan)
                state = context.begin((len(rows),))
                context.observe_all(state, self.model.standardise(self.inputs(before)))
                conditionals = self._conditionals(context, state, m, repeats=arguments.shape[1])
                values = arguments[rows].to(self.model.shift).flatten()
                found[rows] = function(conditionals, values, m).view(len(rows), -1).to(found)
        return found

    @torch.no_grad()
    def conditionals_given(self, x: Tensor, m: int, repeats: int = 1) -> ColumnConditionals:
        """Return the conditional of a column given the known values of each row ``(N, M)``, ``repeats`` times."""
        context, state = self._context(), self._context().begin((len(x),))
        context.observe_all(state, self.model.standardise(self.inputs(x)))
        return self._conditionals(context, state, m, repeats=repeats)

    def _context(self) -> AnyOrder:
        context = self.model.context
        assert isinstance(context, AnyOrder)
        return context

    # Draws ----------------------------------------------------------------------------------------------------------

    def sample(self, n: int, generator: torch.Generator, progress: bool = False) -> Tensor:
        """Draw rows ``(n, M)``, an equal share in every order, and shuffle them."""
        shares = np.diff(np.linspace(0, n, len(self.orders) + 1).astype(int)).tolist()
        with track("sampling", n, progress) as work:
            drawn = [
                self.model.sample(
                    count, generator=generator, level=self.level, order=self.columns.dimensions(order)
                ).cpu()
                for order, count in work.over(zip(self.orders, shares, strict=True), lambda pair: pair[1])
                if count
            ]
        rows = torch.cat(drawn)
        rows = rows[torch.randperm(len(rows), generator=generator, device=generator.device).cpu()]
        return self.columns.numbers(rows, generator)

    def complete(
        self, x: Tensor, n: int, generator: torch.Generator, constraints: Mapping[int, Constraint] | None = None
    ) -> Completions:
        """Draw ``n`` completions of each row ``(N, M)`` given its known values; see :func:`arcsm.queries.complete`."""
        inputs = self.inputs(x).float()
        sets = self.columns.constraints(constraints or {})
        drawn = complete(self._in_single_precision(), inputs, n, sets, generator, level=self.level)
        rows = self.columns.numbers(drawn.rows.cpu().double(), generator)
        return drawn._replace(
            rows=torch.where(x.isnan()[:, None], rows, x[:, None]), log_weights=drawn.log_weights.cpu()
        )

    def probability(
        self, constraints: Mapping[int, Constraint], x: Tensor, n: int, generator: torch.Generator
    ) -> tuple[float, float]:
        """Return the probability of constraints given one row ``(1, M)`` of known values, and its standard error.

        The parts of an event with and without spikes are estimated apart, which makes a single column exact.
        """
        parts = [self.columns.parts(m, constraint) for m, constraint in constraints.items()]
        value, variance, inputs = 0.0, 0.0, self.inputs(x)
        draws = n if len(constraints) > 1 else 1
        for chosen in product(*parts):
            merged = {d: constraint for part in chosen for d, constraint in part.constraints.items()}
            share = math.prod(part.share for part in chosen)
            probability_, error = probability(self.model, merged, inputs, draws, generator, level=self.level)
            value += share * float(probability_)
            variance += (share * float(error)) ** 2 if draws > 1 else 0.0
        return value, math.sqrt(variance)

    def _in_single_precision(self) -> AutoregressiveModel:
        """Return a copy of the model in single precision, in which draws take half of the time."""
        if self._single is None:
            self._single = copy.deepcopy(self.model).float()
        return self._single

    def _choose(self, weights: Sequence[Mapping[str, Tensor]], valid: Tensor) -> float:
        """Take the weights and the noise level with the highest mean log density of held-out rows; return that mean."""
        rough = replace(self.config, tolerance=_SELECTION_TOLERANCE)
        few = replace(self, orders=self.orders[:2], config=rough)
        last = self.config.noise_levels - 1

        def density(level: int) -> float:
            terms = few.log_conditionals(valid, level).sum(-1)
            return float(torch.logsumexp(terms, 0).mean()) - math.log(len(terms))

        found = []
        with track("selecting", len(weights) + _LEVELS_TRIED) as work:
            for one in work.over(weights):
                self.model.load_state_dict(one)
                found.append(density(last))
            self.model.load_state_dict(weights[int(np.argmax(found))])
            best = {last: max(found)}
            for level in work.over(range(last - 1, max(last - _LEVELS_TRIED, 0) - 1, -1)):
                best[level] = density(level)
                if best[level] < max(best.values()) - _WORSE:
                    break
        self.level = max(best, key=lambda level: best[level])
        return best[self.level]


class _Snapshots:
    """The averaged weights at some steps of a training, the last one included."""

    def __init__(self, steps: int) -> None:
        self.steps = {max(1, round(share * steps)) for share in _SNAPSHOTS}
        self.weights = list[dict[str, Tensor]]()

    def on_step(self, state: TrainingState) -> None:
        if state.step in self.steps:
            weights = state.averaged_model.state_dict()
            self.weights.append({name: tensor.detach().double().clone() for name, tensor in weights.items()})


def _orders(columns: int, count: int, seed: int) -> list[Order]:
    """Return different orders: the table's, its reverse, then random ones."""
    generator = torch.Generator().manual_seed(seed)
    found = [tuple(range(columns)), tuple(range(columns))[::-1]]
    found += [tuple(torch.randperm(columns, generator=generator).tolist()) for _ in range(4 * count)]
    return list(dict.fromkeys(found))[:count]
