"""Samplers of one dimension given the dimensions before it. Each is one function of the conditionals.

:meth:`arcsm.AutoregressiveModel.sample` visits the dimensions in order (paper, Section 4.2). For each it calls the
sampler with the conditionals of that dimension, one for each row of the batch. The sampler returns one value per row.
"""

from arcsm.registry import register
from arcsm.samplers.base import Sampler, normals, uniforms
from arcsm.samplers.fast_flow import fast_flow
from arcsm.samplers.inverse_cdf import inverse_cdf
from arcsm.samplers.langevin import annealed_langevin, check_langevin, langevin
from arcsm.samplers.probability_flow import probability_flow

for _sampler in (langevin, probability_flow, fast_flow, inverse_cdf):
    register(_sampler)

__all__ = [
    "Sampler",
    "annealed_langevin",
    "check_langevin",
    "fast_flow",
    "inverse_cdf",
    "langevin",
    "normals",
    "probability_flow",
    "uniforms",
]
