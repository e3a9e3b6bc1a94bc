"""Models of numeric and nominal columns together: densities, masses, samples and training."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import arcsm
from arcsm import (
    MADE,
    AnyOrder,
    AutoregressiveModel,
    CategoricalHead,
    GaussianHead,
    LogisticMixtureHead,
    MixedHead,
    NoiseLadder,
    ScoreHead,
    TrainConfig,
)
from arcsm.denoise import GaussianNoise, MissingValues, SaltAndPepper, particle_filter
from arcsm.objectives import csm, dsm, mle, sm, ssm
from arcsm.objectives.base import noisy_batches
from arcsm.queries import complete

LEVELS = (0, 3, 0, 2)


def mixed_model(head: str = "score", order: Any = None) -> AutoregressiveModel:
    """Return a model in double precision of two numeric columns, and two nominal ones with three and two levels."""
    torch.manual_seed(0)
    numeric = ScoreHead(3, (8,)) if head == "score" else GaussianHead(3)
    heads = MixedHead([numeric, CategoricalHead(3, 3), CategoricalHead(3, 2)], (0, 1, 0, 2))
    noise = NoiseLadder(1.0, 0.5, 3) if head == "score" else None
    context = AnyOrder(4, 3, (8, 8), 6, levels=LEVELS, order=order)
    with torch.no_grad():
        for one in heads.heads[1:]:
            one.logits.weight.normal_()  # type: ignore[union-attr, operator]
    scale = (2.0, 1.0, 0.5, 1.0)
    return AutoregressiveModel(context, heads, noise, shift=(1.0, 0.0, -1.0, 0.0), scale=scale).double()


def mixed_rows(n: int = 6) -> Tensor:
    numbers = torch.randn(n, 4, dtype=torch.float64)
    numbers[:, 1], numbers[:, 3] = torch.randint(3, (n,)).double(), torch.randint(2, (n,)).double()
    return numbers


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 2, 3, 0)])
def test_densities_times_masses_sum_to_one(order: tuple[int, ...]) -> None:
    model = mixed_model("gaussian")
    grid = torch.linspace(-9.0, 9.0, 181, dtype=torch.float64)
    first, second = torch.cartesian_prod(2.0 * grid + 1.0, 0.5 * grid - 1.0).T
    total = 0.0
    for a, b in itertools.product(range(3), range(2)):
        x = torch.stack([first, torch.full_like(first, a), second, torch.full_like(first, b)], 1)
        total += float(model.log_prob(x, order=order).exp().sum().detach()) * 0.1**2
    assert abs(total - 1.0) < 1e-6


def test_each_term_is_the_density_or_mass_of_its_own_head() -> None:
    model, x = mixed_model(), mixed_rows()
    terms, contexts = model.log_prob(x, reduce=False), model.contexts(model.standardise(x))
    numeric, *nominal = model.head.parts(4)
    assert numeric.columns == (0, 2)
    for head, (d,) in nominal:
        assert isinstance(head, CategoricalHead)
        torch.testing.assert_close(terms[:, d], head.log_prob(contexts[:, d], x[:, d]))
    alone = AutoregressiveModel(
        MADE(1, 3, (4,)), numeric.head, model.noise, model.shift[2:3], model.scale[2:3]
    ).double()
    projection = numeric.head.project(contexts[:, 2])
    z = model.standardise(x)[:, 2]
    expected = alone.conditionals_builder()(projection).log_prob(z) - model.scale[2].log()
    torch.testing.assert_close(terms[:, 2], expected)


def test_scores_are_those_of_numeric_columns() -> None:
    model, x = mixed_model("gaussian"), mixed_rows().requires_grad_()
    s, ds = model.score(x)
    assert s[:, [1, 3]].isnan().all()
    assert ds[:, [1, 3]].isnan().all()
    terms = model.log_prob(x, reduce=False)
    for d in (0, 2):
        slope = torch.autograd.grad(terms[:, d].sum(), x, retain_graph=True)[0][:, d]
        torch.testing.assert_close(s[:, d], slope)
    torch.testing.assert_close(model.score_alone(x), s, equal_nan=True)


def test_samples_hold_levels_with_their_probabilities() -> None:
    model = mixed_model("gaussian", order=(1, 3, 0, 2))
    x = model.sample(6000, generator=torch.Generator().manual_seed(0))
    for a, b in itertools.product(range(3), range(2)):
        row = torch.tensor([[math.nan, a, math.nan, b]], dtype=torch.float64)
        expected = model.log_prob(row).exp().item()
        share = float(((x[:, 1] == a) & (x[:, 3] == b)).double().mean())
        assert abs(share - expected) < 4.0 * math.sqrt(expected / 6000)


@pytest.mark.parametrize("sampler", ["probability_flow", "fast_flow", "langevin", "inverse_cdf"])
def test_every_sampler_draws_numbers_and_levels(sampler: str) -> None:
    x = mixed_model().sample(20, sampler, generator=torch.Generator().manual_seed(0), denoise=True)
    assert bool(torch.isfinite(x).all())
    for d in (1, 3):
        assert set(x[:, d].tolist()) <= set(map(float, range(LEVELS[d])))


def test_default_samplers_are_chosen_by_column() -> None:
    """A column with a closed form is drawn from it, whatever the heads of the others."""
    torch.manual_seed(0)
    heads = MixedHead([LogisticMixtureHead(4, 2), ScoreHead(4, (8,))], (0, 1))
    model = AutoregressiveModel(AnyOrder(2, 4, (8,), 8), heads, NoiseLadder(3.0, 0.05, 6)).double()
    unknown = torch.full((1, 2), math.nan, dtype=torch.float64)

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    for order, of_sample, of_complete in (
        ((0, 1), "inverse_cdf", "inverse_cdf"),
        ((1, 0), "probability_flow", "fast_flow"),
    ):
        first = order[0]
        drawn = model.sample(50, generator=seeded(), order=order)[:, first]
        assert torch.equal(drawn, model.sample(50, of_sample, seeded(), order=order)[:, first])
        drawn = complete(model, unknown, 50, generator=seeded(), order=order).rows[0, :, first]
        expected = complete(model, unknown, 50, generator=seeded(), order=order, sampler=of_complete)
        assert torch.equal(drawn, expected.rows[0, :, first])


def test_the_particle_filter_completes_columns_of_every_kind() -> None:
    model, x = mixed_model("gaussian"), mixed_rows(4)
    x[0, 1], x[1, 0], x[2, 2:] = math.nan, math.nan, math.nan
    found = particle_filter(model, x, MissingValues(), 400, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.log_evidence[3], model.log_prob(x[3]).detach())
    assert set(found.candidates[0, :, 1].tolist()) == {0.0, 1.0, 2.0}
    complete_rows = x[0].expand(3, 4).clone()
    complete_rows[:, 1] = torch.arange(3)
    expected = model.log_prob(complete_rows).logsumexp(0).item()
    assert found.log_evidence[0].item() == pytest.approx(expected, abs=0.1)
    for corruption in (GaussianNoise(0.3), SaltAndPepper(0.1)):
        with pytest.raises(ValueError, match="corruption: expected numeric columns, got a nominal one"):
            particle_filter(model, mixed_rows(4), corruption, 2)


@pytest.mark.parametrize("head", ["score", "gaussian"])
def test_quantiles_invert_the_distribution_function(head: str) -> None:
    model, u = mixed_model(head), torch.rand(30, 4, dtype=torch.float64).clamp(0.01, 0.99)
    x = model.icdf(u)
    again = model.cdf(x)
    torch.testing.assert_close(again[:, [0, 2]], u[:, [0, 2]], rtol=0.0, atol=1e-6)
    below = x.clone()
    for d in (1, 3):  # the level is the first whose cumulative probability reaches u
        assert bool((again[:, d] >= u[:, d]).all())
        below[:, d] -= 1.0
    contexts = model.contexts(model.standardise(x))
    for head_, (d,) in model.head.parts(4)[1:]:
        lower = head_.cdf(contexts[:, d], below[:, d])  # type: ignore[operator]
        assert bool((lower < u[:, d]).all())


@pytest.mark.parametrize("objective", [csm, dsm, mle])
def test_every_objective_reaches_every_weight(objective: Any) -> None:
    model, x = mixed_model(), mixed_rows(64)
    x[:5, 1] = x[3:9, 2] = torch.nan
    loss = objective(model, x, generator=torch.Generator().manual_seed(0))
    loss.backward()
    unreached = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert unreached == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("objective", [csm, dsm, mle])
def test_levels_are_trained_by_likelihood_without_noise(objective: Any) -> None:
    torch.manual_seed(0)
    head = MixedHead([CategoricalHead(3, 4), CategoricalHead(3, 5)], (0, 1))
    model = AutoregressiveModel(MADE(2, 3, (8,)), head, NoiseLadder(1.0, 0.5, 3)).double()
    x = torch.stack([torch.randint(4, (50,)), torch.randint(5, (50,))], 1).double()
    torch.testing.assert_close(objective(model, x), -model.log_prob(x).mean())


@pytest.mark.parametrize("objective", [csm, dsm])
def test_the_loss_is_the_sum_of_the_losses_of_the_columns(objective: Any) -> None:
    model, x = mixed_model(), mixed_rows(40)
    made = MADE(4, 3, ())  # its contexts do not depend on the values, so the columns can be trained apart
    with torch.no_grad():
        for layer in made.masked_layers():
            layer.weight.zero_()
            layer.bias.normal_()
    whole = AutoregressiveModel(made, model.head, model.noise, model.shift, model.scale).double()
    found = objective(whole, x, generator=torch.Generator().manual_seed(0))
    numeric = model.head.parts(4)[0].head
    scores = AutoregressiveModel(made, numeric, model.noise, model.shift, model.scale).double()
    z = model.standardise(x)
    batch = next(noisy_batches(scores, z, None, torch.Generator().manual_seed(0)))[1]
    its = (torch.arange(160) % 2 == 0).double()  # numeric columns
    s, ds = numeric.score_and_derivative(batch.context, batch.x_tilde, batch.sigma)
    ratio, weight = batch.noise / batch.sigma, its * numeric.loss_weight(batch.sigma)
    by_hand = {csm: 0.5 * s.square() + ds, dsm: 0.5 * (s + ratio).square()}[objective]
    levels = -whole.log_prob(x, reduce=False)[:, [1, 3]].sum()
    torch.testing.assert_close(found, ((weight * by_hand).sum() + levels) / 40)


@pytest.mark.parametrize("objective", [sm, ssm])
def test_joint_objectives_reject_nominal_columns(objective: Any) -> None:
    with pytest.raises(ValueError, match="a MixedHead has a head for each column"):
        objective(mixed_model(), mixed_rows())


def rule(n: int, levels: int, seed: int) -> Tensor:
    """Return two nominal columns, the second the successor of the first in 9 of 10 rows, and a number."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(levels, (n,), generator=generator)
    other = torch.randint(levels, (n,), generator=generator)
    follows = torch.rand(n, generator=generator) < 0.9
    second = torch.where(follows, (first + 1) % levels, other)
    number = first % 2 + 0.3 * torch.randn(n, generator=generator)
    return torch.stack([first.float(), second.float(), number], 1)


def test_a_rule_between_levels_is_learned_and_the_model_is_saved(tmp_path: Any) -> None:
    torch.manual_seed(0)
    head = MixedHead([ScoreHead(8, (16,)), CategoricalHead(8, 4), CategoricalHead(8, 4)], (1, 2, 0))
    context = AnyOrder(3, 8, (32, 32), 16, levels=(4, 4, 0))
    model = AutoregressiveModel(context, head, NoiseLadder(2.0, 0.1, 8))
    config = TrainConfig(steps=300, batch_size=128, learning_rate=1e-2, ema=0.95, device="cpu")
    arcsm.fit(model, rule(2000, 4, 0), config=config)
    assert model.shift[:2].tolist() == [0.0, 0.0]
    assert model.scale[:2].tolist() == [1.0, 1.0]
    x = model.sample(400, generator=torch.Generator().manual_seed(0))
    assert float(((x[:, 0] + 1) % 4 == x[:, 1]).double().mean()) > 0.85  # 92.5 % of the data
    arcsm.save(model, tmp_path)
    loaded = arcsm.load(tmp_path)
    assert torch.equal(loaded.log_prob(x), model.log_prob(x))
    assert loaded.config() == model.config()


def test_other_than_whole_numbers_of_levels_are_rejected_before_training() -> None:
    x = mixed_rows(20).float()
    x[3, 1] = 3.0
    with pytest.raises(ValueError, match="x_train: expected whole numbers from 0 to 2 in nominal column 1"):
        arcsm.fit(mixed_model().float(), x, config=TrainConfig(steps=1, device="cpu"))


def test_levels_cannot_be_dequantised() -> None:
    config = TrainConfig(steps=1, dequantise=1.0, device="cpu")
    with pytest.raises(
        ValueError, match="dequantise: expected 0 for nominal column 1, got 1; give one width per column"
    ):
        arcsm.fit(mixed_model().float(), mixed_rows(20).float(), config=config)


def test_an_impossible_level_has_no_mass() -> None:
    model = mixed_model("gaussian")
    for value in (3.0, -1.0, 0.5):
        x = mixed_rows(1)
        x[0, 1] = value
        assert model.log_prob(x, reduce=False)[0, 1].item() == -math.inf


def test_a_fit_asks_for_the_kinds_of_columns_as_often_whatever_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, calls = ScoreHead.parts, []
    monkeypatch.setattr(ScoreHead, "parts", lambda head, features: calls.append(features) or parts(head, features))
    for features in (3, 30):
        model = AutoregressiveModel(MADE(features, 2, (4,)), ScoreHead(2, (4,)), NoiseLadder(1.0, 0.5, 2))
        arcsm.fit(model, torch.randn(20, features), config=TrainConfig(steps=2, dequantise=0.1, device="cpu"))
    assert calls.count(3) == calls.count(30)


def test_nominal_columns_have_no_units() -> None:
    model = mixed_model()
    model.set_standardisation(torch.full((4,), 5.0), torch.full((4,), 3.0))
    assert model.shift.tolist() == [5.0, 0.0, 5.0, 0.0]
    assert model.scale.tolist() == [3.0, 1.0, 3.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("context", ["AnyOrder", "MADE"])
def test_quantiles_invert_the_distribution_functions_of_levels(context: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    numbers = [CategoricalHead(6, 10) for _ in range(5)]
    net = MADE(5, 6, (16,)) if context == "MADE" else AnyOrder(5, 6, (16, 16), 8, levels=(10,) * 5)
    model = AutoregressiveModel(net, MixedHead(numbers, range(5))).to(dtype)
    x = torch.randint(0, 10, (500, 5)).to(dtype)
    assert bool((model.icdf(model.cdf(x)) == x).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("context", ["AnyOrder", "MADE"])
@pytest.mark.parametrize("head", ["score", "gaussian"])
def test_levels_survive_quantiles_of_numbers_before_them(head: str, context: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a = torch.randn(1500)
    k = (a + torch.randn(1500)).add(2.5).round().clamp(0, 4)
    x = torch.stack([a, k, 20.0 * k + a + torch.randn(1500)], 1)
    net = MADE(3, 8, (32,)) if context == "MADE" else AnyOrder(3, 8, (32, 32), 32, levels=(0, 5, 0))
    numeric = ScoreHead(8, (16,)) if head == "score" else GaussianHead(8)
    noise = NoiseLadder(3.0, 0.1, 8) if head == "score" else None
    model = AutoregressiveModel(net, MixedHead([numeric, CategoricalHead(8, 5)], (0, 1, 0)), noise)
    objective = "csm" if head == "score" else "mle"
    arcsm.fit(model, x, config=TrainConfig(objective=objective, steps=150, learning_rate=5e-3, device="cpu"))
    model, rows = model.to(dtype), x[:300].to(dtype)
    found = model.icdf(model.cdf(rows))
    assert bool((found[:, 1] == rows[:, 1]).all())
    torch.testing.assert_close(found[:, 0], rows[:, 0], rtol=0.0, atol=1e-3)


def test_the_cdf_of_the_last_level_has_a_quantile() -> None:
    model, x = mixed_model("gaussian"), mixed_rows(20)
    x[:, 1], x[:, 3] = 2.0, 1.0
    torch.testing.assert_close(model.icdf(model.cdf(x))[:, [1, 3]], x[:, [1, 3]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MixedHead([ScoreHead(3), CategoricalHead(4)], (0, 1)), "contexts of one size"),
        (lambda: MixedHead([ScoreHead(3), CategoricalHead(3)], (0, 0)), "columns: expected the index of a head"),
        (lambda: MixedHead([MixedHead([ScoreHead(3)], (0,))], (0,)), "got a MixedHead"),
        (lambda: MixedHead([ScoreHead(3)], (0, 0)).parts(3), "one head for each of 3 columns"),
        (lambda: CategoricalHead(3, 0), "levels=0"),
        (lambda: AnyOrder(2, 3, levels=(0,)), "levels: expected one number for each of 2 columns"),
        (
            lambda: AutoregressiveModel(
                AnyOrder(2, 3, levels=(0, 4)), MixedHead([ScoreHead(3), CategoricalHead(3, 3)], (0, 1))
            ),
            "column 1: the context expects 4 levels, the head 3 levels",
        ),
    ],
)
def test_parts_that_do_not_fit_are_rejected(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
