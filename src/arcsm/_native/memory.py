"""Tensors as C sees them, and threads for it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from arcsm._runtime.threads import map_on_threads

T = TypeVar("T")


def takes(*tensors: Tensor) -> bool:
    """Whether C can have tensors: plain ones of single precision on the processor.

    Not those that stand in for others while a program is traced.
    """
    plain = all(type(t) in (Tensor, nn.Parameter) for t in tensors) and not torch.compiler.is_compiling()
    return plain and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Where a tensor begins; a name has to hold it until C is done.

    Raises:
        TypeError: for one that is nowhere, such as those that stand in for others while a program is traced.
    """
    found = tensor.data_ptr()
    if found == 0 and tensor.numel():
        raise TypeError("expected tensors with memory of their own")
    return ctypes.c_void_p(found)


def addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """An array of where each of some tensors begins."""
    return (ctypes.c_void_p * len(tensors))(*map(address, tensors))


def memory(size: int, alignment: int) -> Tensor:
    """Bytes that begin at a multiple of ``alignment``."""
    taken = torch.empty(size + alignment, dtype=torch.uint8)
    begin = -taken.data_ptr() % alignment
    return taken[begin : begin + size]


def shares(rows: int, fewest: int) -> list[slice]:
    """Rows for each of torch's threads, or for fewer threads where each would get less than ``fewest``."""
    threads = max(1, min(torch.get_num_threads(), -(-rows // fewest)))
    size = -(-rows // threads)
    return [slice(min(number * size, rows), min((number + 1) * size, rows)) for number in range(threads)]


def each_share(function: Callable[[int], T], count: int) -> list[T]:
    """A function of the number of each share, on as many threads: C lets go of the interpreter.

    In it no operation of torch may be big enough to be shared by threads of torch's own.
    """
    if count < 2:
        return [function(number) for number in range(count)]
    return map_on_threads(function, range(count), count)
