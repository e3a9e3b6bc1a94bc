"""Context networks: x_<d to c_d, in parallel and one step at a time."""

from arcsm.contexts.base import Context
from arcsm.contexts.made import MADE
from arcsm.contexts.pixelcnn import PixelCNNPP

__all__ = ["MADE", "Context", "PixelCNNPP"]
