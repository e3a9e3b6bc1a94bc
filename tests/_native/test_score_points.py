"""Features, slopes and coefficients of points in C against torch in double precision."""

import pytest
import torch
from torch import Tensor

from arcsm import ScoreHead
from arcsm._native import PointConstants, score_points
from arcsm.objectives import fused


def batch_of(head: ScoreHead, values: list[Tensor | None]) -> fused._Batch:
    return fused._Batch(head, fused._Values(*values), True, fused._forward_backward, 100)


@pytest.mark.parametrize("count", [0, 1, 131])
@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize(("sinusoids", "data_std"), [(0, 1.0), (3, 0.2), (1, 30.0)])
def test_points_are_those_of_torch(count: int, noisy: bool, sinusoids: int, data_std: float) -> None:
    torch.manual_seed(0)
    head = ScoreHead(3, (8,), sinusoids, max_frequency=40.0, data_std=data_std)
    exact = ScoreHead(3, (8,), sinusoids, max_frequency=40.0, data_std=data_std).double()
    x = 3.0 * data_std * torch.randn(count)
    x[::7] = 15.0 * data_std * torch.sign(x[::7])  # where the window is below one
    sigma = data_std * torch.exp(torch.randn(count) - 2.0) if noisy else None
    values = [x, sigma, torch.rand(count), torch.rand(count), torch.randn(count)]
    ours = batch_of(head, values).compiled
    expected = batch_of(exact, [None if t is None else t.double() for t in values])
    features, slopes = fused._noise_and_value_features(exact, expected.points)
    coefficients, constant = torch.stack(expected.points[2:]), float(expected.constant)
    angle = 6e-8 * 40.0 * 45.0  # rounding of the largest one
    torch.testing.assert_close(ours.features.double(), features, rtol=1e-5, atol=angle)
    torch.testing.assert_close(data_std * ours.slopes.double(), data_std * slopes, rtol=1e-5, atol=40.0 * angle)
    for found, its in zip(ours.coefficients.double(), coefficients, strict=True):
        torch.testing.assert_close(found, its, rtol=1e-5, atol=1e-6 * float(its.abs().sum()))
    assert ours.constant == pytest.approx(constant, rel=1e-5)


def test_shapes_that_do_not_match_are_errors() -> None:
    constants, x = PointConstants(torch.ones(2), 1.0, 4.0, 10.0, 20.0), torch.zeros(3)
    with pytest.raises(ValueError, match="score_points: shapes do not match"):
        score_points(constants, x, None, x, x, torch.zeros(2))
    with pytest.raises(TypeError, match="float32"):
        score_points(constants, x.double(), None, x.double(), x.double(), x.double())
