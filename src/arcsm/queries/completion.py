"""Draws of unknown values given known ones, and probabilities of events."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from arcsm._runtime.conditions import Condition
from arcsm._runtime.sizes import check_size
from arcsm.contexts.base import Order
from arcsm.model import AutoregressiveModel
from arcsm.model.sampling import Adjustment
from arcsm.queries.constraint_sets import check_columns, draws_parents
from arcsm.queries.constraints import Constraint
from arcsm.queries.drawing import Completions, Drawing, standard_error_of_mean
from arcsm.queries.drawing_order import follow_unknown
from arcsm.queries.every_order import every_order
from arcsm.samplers import Sampler


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
    drawing = Drawing(model, n, generator, condition, order, sampler, level, progress, adjust, last)
    drawn, _ = drawing.draw(x, {"constraints": constraints or {}})
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
    check_columns(constraints, model.features, "constraints")
    known = torch.full((1, model.features), torch.nan) if x is None else x
    given = given or {}
    if given and generator is None:
        generator = torch.Generator(model.shift.device).manual_seed(int(torch.randint(2**31 - 1, ())))
    drawing = Drawing(model, n, generator, condition, order, None, level, progress, adjust, last)
    if not given:
        context = every_order(model)
        x = context.resolved(known)
        unknown = [d for d in context.targets if bool(x[:, d].isnan().any())]
        needs_others = order is None and follow_unknown(constraints, unknown, last)
        single = len(constraints) == 1 and not needs_others and not draws_parents(context, constraints, x)
        drawn, _ = replace(drawing, n=1 if single else n).draw(known, {"constraints": constraints}, [])
        return drawn.probability, torch.zeros_like(drawn.probability) if single else drawn.standard_error
    assert generator is not None
    start, first_columns = generator.get_state(), list(given)
    both, first = drawing.draw(known, {"given": given, "constraints": constraints}, first_columns, constraints)
    if first is None:
        generator.set_state(start)  # so that columns without events get the same values and places in both
        first, _ = drawing.draw(known, {"given": given}, first_columns, constraints)
    of_both, of_given = both.weights_by_order, first.weights_by_order
    found, scale = of_both.mean(1) / of_given.mean(1), of_given.mean(1)
    return found, standard_error_of_mean(of_both - found.unsqueeze(1) * of_given) / scale
