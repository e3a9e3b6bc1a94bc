"""Predictions of the normal distribution in C against torch in double precision."""

import pytest
import torch
from torch import Tensor

from arcsm._native import normal_given_set, normal_in_order
from arcsm.contexts.normal_moments import given_set


def correlations(units: int, rank: int) -> Tensor:
    torch.manual_seed(0)
    mixing = torch.randn(units, rank, dtype=torch.float64)
    matrix = mixing @ mixing.T + 0.3 * torch.eye(units, dtype=torch.float64)
    deviation = matrix.diagonal().sqrt()
    return matrix / deviation / deviation[:, None]


@pytest.mark.parametrize("rows", [0, 1, 100])
@pytest.mark.parametrize(("units", "rank"), [(1, 1), (16, 2), (48, 5)])
def test_means_and_errors_are_those_of_torch(units: int, rank: int, rows: int) -> None:
    matrix = correlations(units, rank)
    known = torch.rand(rows, units) < torch.rand(rows, 1)
    values = torch.where(known, torch.randn(rows, units).double(), 0.0)
    location, error = normal_given_set(matrix.float(), values.float(), known.float())
    expected = given_set(matrix, values, known)
    torch.testing.assert_close(location.double(), expected.location, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(error.double().square(), expected.scale.square(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gaps", [0.0, 0.3])
@pytest.mark.parametrize(("units", "rank"), [(1, 1), (17, 3)])
def test_in_order_each_unit_is_given_the_known_ones_of_dimensions_before_its_own(
    units: int, rank: int, gaps: float
) -> None:
    matrix = correlations(units, rank)
    known = torch.rand(100, units) >= gaps
    known[7] = False
    values = torch.where(known, torch.randn(100, units).double(), 0.0)
    dimension = [i // 2 for i in range(units)]  # pairs
    order = [2 * d + k for d in torch.randperm(units // 2 + units % 2).tolist() for k in (0, 1) if 2 * d + k < units]
    location, error = normal_in_order(matrix.float(), values.float(), known.float(), order, dimension)
    before = torch.zeros(units, dtype=torch.bool)
    for i in order:
        own = [j for j in order if dimension[j] == dimension[i]]
        before[:] = False
        before[order[: order.index(own[0])]] = True
        expected = given_set(matrix, torch.where(before, values, 0.0), known & before)
        torch.testing.assert_close(location[:, i].double(), expected.location[:, i], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(error[:, i].double().square(), expected.scale[:, i].square(), rtol=1e-3, atol=1e-4)


def test_units_that_say_the_same_do_not_divide_by_zero() -> None:
    matrix = torch.ones(3, 3)
    location, error = normal_given_set(matrix, torch.ones(1, 3), torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(location, torch.ones(1, 3))
    torch.testing.assert_close(error, torch.zeros(1, 3))


def test_shapes_that_do_not_match_are_errors() -> None:
    with pytest.raises(ValueError, match="normal_predictor: shapes do not match"):
        normal_given_set(torch.eye(3), torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="normal_predictor: expected a permutation and the dimensions of 3 units"):
        normal_in_order(torch.eye(3), torch.zeros(2, 3), torch.zeros(2, 3), [0, 1, 1], [0, 1, 2])
    with pytest.raises(TypeError, match="float32"):
        normal_given_set(torch.eye(3), torch.zeros(2, 3), torch.zeros(2, 3).double())
