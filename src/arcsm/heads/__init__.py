"""Heads: one-dimensional conditionals, which map a context and a value to the score of the value and its derivative."""

from arcsm.heads.base import Head, HeadColumns, NormalisedHead
from arcsm.heads.categorical import CategoricalHead
from arcsm.heads.discretised import DiscretisedLogisticMixtureHead
from arcsm.heads.gaussian import GaussianHead
from arcsm.heads.located import LocatedHead
from arcsm.heads.logistic_mixture import LogisticMixtureHead
from arcsm.heads.mixed import MixedHead
from arcsm.heads.plain_score import PlainScoreHead
from arcsm.heads.score import ScoreHead
from arcsm.heads.spline import SplineHead
from arcsm.registry import register

for _head in (
    ScoreHead,
    PlainScoreHead,
    GaussianHead,
    LogisticMixtureHead,
    SplineHead,
    DiscretisedLogisticMixtureHead,
    CategoricalHead,
    LocatedHead,
    MixedHead,
):
    register(_head)

__all__ = [
    "CategoricalHead", "DiscretisedLogisticMixtureHead", "GaussianHead", "Head", "HeadColumns", "LocatedHead",
    "LogisticMixtureHead", "MixedHead", "NormalisedHead", "PlainScoreHead", "ScoreHead", "SplineHead",
]  # fmt: skip
