"""Score matching with the exact trace."""

from torch import Tensor

from arcsm._runtime.conditions import Condition
from arcsm._runtime.random import Source
from arcsm.model import AutoregressiveModel
from arcsm.objectives.base import scores_at_smallest_noise
from arcsm.objectives.score_matching import exact_score_matching


def sm(
    model: AutoregressiveModel,
    x: Tensor,
    condition: Condition | None = None,
    generator: Source = None,
    joint: bool | None = None,
) -> Tensor:
    """Score matching with the exact trace, by ``D`` backward passes.

    .. math:: J = \\mathbb{E} \\big[ \\tfrac12 \\lVert s \\rVert^2 + \\mathrm{tr}(\\nabla_x s) \\big]

    Arguments and errors are the same as in :func:`ssm`.

    References:
        Estimation of Non-Normalized Statistical Models by Score Matching (Hyvärinen, 2005)
    """
    return exact_score_matching(*scores_at_smallest_noise(model, x, condition, generator, joint))
