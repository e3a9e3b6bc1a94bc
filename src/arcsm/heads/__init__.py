"""Heads: one-dimensional conditionals, which map a context and a value to the score of the value and its derivative."""

from arcsm.heads.base import Head, NormalisedHead
from arcsm.heads.discretised import DiscretisedLogisticMixtureHead
from arcsm.heads.gaussian import GaussianHead
from arcsm.heads.logistic_mixture import LogisticMixtureHead
from arcsm.heads.score import ScoreHead
from arcsm.registry import register

for _head in (ScoreHead, GaussianHead, LogisticMixtureHead, DiscretisedLogisticMixtureHead):
    register(_head)

__all__ = [
    "DiscretisedLogisticMixtureHead", "GaussianHead", "Head", "LogisticMixtureHead", "NormalisedHead", "ScoreHead",
]  # fmt: skip
