"""The mixture of logistics against closed forms and at extreme scales."""

import math

import pytest
import torch

from arcsm import LogisticMixtureHead
from small_heads import FLOAT64


@pytest.mark.parametrize(("raw_scale", "dtype"), [(-100.0, torch.float32), (0.0, torch.float32), (-7.0, torch.float64)])
def test_mixture_is_stable_in_the_tails_and_at_tiny_scales(raw_scale: float, dtype: torch.dtype) -> None:
    head = LogisticMixtureHead(3, components=2).to(dtype)
    projection = torch.tensor([0.5, -0.5, -1.0, 1.0, raw_scale, raw_scale], dtype=dtype).expand(7, -1)
    projection = projection.clone().requires_grad_()
    x = torch.tensor([-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4], dtype=dtype, requires_grad=True)
    scale = math.exp(math.log1p(math.exp(raw_scale + 7.0)) - 7.0)
    s, ds = head.projected_score_and_derivative(projection, x)
    density, distribution = head.projected_log_prob(projection, x), head.projected_cdf(projection, x)
    for value in (s, ds, density, distribution):
        assert bool(value.isfinite().all())
        (gradient,) = torch.autograd.grad(value.sum(), projection, retain_graph=True)
        assert bool(gradient.isfinite().all())
    tail_scores = torch.tensor([1.0 / scale, -1.0 / scale], dtype=dtype)
    torch.testing.assert_close(s[[0, -1]].detach(), tail_scores, rtol=1e-5, atol=0.0)  # an exponential tail
    assert distribution[[0, -1]].tolist() == [0.0, 1.0]
    assert bool(distribution.diff().ge(0.0).all())


def test_mixture_density_is_the_weighted_sum_of_logistics() -> None:
    head = LogisticMixtureHead(3, components=2).double()
    projection = torch.tensor([[math.log(3.0), 0.0, -2.0, 1.0, 0.0, -1.0]], dtype=FLOAT64)
    x = torch.linspace(-6.0, 6.0, 25, dtype=FLOAT64)
    expected = torch.zeros_like(x)
    for weight, mean, raw in ((0.75, -2.0, 0.0), (0.25, 1.0, -1.0)):
        scale = math.exp(math.log1p(math.exp(raw + 7.0)) - 7.0)
        share = torch.sigmoid((x - mean) / scale)
        expected = expected + weight * share * (1.0 - share) / scale
    torch.testing.assert_close(head.projected_log_prob(projection, x).exp(), expected)


def test_the_first_mixture_covers_data_of_any_scale() -> None:
    torch.manual_seed(0)
    small, unit = LogisticMixtureHead(3, components=5, data_std=0.5), LogisticMixtureHead(3, components=5)
    small.parameters_of.weight.data.zero_()
    unit.parameters_of.weight.data.zero_()
    x = torch.linspace(-2.0, 2.0, 9)
    context = torch.zeros(9, 3)
    narrow = small.log_prob(context, 0.5 * x) - math.log(2.0)
    torch.testing.assert_close(narrow, unit.log_prob(context, x), atol=0.02, rtol=0)  # the smallest scale adds 0.01
    with pytest.raises(ValueError, match="expected a positive finite scale, got data_std=0"):
        LogisticMixtureHead(3, data_std=0.0)
