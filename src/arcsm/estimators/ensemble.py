"""An ensemble of models of one table, each with a different order of the columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from arcsm._runtime.progress import track
from arcsm.anomaly import tail_surprise
from arcsm.conditionals import Conditionals
from arcsm.denoise import MissingValues, particle_filter
from arcsm.estimators.ensemble_config import EnsembleConfig
from arcsm.model import AutoregressiveModel
from arcsm.training.density import fit

_MIN_VALIDATION_ROWS = 512  # held-out rows repeat with fresh noise up to this number
_MAX_SELECTION_ROWS = 400  # held-out rows that choose the noise level and the configuration
_CONDITIONALS_AT_A_TIME = 20_000
_MAX_STANDARD_DEVIATIONS = 30.0  # values farther out are scored as if they lay there
_SELECTION_TIME = 0.2  # of a model's noise level, relative to its training; sets the pace of the progress bar


@dataclass
class Ensemble:
    """Trained models, and the noise level at which their densities are evaluated.

    Arguments:
        members: The models of encoded rows ``(N, M)``, in double precision. The first has the columns in table order.
        level: The noise level.
        config: The configuration of the models.
        cells: Level widths of the columns, so that discrete values get their probability. ``None`` for the density at
            the middle of a level, which is faster and ranks rows as well.
    """

    members: list[AutoregressiveModel]
    level: int
    config: EnsembleConfig
    cells: list[float] | None = None

    @classmethod
    def train(
        cls,
        train: Tensor,
        valid: Tensor,
        widths: Sequence[float],
        configs: Sequence[EnsembleConfig],
        seed: int,
        device: str,
        progress: bool,
        choose_level: bool = True,
    ) -> Self:
        """Train the first model with each configuration, the others with the one that gives held-out rows most density.

        Encoded rows ``(N, M)`` are NaN where a value is missing, and whole numbers in discrete columns. ``widths`` are
        the level widths of the columns, 0 for continuous ones. The noise level is the one that gives held-out rows the
        highest density, or without ``choose_level`` the smallest; several configurations require ``choose_level``.
        """
        orders = _orders(train.shape[1], configs[0].members, seed)
        below = 0.5 * torch.tensor(widths, dtype=train.dtype)  # dequantisation adds noise in [0, width)
        repeats = max(1, -(-_MIN_VALIDATION_ROWS // len(valid)))
        train_inputs, valid_inputs = (train - below).float(), (valid - below).float().repeat(repeats, 1)
        steps = sum(config.max_steps for config in configs)
        steps += (len(orders) - 1) * max(config.max_steps for config in configs)
        selection = _SELECTION_TIME * steps if choose_level else 0.0
        with track("fitting", steps + selection, progress) as work:

            def member(config: EnsembleConfig, index: int) -> AutoregressiveModel:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed + index)
                    model = config.build_model(train.shape[1], orders[index]).float()
                training = config.train_config(widths, seed + index, device)
                with work.part(config.max_steps):
                    fit(model, train_inputs, valid_inputs, training)
                return model.double().eval()

            candidates = [cls([member(config, 0)], config.levels - 1, config) for config in configs]
            if len(candidates) > 1:
                candidates = [max(candidates, key=lambda one: one._best_level(valid[:_MAX_SELECTION_ROWS])[1])]
            ensemble = candidates[0]
            ensemble.members += [member(ensemble.config, index) for index in range(1, len(orders))]
            if choose_level:
                with work.part(selection):
                    ensemble.level, _ = ensemble._best_level(valid[:_MAX_SELECTION_ROWS])
                ensemble.cells = list(widths) if any(widths) else None
        return ensemble

    def clip(self, x: Tensor) -> Tensor:
        """Clip encoded rows ``(N, M)`` to the range in which the models are evaluated; NaN stays NaN."""
        return _clip(self.members[0], x).cpu()

    def log_conditionals(self, x: Tensor, level: int | None = None, method: str | None = None) -> Tensor:
        """Return each value's log density given the values before it, ``(E, N, M)`` in nats; 0 if it is missing.

        By default the noise level is the ensemble's own, and the normalisation method the model's own.
        """
        options: dict[str, Any] = {"method": method, "tol": self.config.tolerance, "cells": self.cells}
        level = self.level if level is None else level
        return self._by_member(x, lambda model, x: model.log_prob(x, level, reduce=False, **options))

    def score_norms(self, x: Tensor, level: int) -> Tensor:
        """Return the norm of each row's scores at a noise level, ``(E, N)`` in units of :math:`1 / \\sigma`."""

        def norms(model: AutoregressiveModel, x: Tensor) -> Tensor:
            s, _ = model.score(x, level)  # (N, M)
            return (model.path(level)[-1] * model.scale * s).nan_to_num(nan=0.0).norm(dim=-1)

        return self._by_member(x, norms)

    def tail_surprises(self, x: Tensor) -> Tensor:
        """Return how far in the tails of their conditionals each row's values are, ``(E, N)``; see `tail_surprise`."""

        def surprises(model: AutoregressiveModel, x: Tensor) -> Tensor:
            return tail_surprise(model.cdf(x, self.level, tol=self.config.tolerance).nan_to_num(nan=0.5))

        return self._by_member(x, surprises)

    @torch.no_grad()
    def _by_member(self, x: Tensor, evaluate: Callable[[AutoregressiveModel, Tensor], Tensor]) -> Tensor:
        with track("evaluating", len(self.members)) as work:
            return torch.stack([evaluate(model, _clip(model, x)).cpu() for model in work.over(self.members)])

    def most_surprised_members(self, x: Tensor) -> Tensor:
        """Return the member that gives each value of rows ``(N, M)`` the lowest density, ``(N, M)``.

        For a missing value it is the member in whose order the column comes last.
        """
        places = torch.tensor([[model.context.order.index(d) for d in range(model.features)] for model in self.members])
        return torch.where(x.isnan(), places.argmax(0), self.log_conditionals(x).argmin(0))

    def quantiles(self, x: Tensor, u: float, members: Tensor | None = None) -> Tensor:
        """Return the ``u``-quantile of every value given the values before it, ``(N, M)``.

        The order is that of the value's member, by default of :meth:`most_surprised_members`.
        """
        members = self.most_surprised_members(x) if members is None else members
        tolerance = self.config.tolerance
        quantiles = self._by_member(x, lambda model, x: model.conditional_icdf(x, u, self.level, tol=tolerance))
        return quantiles.gather(0, members[None])[0]

    def conditional_quantiles(self, x: Tensor, columns: Tensor, members: Tensor, u: Tensor) -> Tensor:
        """Return quantiles ``u (K,)`` of one conditional of each row ``x (N, M)``, ``(N, K)``.

        It is the conditional of a column by a member, ``(N,)`` each, given the values before it in that member's order.
        """

        def quantiles(conditionals: Conditionals, u: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
            return conditionals.icdf(u.flatten()).view(u.shape) * scale + shift

        return self._by_conditional(x, columns, members, u.expand(len(x), -1), quantiles)

    def conditional_log_density(self, x: Tensor, columns: Tensor, members: Tensor, values: Tensor) -> Tensor:
        """Return log densities at ``values (N, K)`` of conditionals as in :meth:`conditional_quantiles`, ``(N, K)``."""

        def log_density(conditionals: Conditionals, values: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
            return conditionals.log_prob(((values - shift) / scale).flatten()).view(values.shape) - scale.log()

        return self._by_conditional(x, columns, members, values, log_density)

    @torch.no_grad()
    def _by_conditional(
        self, x: Tensor, columns: Tensor, members: Tensor, arguments: Tensor, function: Callable[..., Tensor]
    ) -> Tensor:
        """Apply a function to one conditional of each row, arguments ``(N, K)``, and the column's shift and scale."""
        found = torch.empty(arguments.shape, dtype=x.dtype)
        size = max(1, _CONDITIONALS_AT_A_TIME // arguments.shape[1])
        for index, model in enumerate(self.members):
            build = model.conditionals_builder(self.level, tol=self.config.tolerance)
            for rows in (members == index).nonzero()[:, 0].split(size):
                if not len(rows):
                    continue
                z, d = model.standardise(_clip(model, x[rows])), columns[rows].to(model.shift.device)
                contexts = model.context(z)[torch.arange(len(d)), d]  # (n, C)
                conditionals = build(model.head.project(contexts).repeat_interleave(arguments.shape[1], 0))
                shift, scale = model.shift[d, None], model.scale[d, None]
                found[rows] = function(conditionals, arguments[rows].to(z), shift, scale).cpu()
        return found

    def sample(self, n: int, generator: torch.Generator, progress: bool = False) -> Tensor:
        """Draw encoded rows ``(n, M)``, an equal share from every member, in random order."""
        shares = np.diff(np.linspace(0, n, len(self.members) + 1).astype(int)).tolist()
        with track("sampling", n, progress) as work:
            drawn = [
                model.sample(count, generator=generator, level=self.level).cpu()
                for model, count in work.over(zip(self.members, shares, strict=True), lambda pair: pair[1])
                if count
            ]
        rows = torch.cat(drawn)
        return rows[torch.randperm(len(rows), generator=generator, device=generator.device).cpu()]

    @torch.no_grad()
    def sample_missing(self, x: Tensor, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw ``K`` completions of each row given its known values, ``(N, K, M)``, and their weights ``(N, K)``."""
        per_member = max(1, draws // len(self.members))
        candidates, log_weights = [], []
        with track("drawing", len(self.members)) as work:
            for model in work.over(self.members):
                drawn = particle_filter(
                    model, _clip(model, x), MissingValues(), per_member, generator, tol=self.config.tolerance,
                    level=self.level,
                )  # fmt: skip
                candidates.append(drawn.candidates.cpu())
                log_weights.append((drawn.weights.log() + drawn.log_evidence[:, None]).cpu())
        return torch.cat(candidates, 1), torch.softmax(torch.cat(log_weights, 1), 1)

    def _best_level(self, valid: Tensor) -> tuple[int, float]:
        """Return the noise level, a bandwidth, with the highest mean log density of held-out rows, and that mean."""
        levels = range(self.config.levels // 2, self.config.levels)
        with track("levels", len(levels)) as work:
            means = [float(self.log_conditionals(valid, level).sum(-1).mean()) for level in work.over(levels)]
        best = int(np.argmax(means))
        return levels[best], means[best]


def _clip(model: AutoregressiveModel, x: Tensor) -> Tensor:
    bound = model.scale * _MAX_STANDARD_DEVIATIONS
    return torch.clamp(x.to(model.shift), model.shift - bound, model.shift + bound)


def _orders(columns: int, members: int, seed: int) -> list[list[int]]:
    """Return the order of each member: the table's, its reverse, then random ones."""
    generator = torch.Generator().manual_seed(seed)
    table_order = list(range(columns))
    random = [torch.randperm(columns, generator=generator).tolist() for _ in range(members)]
    return [table_order, table_order[::-1], *random][:members]
