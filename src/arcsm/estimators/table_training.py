"""The training of the model of a table, and what held-out rows choose: its configuration, step and noise level."""

import copy
import math
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from arcsm._runtime.modes import torch_threads
from arcsm._runtime.progress import track
from arcsm.contexts import AnyOrder
from arcsm.contexts.linear_base import LinearBase
from arcsm.errors import TrainingWarning
from arcsm.estimators.gaps import gap_dependence
from arcsm.estimators.level_calibration import calibrate_levels, mix_levels
from arcsm.estimators.model_columns import ModelColumns
from arcsm.estimators.table_config import FEW_ROWS, TableConfig
from arcsm.estimators.table_model import Order, TableModel, with_last
from arcsm.model import AutoregressiveModel
from arcsm.training.callbacks import Callback, TrainingState
from arcsm.training.config import TrainConfig
from arcsm.training.data import set_moments
from arcsm.training.density import fit

_MIN_VALIDATION_ROWS = 512  # held-out rows repeat with fresh noise up to this number
_MAX_SELECTION_ROWS = 250  # held-out rows that choose weights, noise level and configuration
_SELECTION_TOLERANCE = 1e-2  # nats, of a conditional's log density
_COPIES = 4  # of rows, with different numbers reflected at the ends of their ranges
_BRANCHES = (0.15, 0.4)  # shares of the steps of a training after which a copy of its model is annealed
_BRANCHES_OF_FEW = (0.05, *_BRANCHES)  # likewise, for fewer training rows than the following number
_MANY_ROWS = 2_000
_LEAST_STEPS = 50  # of the shortest training that is compared
_BRANCH_STEPS = 0.05  # share of the steps in which the learning rate of a copy falls to zero
_SNAPSHOTS_OF_TARGETS = (0.05, 0.1, 0.2, 0.4, 0.7)  # likewise, of their averaged weights: branches did not help
_SNAPSHOTS_OF_FEW = (1 / 30, 1 / 15, 2 / 15, 4 / 15, 8 / 15)  # likewise, of nominal ones of few rows, soon overfitted
_MAX_NUMBERS = 256  # columns of numbers among which lines are looked for
_LEAST_GAIN = 0.05  # nats, of lines before the maps of columns over lines after them
_SMALL_SETS = 2  # values, which have a network of their own
_LEVELS_TRIED = 10  # above the smallest noise
_WORSE = 0.02  # nats below the best noise level or length of training, at which a search ends


class Lines(NamedTuple):
    """The columns of a table that lie near a line, given all others."""

    scales: dict[int, float]  # how far off they are, in standard deviations of the column
    extended: list[int]  # those with gaps where the line leaves the range of the known values
    exponents: Tensor | None = None  # of the maps of columns, before which they are on the line; default: after them


def train_table_model(
    train: Tensor,
    valid: Tensor,
    columns: ModelColumns,
    lines: Lines,
    configs: Sequence[TableConfig],
    seed: int,
    device: str,
    progress: bool,
    choose_level: bool = True,
    targets: Sequence[int] | None = None,
    hints: Sequence[int] = (),
) -> TableModel:
    """Train a model with each configuration, and return the one that gives held-out rows ``(N, M)`` most density.

    Held-out rows choose the length of the training and the noise level, too: those with the highest density. Small sets
    of known values then get a network of their own. Without ``choose_level`` there is one configuration, whose loss on
    held-out rows ends the training, and the noise level is the smallest. The ``lines`` are those of :func:`lines_of`.
    With ``targets``, the last columns, the density is theirs given the others. Half of the training rows do not know
    the ``hints``, columns that say so much that the network would learn little from the others.
    """
    dimensions = None if targets is None else columns.dimensions(targets)
    below = 0.5 * torch.tensor(columns.widths, dtype=train.dtype)  # dequantisation adds noise in [0, width)
    copies = torch.cat([train, train.index_fill(1, torch.tensor(hints), torch.nan)]) if hints else train
    copies = copies.repeat(_COPIES, 1) if columns.ends else copies
    located = bool(lines.scales)
    widths = {m: width * lines.scales.get(m, 1.0) for m, width in columns.reflection_widths(train).items()}
    shares, random = columns.shares_of_others(train), torch.Generator()
    others = columns.others(copies, shares, random.manual_seed(seed))
    inputs = (columns.inputs(columns.reflected(copies, others, widths, random), others) - below).float()
    repeats = max(1, -(-_MIN_VALIDATION_ROWS // len(valid)))
    held_out = None
    if not choose_level:
        held_out = (columns.inputs(valid, columns.others(valid, shares, random)) - below).float().repeat(repeats, 1)
    last, balance = gap_dependence(train) if targets is None else ((), 0.0)
    orders = several_orders(train.shape[1], configs[0].orders, seed, last)
    small_sets = min(_SMALL_SETS, len(columns.counts) - 2) if choose_level and targets is None else 0
    steps = sum(config.max_steps for config in configs) + (_small_set_steps(configs[0]) if small_sets > 0 else 0)
    cells = list(columns.widths) if choose_level and any(columns.widths) else None
    candidates = list[tuple[float, TableModel]]()
    some = valid[:_MAX_SELECTION_ROWS]
    lengths = _compared_lengths(columns, len(train), configs[0].max_steps, targets)
    rows, held_out_rows = (columns.inputs(part, columns.others(part, shares, random)) for part in (train, some))
    calibrate = partial(_calibrate, rows=rows, held_out=held_out_rows, seed=seed)
    with track("fitting", steps, progress) as work:
        for config in configs:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = config.build_model(columns, dimensions, balance, located, lines.exponents).float()
            if choose_level and targets is None:
                mix_levels(model, rows)
            trained = copy.deepcopy(model).to(device).double().eval()
            candidate = TableModel(trained, columns, orders, config.noise_levels - 1, config, cells)
            candidate.reach, candidate.last = dict(widths), last
            training = config.train_config(columns.widths, seed, device, choose_level)
            with torch_threads(1):
                set_moments(model, inputs[: len(train)], None, training)  # copies would look like more evidence
            training = training.model_copy(update={"standardise": "none"})
            choice = _Choice(candidate, training, inputs, some, lengths, calibrate, targets)
            with work.part(config.max_steps), warnings.catch_warnings():
                if choose_level:  # the best weights are kept, wherever the training ends
                    warnings.simplefilter("ignore", TrainingWarning)
                _fit(model, inputs, held_out, training, [choice] if choose_level else ())
            trained.load_state_dict(choice.weights if choose_level else model.state_dict())
            if not choose_level:
                calibrate(trained)
            candidates.append((choice.density, candidate))
        chosen = max(candidates, key=lambda pair: pair[0])[1]
        if small_sets > 0:
            with work.part(_small_set_steps(configs[0])):
                _learn_small_sets(chosen, small_sets, inputs, seed, device)
        chosen.measure_reach(some)
    return chosen


def _fit(
    model: AutoregressiveModel,
    inputs: Tensor,
    held_out: Tensor | None,
    config: TrainConfig,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train on one thread. The products of a step are small: two threads gain nothing, and wait for each other."""
    with torch_threads(1):
        fit(model, inputs, held_out, config, callbacks=callbacks)


def _small_set_steps(config: TableConfig) -> int:
    return max(1, round(config.small_set_steps * config.max_steps))


def _learn_small_sets(table: TableModel, size: int, inputs: Tensor, seed: int, device: str) -> None:
    """Give the sets of at most ``size`` values a network of their own, and train it.

    The training of all sets ends when large ones are overfitted. What one or two values tell is not learned by then.
    """
    model, config = copy.deepcopy(table.model).float(), table.config
    steps = _small_set_steps(config)
    changes = {
        "steps": steps, "batch_size": config.batch_size_of_small_sets, "standardise": "none",
        "learning_rate": config.rate_of_small_sets, "optimizer": "adamw",
    }  # fmt: skip
    other_seed = (seed + 1) % 2**63  # for other sets than those of the training before
    training = config.train_config(table.columns.widths, other_seed, device, to_the_end=True).model_copy(update=changes)
    assert isinstance(model.context, AnyOrder)
    model.head.requires_grad_(False)
    with model.context.small_sets_only(size), warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)  # of a loss that is noisier, being that of few values
        _fit(model, inputs, None, training)
    model.head.requires_grad_(True)
    table.model = model.to(table.model.shift.device).double().eval()


def lines_of(columns: ModelColumns, train: Tensor) -> Lines:
    """Return the columns of rows ``(N, M)`` that lie near a line.

    A model in units of the distance resolves what a network would blur; see
    :class:`~arcsm.contexts.linear_base.LinearBase`.
    """
    if columns.counts.count(0) > _MAX_NUMBERS:
        return Lines({}, [])
    inputs = columns.inputs(train).double()
    noise = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0), dtype=inputs.dtype) - 0.5
    inputs += noise * torch.tensor(columns.widths, dtype=inputs.dtype)  # which the training sees, too
    inputs[:, [d for d, count in enumerate(columns.counts) if count]] = torch.nan
    mean = inputs.nanmean(0)
    unit = (inputs - mean).square().nanmean(0).sqrt()
    z, plain = (inputs - mean) / unit, torch.ones(inputs.shape[1], dtype=torch.float64)
    exponents = plain.clone()
    exponents[: columns.columns] = torch.tensor([kind.exponent_of_map for kind in columns.kinds])
    found = list[tuple[float, LinearBase, Tensor]]()
    for one in (plain, exponents) if bool((exponents != 1.0).any()) else (plain,):
        base = LinearBase(len(plain)).double()
        base.set_maps(one, mean, unit)
        base.fit(z)
        pairs = base.located_by_others(z, ~z.isnan())
        found.append((float(pairs[..., 1].sum(-1).mean()), base, pairs))
    _, base, pairs = found[-1] if found[-1][0] < found[0][0] - _LEAST_GAIN else found[0]
    known = ~z.isnan()
    low, high = z.nan_to_num(nan=math.inf).amin(0), z.nan_to_num(nan=-math.inf).amax(0)
    beyond = ((pairs[..., 0] < low) | (pairs[..., 0] > high)) & ~known & (pairs[..., 1] < 0.0)
    scales = {d: scale for d, scale in enumerate(base.scales.tolist()) if scale < 1.0}
    return Lines(scales, [d for d in scales if bool(beyond[:, d].any())], base.exponent if base.has_maps else None)


def _calibrate(model: AutoregressiveModel, rows: Tensor, held_out: Tensor, seed: int) -> None:
    """Calibrate the levels of a model, if it has any, by training and held-out rows ``(N, D)``."""
    if any(model.discrete):
        calibrate_levels(model, rows.to(model.shift), held_out.to(model.shift), seed)


def _compared_lengths(columns: ModelColumns, rows: int, steps: int, targets: Sequence[int] | None) -> Sequence[float]:
    """Return the fractions of the steps after which models are compared."""
    if targets is None:
        may_be_short = rows < _MANY_ROWS and _BRANCHES_OF_FEW[0] * steps >= _LEAST_STEPS
        return _BRANCHES_OF_FEW if may_be_short else _BRANCHES
    if rows < FEW_ROWS and all(columns.counts[m] for m in targets):
        return [share for share in _SNAPSHOTS_OF_FEW if share * steps >= _LEAST_STEPS]
    return _SNAPSHOTS_OF_TARGETS


class _Choice:
    """The choice among trainings of different lengths, and among noise levels.

    After fractions ``lengths`` of the steps, a copy of the model is annealed: it is trained until its learning rate is
    zero, as if the training were shorter. Of the models, once they are calibrated, the one that gives held-out rows
    ``(N, M)`` the highest density is kept. The training ends when a longer one gives a lower density. With ``targets``,
    the averaged weights after these steps are compared instead.
    """

    def __init__(
        self,
        candidate: TableModel,
        config: TrainConfig,
        inputs: Tensor,
        valid: Tensor,
        lengths: Sequence[float],
        calibrate: Callable[[AutoregressiveModel], None],
        targets: Sequence[int] | None,
    ) -> None:
        self.threads = torch.get_num_threads()
        self.candidate, self.config, self.inputs = candidate, config, inputs
        self.valid, self.calibrate, self.targets = valid, calibrate, targets
        self.density, self.weights = -math.inf, dict[str, Tensor]()
        self.steps = {max(1, round(share * config.steps)) for share in (*lengths, 1.0)}

    def on_step(self, state: TrainingState) -> None:
        if state.step not in self.steps:
            return
        needs_annealing = self.targets is None and state.step < self.config.steps
        model = self._annealed(state) if needs_annealing else state.averaged_model
        with torch_threads(self.threads):
            is_worse = self._compare(model)
        if is_worse:
            state.stop()

    def _annealed(self, state: TrainingState) -> AutoregressiveModel:
        """Return a copy of the model, trained further until the learning rate is zero."""
        model: AutoregressiveModel = copy.deepcopy(state.model)
        steps, rate = max(1, round(_BRANCH_STEPS * self.config.steps)), state.optimizer.param_groups[0]["lr"]
        changes = {"steps": steps, "learning_rate": rate, "seed": (self.config.seed + state.step) % 2**63}
        _fit(model, self.inputs, None, self.config.model_copy(update=changes))
        return model

    def _compare(self, model: AutoregressiveModel) -> bool:
        """Keep the calibrated weights of a model, and its noise level, if they are the best so far.

        Return whether they are no better than others before or, if targets are predicted, worse by more than noise.
        """
        self.candidate.model.load_state_dict(model.state_dict())
        self.calibrate(self.candidate.model)
        weights = {name: tensor.to("cpu", copy=True) for name, tensor in self.candidate.model.state_dict().items()}
        level, density = self._best_level()
        if math.isnan(density):
            density = -math.inf
        is_first, margin = not self.weights, 0.0 if self.targets is None else _WORSE
        is_worse = not is_first and density <= self.density - margin
        if is_first or density > self.density:
            self.density, self.weights, self.candidate.level = density, weights, level
        return is_worse

    def _best_level(self) -> tuple[int, float]:
        candidate = self.candidate
        rough = replace(candidate.config, tolerance=_SELECTION_TOLERANCE)
        few = replace(candidate, orders=candidate.orders[:2], config=rough)
        last = candidate.config.noise_levels - 1

        def density(level: int) -> float:
            if self.targets is not None:
                return float(replace(few, level=level).log_prob_of_last(self.valid, self.targets).mean())
            terms = few.log_conditionals(self.valid, level).sum(-1)
            return float(torch.logsumexp(terms, 0).mean()) - math.log(len(terms))

        levels = range(max(last - _LEVELS_TRIED, 0), last + 1)
        return _climb(density, candidate.level, levels, 0.0 if self.weights else _WORSE)


def _climb(density: Callable[[int], float], start: int, levels: range, tolerance: float) -> tuple[int, float]:
    """Return the noise level with the highest density, and that density, as far as steps from a level lead up.

    A step in one direction may lead down by no more than the tolerance below the best.
    """
    found = {start: density(start)}
    for step in (-1, 1):
        level = start + step
        while level in levels:
            found[level] = density(level)
            if found[level] < max(found.values()) - tolerance:
                break
            level += step
    best = max(found, key=lambda one: found[one])
    return best, found[best]


def several_orders(columns: int, count: int, seed: int, last: Collection[int] = ()) -> list[Order]:
    """Return different orders: the table's, its reverse, then random ones, each with some columns ``last``."""
    generator = torch.Generator().manual_seed(seed)
    found = [tuple(range(columns)), tuple(range(columns))[::-1]]
    found += [tuple(torch.randperm(columns, generator=generator).tolist()) for _ in range(4 * count)]
    return list(dict.fromkeys(with_last(order, last) for order in found))[:count]
