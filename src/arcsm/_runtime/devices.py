"""Devices by name."""

from __future__ import annotations

import torch


def resolve_device(device: str | torch.device) -> torch.device:
    """A device by name; ``"auto"`` is a GPU if there is one.

    Raises:
        ValueError: for a device that does not exist here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {device} is not available here ({str(error).splitlines()[0]})") from error
