"""Likelihoods: means with their standard errors."""

from __future__ import annotations

import math

import pytest
import torch

from arcsm.metrics import mean_and_standard_error


def test_mean_and_standard_error() -> None:
    mean, error = mean_and_standard_error(torch.tensor([1.0, 2.0, 6.0]))
    assert (mean, error) == (pytest.approx(3.0), pytest.approx(math.sqrt(7.0 / 3.0)))
    assert mean_and_standard_error(torch.tensor([2.5])) == (2.5, None)
