"""Comparison of the numbers of compiled code with formulas in double precision."""

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

RELATIVE_TOLERANCE = 1e-4  #: rounding in single precision stays below 1e-5
_STEP = 1e-5  # of the central differences


def agree(
    function: Callable[..., float], arrays: Sequence[Array], value: float, gradients: Sequence[Array | None]
) -> bool:
    """Return whether a value and its gradients with respect to the arrays, if any, are those of the function."""
    exact, slope, above, below = [array.astype(np.float64) for array in arrays], 0.0, [], []
    for array, gradient, direction in zip(
        exact, gradients, random_arrays([a.shape for a in arrays], seed=1), strict=True
    ):
        step = np.zeros_like(array) if gradient is None else _STEP * direction.astype(np.float64)
        slope += 0.0 if gradient is None else float((gradient.astype(np.float64) * direction).sum())
        above.append(array + step)
        below.append(array - step)
    difference = (function(*above) - function(*below)) / (2.0 * _STEP)
    pairs = (value, function(*exact)), (slope, difference)
    return all(math.isclose(*pair, rel_tol=RELATIVE_TOLERANCE) for pair in pairs)


def random_arrays(sizes: Sequence[tuple[int, ...]], seed: int = 0) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(size, np.float32) for size in sizes]


class Memory:
    """Aligned memory for C."""

    def __init__(self, code: ctypes.CDLL, size: int) -> None:
        alignment = int(code.vector_alignment())
        self._bytes = np.zeros(size + alignment, np.uint8)
        self.address = ctypes.c_void_p(self._bytes.ctypes.data + -self._bytes.ctypes.data % alignment)


def address(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def addresses(arrays: Sequence[Array]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*map(address, arrays))
