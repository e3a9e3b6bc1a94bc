"""Tensors as C sees them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Where a tensor begins."""
    return ctypes.c_void_p(tensor.data_ptr())


def addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """An array of where each of some tensors begins."""
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def memory(size: int, alignment: int) -> Tensor:
    """Bytes that begin at a multiple of ``alignment``."""
    taken = torch.empty(size + alignment, dtype=torch.uint8)
    begin = -taken.data_ptr() % alignment
    return taken[begin : begin + size]
