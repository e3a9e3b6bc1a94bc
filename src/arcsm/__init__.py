"""arcsm: score-based autoregressive density models."""

import importlib
from typing import TYPE_CHECKING, Any

from arcsm._version import __version__

if TYPE_CHECKING:
    from arcsm import data, objectives
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

#: Modules, and the public names that lead to them; each is imported when it is first used, since torch takes seconds.
_NAMES_OF = {
    "checking": ("check",),
    "contexts": ("MADE", "AnyOrder", "ConditionNet", "Context", "PixelCNNPP"),
    "errors": ("PartError",),
    "heads": (
        "CategoricalHead", "DiscretisedLogisticMixtureHead", "GaussianHead", "Head", "LocatedHead",
        "LogisticMixtureHead", "MixedHead", "NormalisedHead", "PlainScoreHead", "ScoreHead", "SplineHead",
    ),
    "model": ("AutoregressiveModel", "load", "save"),
    "noise": ("NoiseLadder",),
    "registry": ("register",),
    "training.config": ("TrainConfig",),
    "training.density": ("fit",),
    "training.distillation": ("DistilConfig", "distil"),
    "training.loop": ("FitResult", "TrainingDiverged"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}
_MODULES = {
    "anomaly", "checking", "conditionals", "contexts", "data", "denoise", "errors", "estimators", "heads", "implicit",
    "interop", "metrics", "model", "noise", "objectives", "queries", "registry", "reports", "samplers", "training",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"arcsm.{name}")
    if name in _MODULE_OF:
        found = globals()[name] = getattr(importlib.import_module(f"arcsm.{_MODULE_OF[name]}"), name)
        return found
    raise AttributeError(f"module 'arcsm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_MODULE_OF})
