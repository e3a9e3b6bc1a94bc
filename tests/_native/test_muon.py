"""Steps of Muon in C against torch in double precision."""

import shutil

import pytest
import torch
from torch import Tensor

from arcsm._native import muon_step
from arcsm.training.optimization import Muon, orthogonalised

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, and none is on the path")

POLYNOMIAL = (3.4445, -4.7750, 2.0315)


def step(*tensors: Tensor, momentum: float = 0.9, decay: float = 0.01, factor: float = -0.3) -> None:
    weight, gradient, average = tensors
    muon_step([weight], [gradient], [average], momentum, decay, factor, POLYNOMIAL, 5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (16, 16), (16, 70), (70, 16), (65, 129), (129, 65), (4, 17, 33)])
def test_a_step_is_that_of_torch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight, gradient, average = (torch.randn(shape) for _ in range(3))
    of_gradients = torch.lerp(average.double(), gradient.double(), 0.1)
    ahead = torch.lerp(gradient.double(), of_gradients, 0.9)
    expected = 0.99 * weight.double() - 0.3 * orthogonalised(ahead)
    step(weight, gradient, average)
    torch.testing.assert_close(average.double(), of_gradients, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=5e-6)


def test_the_size_of_gradients_does_not_matter() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.zeros(20, 30), torch.randn(20, 30)
    steps = []
    for size in (1e-30, 1.0, 1e30):
        changed = weight.clone()
        step(changed, size * gradient, torch.zeros(20, 30))
        steps.append(changed)
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(steps[2], steps[1], rtol=1e-4, atol=1e-5)


def test_a_matrix_without_a_gradient_only_decays() -> None:
    torch.manual_seed(0)
    weight, gradient, average = (torch.randn(2, 20, 30) for _ in range(3))
    gradient[1] = 0.0
    before = weight.clone()
    step(weight, gradient, average)
    torch.testing.assert_close(weight[1], 0.99 * before[1])
    assert not torch.allclose(weight[0], 0.99 * before[0], atol=1e-3)


def test_an_optimizer_takes_the_same_steps_with_and_without_c(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(24, 40), torch.randn(3, 24, 40)
    ends = []
    for has_c in (True, False):
        monkeypatch.setattr("arcsm.training.optimization.available", lambda has_c=has_c: has_c)
        weight = torch.nn.Parameter(start.clone())
        optimizer = Muon([{"params": [weight], "matrices": True}], lr=0.1, weight_decay=0.1)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)


def test_shapes_and_types_that_do_not_match_are_rejected() -> None:
    with pytest.raises(ValueError, match="muon: shapes"):
        step(torch.zeros(3, 4), torch.zeros(4, 3), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="muon: shapes"):
        step(torch.zeros(4, 3).T, torch.zeros(3, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="muon: shapes"):
        step(torch.zeros(3), torch.zeros(3), torch.zeros(3))
    with pytest.raises(TypeError, match="float32"):
        step(*torch.zeros(3, 3, 4).double())
    step(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3))
