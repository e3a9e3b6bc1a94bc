"""The search for a single order finds the best and the worst of all orders of a small model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from arcsm import MADE, AnyOrder, AutoregressiveModel, CategoricalHead, GaussianHead, MixedHead, NoiseLadder, ScoreHead
from arcsm.queries import learned_order
from small_models import seeded

Case = tuple[AutoregressiveModel, Tensor, dict[str, Any]]


def case(head: Any, columns: int = 4, noise: NoiseLadder | None = None, **context: Any) -> Case:
    """Return a model whose orders disagree, as its weights are random, with 40 rows and no further arguments."""
    torch.manual_seed(0)
    network = AnyOrder(columns, 4, (8, 8), 8, **context)
    with torch.no_grad():
        for parameter in (*network.parameters(), *head.parameters()):
            parameter.add_(0.4 * torch.randn_like(parameter))
    model = AutoregressiveModel(network, head, noise, shift=0.5, scale=2.0).double()
    return model, 0.5 + 2.0 * torch.randn(40, columns, generator=seeded(1), dtype=torch.float64), {}


def of_numbers() -> Case:
    return case(GaussianHead(4))


def with_a_ladder() -> Case:
    return case(ScoreHead(4, (8,)), noise=NoiseLadder(2.0, 0.3, 3))


def with_conditions_and_cells() -> Case:
    model, x, _ = case(GaussianHead(4), condition_features=2)
    condition = torch.randn(40, 2, generator=seeded(2), dtype=torch.float64)
    return model, x.round(), {"condition": condition, "cells": [1.0, 0.0, 1.0, 0.0]}


def with_a_parent() -> Case:
    """Return a model in which dimension 1 says whether dimension 3 has a value."""
    head = MixedHead([GaussianHead(4), CategoricalHead(4, 2)], (0, 1, 0, 0))
    model, x, options = case(head, levels=(0, 2, 0, 0), parents=(-1, -1, -1, 1))
    x[:, 1] = (torch.arange(40) % 3 == 0).double()
    x[x[:, 1] > 0.5, 3] = math.nan
    return model, x, options


def with_contradictions() -> Case:
    """Return rows with values of dimension 3 that dimension 1 rules out, and with gaps in dimension 1."""
    model, x, options = with_a_parent()
    x[:, 3] = x[:, 3].nan_to_num(nan=0.7)
    x[1::5, 1] = math.nan
    return model, x, options


CASES = [of_numbers, with_a_ladder, with_conditions_and_cells, with_contradictions]


def mean_log_density(found: Case, order: Sequence[int]) -> float:
    model, x, options = found
    with torch.no_grad():
        return float(model.log_prob(x, order=order, **options).mean())


def possible_orders(model: AutoregressiveModel) -> list[tuple[int, ...]]:
    """Return all orders in which parents are right before their dimensions."""
    orders = itertools.permutations(range(model.features))
    parents: Any = model.context.parents
    return [
        order for order in orders if all(p < 0 or order.index(d) == order.index(p) + 1 for d, p in enumerate(parents))
    ]


@pytest.mark.parametrize("worst", [False, True])
@pytest.mark.parametrize("build", CASES)
def test_the_best_or_the_worst_of_all_orders_is_found(build: Callable[[], Case], worst: bool) -> None:
    model, x, options = found = build()
    values = {order: mean_log_density(found, order) for order in possible_orders(model)}
    order = learned_order(model, x, worst=worst, generator=seeded(), **options)
    assert max(values.values()) - min(values.values()) > 0.05
    assert values[order] == pytest.approx((min if worst else max)(values.values()), rel=0.0, abs=1e-9)


def test_the_seed_determines_the_order_and_few_evaluations_leave_the_first_start() -> None:
    model, x, _ = case(GaussianHead(4), columns=6)
    first, again = (learned_order(model, x, evaluations=40, generator=seeded(5)) for _ in range(2))
    assert first == again
    assert learned_order(model, x, evaluations=6) == tuple(range(6))  # the terms of the first start
    model.context.order = (5, 4, 3, 2, 1, 0)
    assert learned_order(model, x, starts=0, evaluations=1) == (5, 4, 3, 2, 1, 0)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda model, x: learned_order(model, x[0]), r"x: expected at least one row \(N, 4\), got \(4,\)"),
        (lambda model, x: learned_order(model, x, starts=-1), "starts=-1"),
        (lambda model, x: learned_order(model, x, evaluations=0), "evaluations=0"),
        (lambda model, x: learned_order(model, x, cells=[1.0]), "cells: expected 4 finite steps"),
        (
            lambda model, x: learned_order(AutoregressiveModel(MADE(4, 4), GaussianHead(4)), x),
            "needs an AnyOrder context, got a MADE",
        ),
    ],
)
def test_bad_input_is_an_error(ask: Any, message: str) -> None:
    model, x, _ = of_numbers()
    with pytest.raises(ValueError, match=message):
        ask(model, x)
