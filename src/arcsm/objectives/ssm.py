"""Sliced score matching."""

from torch import Tensor

from arcsm._runtime.conditions import Condition
from arcsm._runtime.random import Source
from arcsm.model import AutoregressiveModel
from arcsm.objectives.base import scores_at_smallest_noise
from arcsm.objectives.score_matching import Projections, sliced_score_matching


def ssm(
    model: AutoregressiveModel,
    x: Tensor,
    slices: int = 1,
    projections: Projections = "rademacher",
    variance_reduced: bool = True,
    condition: Condition | None = None,
    generator: Source = None,
    joint: bool | None = None,
) -> Tensor:
    """Sliced score matching with random projections :math:`v`.

    .. math:: J = \\mathbb{E} \\big[ v^\\top \\nabla_x (v^\\top s) + \\tfrac12 (v^\\top s)^2 \\big]

    The variance-reduced form has :math:`\\tfrac12 \\lVert s \\rVert^2` in place of the square. Its expectation over
    :math:`v` is :func:`sm` of the same scores. A model with a ladder is trained at its smallest noise level. No value
    may be missing.

    Other arguments are as in :func:`csm`.

    Arguments:
        slices: Number of projections for each row.
        projections: Distribution of the projections, with covariance :math:`I`.
        variance_reduced: Integrate the square over :math:`v` in closed form.
        generator: Source of the projections and of the noise.
        joint: The scores :math:`s`: :math:`\\nabla_x \\log q(x)` if ``True`` (default of normalised heads, which it
            needs), or the vector of conditional scores if ``False`` (default of a :class:`ScoreHead`; "SSM-AR" in the
            paper).

    References:
        Sliced Score Matching (Song, Garg, Shi and Ermon, 2019), https://arxiv.org/abs/1905.07088
    """
    scores, z = scores_at_smallest_noise(model, x, condition, generator, joint)
    return sliced_score_matching(scores, z, slices, projections, variance_reduced, generator)
