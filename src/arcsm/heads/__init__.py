"""Heads: a context and a value in, the score of the value and its derivative out."""

from arcsm.heads.base import Head, NormalisedHead
from arcsm.heads.discretised import DiscretisedLogisticMixtureHead
from arcsm.heads.gaussian import GaussianHead
from arcsm.heads.logistic_mixture import LogisticMixtureHead
from arcsm.heads.score import ScoreHead

__all__ = [
    "DiscretisedLogisticMixtureHead",
    "GaussianHead",
    "Head",
    "LogisticMixtureHead",
    "NormalisedHead",
    "ScoreHead",
]
