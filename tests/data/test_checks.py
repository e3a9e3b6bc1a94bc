"""Checks of tables: columns that single precision cannot hold are rejected."""

import numpy as np
import pytest

from arcsm.data.checks import check_precision
from small_tables import normal


@pytest.mark.parametrize("size", [1e35, 1e-40])
def test_columns_beyond_single_precision_are_rejected(size: float) -> None:
    with pytest.raises(ValueError, match=r"column 'b' has values as (large|small) as .* out of the range"):
        check_precision(np.c_[normal(9), size * normal(9)], ("a", "b"), "t")


def test_columns_that_vary_too_little_for_single_precision_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"column 'b' varies by .* too little for single precision"):
        check_precision(np.c_[normal(9), 1.7e9 + 30.0 * normal(9)], ("a", "b"), "t")


def test_constant_and_missing_columns_are_accepted() -> None:
    check_precision(np.c_[normal(9), np.full(9, 1e9), np.full(9, np.nan)], ("a", "b", "c"), "t")
