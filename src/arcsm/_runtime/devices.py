"""Devices by name, and constants on them."""

import functools
from typing import Any

import torch
from torch import Tensor

_WITHOUT_DOUBLE_PRECISION = {"mps"}


def widest_float(device: torch.device) -> torch.dtype:
    """Return double precision, or single precision on a device without it (Apple's MPS)."""
    return torch.float32 if device.type in _WITHOUT_DOUBLE_PRECISION else torch.float64


def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of these values, which is sent to a device once; nobody may change it."""
    if torch.compiler.is_compiling() or torch._C._functorch.get_interpreter_stack():  # it would belong to the trace
        return torch.tensor(values, dtype=dtype, device=device)
    return _kept(values, dtype, device)


@functools.cache
def _kept(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be saved for backward
        return torch.tensor(values, dtype=dtype, device=device)


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device of a name, which must exist on this machine; ``"auto"`` is a GPU if there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {device} is not available here ({str(error).splitlines()[0]})") from error
