"""The discretised mixture of logistics: probabilities of bins, and a density that is uniform in each bin."""

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


@pytest.mark.parametrize("levels", [7, 256])
def test_levels_stored_in_single_precision_fall_into_their_own_bins(levels: int) -> None:
    torch.manual_seed(0)
    head, numbers = DiscretisedLogisticMixtureHead(4, 2, levels), torch.arange(float(levels))
    projection = head.project(torch.randn(4))
    middles = head.projected_log_prob(projection, (numbers + 0.5) / (0.5 * levels) - 1.0)
    for stored in (numbers / (0.5 * levels) - 1.0, numbers * (2.0 / levels) - 1.0, (numbers / levels - 0.5) / 0.5):
        assert torch.equal(head.projected_log_prob(projection, stored), middles)


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


def test_grey_levels_are_not_standardised_but_dequantised() -> None:
    model = AutoregressiveModel(MADE(2, 4, (8,)), DiscretisedLogisticMixtureHead(4, 2, levels=4))
    rows = torch.tensor([[-1.0, -0.5], [0.0, 0.5]]).repeat(16, 1)
    with pytest.raises(ValueError, match=r'grey levels must stay in .* standardise="none", not "columns"'):
        fit(model, rows, config=TrainConfig(objective="mle", steps=1, standardise="columns", device="cpu"))
    assert model.shift.tolist() == [0.0, 0.0]
    config = TrainConfig(objective="mle", steps=1, standardise="none", device="cpu")
    for x in (rows, DataLoader(TensorDataset(rows), 16)):
        with pytest.raises(ValueError, match=r"give dequantise=0\.5, so that contexts have seen such values"):
            fit(model, x, config=config)  # type: ignore[arg-type]
