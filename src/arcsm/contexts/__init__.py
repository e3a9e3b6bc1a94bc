"""Context networks :math:`x_{<d} \\to c_d`, for all dimensions in parallel or one step at a time."""

from arcsm.contexts.any_order import AnyOrder
from arcsm.contexts.base import Context
from arcsm.contexts.condition_nets import ConditionNet
from arcsm.contexts.made import MADE
from arcsm.contexts.pixelcnn import PixelCNNPP
from arcsm.registry import register

for _context in (AnyOrder, MADE, PixelCNNPP):
    register(_context)

__all__ = ["MADE", "AnyOrder", "ConditionNet", "Context", "PixelCNNPP"]
