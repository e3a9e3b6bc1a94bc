"""Steps of Muon in C against torch in double precision."""

import pytest
import torch
from torch import Tensor

from arcsm._native import muon_step
from arcsm.training.optimization import orthogonalised

POLYNOMIAL = (3.4445, -4.7750, 2.0315)


def step(*tensors: Tensor, momentum: float = 0.9, decay: float = 0.01, factor: float = -0.3) -> None:
    weight, gradient, average = tensors
    muon_step([weight], [gradient], [average], momentum, decay, factor, POLYNOMIAL, 5)


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (16, 70), (129, 65), (4, 17, 33)])
def test_a_step_is_that_of_torch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight, gradient, average = (torch.randn(shape) for _ in range(3))
    if len(shape) == 3:
        gradient[0], average[0] = 0.0, 0.0  # a matrix without a gradient only decays
    of_gradients = torch.lerp(average.double(), gradient.double(), 0.1)
    ahead = torch.lerp(gradient.double(), of_gradients, 0.9)
    expected = 0.99 * weight.double() - 0.3 * orthogonalised(ahead)
    step(weight, gradient, average)
    torch.testing.assert_close(average.double(), of_gradients, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=5e-6)


def test_shapes_and_types_that_do_not_match_are_rejected() -> None:
    with pytest.raises(ValueError, match="muon: shapes"):
        step(torch.zeros(3, 4), torch.zeros(4, 3), torch.zeros(3, 4))
    with pytest.raises(TypeError, match="float32"):
        step(*torch.zeros(3, 3, 4).double())
    step(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3))
