"""arcsm: score-based autoregressive density models."""

from arcsm import data, objectives
from arcsm.contexts import MADE, Context, PixelCNNPP
from arcsm.heads import (
    DiscretisedLogisticMixtureHead,
    GaussianHead,
    Head,
    LogisticMixtureHead,
    NormalisedHead,
    ScoreHead,
)
from arcsm.model import AutoregressiveModel, load, save
from arcsm.noise import NoiseLadder
from arcsm.train_config import TrainConfig
from arcsm.training import FitResult, TrainingDiverged, fit

__version__ = "0.1.0"

__all__ = [
    "MADE",
    "AutoregressiveModel",
    "Context",
    "DiscretisedLogisticMixtureHead",
    "FitResult",
    "GaussianHead",
    "Head",
    "LogisticMixtureHead",
    "NoiseLadder",
    "NormalisedHead",
    "PixelCNNPP",
    "ScoreHead",
    "TrainConfig",
    "TrainingDiverged",
    "data",
    "fit",
    "load",
    "objectives",
    "save",
]
