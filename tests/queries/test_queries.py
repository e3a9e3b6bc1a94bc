"""Questions about some columns given others: draws, probabilities and densities agree with the model's conditionals."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from arcsm import (
    MADE,
    AnyOrder,
    AutoregressiveModel,
    CategoricalHead,
    GaussianHead,
    MixedHead,
    NoiseLadder,
    ScoreHead,
)
from arcsm.errors import AccuracyWarning
from arcsm.queries import (
    Intervals,
    Levels,
    complete,
    constraints,
    log_prob_given,
    log_prob_given_others,
    probability,
)

NAN = math.nan
UNKNOWN = torch.full((1, 3), NAN, dtype=torch.float64)


def gaussian_model(seed: int = 2) -> AutoregressiveModel:
    """Return a model in double precision of two numbers and a nominal column with three levels."""
    torch.manual_seed(seed)
    head = MixedHead([GaussianHead(4), CategoricalHead(4, 3)], (0, 0, 1))
    context = AnyOrder(3, 4, (8, 8), 8, levels=(0, 0, 3))
    with torch.no_grad():
        for parameter in (*context.parameters(), *head.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return AutoregressiveModel(context, head, shift=(1.0, -1.0, 0.0), scale=(2.0, 0.5, 1.0)).double()


def score_model() -> AutoregressiveModel:
    torch.manual_seed(0)
    context, head = AnyOrder(3, 4, (8,), 8), ScoreHead(4, (8,))
    return AutoregressiveModel(context, head, NoiseLadder(2.0, 0.2, 6), shift=0.5, scale=2.0).double()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Completion -------------------------------------------------------------------------------------------------------


def test_known_values_stay_and_draws_of_the_others_follow_their_conditional() -> None:
    model = gaussian_model()
    x = torch.tensor([[0.3, NAN, 2.0], [NAN, -1.2, 0.0], [0.1, -0.9, 1.0]], dtype=torch.float64)
    rows, log_weights, orders = complete(model, x, n=4000, generator=seeded())
    assert orders == 8
    assert bool((log_weights == 0.0).all())
    known = ~x.isnan()[:, None].expand_as(rows)
    assert torch.equal(rows[known], x[:, None].expand_as(rows)[known])
    assert not rows.isnan().any()
    for row, d in ((0, 1), (1, 0)):
        u = model.cdf(rows[row], order=[e for e in range(3) if e != d] + [d])[:, d]
        largest = (u.sort().values - torch.arange(1, 4001) / 4000).abs().max()
        assert largest < 1.95 / math.sqrt(4000)  # Kolmogorov-Smirnov, p = 0.001


def test_joint_draws_follow_the_density_given_the_known_values() -> None:
    model, order = gaussian_model(), (2, 0, 1)
    x = torch.tensor([[NAN, -1.2, NAN]], dtype=torch.float64)
    rows = complete(model, x, n=6000, generator=seeded(), order=order).rows[0]
    u = model.cdf(rows, order=(1, 2, 0))[:, 0]
    assert (u.sort().values - torch.arange(1, 6001) / 6000).abs().max() < 1.95 / math.sqrt(6000)
    for level in range(3):
        row = torch.tensor([[NAN, -1.2, level]], dtype=torch.float64)
        expected = model.log_prob(row, reduce=False, order=(1, 2, 0))[0, 2].exp().item()
        share = (rows[:, 2] == level).double().mean().item()
        assert abs(share - expected) < 4.0 * math.sqrt(expected / 6000)


def test_complete_rows_and_no_rows_come_back() -> None:
    model = gaussian_model()
    x = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    assert torch.equal(complete(model, x, n=2, generator=seeded()).rows, x[:, None].expand(1, 2, 3))
    assert complete(model, x[:0], n=2).rows.shape == (0, 2, 3)


# Constraints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [[(-math.inf, 0.5)], [(-3.0, -1.0), (0.0, 0.5), (4.0, math.inf)]])
@pytest.mark.parametrize("build", [gaussian_model, score_model, lambda: score_model().float()])
def test_draws_lie_within_the_intervals_and_are_quantiles_of_the_truncated_conditional(
    build: Any, bounds: list[tuple[float, float]]
) -> None:
    model, count = build(), 400
    x = torch.tensor([[NAN, -1.2, 1.0]], dtype=torch.float64)
    found = complete(model, x, n=count, constraints={0: Intervals(bounds)}, generator=seeded())
    values = found.rows[0, :, 0].double()

    def cdf(values: Tensor) -> Tensor:
        rows = x.expand(len(values), 3).clone()
        rows[:, 0] = values.clamp(-1e3, 1e3)
        return model.cdf(rows, order=(1, 2, 0))[:, 0].double()

    lows, highs = torch.tensor(bounds, dtype=torch.float64).T
    masses = cdf(highs) - cdf(lows)
    weights = found.log_weights.exp().double()
    torch.testing.assert_close(weights, masses.sum().expand(1, count), rtol=1e-5, atol=1e-6)
    inside = (lows <= values[:, None]) & (values[:, None] <= highs)
    assert bool((inside.sum(1) == 1).all())
    below = masses.cumsum(0) - masses - cdf(lows)  # mass of the intervals before each, less that before its low end
    u = ((cdf(values) + (inside * below).sum(1)) / masses.sum()).sort().values
    assert (u - torch.arange(1, count + 1) / count).abs().max() < 1.95 / math.sqrt(count)  # Kolmogorov-Smirnov


def test_draws_do_not_depend_on_the_number_of_conditionals_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, event = gaussian_model(), {0: Intervals([(-math.inf, -1.0), (-1.0, 0.0), (0.5, math.inf)])}
    whole = complete(model, UNKNOWN, n=20, constraints=event, generator=seeded())
    monkeypatch.setattr(constraints, "_CONDITIONALS_AT_A_TIME", 7)
    parts = complete(model, UNKNOWN, n=20, constraints=event, generator=seeded())
    torch.testing.assert_close(parts.rows, whole.rows)
    torch.testing.assert_close(parts.log_weights, whole.log_weights)


def test_a_share_of_a_level_counts_as_much_of_its_probability() -> None:
    model = gaussian_model()
    x = torch.tensor([[0.3, -1.2, NAN]], dtype=torch.float64)
    masses = model.log_prob(torch.tensor([[0.3, -1.2, level] for level in (0.0, 2.0)]).double(), reduce=False)[
        :, 2
    ].exp()
    parts = Levels((2, 0), shares=(0.25, 1.0))
    expected = masses[0] + 0.25 * masses[1]
    torch.testing.assert_close(probability(model, {2: parts}, x)[0], expected.expand(1))
    drawn = complete(model, x, n=3000, constraints={2: parts}, generator=seeded()).rows[0, :, 2]
    assert abs((drawn == 2.0).double().mean().item() - (0.25 * masses[1] / expected).item()) < 1e-3  # stratified draws


def test_the_probability_of_an_event_is_that_of_the_density() -> None:
    model, order = gaussian_model(), (0, 2, 1)
    event = {0: Intervals([(0.0, 2.0)]), 2: Levels((1, 2)), 1: Intervals([(-math.inf, -0.9)])}
    estimate, error = probability(model, event, n=4000, generator=seeded(), order=order)
    grid = torch.linspace(0.0, 2.0, 401, dtype=torch.float64)
    exact = 0.0
    for level in (1.0, 2.0):  # integrate over the first column the mass of the other two
        rows = torch.stack([grid, torch.full_like(grid, -0.9), torch.full_like(grid, level)], 1)
        terms = model.log_prob(rows, reduce=False, order=order)
        density = (terms[:, 0] + terms[:, 2]).exp() * model.cdf(rows, order=order)[:, 1]
        exact += torch.trapezoid(density, grid).item()
    assert error.item() < 0.05 * exact
    assert abs(estimate.item() - exact) < 4.0 * error.item() + 1e-5


def test_probabilities_given_sets_are_those_of_accepted_draws_and_sum_to_one() -> None:
    model, given = gaussian_model(), {0: Intervals([(1.0, math.inf)]), 1: Intervals([(-1.4, -0.4)])}
    found = [probability(model, {2: Levels([k])}, n=800, generator=seeded(), given=given) for k in range(3)]
    assert sum(value.item() for value, _ in found) == pytest.approx(1.0, rel=1e-9)
    rows = complete(model, UNKNOWN, n=20000, constraints=given, generator=seeded(1))
    for k, (value, error) in enumerate(found):
        share = (rows.weights[0] * (rows.rows[0, :, 2] == k)).sum()
        assert abs(value - share).item() < 4.0 * (error.item() + 0.5 / math.sqrt(20000))
    nothing = {0: Intervals([(1e9, 2e9)])}
    with pytest.warns(AccuracyWarning):
        assert probability(model, {2: Levels([0])}, n=8, generator=seeded(), given=nothing)[0].isnan().all()


def test_only_targets_are_drawn() -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(AnyOrder(3, 4, (8,), 8, targets=(2,)), GaussianHead(4)).double()
    x = torch.tensor([[0.4, NAN, NAN]], dtype=torch.float64)
    drawn = complete(model, x, n=2000, generator=seeded()).rows[0]
    assert bool(drawn[:, 1].isnan().all())
    share = (drawn[:, 2] < 0.5).double().mean().item()
    expected = probability(model, {2: Intervals([(-math.inf, 0.5)])}, x)[0].item()
    assert share == pytest.approx(expected, abs=2e-3)  # the draws are stratified


def test_intersections_of_sets() -> None:
    assert Levels([1, 2, 4]).intersection(Levels([4, 2, 3])) == Levels([2, 4])
    assert Levels([1, 2], [0.5, 0.1]).intersection(Levels([2, 3])) == Levels([2], [0.1])
    assert Levels([1, 2], [0.5, 0.1]).intersection(Levels([2, 1], [0.3, 0.2])) == Levels([1, 2], [0.2, 0.1])
    assert Levels([1]).intersection(Levels([2])) is None
    both = Intervals([(0.0, 2.0), (3.0, 5.0)]).intersection(Intervals([(1.0, 4.0), (4.5, math.inf)]))
    assert both == Intervals([(1.0, 2.0), (3.0, 4.0), (4.5, 5.0)])
    assert Intervals([(2.0, None), (None, 1)]) == Intervals([(-math.inf, 1.0), (2.0, math.inf)])
    assert Intervals([(0.0, 1.0)]).intersection(Intervals([(1.0, 2.0)])) is None
    with pytest.raises(ValueError, match="constraint: expected levels"):
        Intervals([(0.0, 1.0)]).intersection(Levels([1]))
    with pytest.raises(ValueError, match="constraint: expected intervals"):
        Levels([1]).intersection(Intervals([(0.0, 1.0)]))


def test_weights_make_constrained_draws_follow_the_truncated_joint_density() -> None:
    model = gaussian_model()
    event = {0: Intervals([(1.0, math.inf)]), 1: Intervals([(-1.0, math.inf)])}
    found = complete(model, UNKNOWN, n=8000, constraints=event, generator=seeded(), order=(0, 1, 2))
    free = complete(model, UNKNOWN, n=20000, generator=seeded(1), order=(0, 1, 2)).rows[0]
    accepted = free[(free[:, 0] > 1.0) & (free[:, 1] > -1.0)]
    mean = (found.weights[0, :, None] * found.rows[0]).sum(0)
    assert found.weights.sum().item() == pytest.approx(1.0)
    error = accepted.std(0) * (1.0 / len(accepted) + 1.0 / 4000) ** 0.5
    assert bool(((mean - accepted.mean(0)).abs() < 4.0 * error).all())


# Densities --------------------------------------------------------------------------------------------------------


def test_densities_of_some_columns_given_others_are_terms_of_the_chain_rule() -> None:
    model = gaussian_model()
    x = torch.tensor([[0.3, -1.2, 1.0], [NAN, -0.5, 2.0]], dtype=torch.float64)
    terms = model.log_prob(x, reduce=False, order=(2, 0, 1))
    torch.testing.assert_close(log_prob_given(model, x, [2]), terms[:, 0] + terms[:, 1])
    torch.testing.assert_close(log_prob_given(model, x, [2, 0]), terms[:, 1])
    torch.testing.assert_close(log_prob_given(model, x, []), model.log_prob(x))
    backwards = model.log_prob(x, reduce=False, order=(2, 1, 0))
    found = log_prob_given(model, x, [2], order=(1, 0, 2))
    torch.testing.assert_close(found, backwards[:, 0] + backwards[:, 1])


@pytest.mark.parametrize("build", [gaussian_model, score_model])
def test_each_value_given_all_others_is_the_last_term_of_an_order(build: Any) -> None:
    model = build()
    x = torch.tensor([[0.3, -1.2, 1.0], [NAN, -0.5, 2.0]], dtype=torch.float64)
    found = log_prob_given_others(model, x)
    for d in range(3):
        order = [e for e in range(3) if e != d] + [d]
        expected = model.log_prob(x, reduce=False, order=order)[:, d]
        torch.testing.assert_close(found[:, d], expected)
    assert found[1, 0].item() == 0.0


# Bad input --------------------------------------------------------------------------------------------------------


def made() -> AutoregressiveModel:
    return AutoregressiveModel(MADE(3, 4, (8,), missing=True), GaussianHead(4)).double()


class OwnOrders(MADE):
    any_order = True


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (lambda model, x: complete(made(), x), "needs an AnyOrder context, got a MADE"),
        (lambda model, x: complete(AutoregressiveModel(OwnOrders(3, 4), GaussianHead(4)), x), "OwnOrders, which takes"),
        (lambda model, x: log_prob_given(model, x, [0.5]), "given: expected whole numbers"),
        (lambda model, x: Intervals((0, 1)), r"bounds: expected intervals \(low, high\), with None for an open end"),
        (lambda model, x: complete(model, x, n=1.5), "n=1.5"),
        (lambda model, x: probability(model, {0: Intervals([(0, 1)])}, n=0), "n=0"),
        (lambda model, x: complete(model, x, last=(9,)), "last: expected columns from 0 to 2, got"),
        (lambda model, x: complete(model, x.nan_to_num(nan=7.0)), "whole numbers from 0 to 2 in nominal column 2"),
        (lambda model, x: log_prob_given(model, x.nan_to_num(nan=7.0), [2]), "from 0 to 2 in nominal column 2"),
        (lambda model, x: complete(model, x, constraints={0.5: Levels((0,))}), "expected columns from 0 to 2, got 0.5"),
        (lambda model, x: complete(model, x, constraints={0: (0, 1)}), "expected Intervals or Levels for column 0"),
        (lambda model, x: Levels((0.5,)), "levels"),
        (lambda model, x: complete(model, x, constraints={0: Levels((0,))}), "expected intervals for a numeric column"),
        (lambda model, x: complete(model, x, constraints={2: Intervals([(0, 1)])}), "expected levels for a nominal"),
        (lambda model, x: complete(model, x, constraints={2: Levels((0, 3))}), "levels: expected numbers from 0 to 2"),
        (lambda model, x: complete(model, x.nan_to_num(), constraints={0: Intervals([(0, 1)])}), "column 0 is known"),
        (lambda model, x: complete(model, x, order=(0, 1)), "order: expected integers"),
        (lambda model, x: complete(model, x, sampler="nothing"), "sampler: expected one of"),
        (lambda model, x: probability(model, {}), "constraints: expected at least one column"),
        (lambda model, x: log_prob_given(model, x, [3]), "given: expected columns from 0 to 2, got 3"),
        (lambda model, x: log_prob_given(model, x, [0, 1, 2]), "got all"),
        (lambda model, x: Intervals([(0.0, math.nan)]), "low < high"),
        (lambda model, x: Intervals([(0.0, 2.0), (1.0, 3.0)]), "do not overlap"),
        (lambda model, x: Levels((0, 1), shares=(0.5, 1.5)), "shares: expected a number in"),
    ],
)
def test_impossible_questions_are_errors(question: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        question(gaussian_model(), UNKNOWN)


def test_the_standard_error_includes_the_differences_between_orders() -> None:
    model = gaussian_model()  # untrained, and so inconsistent
    event = {0: Intervals([(0.0, 2.0)]), 2: Levels((1, 2)), 1: Intervals([(-math.inf, -0.9)])}
    one, within = probability(model, event, n=4000, generator=seeded(), order=(0, 1, 2))
    other, _ = probability(model, event, n=4000, generator=seeded(), order=(1, 2, 0))
    mean, error = probability(model, event, n=4000, generator=seeded())
    assert (one - other).abs().item() > 10.0 * within.item()
    assert error.item() > 2.0 * within.item()
    assert min(one, other).item() - 4.0 * error.item() < mean.item() < max(one, other).item() + 4.0 * error.item()


def standard_normal() -> AutoregressiveModel:
    model = AutoregressiveModel(AnyOrder(1, 1, (4,), 4), GaussianHead(1))
    with torch.no_grad():
        model.head.parameters_of.weight.zero_()  # type: ignore[union-attr, operator]
        model.head.parameters_of.bias.copy_(torch.tensor([0.0, math.log(math.expm1(7.0)) - 7.0]))  # type: ignore[union-attr, operator]
    return model


@pytest.mark.parametrize(("dtype", "sign"), [(torch.float32, 1.0), (torch.float64, -1.0)])
def test_events_far_in_the_tails_have_their_probability(dtype: torch.dtype, sign: float) -> None:
    model = standard_normal().to(dtype)
    for k in (3.0, 6.0):
        ends = (k, math.inf) if sign > 0 else (-math.inf, -k)
        unknown = torch.full((1, 1), NAN, dtype=dtype)
        found = complete(model, unknown, n=1000, constraints={0: Intervals([ends])}, generator=seeded())
        expected = 0.5 * math.erfc(k / math.sqrt(2.0))
        assert found.probability.item() == pytest.approx(expected, rel=1e-5)
        values = sign * found.rows[0, :, 0].double()
        assert len(values.unique()) > 900
        density = math.exp(-0.5 * k * k) / math.sqrt(2.0 * math.pi)
        mean = density / expected
        assert values.mean().item() == pytest.approx(mean, abs=4.0 * values.std().item() / math.sqrt(1000))
        assert bool((values >= k).all())


def test_probabilities_integrate_over_columns_before_those_that_follow() -> None:
    model, event = gaussian_model(), {1: Intervals([(0.2, math.inf)])}
    found, error = probability(model, event, n=5_000, generator=seeded(), last=(1,))
    both = {**event, 0: Intervals([(-math.inf, math.inf)]), 2: Levels([0, 1, 2])}
    expected, its_error = probability(model, both, n=5_000, generator=seeded(1), last=(1,))
    assert 0.0 < float(error) < 0.02
    assert abs(float(found - expected)) < 4.0 * math.hypot(float(error), float(its_error))
    drawn = complete(model, UNKNOWN, n=5_000, generator=seeded(2), last=(1,)).rows[0, :, 1]
    assert float((drawn > 0.2).double().mean()) == pytest.approx(float(found), abs=0.02 + 4.0 * float(error))
    rows = torch.tensor([[0.3, NAN, 1.0]], dtype=torch.float64)
    exact, none = probability(model, event, rows, last=(1,))
    assert float(none) == 0.0
    assert float(exact) == float(probability(model, event, rows)[0])
