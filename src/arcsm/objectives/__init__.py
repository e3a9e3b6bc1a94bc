"""Training objectives: pure functions of a model and a batch, each a scalar ready for ``backward()``.

Each objective is the mean over the batch of the sum over dimensions. Scores, noise and losses are in standardised units
(:meth:`arcsm.AutoregressiveModel.standardise`), so that columns with different units weigh the same; only :func:`mle`
is in nats, in data units. If the model has a noise ladder, the objectives add the noise themselves.
"""

from arcsm.objectives.csm import csm
from arcsm.objectives.dsm import dsm
from arcsm.objectives.mle import mle
from arcsm.objectives.sm import sm
from arcsm.objectives.ssm import ssm
from arcsm.registry import register

for _objective in (csm, dsm, ssm, sm, mle):
    register(_objective)

__all__ = ["csm", "dsm", "mle", "sm", "ssm"]
