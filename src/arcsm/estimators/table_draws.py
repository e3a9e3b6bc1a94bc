"""Draws from the model of a table, and probabilities of events.

Rows are encoded: numbers ``(N, M)``, NaN where a value is missing.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arcsm import queries
from arcsm._runtime.progress import track
from arcsm.denoise import systematic_resampling
from arcsm.estimators.table_model import TableModel
from arcsm.queries import Completions, Constraint
from arcsm.queries.drawing_order import follow_unknown

_DRAWS_AT_A_TIME = 10_000
_CANDIDATES_PER_DRAW = 8  # with several sets or ranges, whose draws have weights


def sample(table: TableModel, n: int, generator: torch.Generator, progress: bool = False) -> Tensor:
    """Draw rows ``(n, M)``, in every order the share that is its weight on average, and shuffle them."""
    offset = float(torch.rand((), generator=generator, device=generator.device))
    before = np.floor(n * np.cumsum([0.0, *table.weights[:-1]]) + offset).astype(int)
    shares = np.diff([*before, n]).tolist()
    options: dict[str, Any] = {"generator": generator, "level": table.level, "adjust": table.columns.mirrored}
    with track("sampling", n, progress) as work:
        drawn = [
            table.model.sample(count, order=table.columns.dimensions(order), **options).cpu()
            for order, count in work.over(zip(table.orders, shares, strict=True), lambda pair: pair[1])
            if count
        ]
    rows = torch.cat(drawn)
    rows = rows[torch.randperm(len(rows), generator=generator, device=generator.device).cpu()]
    return table.columns.numbers(rows, generator)


def complete(
    table: TableModel,
    x: Tensor,
    n: int,
    generator: torch.Generator,
    constraints: Mapping[int, Constraint] | None = None,
) -> Completions:
    """Draw ``n`` completions of each row ``(N, M)`` given its known values; see :func:`arcsm.queries.complete`."""
    inputs = table.inputs(x).float()
    constraints = constraints or {}
    sets = table.columns.constraints(constraints)
    drawn = queries.complete(
        table.in_single_precision(), inputs, n, sets, generator, level=table.level, adjust=table.columns.mirrored,
        last=table.columns.dimensions(table.last),
    )  # fmt: skip
    rows = table.columns.numbers(drawn.rows.cpu().double(), generator, constraints)
    return drawn._replace(rows=torch.where(x.isnan()[:, None], rows, x[:, None]), log_weights=drawn.log_weights.cpu())


def draw_given(
    table: TableModel, known: Tensor, constraints: Mapping[int, Constraint], draws: int, generator: torch.Generator,
    progress: bool,
) -> tuple[Tensor, float]:  # fmt: skip
    """Draw completions of one row ``(1, M)`` within constraints, ``(draws, M)``.

    The second result is the number of independent draws that they are worth.

    Raises:
        ValueError: If the constraints have probability zero.
    """
    weighted = len(table.columns.constraints(constraints)) > 1  # a column with spikes has two
    factor, batches, effective = _CANDIDATES_PER_DRAW if weighted else 1, [], 0.0
    counts = [min(_DRAWS_AT_A_TIME, draws - start) for start in range(0, draws, _DRAWS_AT_A_TIME)]
    with track("drawing", draws, progress) as work:
        for count in work.over(counts, float):
            drawn = complete(table, known, factor * count, generator, constraints)
            weights = drawn.weights.double()
            if not bool(drawn.log_weights.exp().any()):
                raise ValueError("given: the conditions have probability 0 under the model")
            cpu_generator = _on_cpu(generator)
            chosen = systematic_resampling(weights, cpu_generator, count)[0]
            batches.append(drawn.rows[0, chosen[torch.randperm(count, generator=cpu_generator)]])
            effective += 1.0 / float(weights.square().sum())
    return torch.cat(batches), effective


def probability(
    table: TableModel,
    constraints: Mapping[int, Constraint],
    x: Tensor,
    n: int,
    generator: torch.Generator,
    given: Mapping[int, Constraint],
) -> tuple[float, float]:
    """Return the probability of constraints given one row ``(1, M)`` of known values, and its standard error.

    It is exact for a single column, whose spikes and other numbers are evaluated apart, unless unknown columns come
    before it in all draws. Other constraints may be ``given``, as in :func:`arcsm.queries.probability`.

    Raises:
        ValueError: If those have probability zero.
    """
    inputs = table.inputs(x)
    options: dict[str, Any] = {"generator": generator, "level": table.level, "adjust": table.columns.mirrored}
    options["last"] = table.columns.dimensions(table.last)

    def of_column(m: int, constraint: Constraint) -> float:
        parts = table.columns.parts(m, constraint)
        return float(sum(queries.probability(table.model, part, inputs, 1, **options)[0] for part in parts))

    unknown = x[0].isnan().nonzero()[:, 0].tolist()
    if len({**given, **constraints}) == 1 and not follow_unknown(constraints, unknown, table.last):
        ((m, constraint),) = constraints.items()
        value, error, of_given = of_column(m, constraint), 0.0, of_column(m, given[m]) if given else 1.0
        value = value / of_given if of_given else math.nan
    else:
        event, of_others = table.columns.constraints(constraints), table.columns.constraints(given)
        value, error = map(float, queries.probability(table.model, event, inputs, n, given=of_others, **options))
    if math.isnan(value):
        raise ValueError("given: the conditions have probability 0 under the model")
    return min(value, 1.0), error


def _on_cpu(generator: torch.Generator) -> torch.Generator:
    """Return the generator, or one on the CPU that it seeds."""
    if generator.device.type == "cpu":
        return generator
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device))
    return torch.Generator().manual_seed(seed)
