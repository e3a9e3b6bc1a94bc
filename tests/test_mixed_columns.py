"""Models of numeric and nominal columns together: densities, masses, samples and training."""

import itertools
import math
from pathlib import Path
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
    MixedHead,
    NoiseLadder,
    ScoreHead,
    TrainConfig,
)
from arcsm.denoise import GaussianNoise, MissingValues, particle_filter
from arcsm.objectives import csm, dsm, mle, sm, ssm
from arcsm.objectives.base import noisy_batches

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


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_densities_times_masses_sum_to_one(order: tuple[int, ...]) -> None:
    model = mixed_model("gaussian")
    grid = torch.linspace(-9.0, 9.0, 61, dtype=torch.float64)
    first, second = torch.cartesian_prod(2.0 * grid + 1.0, 0.5 * grid - 1.0).T
    total = 0.0
    for a, b in itertools.product(range(3), range(2)):
        x = torch.stack([first, torch.full_like(first, a), second, torch.full_like(first, b)], 1)
        total += float(model.log_prob(x, order=order).exp().sum().detach()) * 0.3**2
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


@pytest.mark.parametrize("sampler", ["probability_flow", "fast_flow", "langevin", "inverse_cdf"])
def test_every_sampler_draws_numbers_and_levels(sampler: str) -> None:
    x = mixed_model().sample(20, sampler, generator=torch.Generator().manual_seed(0), denoise=True)
    assert bool(torch.isfinite(x).all())
    for d in (1, 3):
        assert set(x[:, d].tolist()) <= set(map(float, range(LEVELS[d])))


def test_the_particle_filter_completes_levels() -> None:
    model, x = mixed_model("gaussian"), mixed_rows(1)
    possible = x.expand(3, 4).clone()
    possible[:, 1] = torch.arange(3)
    x[0, 1] = math.nan
    found = particle_filter(model, x, MissingValues(), 400, torch.Generator().manual_seed(0))
    assert set(found.candidates[0, :, 1].tolist()) == {0.0, 1.0, 2.0}
    expected = model.log_prob(possible).logsumexp(0).item()
    assert found.log_evidence[0].item() == pytest.approx(expected, abs=0.1)
    with pytest.raises(ValueError, match="corruption: expected numeric columns, got a nominal one"):
        particle_filter(model, mixed_rows(4), GaussianNoise(0.3), 2)


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


def test_levels_are_checked_before_training_and_cannot_be_dequantised() -> None:
    x = mixed_rows(20).float()
    config = TrainConfig(steps=1, dequantise=1.0, device="cpu")
    with pytest.raises(ValueError, match="dequantise: expected 0 for nominal column 1, got 1; give one width per col"):
        arcsm.fit(mixed_model().float(), x, config=config)
    x[3, 1] = 3.0
    with pytest.raises(ValueError, match="x_train: expected whole numbers from 0 to 2 in nominal column 1"):
        arcsm.fit(mixed_model().float(), x, config=TrainConfig(steps=1, device="cpu"))


def test_an_impossible_level_has_no_mass() -> None:
    model = mixed_model("gaussian")
    for value in (3.0, -1.0, 0.5):
        x = mixed_rows(1)
        x[0, 1] = value
        assert model.log_prob(x, reduce=False)[0, 1].item() == -math.inf


def test_nominal_columns_have_no_units_and_the_model_is_saved(tmp_path: Path) -> None:
    model, x = mixed_model(), mixed_rows()
    model.set_standardisation(torch.full((4,), 5.0), torch.full((4,), 3.0))
    assert model.shift.tolist() == [5.0, 0.0, 5.0, 0.0]
    assert model.scale.tolist() == [3.0, 1.0, 3.0, 1.0]
    arcsm.save(model, tmp_path)
    loaded = arcsm.load(tmp_path)
    assert loaded.config() == model.config()
    assert torch.equal(loaded.to(model.shift.dtype).log_prob(x), model.log_prob(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("head", ["score", "gaussian"])
def test_levels_survive_quantiles_of_numbers_before_them(head: str, dtype: torch.dtype) -> None:
    model = mixed_model(head)
    rows = model.sample(100, "inverse_cdf", torch.Generator().manual_seed(0)).to(dtype)
    model = model.to(dtype)
    found = model.icdf(model.cdf(rows))
    assert torch.equal(found[:, [1, 3]], rows[:, [1, 3]])
    torch.testing.assert_close(found[:, 0], rows[:, 0], rtol=0.0, atol=1e-3)


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
