"""The innermost loop of training in C, compiled on this machine when it is first asked for.

A compiler for all programs cannot keep a point's hidden layers in a core's own cache from the first product to the last
gradient; ``walk.c`` does. It is an option: without a C compiler everything works as well, more slowly.
"""

from arcsm.native.bridge import can_walk, walk
from arcsm.native.build import CompilationError, library

__all__ = ["CompilationError", "can_walk", "library", "walk"]
