"""Devices by name, and constants on them."""

from typing import Any

import torch
from torch import Tensor

_WITHOUT_DOUBLE_PRECISION = {"mps"}


def widest_float(device: torch.device) -> torch.dtype:
    """Return double precision, or single precision on a device without it (Apple's MPS)."""
    return torch.float32 if device.type in _WITHOUT_DOUBLE_PRECISION else torch.float64


_KEPT: dict[tuple[Any, ...], Tensor] = {}


def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of these values, which is sent to a device once; nobody may change it."""
    key = values, dtype, device
    if _may_keep() and key in _KEPT:
        return _KEPT[key]
    with torch.inference_mode(False):  # an inference tensor could not be saved for backward
        found = torch.tensor(values, dtype=dtype, device=device)
    if _may_keep():
        _KEPT[key] = found
    return found


def _may_keep() -> bool:
    """Return whether a new tensor belongs to no trace, transform or mode of torch."""
    modes = torch._C._functorch.get_interpreter_stack() or torch._C._len_torch_dispatch_stack()
    return not (torch.compiler.is_compiling() or modes)


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device of a name, which must exist on this machine; ``"auto"`` is a GPU if there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {device} is not available here ({str(error).splitlines()[0]})") from error
