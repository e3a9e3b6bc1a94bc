"""The innermost loop of training in C, compiled on this machine the first time it is asked for.

A compiler for all programs cannot keep a point's hidden layers in a core's own cache from the first product to the last
gradient; ``walk.c`` does. It is an option: without a C compiler everything works as well, more slowly.
"""

from arcsm.native.build import CompilationError, available
from arcsm.native.walk import walk

__all__ = ["CompilationError", "available", "walk"]
