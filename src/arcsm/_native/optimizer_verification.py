"""A check of the compiled code of optimizers; see :mod:`arcsm._native.verification`."""

import ctypes

import numpy as np

from arcsm._native.comparison import RELATIVE_TOLERANCE, Memory, address, addresses, random_arrays
from arcsm._native.interface import MuonRule

_MOMENTUM, _DECAY, _STEP, _POLYNOMIAL = 0.5, 0.25, -0.5, (1.5, -0.75, 0.125)


def is_muon_right(code: ctypes.CDLL) -> bool:
    """Return whether a step of a tall and of a wide matrix agrees with the formula in double precision."""
    found, expected = [], []
    for rows, columns in ((7, int(code.vector_step()) + 3), (9, 4)):
        arrays = random_arrays([(rows, columns)] * 3)
        weight, gradient, average = (array.astype(np.float64) for array in arrays)
        average = average + (1.0 - _MOMENTUM) * (gradient - average)
        x = gradient + _MOMENTUM * (average - gradient)
        x /= np.linalg.norm(x)
        linear, cubic, quintic = _POLYNOMIAL
        square = x @ x.T
        x = linear * x + (cubic * square + quintic * square @ square) @ x
        expected += [(1.0 - _DECAY) * weight + _STEP * x, average]
        rule = MuonRule(rows, columns, _MOMENTUM, _DECAY, _STEP, *_POLYNOMIAL, 1)
        memory, ahead = Memory(code, code.muon_workspace_bytes(ctypes.byref(rule))), np.empty_like(arrays[0])
        parts = [addresses([array]) for array in arrays]
        code.muon_step(ctypes.byref(rule), ctypes.c_long(1), *parts, address(ahead), memory.address)
        found += [arrays[0], arrays[2]]
    return all(
        np.allclose(ours, its, RELATIVE_TOLERANCE, RELATIVE_TOLERANCE)
        for ours, its in zip(found, expected, strict=True)
    )
