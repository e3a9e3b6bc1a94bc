"""The model of a table: one network for every order of the columns, and the density that averages some orders."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from arcsm._runtime.progress import track
from arcsm.anomaly import tail_surprise
from arcsm.conditionals import Conditionals
from arcsm.estimators.column_levels import ColumnLevels
from arcsm.estimators.table_config import TableConfig
from arcsm.model import AutoregressiveModel
from arcsm.queries import Completions, Constraint, complete, probability
from arcsm.training.density import fit

_MIN_VALIDATION_ROWS = 512  # held-out rows repeat with fresh noise up to this number
_MAX_SELECTION_ROWS = 400  # held-out rows that choose the noise level and the configuration
_CONDITIONALS_AT_A_TIME = 20_000
_MAX_STANDARD_DEVIATIONS = 30.0  # values farther out are scored as if they lay there
_SELECTION_TIME = 0.2  # of a model's noise level, relative to its training; sets the pace of the progress bar

Order = tuple[int, ...]


@dataclass
class TableModel:
    """A trained model that has every order of the columns, and the orders and the noise level of the density.

    Rows are encoded: numbers ``(N, M)``, NaN where a value is missing.

    Arguments:
        model: The model, in double precision.
        levels: The numbers of levels of the columns.
        orders: The orders that the density averages. The first is that of the table.
        level: The noise level at which densities are evaluated.
        config: The configuration of the model.
        cells: Level widths of the columns, so that discrete values get their probability. ``None`` for the density at
            the middle of a level, which is faster and ranks rows as well.
    """

    model: AutoregressiveModel
    levels: ColumnLevels
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
        levels: ColumnLevels,
        configs: Sequence[TableConfig],
        seed: int,
        device: str,
        progress: bool,
        choose_level: bool = True,
    ) -> Self:
        """Train a model with each configuration, and keep the one that gives held-out rows ``(N, M)`` most density.

        The noise level is the one that gives held-out rows the highest density, or without ``choose_level`` the
        smallest; several configurations require ``choose_level``.
        """
        below = 0.5 * torch.tensor(levels.widths, dtype=train.dtype)  # dequantisation adds noise in [0, width)
        repeats = max(1, -(-_MIN_VALIDATION_ROWS // len(valid)))
        inputs = (levels.merged(train) - below).float()
        held_out = (levels.merged(valid) - below).float().repeat(repeats, 1)
        orders = _orders(train.shape[1], configs[0].orders, seed)
        steps = sum(config.max_steps for config in configs)
        selection = _SELECTION_TIME * steps if choose_level else 0.0
        cells = list(levels.widths) if choose_level and any(levels.widths) else None
        chosen: Self | None = None
        best = -math.inf
        with track("fitting", steps + selection, progress) as work:
            for config in configs:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    model = config.build_model(levels.counts).float()
                with work.part(config.max_steps):
                    fit(model, inputs, held_out, config.train_config(levels.widths, seed, device))
                candidate = cls(model.double().eval(), levels, orders, config.noise_levels - 1, config, cells)
                if not choose_level:
                    return candidate
                with work.part(selection / len(configs)):
                    candidate.level, density = candidate._best_level(valid[:_MAX_SELECTION_ROWS])
                if density > best:
                    chosen, best = candidate, density
        assert chosen is not None
        return chosen

    def clip(self, x: Tensor) -> Tensor:
        """Clip the numbers of rows ``(N, M)`` to the range in which the model is evaluated; NaN stays NaN."""
        bound = self.model.scale * _MAX_STANDARD_DEVIATIONS
        clipped = torch.clamp(x.to(self.model.shift), self.model.shift - bound, self.model.shift + bound).cpu()
        return torch.where(torch.tensor(self.levels.nominal), x, clipped)

    def inputs(self, x: Tensor) -> Tensor:
        """Return rows ``(N, M)`` as the model sees them: clipped, and NaN for levels that it does not know."""
        return self.levels.merged(self.clip(x)).to(self.model.shift)

    # Densities and quantiles --------------------------------------------------------------------------------------

    def log_conditionals(self, x: Tensor, level: int | None = None, method: str | None = None) -> Tensor:
        """Return each value's log density given the values before it, ``(K, N, M)`` in nats; 0 if it is missing.

        There is one for each of the ``K`` orders. By default the noise level is the table's own, and the normalisation
        method the model's own.
        """
        options: dict[str, Any] = {"method": method, "tol": self.config.tolerance, "cells": self.cells}
        level = self.level if level is None else level
        terms = self._by_order(x, lambda x, order: self.model.log_prob(x, level, reduce=False, order=order, **options))
        return terms + self.levels.log_shares(x)

    def log_prob_given(self, x: Tensor, given: Sequence[int]) -> Tensor:
        """Return each row's log density given its columns ``given``, ``(K, N)`` in nats, one for each order."""
        first = list(given)
        others = [m for m in range(x.shape[1]) if m not in first]
        orders = [(*first, *(m for m in order if m in others)) for order in self.orders]
        return replace(self, orders=orders).log_conditionals(x)[..., others].sum(-1)

    def score_norms(self, x: Tensor, level: int) -> Tensor:
        """Return the norm of each row's scores at a noise level, ``(K, N)`` in units of :math:`1 / \\sigma`."""
        sigma = self.model.path(level)[-1]

        def norms(x: Tensor, order: Order) -> Tensor:
            s, _ = self.model.score(x, level, order=order)  # (N, M)
            return (sigma * self.model.scale * s).nan_to_num(nan=0.0).norm(dim=-1)

        return self._by_order(x, norms)

    def tail_surprises(self, x: Tensor) -> Tensor:
        """Return how far in the tails of their conditionals each row's values are, ``(K, N)``; see `tail_surprise`.

        A level counts as the middle of its share of the distribution function.
        """
        nominal = torch.tensor(self.levels.nominal)

        def surprises(x: Tensor, order: Order) -> Tensor:
            u = self.model.cdf(x, self.level, tol=self.config.tolerance, order=order)
            if any(self.levels.nominal):
                masses = self.model.log_prob(x, self.level, reduce=False, order=order).exp()
                u = torch.where(nominal.to(u.device), u - 0.5 * masses, u)
            return tail_surprise(u.nan_to_num(nan=0.5))

        return self._by_order(x, surprises)

    @torch.no_grad()
    def _by_order(self, x: Tensor, evaluate: Callable[[Tensor, Order], Tensor]) -> Tensor:
        inputs = self.inputs(x)
        with track("evaluating", len(self.orders)) as work:
            return torch.stack([evaluate(inputs, order).cpu() for order in work.over(self.orders)])

    def cdf(self, x: Tensor) -> Tensor:
        """Return the distribution function of each value given the columns before it in the table, ``(N, M)``."""
        return self.model.cdf(self.inputs(x), self.level, order=self.orders[0]).cpu()

    def icdf(self, u: Tensor) -> Tensor:
        """Return the inverse of :meth:`cdf`, ``(N, M)``."""
        return self.model.icdf(u.to(self.model.shift), self.level, order=self.orders[0]).cpu()

    def most_surprised_orders(self, x: Tensor) -> Tensor:
        """Return the index of the order that gives each value of rows ``(N, M)`` the lowest density, ``(N, M)``.

        For a missing value it is the order in which the column comes last.
        """
        places = torch.tensor([[order.index(d) for d in range(len(order))] for order in self.orders])
        return torch.where(x.isnan(), places.argmax(0), self.log_conditionals(x).argmin(0))

    def quantiles(self, x: Tensor, u: float, orders: Tensor | None = None) -> Tensor:
        """Return the ``u``-quantile of every value given the values before it, ``(N, M)``.

        The order of each value is given by its index, by default that of :meth:`most_surprised_orders`.
        """
        orders = self.most_surprised_orders(x) if orders is None else orders
        tolerance = self.config.tolerance
        quantiles = self._by_order(
            x, lambda x, order: self.model.conditional_icdf(x, u, self.level, tol=tolerance, order=order)
        )
        return quantiles.gather(0, orders[None])[0]

    def conditional_quantiles(self, x: Tensor, columns: Tensor, orders: Tensor, u: Tensor) -> Tensor:
        """Return quantiles ``u (Q,)`` of one conditional of each row ``x (N, M)``, ``(N, Q)``.

        It is the conditional of a column in an order, given by their indices ``(N,)``, given the values before it.
        """

        def quantiles(conditionals: Conditionals, u: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
            return conditionals.icdf(u.flatten()).view(u.shape) * scale + shift

        return self._by_conditional(x, columns, orders, u.expand(len(x), -1), quantiles)

    def conditional_log_density(self, x: Tensor, columns: Tensor, orders: Tensor, values: Tensor) -> Tensor:
        """Return log densities at ``values (N, Q)`` of conditionals as in :meth:`conditional_quantiles`, ``(N, Q)``."""

        def log_density(conditionals: Conditionals, values: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
            return conditionals.log_prob(((values - shift) / scale).flatten()).view(values.shape) - scale.log()

        levels, shares = values.clone(), torch.zeros_like(values)
        for m in set(columns.tolist()) & set(np.flatnonzero(self.levels.counts).tolist()):
            levels[columns == m] = self.levels.level(m, values[columns == m])
            shares[columns == m] = self.levels.log_share(m, values[columns == m])
        found = self._by_conditional(x, columns, orders, levels.nan_to_num(nan=0.0), log_density)
        return torch.where(levels.isnan(), 0.0, found) + shares

    @torch.no_grad()
    def _by_conditional(
        self, x: Tensor, columns: Tensor, orders: Tensor, arguments: Tensor, function: Callable[..., Tensor]
    ) -> Tensor:
        """Apply a function to one conditional of each row, arguments ``(N, Q)``, and the column's shift and scale."""
        model = self.model
        found = torch.empty(arguments.shape, dtype=x.dtype)
        size = max(1, _CONDITIONALS_AT_A_TIME // arguments.shape[1])
        build = model.conditionals_builder(self.level, tol=self.config.tolerance)
        for index, order in enumerate(self.orders):
            for head, its in model.head.parts(model.features):
                chosen = (orders == index) & torch.isin(columns, torch.tensor(its))
                for rows in chosen.nonzero()[:, 0].split(size):
                    if not len(rows):
                        continue
                    z, d = model.standardise(self.inputs(x[rows])), columns[rows].to(model.shift.device)
                    contexts = model.contexts(z, order=order)[torch.arange(len(d)), d]  # (n, C)
                    projection = head.project(contexts).repeat_interleave(arguments.shape[1], 0)
                    shift, scale = model.shift[d, None], model.scale[d, None]
                    found[rows] = function(build(projection, head), arguments[rows].to(z), shift, scale).cpu()
        return found

    # Draws ----------------------------------------------------------------------------------------------------------

    def sample(self, n: int, generator: torch.Generator, progress: bool = False) -> Tensor:
        """Draw rows ``(n, M)``, an equal share in every order, and shuffle them."""
        shares = np.diff(np.linspace(0, n, len(self.orders) + 1).astype(int)).tolist()
        with track("sampling", n, progress) as work:
            drawn = [
                self.model.sample(count, generator=generator, level=self.level, order=order).cpu()
                for order, count in work.over(zip(self.orders, shares, strict=True), lambda pair: pair[1])
                if count
            ]
        rows = torch.cat(drawn)
        rows = rows[torch.randperm(len(rows), generator=generator, device=generator.device).cpu()]
        return self.levels.separated(rows, generator)

    def complete(
        self, x: Tensor, n: int, generator: torch.Generator, constraints: Mapping[int, Constraint] | None = None
    ) -> Completions:
        """Draw ``n`` completions of each row ``(N, M)`` given its known values; see :func:`arcsm.queries.complete`."""
        drawn = complete(
            self._in_single_precision(), self.inputs(x).float(), n, constraints, generator, level=self.level
        )
        rows = self.levels.separated(drawn.rows.cpu().double(), generator)
        return drawn._replace(
            rows=torch.where(x.isnan()[:, None], rows, x[:, None]), log_weights=drawn.log_weights.cpu()
        )

    def probability(
        self, constraints: Mapping[int, Constraint], x: Tensor, n: int, generator: torch.Generator
    ) -> tuple[float, float]:
        """Return the probability of constraints given one row ``(1, M)`` of known values, and its standard error."""
        found = probability(self.model, constraints, self.inputs(x), n, generator, level=self.level)
        return float(found[0]), float(found[1])

    def _in_single_precision(self) -> AutoregressiveModel:
        """Return a copy of the model in single precision, in which draws take half of the time."""
        if self._single is None:
            self._single = copy.deepcopy(self.model).float()
        return self._single

    def _best_level(self, valid: Tensor) -> tuple[int, float]:
        """Return the noise level, a bandwidth, with the highest mean log density of held-out rows, and that mean."""
        levels = range(self.config.noise_levels // 2, self.config.noise_levels)
        one = replace(self, orders=self.orders[:1])
        with track("levels", len(levels)) as work:
            means = [float(one.log_conditionals(valid, level).sum(-1).mean()) for level in work.over(levels)]
        best = int(np.argmax(means))
        return levels[best], means[best]


def _orders(columns: int, count: int, seed: int) -> list[Order]:
    """Return different orders: the table's, its reverse, then random ones."""
    generator = torch.Generator().manual_seed(seed)
    found = [tuple(range(columns)), tuple(range(columns))[::-1]]
    found += [tuple(torch.randperm(columns, generator=generator).tolist()) for _ in range(4 * count)]
    return list(dict.fromkeys(found))[:count]
