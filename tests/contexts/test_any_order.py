"""AnyOrder: one network whose contexts depend on exactly the values before each dimension, in every order."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import arcsm
from arcsm import MADE, AnyOrder, AutoregressiveModel, GaussianHead
from arcsm._runtime.random import Share
from arcsm.objectives import mle
from incremental_passes import condition_for
from small_models import assert_uniform, seeded
from small_tables import random_moments


def small(features: int = 4, **options: Any) -> AnyOrder:
    """Return a context in double precision, with random biases."""
    context = AnyOrder(features, 3, (8, 8), 6, **options)
    with torch.no_grad():
        for name, parameter in context.named_parameters():
            if name.endswith("bias") or name.endswith(("values.presence", "residual_weight", "unit_weight")):
                parameter.normal_()
    context = context.double()
    if context.base is not None:
        context.base.near = 9.0  # every predictor counts
        context.base.set_moments(random_moments(features))
    if context.linear is not None:
        context.linear.set_moments(random_moments(context.linear.units))
    return context


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    "options",
    [{"located": True, "small_sets": 1}, {"linear_features": True}, {"condition_features": 2, "classes": 3}],
)
def test_steps_equal_the_parallel_pass_with_lines_correlations_and_missing_values(options: dict[str, Any]) -> None:
    context, x = small(sinusoids=2, **options), rows(5, 4)
    x = x.masked_fill(torch.rand_like(x) < 0.3, torch.nan)
    condition = condition_for(context, (5,))
    for order in ((0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0)):
        expected = context(x, condition, order)
        state, previous = context.begin((5,), condition, order), None
        for d in order:
            torch.testing.assert_close(context.step(state, previous), expected[..., d, :], rtol=0.0, atol=1e-12)
            previous = x[..., d]


@pytest.mark.parametrize("linear", [False, True])
def test_a_context_depends_on_exactly_the_features_before_it_in_every_order(linear: bool) -> None:
    torch.manual_seed(0)
    context, x = small(linear_features=linear), rows(4)
    for order in itertools.permutations(range(4)):
        jacobian: Any = torch.autograd.functional.jacobian(lambda z, order=order: context(z, order=order), x)
        influence = jacobian.abs().amax(1)  # (D, D)
        for position, d in enumerate(order):
            assert all(influence[d, e] == 0.0 for e in order[position:])
            assert all(influence[d, e] > 1e-6 for e in order[:position])


def test_a_missing_value_is_one_that_comes_later() -> None:
    torch.manual_seed(0)
    context, x = small(), rows(5, 4)
    last = context(x, order=(0, 1, 3, 2))
    x[:, 2] = torch.nan
    missing = context(x, order=(2, 0, 1, 3))
    torch.testing.assert_close(missing[:, [0, 1, 3]], last[:, [0, 1, 3]], rtol=0.0, atol=1e-13)


# Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"located": True, "small_sets": 1}, {"linear_features": True, "small_sets": 2}]
)
def test_training_predicts_the_values_outside_of_a_random_set(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    context, x = small(**options), rows(20, 4)
    x[torch.rand_like(x) < 0.2] = torch.nan
    terms = context.training_terms(x, generator=torch.Generator().manual_seed(1))
    assert terms.position is not None
    assert terms.weight is not None
    row, d = terms.position // 4, terms.position % 4
    observed = (~x.isnan()).sum(1)
    for index in range(len(x)):
        predicted = d[row == index].tolist()
        known = [e for e in range(4) if e not in predicted and not x[index, e].isnan()]
        assert not x[index, predicted].isnan().any()
        if not predicted:
            assert observed[index] == 0
            continue
        assert torch.allclose(terms.weight[row == index], (observed[index] / len(predicted)).double())
        for e in predicted:
            order = [*known, e, *(f for f in range(4) if f not in (*known, e))]
            expected = context(x[index], order=order)[e]
            found = terms.context[(row == index) & (d == e)][0]
            torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-13)


def test_training_of_small_sets_is_that_of_the_first_values_of_all_orders() -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(small(4), GaussianHead(3).double()).double()
    x, generator = rows(1, 4), torch.Generator().manual_seed(0)
    with model.context.small_sets_only(1):
        batches = torch.stack([mle(model, x.expand(500, 4), generator=generator) for _ in range(40)])
    orders = torch.tensor(list(itertools.permutations(range(4))))
    terms = model.log_prob(x.expand(len(orders), 4), order=orders, reduce=False).gather(1, orders[:, :2])
    exact, error = -terms.sum(1).mean(), batches.std() / math.sqrt(len(batches))
    assert error < 0.01 * exact.abs()
    assert (batches.mean() - exact).abs() < 4.0 * error


def test_training_of_small_sets_leaves_the_contexts_of_larger_ones() -> None:
    torch.manual_seed(0)
    context, x = small(5), rows(64, 5)
    model = AutoregressiveModel(context, GaussianHead(3).double()).double()
    before, others = context(x), {name: weight.clone() for name, weight in context.named_parameters()}
    model.head.requires_grad_(False)
    with context.small_sets_only(2):
        torch.testing.assert_close(context(x), before, rtol=0.0, atol=1e-13)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            mle(model, x).backward()
            optimizer.step()
    after = context(x)
    assert (after - before)[:, :3].abs().amin((0, 2)).min() > 0.0
    assert torch.equal(after[:, 3:], before[:, 3:])
    assert all(torch.equal(others[name], weight) for name, weight in context.named_parameters() if name in others)
    assert all(weight.requires_grad for weight in context.parameters())


def test_vmap_chooses_the_network_by_the_size_of_the_set_and_draws_a_set_for_each_row() -> None:
    torch.manual_seed(0)
    context, x = small(4, small_sets=1), rows(5, 4)
    torch.testing.assert_close(torch.func.vmap(context)(x), context(x), rtol=0.0, atol=1e-12)
    terms = torch.func.vmap(lambda row: context.training_terms(row[None]).context, randomness="different")(x)
    assert terms.shape == (5, 4, 3)
    assert bool(terms.isfinite().all())


def test_rows_teach_the_targets_that_they_have() -> None:
    torch.manual_seed(0)
    context, x = small(4, targets=(3, 1)), rows(1, 4)
    x[:, 1] = torch.nan  # the other target is predicted alone, and a row without targets teaches nothing
    found = context.training_terms(x.expand(100, 4), generator=torch.Generator().manual_seed(0))
    assert found.position is not None
    assert (found.position % 4).tolist() == [3] * 100
    x[:, 3] = torch.nan
    assert not len(context.training_terms(x.expand(100, 4)).context)


def test_parts_of_a_batch_draw_the_sets_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    context, x = small(), rows(10, 4)
    whole = context.training_terms(x, generator=torch.Generator().manual_seed(3))
    parts = [
        context.training_terms(x[start:stop], generator=Share(torch.Generator().manual_seed(3), 10, start))
        for start, stop in ((0, 4), (4, 10))
    ]
    torch.testing.assert_close(torch.cat([part.context for part in parts]), whole.context)


# Models -----------------------------------------------------------------------------------------------------------


def gaussian_model() -> AutoregressiveModel:
    torch.manual_seed(0)
    return AutoregressiveModel(small(2), GaussianHead(3), shift=(1.0, -1.0), scale=(2.0, 0.5)).double()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_density_is_normalised_in_every_order(order: tuple[int, ...]) -> None:
    model = gaussian_model()
    grid = torch.linspace(-12.0, 12.0, 201, dtype=torch.float64)
    points = torch.cartesian_prod(grid * 2.0 + 1.0, grid * 0.5 - 1.0)
    mass = model.log_prob(points, order=order).exp().sum() * 0.12**2
    torch.testing.assert_close(mass, mass.new_ones(()), rtol=0.0, atol=1e-6)


def test_quantiles_invert_the_distribution_function_in_an_order() -> None:
    model, order = gaussian_model(), (1, 0)
    u = torch.rand(20, 2, dtype=torch.float64).clamp(0.01, 0.99)
    torch.testing.assert_close(model.cdf(model.icdf(u, order=order), order=order), u, rtol=0.0, atol=1e-9)


def test_samples_in_an_order_follow_its_conditionals() -> None:
    model, order = gaussian_model(), (1, 0)
    assert_uniform(model.cdf(model.sample(2000, generator=seeded(), order=order), order=order))


def test_scores_are_derivatives_in_the_order_of_the_call() -> None:
    model = gaussian_model()
    x = rows(3, 2).requires_grad_()
    orders = torch.tensor([[0, 1], [1, 0], [1, 0]])
    terms = model.log_prob(x, reduce=False, order=orders)
    s, _ = model.score(x, order=orders)
    for d in range(2):
        slope = torch.autograd.grad(terms[:, d].sum(), x, retain_graph=True)[0][:, d]
        torch.testing.assert_close(s[:, d], slope, rtol=1e-10, atol=1e-10)


def test_a_context_with_one_order_takes_no_other() -> None:
    model = AutoregressiveModel(MADE(2, 3, (8,)), GaussianHead(3))
    with pytest.raises(ValueError, match="order: a MADE has the order"):
        model.log_prob(torch.zeros(2, 2), order=(1, 0))
    with pytest.raises(ValueError, match="order: a MADE has the order"):
        model.sample(2, order=(1, 0))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ((0, 1), r"order: expected integers \(4,\) or \(3, 4\), got torch.int64 \(2,\)"),
        ((0, 1, 2, 2), r"order: expected permutations of range\(4\)"),
    ],
)
def test_a_wrong_order_is_an_error(order: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small()(rows(3, 4), order=order)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_features": ()}, "hidden_features: expected layers of one width"),
        ({"embedding_features": 0}, "embedding_features=0"),
        ({"dropout": 1.0}, "dropout: expected a fraction"),
        ({"sinusoid_decay": -1.0}, "sinusoid_decay: expected a finite number"),
        ({"ordered": (1,)}, "ordered: expected columns with levels"),
        ({"levels": (0, 3, 0, 0), "ranked": (0,)}, "ranked: expected columns with levels"),
        ({"levels": (0, 3, 2049, 0), "ordered": (2,)}, "ordered: expected at most 2048 levels, got 2049"),
        ({"order": (0, 0, 1, 2)}, "order: expected a permutation"),
        ({"hidden_features": (2**20, 2**20)}, "expected at most"),
        ({"small_sets": 3}, "small_sets: expected at most 2"),
        ({"balance": 1.5}, r"balance: expected a number from 0 to 1, got 1\.5"),
    ],
)
def test_wrong_arguments_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnyOrder(**{"features": 4, **options})


def test_check_finds_an_order_that_is_ignored() -> None:
    class Deaf(AnyOrder):
        def forward(self, x: Tensor, condition: Any = None, order: Any = None) -> Tensor:
            return super().forward(x, condition)

    with pytest.raises(arcsm.PartError, match="order"):
        arcsm.check(Deaf(4, 3, (8, 8), 6))


class Reversed(MADE):
    def __init__(self, features: int, context_features: int, order: tuple[int, ...] | None = None) -> None:
        order = tuple(range(features))[::-1] if order is None else order
        super().__init__(features, context_features, (8,), order=order)


def test_a_subclass_whose_defaults_differ_is_saved_as_it_is(tmp_path: Any) -> None:
    arcsm.register(Reversed)
    x, model = torch.randn(5, 3), AutoregressiveModel(Reversed(3, 4, (0, 1, 2)), GaussianHead(4))
    arcsm.save(model, tmp_path / "model")
    loaded = arcsm.load(tmp_path / "model")
    assert loaded.context.order == (0, 1, 2)
    torch.testing.assert_close(loaded.log_prob(x), model.log_prob(x))


def test_balanced_sets_count_equally_in_all_rows_that_have_them() -> None:
    context = small(3, balance=1.0)
    x = rows(2, 3)
    x[0, 2] = math.nan
    generator, totals = torch.Generator().manual_seed(0), torch.zeros(2, 3)
    for _ in range(25):
        batch = x.repeat(512, 1)
        terms = context.training_terms(batch, generator=generator)
        row, d = (
            terms.select(torch.arange(2)[:, None].expand(2, 3).repeat(512, 1)),
            terms.select(torch.arange(3).expand_as(batch)),
        )
        empty = (terms.context - context(torch.full_like(x[:1], math.nan))[0, d]).abs().max(1).values < 1e-12
        assert terms.weight is not None
        totals.index_put_((row[empty], d[empty]), terms.weight[empty].float(), accumulate=True)
    ratio = totals[0, :2] / totals[1, :2]
    torch.testing.assert_close(ratio, torch.ones(2), atol=0.1, rtol=0.0)  # 1.5 without weights
