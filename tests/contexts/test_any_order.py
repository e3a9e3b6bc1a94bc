"""AnyOrder: one network whose contexts depend on exactly the values before each dimension, in every order."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import arcsm
from arcsm import MADE, AnyOrder, AutoregressiveModel, GaussianHead, NoiseLadder, ScoreHead
from arcsm._runtime.random import Share
from arcsm.contexts.base import TrainingTerms
from arcsm.contexts.known_sets import weights_of_sets
from arcsm.contexts.set_networks import _dropout_factors
from arcsm.fourier_features import cosine_basis
from arcsm.interop import export_scorer
from arcsm.objectives import csm, dsm, mle, sm, ssm
from incremental_passes import condition_for
from small_tables import random_moments

CONDITIONS: dict[str, dict[str, int]] = {
    "none": {}, "dense": {"condition_features": 2}, "classes": {"classes": 3},
    "both": {"condition_features": 2, "classes": 3},
}  # fmt: skip


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


@st.composite
def contexts_and_orders(draw: st.DrawFn) -> tuple[AnyOrder, tuple[int, ...]]:
    features = draw(st.integers(1, 6))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    condition = draw(st.sampled_from(sorted(CONDITIONS)))
    located, linear = draw(st.booleans()), draw(st.booleans())
    sinusoids = draw(st.integers(0, 2))
    options = {"sinusoids": sinusoids, "max_frequency": 3.0, "small_sets": draw(st.integers(0, max(0, features - 2)))}
    context = small(features, located=located, linear_features=linear, **options, **CONDITIONS[condition])
    return context, tuple(draw(st.permutations(range(features))))


@given(contexts_and_orders(), st.sampled_from([(), (1,), (0,), (5,), (2, 3)]), st.booleans())
def test_steps_equal_the_parallel_pass_in_every_order(
    drawn: tuple[AnyOrder, tuple[int, ...]], shape: tuple[int, ...], missing: bool
) -> None:
    context, order = drawn
    x, condition = rows(*shape, context.features), condition_for(context, shape)
    if missing:
        x = x.masked_fill(torch.rand_like(x) < 0.4, torch.nan)
    expected = context(x, condition, order)
    state, previous = context.begin(shape, condition, order), None
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


@pytest.mark.parametrize("condition", sorted(CONDITIONS))
def test_each_row_can_have_its_own_order(condition: str) -> None:
    torch.manual_seed(0)
    context = small(**CONDITIONS[condition])
    orders = torch.stack([torch.randperm(4) for _ in range(6)]).view(2, 3, 4)
    x, given = rows(2, 3, 4), condition_for(context, (2, 3))
    contexts = context(x, given, orders)
    for i, j in itertools.product(range(2), range(3)):
        alone = context(x, given, orders[i, j])[i, j]
        torch.testing.assert_close(contexts[i, j], alone, rtol=0.0, atol=1e-13)


def test_permuting_the_columns_and_the_order_together_changes_nothing() -> None:
    torch.manual_seed(0)
    context, permuted = small(), small()
    columns, order = torch.tensor([2, 0, 3, 1]), (3, 1, 0, 2)
    weights = context.state_dict()
    for name in (
        "values.weight",
        "values.bias",
        "values.presence",
        "networks.large.output_weight",
        "networks.large.output_bias",
    ):
        weights[name] = weights[name][columns]
    permuted.load_state_dict(weights)
    x = rows(5, 4)
    moved = permuted(x[:, columns], order=[columns.tolist().index(d) for d in order])
    torch.testing.assert_close(moved, context(x, order=order)[:, columns], rtol=0.0, atol=1e-13)


def test_a_missing_value_is_one_that_comes_later() -> None:
    torch.manual_seed(0)
    context, x = small(), rows(5, 4)
    last = context(x, order=(0, 1, 3, 2))
    x[:, 2] = torch.nan
    missing = context(x, order=(2, 0, 1, 3))
    torch.testing.assert_close(missing[:, [0, 1, 3]], last[:, [0, 1, 3]], rtol=0.0, atol=1e-13)


def test_a_state_answers_for_any_set_of_known_values() -> None:
    torch.manual_seed(0)
    context, x = small(), rows(5, 4)
    x[:2, 1] = x[2:, 3] = torch.nan  # rows know different sets
    state = context.begin((5,))
    context.observe_all(state, x)
    known_first = torch.tensor([[0, 2, 3, 1]] * 2 + [[0, 1, 2, 3]] * 3)
    expected = context(x, order=known_first)
    torch.testing.assert_close(context.conditional(state, 1)[:2], expected[:2, 1], rtol=0.0, atol=1e-13)
    torch.testing.assert_close(context.conditional(state, 3)[2:], expected[2:, 3], rtol=0.0, atol=1e-13)


# Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small_sets", [0, 1, 2])
@pytest.mark.parametrize("option", [{}, {"located": True}, {"linear_features": True}])
def test_training_predicts_the_values_outside_of_a_random_set(option: dict[str, bool], small_sets: int) -> None:
    torch.manual_seed(0)
    context, x = small(**option, small_sets=small_sets), rows(40, 4)
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


@pytest.mark.parametrize(("missing", "small_sets"), [(False, 0), (True, 0), (False, 1)])
def test_the_training_loss_is_unbiased_for_the_mean_over_all_orders(missing: bool, small_sets: int) -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(small(3, small_sets=small_sets), GaussianHead(3).double()).double()
    x = rows(1, 3)
    if missing:
        x[0, 1] = torch.nan
    orders = itertools.permutations(range(3))
    exact = -torch.stack([model.log_prob(x, order=order) for order in orders]).mean()
    generator = torch.Generator().manual_seed(0)
    batches = torch.stack([mle(model, x.expand(500, 3), generator=generator) for _ in range(40)])
    error = batches.std() / math.sqrt(len(batches))
    assert error < 0.01 * exact.abs()
    assert (batches.mean() - exact).abs() < 4.0 * error


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


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("order", [None, (3, 1, 0, 2)])
def test_a_program_and_vmap_choose_the_network_by_the_size_of_the_set(
    order: tuple[int, ...] | None, linear: bool
) -> None:
    torch.manual_seed(0)
    context = small(4, small_sets=1, order=order, linear_features=linear).float()
    model, x = AutoregressiveModel(context, GaussianHead(3)), torch.randn(6, 4)
    expected = model.score(x)
    for found, wanted in zip(export_scorer(model).module()(x), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-5)  # untrained scores are up to 4e7
    torch.testing.assert_close(torch.func.vmap(context)(x), context(x), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("small_sets", [3, -1, 0.5])
def test_a_network_that_no_set_has_is_an_error(small_sets: Any) -> None:
    with pytest.raises(ValueError, match="small_sets"):
        AnyOrder(4, 3, (8, 8), 6, small_sets=small_sets)
    with pytest.raises(ValueError, match="small_sets"), AnyOrder(4, 3, (8, 8), 6).small_sets_only(small_sets):
        pass


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_targets_are_predicted_given_all_or_some_of_the_others(share: float) -> None:
    torch.manual_seed(0)
    context = small(4, targets=(3, 1), complete_share=share)
    model = AutoregressiveModel(context, GaussianHead(3).double()).double()
    x = rows(1, 4)

    def density(known: set[int]) -> Tensor:
        """Return the mean log density of the targets over their orders, given some of the other values."""
        rest = [d for d in (0, 2) if d not in known]
        orders = [(*known, *targets, *rest) for targets in ((1, 3), (3, 1))]
        return torch.stack([model.log_prob(x, order=one, reduce=False)[0, [1, 3]].sum() for one in orders]).mean()

    subsets = (density(set()) + 0.5 * (density({0}) + density({2})) + density({0, 2})) / 3.0  # uniform in their size
    exact = -share * density({0, 2}) - (1.0 - share) * subsets
    generator = torch.Generator().manual_seed(0)
    batches = torch.stack([mle(model, x.expand(500, 4), generator=generator) for _ in range(40)])
    error = batches.std() / math.sqrt(len(batches))
    assert error < 0.01 * exact.abs()
    assert (batches.mean() - exact).abs() < 4.0 * error
    x[:, 1] = torch.nan  # then the other target is predicted alone, and a row without targets teaches nothing
    found = context.training_terms(x.expand(100, 4), generator=generator)
    assert found.position is not None
    assert (found.position % 4).tolist() == [3] * 100
    x[:, 3] = torch.nan
    assert not len(context.training_terms(x.expand(100, 4), generator=generator).context)


def test_parts_of_a_batch_draw_the_sets_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    context, x = small(), rows(10, 4)
    whole = context.training_terms(x, generator=torch.Generator().manual_seed(3))
    parts = [
        context.training_terms(x[start:stop], generator=Share(torch.Generator().manual_seed(3), 10, start))
        for start, stop in ((0, 4), (4, 10))
    ]
    torch.testing.assert_close(torch.cat([part.context for part in parts]), whole.context)


def test_gradients_of_single_rows_by_vmap_are_those_of_each_row() -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(small(), ScoreHead(3, (8,)), NoiseLadder(1.0, 0.5, 3)).double()
    x = rows(5, 4)

    def loss(row: Tensor, bias: Tensor) -> Tensor:
        weights = {**dict(model.named_parameters()), "context.networks.large.first.bias": bias}
        return torch.func.functional_call(_Loss(model), {f"model.{n}": w for n, w in weights.items()}, (row,))

    bias = model.context.networks.large.first.bias.detach()
    gradients = torch.func.vmap(torch.func.grad(loss, 1), (0, None), randomness="different")(x, bias)
    assert gradients.shape == (5, *bias.shape)
    assert bool(torch.isfinite(gradients).all())
    assert bool(gradients.any(1).all())


class _Loss(torch.nn.Module):
    def __init__(self, model: AutoregressiveModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, row: Tensor) -> Tensor:
        return dsm(self.model, row[None])


@pytest.mark.parametrize("condition", [False, True])
def test_a_model_of_every_order_is_exported(condition: bool) -> None:
    torch.manual_seed(0)
    context = AnyOrder(3, 4, (8, 8), 6, condition_features=2 if condition else 0)
    model = AutoregressiveModel(context, ScoreHead(4, (8,)), NoiseLadder(1.0, 0.5, 3)).eval()
    scorer = export_scorer(model)
    x, given = torch.randn(7, 3), (torch.randn(7, 2),) if condition else ()
    found = scorer.module()(x, *given)
    expected = model.score(x, condition=given[0] if condition else None)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("objective", [csm, dsm, mle, sm, ssm])
def test_every_objective_reaches_every_weight(objective: Any) -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(small(), ScoreHead(3, (8,)), NoiseLadder(1.0, 0.5, 3)).double()
    objective(model, rows(64, 4), generator=torch.Generator().manual_seed(0)).backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert unreached == []


def test_training_lowers_the_loss_and_the_model_is_saved_with_it(tmp_path: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 1) + 0.1 * torch.randn(256, 3)
    model = AutoregressiveModel(AnyOrder(3, 4, (16, 16), 8, dropout=0.1), GaussianHead(4))
    before = model.log_prob(x).mean().item()
    config = arcsm.TrainConfig(objective="mle", steps=200, learning_rate=1e-2, ema=0.9, device="cpu")
    arcsm.fit(model, x, config=config)
    assert model.log_prob(x).mean().item() > before + 2.0
    arcsm.save(model, tmp_path)
    loaded = arcsm.load(tmp_path)
    order = (2, 0, 1)
    assert torch.equal(loaded.log_prob(x, order=order), model.log_prob(x, order=order))
    assert loaded.context.config() == model.context.config()


# Models -----------------------------------------------------------------------------------------------------------


def gaussian_model() -> AutoregressiveModel:
    torch.manual_seed(0)
    return AutoregressiveModel(small(2), GaussianHead(3), shift=(1.0, -1.0), scale=(2.0, 0.5)).double()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_density_is_normalised_in_every_order(order: tuple[int, ...]) -> None:
    model = gaussian_model()
    grid = torch.linspace(-12.0, 12.0, 801, dtype=torch.float64)
    points = torch.cartesian_prod(grid * 2.0 + 1.0, grid * 0.5 - 1.0)
    mass = model.log_prob(points, order=order).exp().sum() * 0.03**2
    torch.testing.assert_close(mass, mass.new_ones(()), rtol=0.0, atol=1e-6)


def test_quantiles_invert_the_distribution_function_in_an_order() -> None:
    model, order = gaussian_model(), (1, 0)
    u = torch.rand(20, 2, dtype=torch.float64).clamp(0.01, 0.99)
    torch.testing.assert_close(model.cdf(model.icdf(u, order=order), order=order), u, rtol=0.0, atol=1e-9)


def test_samples_in_an_order_follow_its_conditionals() -> None:
    model, order = gaussian_model(), (1, 0)
    x = model.sample(4000, generator=torch.Generator().manual_seed(0), order=order)
    u = model.cdf(x, order=order)
    for d in range(2):
        largest = (u[:, d].sort().values - torch.arange(1, 4001) / 4000).abs().max()
        assert largest < 1.95 / math.sqrt(4000)  # Kolmogorov-Smirnov, p = 0.001


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
    for method in (model.log_prob, model.cdf, model.score):
        with pytest.raises(ValueError, match="order: a MADE has the order"):
            method(torch.zeros(2, 2), order=(1, 0))
    with pytest.raises(ValueError, match="order: a MADE has the order"):
        model.sample(2, order=(1, 0))
    with pytest.raises(ValueError, match="order: a MADE has the order"):
        model.icdf(torch.full((2, 2), 0.5), order=(1, 0))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ((0, 1), r"order: expected integers \(4,\) or \(3, 4\), got torch.int64 \(2,\)"),
        ((0.0, 1.0, 2.0, 3.0), "order: expected integers"),
        ((0, 1, 2, 2), r"order: expected permutations of range\(4\)"),
        ([[0, 1, 2, 3]] * 2, "order: expected integers"),
    ],
)
def test_a_wrong_order_is_an_error(order: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small()(rows(3, 4), order=order)


def test_vectors_of_ordered_levels_are_cosines_along_them(tmp_path: Any) -> None:
    levels = (3, 0, 5, 4)
    torch.manual_seed(0)
    plain, ordered = (AnyOrder(4, 3, (8, 8), 6, levels=levels, ordered=columns) for columns in ((), (2, 3)))
    with torch.no_grad():
        for own, other in zip(plain.parameters(), ordered.parameters(), strict=True):
            own.copy_(other)
        vectors = plain.values.level_vectors
        assert vectors is not None
        vectors[3:8], vectors[8:] = cosine_basis(5) @ vectors[3:8], cosine_basis(4) @ vectors[8:]
    x = torch.tensor([[0.0, 0.3, 4.0, 1.0], [2.0, -1.0, 0.0, 3.0], [1.0, 0.5, math.nan, 2.0]])
    torch.testing.assert_close(ordered(x), plain(x))
    for d in range(4):
        torch.testing.assert_close(ordered.values.column(d, x[:2, d]), plain.values.column(d, x[:2, d]))
    numeric, nominal = arcsm.ScoreHead(3, (8,)), [arcsm.CategoricalHead(3, count, count > 3) for count in (3, 5, 4)]
    model = arcsm.AutoregressiveModel(ordered, arcsm.MixedHead([numeric, *nominal], (1, 0, 2, 3)))
    arcsm.save(model, tmp_path / "model")
    torch.testing.assert_close(arcsm.load(tmp_path / "model").log_prob(x), model.log_prob(x))


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_sinusoids_of_high_frequencies_count_less(decay: float, tmp_path: Any) -> None:
    options: dict[str, Any] = {"levels": (3, 0, 0), "sinusoids": 3, "max_frequency": 9.0}
    torch.manual_seed(0)
    plain, damped = AnyOrder(3, 3, (8, 8), 6, **options), AnyOrder(3, 3, (8, 8), 6, sinusoid_decay=decay, **options)
    assert damped.values.weight is not None
    assert plain.values.weight is not None
    inputs = 1.0 + 2.0 * sum(f ** (-2.0 * decay) for f in (1.0, 3.0, 9.0))  # the sum of their squares is 1 on average
    assert float(damped.values.weight.square().mean().detach()) == pytest.approx(1.0 / inputs, rel=0.4)
    amplitudes = torch.tensor([1.0] + 2 * [f**-decay for f in (1.0, 3.0, 9.0)])
    with torch.no_grad():
        for own, other in zip(plain.parameters(), damped.parameters(), strict=True):
            own.copy_(other)
        plain.values.weight.mul_(amplitudes[:, None])
    x = torch.tensor([[0.0, 0.3, 4.0], [2.0, -1.0, math.nan]])
    torch.testing.assert_close(damped(x), plain(x))
    torch.testing.assert_close(damped.values.column(1, x[:, 1]), plain.values.column(1, x[:, 1]))
    numeric, nominal = arcsm.ScoreHead(3, (8,)), arcsm.CategoricalHead(3, 3)
    model = arcsm.AutoregressiveModel(damped, arcsm.MixedHead([numeric, nominal], (1, 0, 0)))
    arcsm.save(model, tmp_path / "model")
    torch.testing.assert_close(arcsm.load(tmp_path / "model").log_prob(x), model.log_prob(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_features": ()}, "hidden_features: expected layers of one width"),
        ({"hidden_features": (8, 4)}, "hidden_features: expected layers of one width"),
        ({"embedding_features": 0}, "embedding_features=0"),
        ({"dropout": 1.0}, "dropout: expected a fraction"),
        ({"sinusoid_decay": -1.0}, "sinusoid_decay: expected a finite number"),
        ({"ordered": (1,)}, "ordered: expected columns with levels"),
        ({"levels": (0, 3, 0, 0), "ordered": (4,)}, "ordered: expected columns with levels"),
        ({"levels": (0, 3, 0, 0), "ranked": (0,)}, "ranked: expected columns with levels"),
        ({"levels": (0, 3, 0, 0), "ranked": (-1,)}, "ranked: expected columns with levels"),
        ({"levels": (0, 3, 2049, 0), "ordered": (2,)}, "ordered: expected at most 2048 levels, got 2049"),
        ({"order": (0, 0, 1, 2)}, "order: expected a permutation"),
        ({"features": 2**20, "embedding_features": 2**20}, "expected at most"),
    ],
)
def test_wrong_arguments_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnyOrder(**{"features": 4, **options})


def test_check_finds_training_terms_that_see_the_value_to_predict() -> None:
    class Leaky(AnyOrder):
        def training_terms(self, x: Tensor, condition: Any = None, generator: Any = None) -> TrainingTerms:
            return TrainingTerms(self(x.roll(-1, 1), condition).flatten(0, 1))

    with pytest.raises(arcsm.PartError, match="training terms: the context of value"):
        arcsm.check(Leaky(4, 3, (8, 8), 6))


def test_check_finds_an_order_that_is_ignored() -> None:
    class Deaf(AnyOrder):
        def forward(self, x: Tensor, condition: Any = None, order: Any = None) -> Tensor:
            return super().forward(x, condition)

    with pytest.raises(arcsm.PartError, match="order"):
        arcsm.check(Deaf(4, 3, (8, 8), 6))


def test_contexts_do_not_grow_with_hidden_layers() -> None:
    """Otherwise, few different rows push contexts in the same direction until a head saturates."""
    torch.manual_seed(0)
    context = AnyOrder(3, 4, (16, 16), 8).double().eval()
    x = torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        before = context(x)
        network = context.networks.large
        for parameter in (network.layers[0].weight, network.layers[0].bias, network.first.weight, network.first.bias):
            parameter.mul_(1000.0)
        grown = context(x)
    bound = network.output_weight.norm(dim=1).max() * 4.0 + network.output_bias.abs().max()
    assert grown.abs().max() <= bound
    assert grown.norm() < 3.0 * before.norm()


class OfWidth(AnyOrder):
    def __init__(self, features: int, context_features: int, width: int) -> None:
        super().__init__(features, context_features, (width, width), width, sinusoids=2, sinusoid_decay=1.0)
        self.width = width


class MADEOfWidth(MADE):
    def __init__(self, features: int, context_features: int, width: int) -> None:
        super().__init__(features, context_features, (width, width))
        self.width = width


class Reversed(MADE):
    def __init__(self, features: int, context_features: int, order: tuple[int, ...] | None = None) -> None:
        order = tuple(range(features))[::-1] if order is None else order
        super().__init__(features, context_features, (8,), order=order)


class OfLastTarget(AnyOrder):
    def __init__(self, features: int, context_features: int, targets: tuple[int, ...] | None = None) -> None:
        targets = (features - 1,) if targets is None else targets
        super().__init__(features, context_features, (8,), 8, targets=targets)


def test_a_subclass_whose_defaults_differ_is_saved_as_it_is(tmp_path: Any) -> None:
    arcsm.register(Reversed)
    arcsm.register(OfLastTarget)
    x = torch.randn(5, 3)
    for context in (Reversed(3, 4, (0, 1, 2)), Reversed(3, 4), OfLastTarget(3, 4, (0, 1, 2)), OfLastTarget(3, 4)):
        model = AutoregressiveModel(context, GaussianHead(4))
        arcsm.save(model, tmp_path / "model")
        loaded = arcsm.load(tmp_path / "model")
        assert loaded.context.order == context.order
        assert getattr(loaded.context, "targets", None) == getattr(context, "targets", None)
        torch.testing.assert_close(loaded.log_prob(x), model.log_prob(x))


@pytest.mark.parametrize("context", [OfWidth, MADEOfWidth])
def test_subclasses_may_have_a_constructor_of_their_own(context: type[Any], tmp_path: Any) -> None:
    arcsm.register(context)
    arcsm.check(context(3, 4, 8))
    model = AutoregressiveModel(context(3, 4, 8), GaussianHead(4))
    arcsm.save(model, tmp_path / "model")
    x = torch.randn(5, 3)
    torch.testing.assert_close(arcsm.load(tmp_path / "model").log_prob(x), model.log_prob(x))


def test_rows_have_weights_in_proportion_to_their_sets() -> None:
    totals = torch.tensor([1, 2, 2, 3, 4, 5])
    for k in range(5):
        m = totals[totals > k]
        found = weights_of_sets(m[:, None], torch.full_like(m, k)[:, None], 5, least=0.0)[:, 0]
        sets = torch.tensor([one * math.comb(one - 1, k) for one in m.tolist()]).double()
        torch.testing.assert_close(found.double(), sets / sets.mean())
        limited = weights_of_sets(m[:, None], torch.full_like(m, k)[:, None], 5, least=0.8)[:, 0]
        effective = float(limited.sum() ** 2 / limited.square().sum()) / len(m)
        assert 0.8 - 1e-5 <= effective <= max(0.82, float(found.sum() ** 2 / found.square().sum()) / len(m) + 1e-5)
        torch.testing.assert_close(limited.mean(), torch.tensor(1.0))


def test_balanced_sets_count_equally_in_all_rows_that_have_them() -> None:
    context = small(3, balance=1.0)
    x = rows(2, 3)
    x[0, 2] = math.nan
    generator, totals = torch.Generator().manual_seed(0), torch.zeros(2, 3)
    for _ in range(200):
        batch = x.repeat(64, 1)
        terms = context.training_terms(batch, generator=generator)
        row, d = (
            terms.select(torch.arange(2)[:, None].expand(2, 3).repeat(64, 1)),
            terms.select(torch.arange(3).expand_as(batch)),
        )
        empty = (terms.context - context(torch.full_like(x[:1], math.nan))[0, d]).abs().max(1).values < 1e-12
        assert terms.weight is not None
        totals.index_put_((row[empty], d[empty]), terms.weight[empty].float(), accumulate=True)
    ratio = totals[0, :2] / totals[1, :2]
    torch.testing.assert_close(ratio, torch.ones(2), atol=0.1, rtol=0.0)  # 1.5 without weights


def test_a_wrong_balance_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"balance: expected a number from 0 to 1, got 1\.5"):
        small(balance=1.5)


def test_dropout_switches_off_a_fraction_of_the_units_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    factors = _dropout_factors((2, 500, 401), 0.3, torch.device("cpu"))
    assert factors.shape == (2, 500, 401)
    assert factors.unique().tolist() == pytest.approx([0.0, 1.0 / 0.7])
    assert float((factors == 0.0).double().mean()) == pytest.approx(0.3, abs=0.004)  # four standard errors are 0.003
    assert float(factors.double().mean()) == pytest.approx(1.0, abs=0.006)
