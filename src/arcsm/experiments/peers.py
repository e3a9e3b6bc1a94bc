"""Libraries that ours is compared with, which only experiments need."""

from __future__ import annotations

from typing import Any

import torch


def import_zuko() -> Any:
    """The library of flows; its import switches off torch's checks of distributions, which is undone here.

    Raises:
        ValueError: where it is not installed, with what to do.
    """
    checks = torch.distributions.Distribution._validate_args
    try:
        import zuko
    except ImportError as error:
        raise ValueError('zuko: needed for this comparison; pip install "arcsm[bench]"') from error
    torch.distributions.Distribution.set_default_validate_args(checks)
    return zuko
