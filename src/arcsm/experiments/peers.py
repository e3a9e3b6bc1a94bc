"""Optional libraries that the experiments compare with."""

from typing import Any

import torch


def import_zuko() -> Any:
    """Import zuko and undo its change of torch's validation of distributions."""
    checks = torch.distributions.Distribution._validate_args
    try:
        import zuko
    except ImportError as error:
        raise ValueError('zuko: needed for this comparison; pip install "arcsm[bench]"') from error
    torch.distributions.Distribution.set_default_validate_args(checks)
    return zuko
