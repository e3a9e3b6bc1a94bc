"""Devices by name."""

import torch


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device of a name, which must exist on this machine; ``"auto"`` is a GPU if there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {device} is not available here ({str(error).splitlines()[0]})") from error
