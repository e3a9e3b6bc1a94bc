"""Bindings of ``muon.c``: steps of Muon for matrices of one shape."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from arcsm._native.build import library
from arcsm._native.interface import MuonRule
from arcsm._native.memory import address, allocate, check_shapes


def muon_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    averages: Sequence[Tensor],
    momentum: float,
    decay: float,
    step: float,
    polynomial: Sequence[float],
    iterations: int,
) -> None:
    """Change contiguous weights ``(*, m, n)`` of one shape, and the averages of their gradients, in place.

    Errors are those of :mod:`arcsm._native.latent_chain`.

    Arguments:
        weights: Matrices, or stacks of them.
        gradients: Those of this step.
        averages: Those of the gradients so far.
        momentum: Decay of the averages.
        decay: Fraction of the weights that a step takes away.
        step: The factor of the matrix with nearly equal singular values that is added to a weight.
        polynomial: Coefficients of the first, third and fifth power of singular values in an iteration.
        iterations: Their number.
    """
    gradients = [gradient.contiguous() for gradient in gradients]
    every = [*weights, *gradients, *averages]
    shape = weights[0].shape
    check_shapes("muon", every, all(t.shape == shape and t.is_contiguous() for t in every) and len(shape) > 1)
    rows, columns = shape[-2:]
    rule = MuonRule(rows, columns, momentum, decay, step, *polynomial, iterations)
    code, size = library(), rows * columns
    if not size:
        return
    memory = allocate(int(code.muon_workspace_bytes(ctypes.byref(rule))))
    ahead = torch.empty(size)
    parts = [_matrices(tensors, size) for tensors in (weights, gradients, averages)]
    code.muon_step(ctypes.byref(rule), ctypes.c_long(len(parts[0])), *parts, address(ahead), address(memory))


def _matrices(tensors: Sequence[Tensor], size: int) -> ctypes.Array[ctypes.c_void_p]:
    """Return the addresses of all matrices of ``size`` numbers in a sequence of stacks."""
    starts = [
        first + matrix * size * tensor.element_size()
        for tensor in tensors
        for first, count in [(tensor.data_ptr(), tensor.numel() // size)]
        for matrix in range(count)
    ]
    return (ctypes.c_void_p * len(starts))(*starts)
