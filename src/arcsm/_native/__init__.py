"""The innermost loops of training in C, compiled on this machine when they are first asked for.

A compiler for all programs cannot keep a point's hidden layers in a core's own cache from the first product to the last
gradient; ``walk.c`` does, and ``chain.c`` goes from latent to latent without a call between them. They are options:
without a C compiler everything works as well, more slowly.
"""

from arcsm._native.build import CompilationError, available, library
from arcsm._native.latents import Chained, chain, chain_back, chain_moments
from arcsm._native.memory import takes
from arcsm._native.scores import walk

__all__ = [
    "Chained",
    "CompilationError",
    "available",
    "chain",
    "chain_back",
    "chain_moments",
    "library",
    "takes",
    "walk",
]
