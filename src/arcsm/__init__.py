"""arcsm: score-based autoregressive density models."""

from arcsm.contexts import MADE, Context
from arcsm.heads import GaussianHead, Head, LogisticMixtureHead, NormalisedHead, ScoreHead
from arcsm.model import AutoregressiveModel, load, save
from arcsm.noise import NoiseLadder

__version__ = "0.1.0"

__all__ = [
    "MADE",
    "AutoregressiveModel",
    "Context",
    "GaussianHead",
    "Head",
    "LogisticMixtureHead",
    "NoiseLadder",
    "NormalisedHead",
    "ScoreHead",
    "load",
    "save",
]
