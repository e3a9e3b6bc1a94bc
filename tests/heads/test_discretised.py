"""The discretised mixture of logistics: probabilities of bins, and a density that is uniform in each bin."""

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from arcsm import (
    MADE,
    AutoregressiveModel,
    DiscretisedLogisticMixtureHead,
    LogisticMixtureHead,
    TrainConfig,
    fit,
)
from arcsm.metrics import bits_per_dim


def discretised(levels: int = 8, components: int = 3) -> tuple[DiscretisedLogisticMixtureHead, Tensor]:
    """Return a head with random weights and the projections of five contexts, in double precision."""
    torch.manual_seed(0)
    head = DiscretisedLogisticMixtureHead(4, components, levels).double()
    return head, head.project(torch.randn(5, 4, dtype=torch.float64))


def test_bin_probabilities_match_the_mixture_and_sum_to_one() -> None:
    head, projection = discretised()
    edges = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)
    middle = 0.5 * (edges[1:] + edges[:-1])
    masses = head.projected_log_prob(projection[:, None], middle.expand(5, 8)).exp() * 0.25
    torch.testing.assert_close(masses.sum(1), torch.ones(5, dtype=torch.float64), rtol=0.0, atol=1e-12)
    below = LogisticMixtureHead.projected_cdf(head, projection[:, None], edges[1:-1].expand(5, 7))
    expected = torch.cat([below[:, :1], below.diff(dim=1), 1.0 - below[:, -1:]], 1)
    torch.testing.assert_close(masses, expected, rtol=1e-9, atol=1e-13)


def test_density_is_uniform_within_a_bin_and_integrates_to_the_cdf() -> None:
    head, projection = discretised()
    x = torch.linspace(-1.0, 1.0, 801, dtype=torch.float64)[:-1] + 0.00125
    density = head.projected_log_prob(projection[:, None], x.expand(5, 800)).exp()
    torch.testing.assert_close(density[:, :100], density[:, :1].expand(5, 100), rtol=0.0, atol=0.0)
    cumulative = head.projected_cdf(projection[:, None], (x + 0.00125).expand(5, 800))
    torch.testing.assert_close(density.cumsum(1) * 0.0025, cumulative, rtol=0.0, atol=1e-10)
    outside = torch.tensor([-1.5, 1.5], dtype=torch.float64).expand(5, 2)
    assert bool((head.projected_log_prob(projection[:, None], outside) == -torch.inf).all())


def test_stored_levels_fall_into_their_own_bins() -> None:
    head = DiscretisedLogisticMixtureHead(4, 2, 256)
    levels = torch.arange(256) / 128.0 - 1.0
    assert torch.equal(head._bin(levels), torch.arange(256.0))
    assert torch.equal(head._bin(levels + 0.5 / 128.0), torch.arange(256.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 7, 100, 256])
def test_levels_stored_in_single_precision_fall_into_their_own_bins(levels: int, dtype: torch.dtype) -> None:
    head, numbers = DiscretisedLogisticMixtureHead(4, 2, levels), torch.arange(float(levels))
    for stored in (numbers / (0.5 * levels) - 1.0, numbers * (2.0 / levels) - 1.0, (numbers / levels - 0.5) / 0.5):
        assert torch.equal(head._bin(stored.to(dtype)), numbers.to(dtype))


def test_values_right_below_an_edge_belong_to_the_bin_below_it() -> None:
    head, projection = discretised()
    edges = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)[1:]
    values, middles = edges - 1e-5, edges - 0.125
    density = head.projected_log_prob(projection[:, None], values.expand(5, 8))
    assert torch.equal(density, head.projected_log_prob(projection[:, None], middles.expand(5, 8)))
    cdf = head.projected_cdf(projection[:, None], torch.stack([values, values + 8e-6], 1).flatten().expand(5, 16))
    slopes = cdf.unflatten(1, (8, 2)).diff(dim=2)[..., 0] / 8e-6
    torch.testing.assert_close(slopes, density.exp(), rtol=1e-8, atol=1e-9)


def test_narrow_and_distant_components_give_finite_probabilities_and_gradients() -> None:
    head = DiscretisedLogisticMixtureHead(6, 2, 256)
    with torch.no_grad():
        head.parameters_of.weight.copy_(torch.eye(6))
        head.parameters_of.bias.zero_()
    context = torch.tensor([[0.0, 50.0, -30.0, 40.0, -20.0, -20.0], [0.0, -50.0, 0.0, 0.0, 9.0, -9.0]])
    context = context.repeat_interleave(3, 0).requires_grad_()
    values = head.log_prob(context, torch.tensor([-1.0, 0.1, 0.99] * 2))
    values.sum().backward()
    assert context.grad is not None
    assert bool(values.isfinite().all())
    assert bool(context.grad.isfinite().all())


def test_score_and_noise_are_rejected() -> None:
    head, projection = discretised()
    x = torch.zeros(5, dtype=torch.float64)
    with pytest.raises(ValueError, match="no score"):
        head.projected_score_and_derivative(projection, x)
    with pytest.raises(ValueError, match="without a noise ladder"):
        head.projected_log_prob(projection, x, 0.1)
    with pytest.raises(ValueError, match="levels"):
        DiscretisedLogisticMixtureHead(4, 2, 1)


@pytest.mark.parametrize("units", ["columns", "global", "centre"])
def test_grey_levels_are_not_standardised(units: Literal["columns", "global", "centre"]) -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), DiscretisedLogisticMixtureHead(4, 2, levels=4))
    rows = torch.tensor([[-1.0, -0.5], [0.0, 0.5]]).repeat(16, 1)
    with pytest.raises(ValueError, match=f'grey levels must stay in .* standardise="none", not "{units}"'):
        fit(model, rows, config=TrainConfig(objective="mle", steps=1, standardise=units, device="cpu"))
    assert model.shift.tolist() == [0.0, 0.0]


def test_grey_levels_are_dequantised_so_that_contexts_know_what_samples_hold() -> None:
    rows = torch.randint(4, (2000, 1), generator=torch.Generator().manual_seed(0)).float().expand(-1, 2) / 2.0 - 1.0

    def trained(x: Tensor, **changes: float) -> AutoregressiveModel:
        torch.manual_seed(0)
        model = AutoregressiveModel(MADE(2, 12, (32,)), DiscretisedLogisticMixtureHead(12, 4, levels=4))
        config = TrainConfig(
            objective="mle", steps=400, batch_size=256, learning_rate=1e-2, standardise="none", device="cpu"
        )
        fit(model, x, config=config.model_copy(update=changes))
        return model

    with pytest.raises(ValueError, match=r"give dequantise=0\.5, so that contexts have seen such values"):
        trained(rows)
    with pytest.raises(ValueError, match=r"give dequantise=0\.5"):
        trained(DataLoader(TensorDataset(rows), 64))  # type: ignore[arg-type]
    dequantised = rows + 0.5 * torch.rand(rows.shape, generator=torch.Generator().manual_seed(1))
    for model in (trained(rows, dequantise=0.5), trained(dequantised)):
        levels = ((model.sample(1000, generator=torch.Generator().manual_seed(2)) + 1.0) * 2.0).floor()
        assert (levels[:, 0] == levels[:, 1]).float().mean() > 0.9
        assert abs(float((levels[:, 1] - levels[:, 0]).mean())) < 0.05


def test_model_learns_the_entropy_of_levels_and_samples_them() -> None:
    torch.manual_seed(0)
    model = AutoregressiveModel(MADE(2, 12, (16,)), DiscretisedLogisticMixtureHead(12, 4, levels=4))
    rows = torch.tensor([[-1.0, -0.5], [0.0, 0.5]]).repeat(256, 1)  # one bit for the first, none for the second
    config = TrainConfig(
        objective="mle", steps=400, batch_size=128, learning_rate=2e-2, dequantise=0.5, standardise="none", device="cpu"
    )
    fit(model, rows, config=config)
    with torch.no_grad():
        bits = bits_per_dim(model.log_prob(rows[:2] + 0.25), 2, 4)
    torch.testing.assert_close(bits, torch.full((2,), 0.5), rtol=0.0, atol=0.05)
    drawn = ((model.sample(200) + 1.0) * 2.0).floor()
    rates = [(drawn == torch.tensor(level)).all(1).float().mean().item() for level in ([0.0, 1.0], [2.0, 3.0])]
    assert sum(rates) > 0.9
    assert min(rates) > 0.35
