"""The training of the model of a table, and what held-out rows choose: its configuration, step and noise level."""

import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from arcsm._runtime.progress import track
from arcsm.errors import TrainingWarning
from arcsm.estimators.gaps import gap_dependence
from arcsm.estimators.level_calibration import calibrate_levels
from arcsm.estimators.model_columns import ModelColumns
from arcsm.estimators.table_config import TableConfig
from arcsm.estimators.table_model import Order, TableModel, with_last
from arcsm.training.callbacks import TrainingState
from arcsm.training.density import fit

_MIN_VALIDATION_ROWS = 512  # held-out rows repeat with fresh noise up to this number
_MAX_SELECTION_ROWS = 250  # held-out rows that choose weights, noise level and configuration
_SELECTION_TOLERANCE = 1e-2  # nats, of a conditional's log density
_COPIES = 4  # of rows, with different numbers reflected at the ends of their ranges
_SNAPSHOTS = (0.4, 0.7, 1.0)  # shares of the steps of a training after which its weights are compared
_SNAPSHOTS_OF_TARGETS = (0.05, 0.1, 0.2, *_SNAPSHOTS)  # whose conditionals are soon overfitted
_LEVELS_TRIED = 10  # above the smallest noise
_WORSE = 0.02  # nats below the best noise level, at which the search among the last weights ends
_SELECTION_TIME = 0.2  # of a model's noise level, relative to its training; sets the pace of the progress bar


def train_table_model(
    train: Tensor,
    valid: Tensor,
    columns: ModelColumns,
    configs: Sequence[TableConfig],
    seed: int,
    device: str,
    progress: bool,
    choose_level: bool = True,
    targets: Sequence[int] | None = None,
) -> TableModel:
    """Train a model with each configuration, and return the one that gives held-out rows ``(N, M)`` most density.

    Held-out rows choose the step of the training and the noise level, too: those with the highest density. Without
    ``choose_level`` there is one configuration, whose loss on held-out rows ends the training, and the noise level is
    the smallest. With ``targets``, the last columns, the density is theirs given the others.
    """
    dimensions = None if targets is None else columns.dimensions(targets)
    below = 0.5 * torch.tensor(columns.widths, dtype=train.dtype)  # dequantisation adds noise in [0, width)
    copies = train.repeat(_COPIES, 1) if columns.ends else train
    widths, shares, random = columns.reflection_widths(train), columns.shares_of_others(train), torch.Generator()
    others = columns.others(copies, shares, random.manual_seed(seed))
    inputs = (columns.inputs(columns.reflected(copies, others, widths, random), others) - below).float()
    repeats = max(1, -(-_MIN_VALIDATION_ROWS // len(valid)))
    held_out = None
    if not choose_level:
        held_out = (columns.inputs(valid, columns.others(valid, shares, random)) - below).float().repeat(repeats, 1)
    last, balance = gap_dependence(train) if targets is None else ((), 0.0)
    orders = several_orders(train.shape[1], configs[0].orders, seed, last)
    steps = sum(config.max_steps for config in configs)
    selection = _SELECTION_TIME * steps if choose_level else 0.0
    cells = list(columns.widths) if choose_level and any(columns.widths) else None
    candidates = list[tuple[float, TableModel]]()
    with track("fitting", steps + selection, progress) as work:
        for config in configs:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = config.build_model(
                    columns.counts, columns.parents, dimensions, columns.ordered, balance
                ).float()
            parts = _SNAPSHOTS if targets is None else _SNAPSHOTS_OF_TARGETS
            snapshots = _Snapshots([part * config.max_steps for part in parts]) if choose_level else None
            with work.part(config.max_steps), warnings.catch_warnings():
                if choose_level:  # the weights of several steps are compared below
                    warnings.simplefilter("ignore", TrainingWarning)
                training = config.train_config(columns.widths, seed, device, choose_level)
                fit(model, inputs, held_out, training, callbacks=() if snapshots is None else [snapshots])
            candidate = TableModel(model.double().eval(), columns, orders, config.noise_levels - 1, config, cells)
            candidate.fine_steps = None if choose_level else config.fine_steps
            candidate.reach, candidate.last = dict(widths), last
            with work.part(selection / len(configs)):
                few = valid[:_MAX_SELECTION_ROWS]
                density = -math.inf if snapshots is None else _choose(candidate, snapshots.weights, few, targets)
            candidates.append((density, candidate))
        chosen = max(candidates, key=lambda pair: pair[0])[1]
        chosen.measure_reach(valid[:_MAX_SELECTION_ROWS])
        if any(columns.counts):
            rows, calibration_rows = (
                columns.inputs(part, columns.others(part, shares, random)).to(chosen.model.shift)
                for part in (train, valid[:_MAX_SELECTION_ROWS])
            )
            calibrate_levels(chosen.model, rows, calibration_rows, seed)
    return chosen


def _choose(
    candidate: TableModel, weights: Sequence[Mapping[str, Tensor]], valid: Tensor, targets: Sequence[int] | None
) -> float:
    """Take the weights and the noise level with the highest mean log density of held-out rows; return that mean."""
    rough = replace(candidate.config, tolerance=_SELECTION_TOLERANCE)
    few = replace(candidate, orders=candidate.orders[:2], config=rough)
    last = candidate.config.noise_levels - 1

    def density(level: int) -> float:
        if targets is not None:
            return float(replace(few, level=level).log_prob_of_last(valid, targets).mean())
        terms = few.log_conditionals(valid, level).sum(-1)
        return float(torch.logsumexp(terms, 0).mean()) - math.log(len(terms))

    best, chosen, levels = -math.inf, 0, range(max(last - _LEVELS_TRIED, 0), last + 1)
    with track("selecting", len(weights)) as work:
        for index in work.over(reversed(range(len(weights)))):
            candidate.model.load_state_dict(weights[index])
            level, found = _climb(density, candidate.level, levels, 0.0 if math.isfinite(best) else _WORSE)
            if found > best:
                best, chosen, candidate.level = found, index, level
    candidate.model.load_state_dict(weights[chosen])
    return best


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


class _Snapshots:
    """The averaged weights at some steps of a training, the last one included."""

    def __init__(self, steps: Sequence[float]) -> None:
        self.steps = {max(1, round(step)) for step in steps}
        self.weights = list[dict[str, Tensor]]()

    def on_step(self, state: TrainingState) -> None:
        if state.step in self.steps:
            weights = state.averaged_model.state_dict()
            self.weights.append({name: tensor.detach().double().clone() for name, tensor in weights.items()})


def several_orders(columns: int, count: int, seed: int, last: Collection[int] = ()) -> list[Order]:
    """Return different orders: the table's, its reverse, then random ones, each with some columns ``last``."""
    generator = torch.Generator().manual_seed(seed)
    found = [tuple(range(columns)), tuple(range(columns))[::-1]]
    found += [tuple(torch.randperm(columns, generator=generator).tolist()) for _ in range(4 * count)]
    return list(dict.fromkeys(with_last(order, last) for order in found))[:count]
