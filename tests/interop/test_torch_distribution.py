"""Models as torch distributions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from arcsm import MADE, AutoregressiveModel, GaussianHead, NoiseLadder
from arcsm.interop.torch_distribution import AutoregressiveDistribution
from small_models import seeded

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


def test_one_dimension_has_a_distribution_function_and_quantiles() -> None:
    model = AutoregressiveModel(MADE(1, 4, (8,), condition_features=2), GaussianHead(4), NoiseLadder(1.0, 0.1, 3))
    given, x, u = (torch.randn(5, 2), torch.randn(4, 5, 1), torch.rand(4, 5))
    q = AutoregressiveDistribution(model, given, method="quadrature", tol=1e-6)
    torch.testing.assert_close(q.cdf(x), model.cdf(x, condition=given.expand(4, 5, 2))[..., 0])
    assert q.icdf(u).shape == (4, 5, 1)
    torch.testing.assert_close(q.cdf(q.icdf(u)), u, rtol=0.0, atol=1e-5)
    assert q.icdf(torch.tensor(0.5)).shape == (5, 1)
    torch.testing.assert_close(q.expand((4, 5)).icdf(torch.tensor(0.5))[0], q.icdf(torch.tensor(0.5)))
    assert not torch.equal(q.log_prob(x), AutoregressiveDistribution(model, given, 0).log_prob(x))


def test_what_several_dimensions_do_not_have_is_refused_with_a_reason() -> None:
    q, x = AutoregressiveDistribution(gaussian()), torch.zeros(3, dtype=FLOAT64)
    with pytest.raises(NotImplementedError, match=r"cdf: .* this model has 3; model\.cdf is the Rosenblatt transform"):
        q.cdf(x)
    with pytest.raises(NotImplementedError, match=r"icdf: .* model\.icdf is the inverse of the Rosenblatt transform"):
        q.icdf(x)
    with pytest.raises(NotImplementedError, match=r"rsample: samples .* carry no gradients; use sample"):
        q.rsample()
    for name in ("mean", "variance", "stddev", "mode"):
        with pytest.raises(NotImplementedError, match=f"{name.replace('stddev', 'variance')}: .* no closed form; "):
            getattr(q, name)
    with pytest.raises(NotImplementedError, match=r"entropy: .* no closed form; use -log_prob"):
        q.entropy()


@pytest.mark.parametrize(("shape", "validate_args"), [((4,), True), ((), False)])
def test_values_of_another_size_are_rejected(shape: tuple[int, ...], validate_args: bool) -> None:
    q = AutoregressiveDistribution(gaussian(), validate_args=validate_args)
    with pytest.raises(ValueError, match=r"value: expected shape \(\*, 3\), got \("):
        q.log_prob(torch.zeros(shape, dtype=FLOAT64))
    assert repr(q) == "AutoregressiveDistribution(MADE, GaussianHead, batch_shape=(), event_shape=(3,))"


def test_samples_come_from_the_sampler_and_the_generator() -> None:
    model = AutoregressiveModel(MADE(3, 4, (8,)), GaussianHead(4), NoiseLadder(1.0, 0.1, 3))
    q = AutoregressiveDistribution(model, sampler="langevin", generator=seeded(1)).expand((2,))
    assert torch.equal(q.sample((4,)).flatten(0, 1), model.sample(8, "langevin", seeded(1)))
    state = torch.get_rng_state()
    q.sample()
    assert torch.equal(torch.get_rng_state(), state)
