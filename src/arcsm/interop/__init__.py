"""Models in the forms that other libraries expect."""

from arcsm.interop.export import export_scorer
from arcsm.interop.torch_distribution import AutoregressiveDistribution

__all__ = ["AutoregressiveDistribution", "export_scorer"]
