"""LocatedHead and its conditionals: those of the inner head, moved and stretched."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import arcsm
from arcsm import AnyOrder, AutoregressiveModel, GaussianHead, LocatedHead, NoiseLadder, TrainConfig, fit, load, save
from arcsm.conditionals import Conditionals
from arcsm.conditionals.located import LocatedConditionals
from arcsm.denoise import tweedie
from arcsm.objectives import csm, dsm, mle, sm
from small_heads import score_head

Objective = Callable[..., Tensor]
PATH = NoiseLadder(2.0, 0.5, 4).sigmas


@pytest.fixture
def projection() -> Tensor:
    """Return projections of 8 contexts, with locations around 5 and scales around a tenth."""
    torch.manual_seed(0)
    head = LocatedHead(score_head(hidden_features=(8,)))
    context = torch.randn(8, 5, dtype=torch.float64)
    context[:, 3:] = context[:, 3:] * 0.3 + torch.tensor([5.0, -2.3])
    return head.project(context).detach()


def conditionals(
    projection: Tensor, method: str = "flow", strength: float = 1.0
) -> tuple[LocatedConditionals, Conditionals]:
    head = LocatedHead(score_head(hidden_features=(8,), strength=strength))
    located = LocatedConditionals(head, projection, PATH, method)  # type: ignore[arg-type]
    return located, Conditionals(head.inner, projection[:, :-2].contiguous(), PATH, method)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["flow", "quadrature"])
def test_conditionals_are_those_of_the_inner_head_in_its_units(projection: Tensor, method: str) -> None:
    located, inner = conditionals(projection, method)
    location, scale = projection[:, -2], projection[:, -1].exp()
    u = torch.randn(8, dtype=torch.float64)
    x = location + scale * u
    torch.testing.assert_close(located.log_prob(x), inner.log_prob(u) - scale.log())
    torch.testing.assert_close(located.cdf(x), inner.cdf(u))
    both = located.log_prob_and_cdf(x)
    torch.testing.assert_close(both[0], inner.log_prob(u) - scale.log(), rtol=0.0, atol=1e-9)
    torch.testing.assert_close(located.icdf(u.sigmoid()), location + scale * inner.icdf(u.sigmoid()))
    mean = located.log_mean_density(x, 0.3 * scale)
    torch.testing.assert_close(mean, inner.log_mean_density(u, torch.full_like(u, 0.3)) - scale.log())


def test_densities_are_normalised_and_scores_their_slopes(projection: Tensor) -> None:
    located, _ = conditionals(projection[:1], "quadrature", strength=0.5)
    location, scale = float(projection[0, -2]), float(projection[0, -1].exp())
    grid = torch.linspace(location - 12.0 * scale, location + 12.0 * scale, 20_001, dtype=torch.float64)
    many = LocatedConditionals(located.head, projection[:1].expand(len(grid), -1), PATH, "quadrature")
    density = many.log_prob(grid).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=2e-5)
    slope = torch.gradient(density.log(), spacing=(grid,))[0][2000:-2000]
    s, _ = located.head.projected_score_and_derivative(projection[:1].expand(len(grid), -1), grid, PATH[-1])
    torch.testing.assert_close(s[2000:-2000], slope, rtol=1e-3, atol=1e-2)


def line(rows: int, seed: int = 0) -> Tensor:
    """Return rows of two values that differ by a hundredth of their standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(rows, 1, generator=generator)
    return torch.cat([first, first + 0.01 * torch.randn(rows, 1, generator=generator)], 1)


def located_model() -> AutoregressiveModel:
    torch.manual_seed(0)
    context = AnyOrder(2, 6, (16, 16), 16, located=True)
    head = LocatedHead(arcsm.ScoreHead(4, (16,)))
    return AutoregressiveModel(context, head, NoiseLadder(3.0, 0.05, 10))


@pytest.mark.slow
def test_a_model_resolves_a_line(tmp_path: Path) -> None:
    model = located_model()
    fit(model, line(1000), config=TrainConfig(steps=1000, batch_size=128, learning_rate=5e-3, seed=0))
    drawn = model.sample(1000, generator=torch.Generator().manual_seed(0))
    assert float((drawn[:, 1] - drawn[:, 0]).std()) == pytest.approx(0.01, rel=0.15)
    test = line(500, seed=1)
    entropy = 2.0 * 1.4189 + torch.log(torch.tensor(0.01))
    assert float(model.log_prob(test).mean()) == pytest.approx(-float(entropy), abs=0.1)
    assert float(model.log_prob(test, order=(1, 0)).mean()) == pytest.approx(-float(entropy), abs=0.15)
    u = model.cdf(test)
    torch.testing.assert_close(model.icdf(u), test, rtol=0.0, atol=2e-4)
    save(model, tmp_path / "model.safetensors")
    torch.testing.assert_close(load(tmp_path / "model.safetensors").log_prob(test), model.log_prob(test))


@pytest.fixture
def on_a_line() -> AutoregressiveModel:
    """Return an untrained model of three numbers whose base knows the line of two of them."""
    torch.manual_seed(0)
    context, inner = AnyOrder(3, 6, (8, 8), 8, located=True), arcsm.ScoreHead(4, (8,))
    model = AutoregressiveModel(context, LocatedHead(inner), NoiseLadder(2.0, 0.1, 6)).double()
    assert context.base is not None
    context.base.fit(torch.cat([line(500), torch.randn(500, 1)], 1))
    return model


@pytest.mark.parametrize("objective", [csm, mle])
def test_gradients_by_rows_go_through_the_locations(on_a_line: AutoregressiveModel, objective: Objective) -> None:
    x = torch.cat([line(4, seed=1), torch.randn(4, 1)], 1).double().requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return objective(on_a_line, x, generator=torch.Generator().manual_seed(5))

    assert torch.autograd.gradcheck(loss, (x,), eps=1e-7, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("objective", [sm, partial(dsm, sigma=0.1)])
def test_one_noise_level_for_all_values_is_refused(on_a_line: AutoregressiveModel, objective: Objective) -> None:
    with pytest.raises(ValueError, match="the noise of a LocatedHead has units of its own, so there is no training at"):
        objective(on_a_line, torch.randn(5, 3).double())


def test_a_context_without_locations_is_refused() -> None:
    """Its last features would be taken for locations, which objectives do not train."""
    for context in (arcsm.MADE(2, 5, (8,)), AnyOrder(2, 5, (8, 8), 8)):
        with pytest.raises(ValueError, match=r"the context gives no locations; AnyOrder\(located=True\) does"):
            AutoregressiveModel(context, LocatedHead(score_head()), NoiseLadder(2.0, 0.1, 6))


def test_half_precision_weights_are_refused(on_a_line: AutoregressiveModel) -> None:
    with pytest.raises(ValueError, match="the linear base of an AnyOrder needs single precision"):
        on_a_line.bfloat16()
    assert {parameter.dtype for parameter in on_a_line.parameters()} == {torch.float64}


def test_values_that_a_parent_rules_out_are_on_no_line() -> None:
    torch.manual_seed(0)
    x = torch.cat([line(600), torch.zeros(600, 1)], 1)
    absent = torch.rand(600) < 0.4
    x[absent, 1], x[absent, 2] = 3.0, 1.0
    context = AnyOrder(3, 6, (8, 8), 8, levels=(0, 0, 2), parents=(-1, 2, -1), located=True)
    head = arcsm.MixedHead([LocatedHead(arcsm.ScoreHead(4, (8,))), arcsm.CategoricalHead(6, 2)], (0, 0, 1))
    model = AutoregressiveModel(context, head, NoiseLadder(2.0, 0.1, 6))
    fit(model, x, config=TrainConfig(steps=1, batch_size=32, seed=0))
    assert context.base is not None
    assert float(context.base.scales[:2].max()) < 0.03
    assert float(model.shift[1]) == pytest.approx(float(x[~absent, 1].mean()), abs=1e-3)


@pytest.mark.parametrize("objective", [csm, mle])
def test_objectives_are_those_of_the_inner_head_in_its_units(objective: Objective) -> None:
    """With locations 0 and scales 1, the loss is that of a model without them."""
    located = located_model()
    torch.manual_seed(0)
    context = AnyOrder(2, 4, (16, 16), 16)
    plain = AutoregressiveModel(context, arcsm.ScoreHead(4, (16,)), located.noise)
    own = {name.replace("head.inner.", "head."): weights for name, weights in located.state_dict().items()}
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    x = line(30)
    found = [objective(model, x, generator=torch.Generator().manual_seed(3)) for model in (located, plain)]
    torch.testing.assert_close(*found)


def test_noise_in_units_of_the_data_is_refused() -> None:
    model, x = located_model(), line(5)
    with pytest.raises(ValueError, match="the noise of a LocatedHead has units of its own"):
        model.sample(3, denoise=True)
    with pytest.raises(ValueError, match="the noise of a LocatedHead has units of its own"):
        tweedie(model, x, sigma=0.5)


def test_the_inner_head_has_a_score_and_no_closed_form() -> None:
    with pytest.raises(ValueError, match="inner: expected a head with a score and no closed form, got GaussianHead"):
        LocatedHead(GaussianHead(4))
    with pytest.raises(ValueError, match="inner: expected a head of single columns, got LocatedHead"):
        LocatedHead(LocatedHead(arcsm.ScoreHead(4)))
