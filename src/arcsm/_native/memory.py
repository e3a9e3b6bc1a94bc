"""Pass tensors to C, and share the rows of a call among threads."""

import ctypes
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from arcsm._native.build import library
from arcsm._runtime.threads import map_on_threads

T = TypeVar("T")


def supports(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether C can read the tensors: plain ones of a type on a processor, outside of tracing."""
    plain = all(type(t) in (Tensor, nn.Parameter) for t in tensors) and not torch.compiler.is_compiling()
    return plain and all(t.device.type == "cpu" and t.dtype == dtype for t in tensors)


def may_evaluate() -> bool:
    """Return whether C may take the place of torch where nobody needs gradients.

    It may not in transforms of ``torch.func``, in tracing, and where operations are to be deterministic: their results
    depend neither on threads nor on a compiler.
    """
    in_transform = torch.compiler.is_compiling() or torch._C._functorch.get_interpreter_stack()
    return not (torch.is_grad_enabled() or in_transform or torch.are_deterministic_algorithms_enabled())


def may_train() -> bool:
    """Return whether C may take the place of torch and of its first derivatives.

    It may not in transforms of ``torch.func``, in tracing, in half precision, and where operations are to be
    deterministic.
    """
    in_transform = torch.compiler.is_compiling() or torch._C._functorch.get_interpreter_stack()
    deterministic = torch.are_deterministic_algorithms_enabled()
    return not (in_transform or deterministic or torch.is_autocast_enabled("cpu"))


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Return the address of a tensor's first element; the caller must keep the tensor alive until C returns."""
    pointer = tensor.data_ptr()
    if pointer == 0 and tensor.numel():  # such as the placeholders of a traced program
        raise TypeError("expected tensors with memory of their own")
    return ctypes.c_void_p(pointer)


def addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*map(address, tensors))


def check_shapes(name: str, tensors: Sequence[Tensor], valid: bool) -> None:
    """Reject tensors that would make C read or write out of bounds."""
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        raise TypeError(f"{name}: expected float32 tensors on the processor")
    if not valid:
        raise ValueError(f"{name}: shapes do not match: {', '.join(str(tuple(t.shape)) for t in tensors)}")


def alignment() -> int:
    """Return the alignment of memory for C, in bytes."""
    return int(library().vector_alignment())


def allocate(size: int) -> Tensor:
    """Return ``size`` bytes of aligned memory for C."""
    memory = torch.empty(size + alignment(), dtype=torch.uint8)
    begin = -memory.data_ptr() % alignment()
    return memory[begin : begin + size]


def share_rows(rows: int, min_rows: int) -> list[slice]:
    """Return the rows of each thread: as many threads as torch has, or fewer with at least ``min_rows`` rows each."""
    threads = max(1, min(torch.get_num_threads(), -(-rows // min_rows)))
    size = -(-rows // threads)
    return [slice(min(number * size, rows), min((number + 1) * size, rows)) for number in range(threads)]


def on_threads(function: Callable[[int], T], count: int) -> list[T]:
    """Call a function of the numbers 0 to ``count`` - 1, each on its own thread; C calls release the interpreter lock.

    The function must not call torch operations that are large enough to start torch's own threads.
    """
    if count < 2:
        return [function(number) for number in range(count)]
    return map_on_threads(function, range(count), count)
