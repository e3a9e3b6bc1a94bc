"""arcsm: score-based autoregressive density models."""

import importlib
from types import ModuleType

from arcsm import data, objectives
from arcsm._version import __version__
from arcsm.checking import check
from arcsm.contexts import MADE, AnyOrder, ConditionNet, Context, PixelCNNPP
from arcsm.errors import PartError
from arcsm.heads import (
    CategoricalHead,
    DiscretisedLogisticMixtureHead,
    GaussianHead,
    Head,
    LocatedHead,
    LogisticMixtureHead,
    MixedHead,
    NormalisedHead,
    PlainScoreHead,
    ScoreHead,
    SplineHead,
)
from arcsm.model import AutoregressiveModel, load, save
from arcsm.noise import NoiseLadder
from arcsm.registry import register
from arcsm.training.config import TrainConfig
from arcsm.training.density import fit
from arcsm.training.distillation import DistilConfig, distil
from arcsm.training.loop import FitResult, TrainingDiverged

__all__ = [
    "MADE", "AnyOrder", "AutoregressiveModel", "CategoricalHead", "ConditionNet", "Context",
    "DiscretisedLogisticMixtureHead", "DistilConfig", "FitResult", "GaussianHead", "Head", "LocatedHead",
    "LogisticMixtureHead", "MixedHead", "NoiseLadder", "NormalisedHead", "PartError", "PixelCNNPP",
    "PlainScoreHead", "ScoreHead", "SplineHead", "TrainConfig", "TrainingDiverged", "__version__", "check", "data",
    "distil", "fit", "load", "objectives", "register", "save",
]  # fmt: skip

_LOADED_WHEN_USED = {"anomaly", "denoise", "estimators", "implicit", "interop", "metrics", "queries"}


def __getattr__(name: str) -> ModuleType:
    if name in _LOADED_WHEN_USED:
        return importlib.import_module(f"arcsm.{name}")
    raise AttributeError(f"module 'arcsm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LOADED_WHEN_USED})
