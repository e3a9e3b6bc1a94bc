"""Training: one loop for every kind of model, with its tasks, configuration, data, log, checkpoints and runs."""

from arcsm._runtime.process_group import join
from arcsm.training.callbacks import TrainingState
from arcsm.training.config import TrainConfig
from arcsm.training.density import fit
from arcsm.training.loop import FitResult, TrainingDiverged
from arcsm.training.run_config import ModelConfig, RunConfig

__all__ = ["FitResult", "ModelConfig", "RunConfig", "TrainConfig", "TrainingDiverged", "TrainingState", "fit", "join"]
