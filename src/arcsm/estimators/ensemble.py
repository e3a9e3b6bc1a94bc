"""Models of one table, each with another order of the columns: how they are built, trained and asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from arcsm._runtime.progress import track
from arcsm.anomaly.statistics import tail_surprise
from arcsm.contexts import MADE
from arcsm.denoise.corruptions import MissingValues
from arcsm.denoise.restoration import particles
from arcsm.heads import ScoreHead
from arcsm.model import AutoregressiveModel
from arcsm.noise import NoiseLadder
from arcsm.training.config import TrainConfig
from arcsm.training.density import fit

_WAVES = 6
_SIGMA_MAX = 3.0  # standard deviations of a column
_LEVELS = 16
_LARGEST_STEP = 2.0  # between levels of a smooth plan, the most that the flow takes in one step
_TOLERANCE = 1e-3  # nats, of a conditional's log density
_SMOOTH_TOLERANCE = 1e-2  # the same for a smooth plan
_VALIDATED = 512  # noisy copies of held-out rows that a validation is done on, at least
_CHOOSING = 400  # held-out rows that the noise level is chosen on, at most
_FARTHEST = 30.0  # standard deviations: a number farther out is scored there, which is surprising enough


@dataclass(frozen=True)
class Plan:
    """What to build and how long to train, for a table of a size.

    Attributes:
        members: Models, each with another order of the columns.
        context: Features of the context of each column.
        hidden: Units of the context network's layers.
        head: Units of the head's layers.
        sinusoids: FourierFeatures of a value that context and head are shown.
        sigma_min: Smallest noise, in standard deviations of a column.
        levels: Of the noise.
        tolerance: Of a conditional's log density, in nats.
        steps: Training steps, at most.
        batch: Rows a step.
        learning_rate: At its peak.
        missing: Whether values may be missing.
    """

    members: int
    context: int
    hidden: tuple[int, ...]
    head: tuple[int, ...]
    sinusoids: int
    sigma_min: float
    levels: int
    tolerance: float
    steps: int
    batch: int
    learning_rate: float
    missing: bool

    @classmethod
    def of(cls, rows: int, columns: int, missing: bool, smooth: bool = False) -> Plan:
        """The plan for so many rows and columns; a smooth one is for ranking rows, and shows no fine structure."""
        small, large = rows < 2_000, rows >= 20_000
        fine = 0.05 if small else 0.02
        coarse = 0.3 if rows < 500 else 0.15 if small else 0.05 if large else 0.08
        width = 64 if small else 256 if large else 128
        width = max(width, min(2 * columns, 512))
        sigma_min = coarse if smooth else fine
        wide = columns > 300  # time grows with rows, columns and members; there, a fit is minutes and not hours
        return cls(
            members=1 if columns == 1 or large else 2 if wide or not small else 4,
            context=8 if wide else 16,
            hidden=(width, width),
            head=(32, 32) if small or smooth else (48, 48),
            sinusoids=0 if small or smooth else _WAVES,
            sigma_min=sigma_min,
            levels=1 + math.ceil(math.log(_SIGMA_MAX / sigma_min) / math.log(_LARGEST_STEP)) if smooth else _LEVELS,
            tolerance=_SMOOTH_TOLERANCE if smooth else _TOLERANCE,
            steps=1_000 if small else 4_000 if large else 2_500,
            batch=128 if small else 512,
            learning_rate=5e-3,
            missing=missing,
        )

    def sharper(self) -> Plan:
        """The plan for a small table of many repeated or bunched values, which waves and finer noise can follow.

        On others it overfits: held-out rows must say which.
        """
        return replace(self, sinusoids=_WAVES, sigma_min=0.01, levels=22, steps=2 * self.steps)

    def model(self, columns: int, order: Sequence[int]) -> AutoregressiveModel:
        """A model with fresh weights."""
        frequency = 0.5 / self.sigma_min
        made = MADE(
            columns, self.context, self.hidden, order=order, sinusoids=self.sinusoids, max_frequency=frequency,
            missing=self.missing, hide=0.3 if self.missing else 0.0,
        )  # fmt: skip
        head = ScoreHead(self.context, self.head, self.sinusoids, frequency)
        return AutoregressiveModel(made, head, NoiseLadder(_SIGMA_MAX, self.sigma_min, self.levels))

    def training(self, widths: Sequence[float], seed: int, device: str) -> TrainConfig:
        """How to train; the widths are those of the columns' levels."""
        every = max(1, self.steps // 20)
        return TrainConfig(
            objective="csm", steps=self.steps, batch_size=self.batch, learning_rate=self.learning_rate, warmup_steps=50,
            ema=0.99, optimizer="adamw", weight_decay=1e-2, dequantise=tuple(widths), validate_every=every, patience=6,
            seed=seed, device=device,
        )  # fmt: skip


@dataclass
class Ensemble:
    """Trained members and the noise level at which their densities are taken.

    Attributes:
        members: The models, in double precision, of numbers ``(N, M)``; the first has the columns in their order.
        level: Of the noise, chosen on held-out rows.
        plan: What they were built by.
        cells: Widths of the levels of columns, whose discrete values then get their probability; ``None`` for the
            density in the middle, which is faster and ranks as well.
    """

    members: list[AutoregressiveModel]
    level: int
    plan: Plan
    cells: list[float] | None = None

    @classmethod
    def train(
        cls,
        train: Tensor,
        valid: Tensor,
        widths: Sequence[float],
        plans: Sequence[Plan],
        seed: int,
        device: str,
        progress: bool,
        choose_level: bool = True,
    ) -> Ensemble:
        """Train all members: the first by every plan, the others by the one under which held-out rows are likeliest.

        Arguments:
            train: Numbers ``(N, M)``, NaN where missing; those of discrete columns are whole.
            valid: Held-out numbers.
            widths: Of the levels of columns, 0 for continuous ones.
            plans: What to build; several need ``choose_level``.
            seed: Of all randomness.
            device: Where to train.
            progress: Show a progress bar (on a terminal).
            choose_level: Take the noise level at which held-out rows are likeliest, rather than the smallest.
        """
        orders = _orders(train.shape[1], plans[0].members, seed)
        count = len(plans) + len(orders) - 1
        with track("fitting", count, progress and count > 1) as advance:

            def member(plan: Plan, index: int) -> AutoregressiveModel:
                found = _train_member(
                    plan, orders[index], train, valid, widths, seed + index, device, progress and count == 1
                )
                advance()
                return found

            tried = [cls([member(plan, 0)], plan.levels - 1, plan) for plan in plans]
            if len(tried) > 1:
                tried = [max(tried, key=lambda one: one._best_level(valid[:_CHOOSING])[1])]
            ensemble = tried[0]
            ensemble.members += [member(ensemble.plan, index) for index in range(1, len(orders))]
        ensemble.level = ensemble.plan.levels - 1
        if choose_level:
            ensemble.level, _ = ensemble._best_level(valid[:_CHOOSING])
            ensemble.cells = list(widths) if any(widths) else None
        return ensemble

    @torch.no_grad()
    def terms(self, x: Tensor, level: int | None = None, method: str | None = None) -> Tensor:
        """Log densities of the values given those before, ``(E, N, M)`` in nats; 0 where a value is missing.

        At another noise level, or normalised by another method than the ladder, if one is given.
        """
        level = self.level if level is None else level
        found = []
        for model in self.members:
            inside = self._inside(model, x)
            terms = model.log_prob(
                inside, level, reduce=False, method=method, tol=self.plan.tolerance, cells=self.cells
            )
            found.append(terms.cpu())
        return torch.stack(found)

    @torch.no_grad()
    def score_norms(self, x: Tensor, level: int) -> Tensor:
        """Norms of each row's scores at a noise level, in units of :math:`1 / \\sigma`, ``(E, N)``."""
        found = []
        for model in self.members:
            s, _ = model.score(self._inside(model, x), level)
            found.append((model.path(level)[-1] * model.scale * s).nan_to_num(nan=0.0).norm(dim=-1).cpu())
        return torch.stack(found)

    @torch.no_grad()
    def tails(self, x: Tensor) -> Tensor:
        """How far out in their conditionals the values of each row are, ``(E, N)``; see :func:`tail_surprise`."""
        found = []
        for model in self.members:
            u = model.cdf(self._inside(model, x), self.level, tol=self.plan.tolerance)
            found.append(tail_surprise(u.nan_to_num(nan=0.5)).cpu())
        return torch.stack(found)

    def inside(self, x: Tensor) -> Tensor:
        """Numbers ``(N, M)``, none farther out than what a density is known of; NaN where missing."""
        return self._inside(self.members[0], x).cpu()

    def most_informative(self) -> list[int]:
        """For every column, the member in whose order it comes last: whose conditional is given most."""
        places = torch.tensor([[model.context.order.index(d) for d in range(model.features)] for model in self.members])
        return places.argmax(0).tolist()

    @torch.no_grad()
    def expected(self, x: Tensor, u: float) -> Tensor:
        """Quantiles of every value given others of its row, ``(N, M)``, by the member that is given most."""
        found = torch.stack(
            [
                model.quantile(self._inside(model, x), u, self.level, tol=self.plan.tolerance).cpu()
                for model in self.members
            ]
        )
        return torch.stack([found[member, :, d] for d, member in enumerate(self.most_informative())], 1)

    @torch.no_grad()
    def conditional(self, x: Tensor, d: int, grid: Tensor) -> Tensor:
        """Log density of column ``d`` at values ``grid (G,)`` given the others of one row ``x (M,)``, ``(G,)``."""
        model = self.members[self.most_informative()[d]]
        rows = self._inside(model, x.repeat(len(grid), 1))
        rows[:, d] = grid.to(rows)
        return model.log_prob(rows, self.level, reduce=False, tol=self.plan.tolerance)[:, d].cpu()

    def log_prob(self, x: Tensor) -> Tensor:
        """Of the mixture of all members, ``(N,)``."""
        return torch.logsumexp(self.terms(x).sum(-1), 0) - math.log(len(self.members))

    def sample(self, n: int, generator: torch.Generator, progress: bool = False) -> Tensor:
        """Numbers ``(n, M)``, an equal share from every member, in random order."""
        shares = np.diff(np.linspace(0, n, len(self.members) + 1).astype(int)).tolist()
        drawn = [
            model.sample(count, generator=generator, level=self.level, progress=progress).cpu()
            for model, count in zip(self.members, shares, strict=True)
            if count
        ]
        rows = torch.cat(drawn)
        return rows[torch.randperm(len(rows), generator=generator, device=generator.device).cpu()]

    @torch.no_grad()
    def fill(self, x: Tensor, draws: int, generator: torch.Generator, progress: bool = False) -> tuple[Tensor, Tensor]:
        """Draws of the missing values given the known ones, ``(N, K, M)``, and their weights ``(N, K)``."""
        each = max(1, draws // len(self.members))
        candidates, weights = [], []
        for model in self.members:
            found = particles(
                model, self._inside(model, x), MissingValues(), each, generator,
                tol=self.plan.tolerance, progress=progress, level=self.level,
            )  # fmt: skip
            candidates.append(found.candidates.cpu())
            weights.append((found.weights.log() + found.log_evidence[:, None]).cpu())
        return torch.cat(candidates, 1), torch.softmax(torch.cat(weights, 1), 1)

    @staticmethod
    def _inside(model: AutoregressiveModel, x: Tensor) -> Tensor:
        bound = model.scale * _FARTHEST
        return torch.clamp(x.to(model.shift), model.shift - bound, model.shift + bound)

    def _best_level(self, valid: Tensor) -> tuple[int, float]:
        """The noise level whose density is the largest on held-out rows: a bandwidth that the data choose.

        And their mean log density at it.
        """
        levels = range(self.plan.levels // 2, self.plan.levels)
        found = [float(self.terms(valid, level).sum(-1).mean()) for level in levels]
        best = int(np.argmax(found))
        return levels[best], found[best]


def _train_member(
    plan: Plan,
    order: Sequence[int],
    train: Tensor,
    valid: Tensor,
    widths: Sequence[float],
    seed: int,
    device: str,
    progress: bool,
) -> AutoregressiveModel:
    """A model by a plan, in double precision."""
    below = 0.5 * torch.tensor(widths, dtype=train.dtype)
    copies = max(1, -(-_VALIDATED // len(valid)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = plan.model(train.shape[1], order).float()
    training = plan.training(widths, seed, device)
    fit(model, (train - below).float(), (valid - below).float().repeat(copies, 1), training, progress=progress)
    return model.double().eval()


def _orders(columns: int, members: int, seed: int) -> list[list[int]]:
    """Orders of the columns: their own, its reverse, then random ones, no column favoured."""
    generator = torch.Generator().manual_seed(seed)
    own = list(range(columns))
    random = [torch.randperm(columns, generator=generator).tolist() for _ in range(members)]
    return [own, own[::-1], *random][:members]
