"""Context networks: x_<d to c_d, in parallel and one step at a time."""

from arcsm.contexts.base import Context
from arcsm.contexts.made import MADE

__all__ = ["MADE", "Context"]
