"""Models as torch distributions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal, kl_divergence

from arcsm import MADE, AutoregressiveModel, GaussianHead
from arcsm.interop.torch_distribution import AutoregressiveDistribution

FLOAT64 = torch.float64


def gaussian(**context: Any) -> AutoregressiveModel:
    return AutoregressiveModel(MADE(3, 4, (8,), **context), GaussianHead(4)).double()


def test_log_densities_equal_the_models_for_any_shape() -> None:
    model = gaussian()
    p = AutoregressiveDistribution(model)
    x = torch.randn(4, 5, 3, dtype=FLOAT64)
    assert (p.batch_shape, p.event_shape) == (torch.Size(), torch.Size([3]))
    torch.testing.assert_close(p.log_prob(x), model.log_prob(x))
    assert p.sample().shape == (3,)
    assert p.sample((4, 5)).shape == (4, 5, 3)
    assert p.sample((0,)).shape == (0, 3)
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.full((3,), torch.nan, dtype=FLOAT64))


@pytest.mark.parametrize("classes", [0, 6])
def test_the_condition_sets_the_batch_shape(classes: int) -> None:
    model = gaussian(classes=classes) if classes else gaussian(condition_features=2)
    condition = torch.arange(5) if classes else torch.randn(5, 2, dtype=FLOAT64)
    p = AutoregressiveDistribution(model, condition)
    assert p.batch_shape == (5,)
    one = torch.randn(3, dtype=FLOAT64)
    torch.testing.assert_close(p.log_prob(one), model.log_prob(one.expand(5, 3), condition=condition))
    wider = p.expand((7, 5))
    assert wider.batch_shape == (7, 5)
    torch.testing.assert_close(wider.log_prob(one), p.log_prob(one).expand(7, 5))
    assert wider.sample((2,)).shape == (2, 7, 5, 3)


def test_samples_follow_their_condition() -> None:
    torch.manual_seed(0)
    model = gaussian(condition_features=1)
    given = torch.tensor([[-9.0], [9.0]], dtype=FLOAT64)
    drawn = AutoregressiveDistribution(model, given).sample((400,))
    own, other = model.log_prob(drawn, condition=given), model.log_prob(drawn, condition=given.flip(0))
    assert bool(((own > other).double().mean(0) > 0.9).all())


def test_it_is_a_component_of_a_mixture() -> None:
    model = gaussian(classes=2)
    parts = AutoregressiveDistribution(model, torch.arange(2))
    mixture = MixtureSameFamily(Categorical(torch.tensor([0.25, 0.75], dtype=FLOAT64)), parts)
    x = torch.randn(6, 3, dtype=FLOAT64)
    each = torch.stack([model.log_prob(x, condition=torch.full((6,), c)) for c in range(2)], -1)
    weights = torch.tensor([0.25, 0.75], dtype=FLOAT64).log()
    torch.testing.assert_close(mixture.log_prob(x), torch.logsumexp(each + weights, -1))
    assert mixture.sample((4,)).shape == (4, 3)


def test_wrong_conditions_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"condition: expected \(\*, 2\), got \(5, 3\)"):
        AutoregressiveDistribution(gaussian(condition_features=2), torch.randn(5, 3))
    with pytest.raises(NotImplementedError):
        kl_divergence(AutoregressiveDistribution(gaussian()), Normal(0.0, 1.0))
