"""Training: one loop, its configuration, data, optimisation, log and runs."""

from arcsm.training.config import TrainConfig
from arcsm.training.loop import FitResult, TrainingDiverged, fit
from arcsm.training.run_config import ModelConfig, RunConfig

__all__ = ["FitResult", "ModelConfig", "RunConfig", "TrainConfig", "TrainingDiverged", "fit"]
