"""Dimensions that do not always have a value: every order, question and draw agrees on when they have one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from arcsm import AnyOrder, AutoregressiveModel, CategoricalHead, GaussianHead, MixedHead
from arcsm.queries import Intervals, Levels, complete, log_prob_given, log_prob_given_others, probability

NAN = math.nan


@pytest.fixture
def model() -> AutoregressiveModel:
    """Return a model of a number, which has a value where the next column is 0, of that column, and of a number."""
    torch.manual_seed(0)
    context = AnyOrder(3, 4, (8, 8), 8, levels=(0, 3, 0), parents=(1, -1, -1))
    return AutoregressiveModel(context, MixedHead([GaussianHead(4), CategoricalHead(4, 3)], (0, 1, 0))).double()


def mass(model: AutoregressiveModel, order: tuple[int, ...] | None = None) -> tuple[float, float]:
    """Return the probabilities of a value, by integration, and of none, for the first column."""
    grid = torch.linspace(-40.0, 40.0, 8001, dtype=torch.float64)
    rows = torch.stack([grid, torch.zeros_like(grid), torch.full_like(grid, NAN)], 1)
    others = torch.tensor([[NAN, level, NAN] for level in (1.0, 2.0)], dtype=torch.float64)
    present = torch.trapezoid(model.log_prob(rows, order=order).exp(), grid).item()
    return present, model.log_prob(others, order=order).exp().sum().item()


@pytest.mark.parametrize("order", [None, (1, 0, 2), (1, 2, 0), (2, 1, 0)])
def test_the_density_is_normalised_in_every_order(model: AutoregressiveModel, order: tuple[int, ...] | None) -> None:
    assert sum(mass(model, order)) == pytest.approx(1.0, abs=1e-6)
    assert model.context.order == (1, 0, 2)  # the default
    drawn = model.sample(4000, generator=torch.Generator().manual_seed(0), order=order)
    share = (drawn[:, 1] == 0.0).double().mean().item()
    assert share == pytest.approx(mass(model, order)[0], abs=4.0 * 0.5 / math.sqrt(4000))
    assert (drawn[:, 0].isnan() == (drawn[:, 1] > 0.0)).all()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), [[1, 0, 2], [0, 1, 2]]])
def test_a_dimension_before_its_parent_is_rejected(model: AutoregressiveModel, order: object) -> None:
    with pytest.raises(ValueError, match="order: expected dimension 1, the parent of 0, before it"):
        model.log_prob(torch.zeros(2, 3).double(), order=torch.tensor(order))
    if isinstance(order, tuple):
        with pytest.raises(ValueError, match="the parent of 0"):
            AnyOrder(3, 4, (8,), 8, levels=(0, 3, 0), parents=(1, -1, -1), order=order)
    with pytest.raises(ValueError, match="given: column 0 has the parent 1; give it, too"):
        log_prob_given(model, torch.zeros(2, 3).double(), [0])


def test_a_known_value_says_that_there_is_one(model: AutoregressiveModel) -> None:
    x = torch.tensor([[0.7, NAN, NAN]], dtype=torch.float64)
    drawn = complete(model, x, n=200, generator=torch.Generator().manual_seed(0)).rows[0]
    assert (drawn[:, 1] == 0.0).all()
    known = torch.tensor([[0.7, 0.0, NAN]], dtype=torch.float64)
    again = complete(model, known, n=200, generator=torch.Generator().manual_seed(0)).rows[0]
    torch.testing.assert_close(drawn, again)


def test_an_event_of_a_dimension_needs_a_value(model: AutoregressiveModel) -> None:
    event = {0: Intervals([(-1.0, 2.0)])}
    grid = torch.linspace(-1.0, 2.0, 2001, dtype=torch.float64)

    def truth(parent: Tensor) -> float:
        rows = torch.stack([grid, parent.expand_as(grid), torch.full_like(grid, NAN)], 1)
        return torch.trapezoid(model.log_prob(rows).exp(), grid).item()

    value, error = probability(model, event)
    assert (value.item(), error.item()) == (pytest.approx(truth(torch.zeros(())), abs=1e-6), 0.0)
    either = probability(model, {1: Levels([0, 2]), **event}, n=20_000)[0].item()  # "if there is one"
    alone = model.log_prob(torch.tensor([[NAN, 2.0, NAN]], dtype=torch.float64)).exp().item()
    assert either == pytest.approx(value.item() + alone, abs=0.01)
    some_known = torch.tensor([[NAN, 0.0, NAN], [NAN, 1.0, NAN], [NAN, NAN, NAN]], dtype=torch.float64)
    found = probability(model, event, some_known, n=4000, generator=torch.Generator().manual_seed(0))[0]
    assert found[1] == 0.0
    assert found[2].item() == pytest.approx(value.item(), abs=0.02)
    assert found[0] > value


def test_a_value_that_its_parent_rules_out_counts_as_missing(model: AutoregressiveModel) -> None:
    impossible = torch.tensor([[0.7, 2.0, -1.0]], dtype=torch.float64)
    absent = torch.tensor([[NAN, 2.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(model.log_prob(impossible), model.log_prob(absent))
    torch.testing.assert_close(log_prob_given_others(model, impossible), log_prob_given_others(model, absent))


def test_sets_of_a_parent_and_its_dimension_may_be_given(model: AutoregressiveModel) -> None:
    def found(event: dict[int, object], given: dict[int, object] | None = None) -> float:
        generator = torch.Generator().manual_seed(0)
        return probability(model, event, n=400, generator=generator, given=given)[0].item()  # type: ignore[arg-type]

    inside, every, none = Intervals([(0.0, math.inf)]), Levels([0, 1, 2]), Levels([1, 2])
    alone = found({0: inside})
    assert found({0: inside}, {1: every}) == pytest.approx(alone, rel=1e-6)
    assert found({0: inside}, {1: none}) == 0.0
    assert found({1: none}, {0: inside}) == 0.0
    assert found({1: every}, {0: inside}) == pytest.approx(1.0)
    assert found({1: Levels([0])}, {0: inside}) == pytest.approx(1.0)
    assert found({0: inside, 1: Levels([0])}, {1: Levels([0, 2])}) == pytest.approx(
        alone / found({1: Levels([0, 2])}), rel=1e-6
    )
    below = Intervals([(-math.inf, 0.0)])
    both_or_none = found({0: inside, 1: every}, {0: below, 1: every})  # only where there is no value
    assert both_or_none == pytest.approx(found({1: none}) / found({0: below, 1: every}), rel=1e-6)
    assert found({0: inside, 1: Levels([0])}, {0: below, 1: every}) == 0.0
    assert found({0: inside}, {0: below, 1: every}) == 0.0
