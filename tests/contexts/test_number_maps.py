"""The maps of numbers on tensors equal those of columns."""

import numpy as np
import pytest
import torch

from arcsm.contexts.number_maps import log_slope, map_values, unmap_numbers
from arcsm.estimators.continua import Asinh, Continuous, Power

KINDS = [Power(0.0, 1.0, -9.0, 9.0, p) for p in (0.0, 0.3, 2.0)] + [Asinh(0.0, 1.0, -9.0, 9.0)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_they_are_those_of_columns(kind: Continuous) -> None:
    v = torch.cat([torch.linspace(-8.0, 8.0, 33), torch.tensor([1e-6, -1e-6, 300.0, -300.0])]).double()
    exponent = torch.tensor(kind.exponent_of_map, dtype=torch.float64)
    t = map_values(v, exponent)
    np.testing.assert_allclose(t, kind.encode(v.numpy()), rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(unmap_numbers(t, exponent), v, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(log_slope(v, exponent), kind.log_slope(t.numpy()), rtol=1e-7, atol=1e-7)
    v.requires_grad_()
    (slope,) = torch.autograd.grad(map_values(v, exponent).sum(), v)
    torch.testing.assert_close(slope.log(), log_slope(v, exponent).detach())
