"""Predictions of the normal distribution in C against torch in double precision."""

import shutil

import pytest
import torch
from torch import Tensor

from arcsm._native import normal_given_set
from arcsm.contexts.normal_moments import given_set

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, and none is on the path")


def correlations(units: int, rank: int) -> Tensor:
    torch.manual_seed(0)
    mixing = torch.randn(units, rank, dtype=torch.float64)
    matrix = mixing @ mixing.T + 0.3 * torch.eye(units, dtype=torch.float64)
    deviation = matrix.diagonal().sqrt()
    return matrix / deviation / deviation[:, None]


@pytest.mark.parametrize("rows", [0, 1, 600])
@pytest.mark.parametrize(("units", "rank"), [(1, 1), (7, 3), (16, 2), (48, 5)])
def test_means_and_errors_are_those_of_torch(units: int, rank: int, rows: int) -> None:
    matrix = correlations(units, rank)
    known = torch.rand(rows, units) < torch.rand(rows, 1)
    values = torch.where(known, torch.randn(rows, units).double(), 0.0)
    location, error = normal_given_set(matrix.float(), values.float(), known.float())
    expected = given_set(matrix, values, known)
    torch.testing.assert_close(location.double(), expected.location, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(error.double().square(), expected.scale.square(), rtol=1e-3, atol=1e-4)


def test_units_that_say_the_same_do_not_divide_by_zero() -> None:
    matrix = torch.ones(3, 3)
    location, error = normal_given_set(matrix, torch.ones(1, 3), torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(location, torch.ones(1, 3))
    torch.testing.assert_close(error, torch.zeros(1, 3))


def test_shapes_that_do_not_match_are_errors() -> None:
    with pytest.raises(ValueError, match="normal_predictor: shapes do not match"):
        normal_given_set(torch.eye(3), torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(TypeError, match="float32"):
        normal_given_set(torch.eye(3), torch.zeros(2, 3), torch.zeros(2, 3).double())
