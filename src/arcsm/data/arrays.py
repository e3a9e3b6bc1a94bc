"""Arrays of other kinds as plain ones."""

from typing import Any

import numpy as np


def without_mask(values: Any) -> Any:
    """Return a masked array of NumPy as a plain one with NaN where it is masked; anything else as it is.

    Example:
        >>> without_mask(np.ma.masked_equal([1, -999], -999))
        array([ 1., nan])
    """
    if not isinstance(values, np.ma.MaskedArray):
        return values
    numeric = np.issubdtype(values.dtype, np.number) or values.dtype == bool
    if values.dtype.kind in "biu":
        values = values.astype(np.float64)
    return values.filled(np.nan) if numeric else values.astype(object).filled(None)


def native(values: np.ndarray) -> np.ndarray:
    """Return an array in the byte order of this machine and with positive strides, as torch needs it."""
    reversed_view = any(stride < 0 for stride in values.strides)
    ordered = values.astype(values.dtype.newbyteorder("="), copy=False)
    return ordered.copy() if reversed_view else ordered
