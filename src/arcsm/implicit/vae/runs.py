"""Runs of autoencoders."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from arcsm._runtime.devices import resolve_device
from arcsm._runtime.files import FilePath
from arcsm.data.datasets import DataConfig, load_dataset
from arcsm.implicit.networks.vae import VAE, VAEConfig, load_vae
from arcsm.implicit.vae.config import VAETrainConfig
from arcsm.implicit.vae.methods import build_estimator
from arcsm.implicit.vae.training import fit_vae
from arcsm.training.loop import FitResult
from arcsm.training.runs import Run, check_folder, finished_config, open_run


class VAERunConfig(BaseModel):
    """A run of an autoencoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["vae"]
    name: str
    about: str = ""
    data: DataConfig
    model: VAEConfig
    train: VAETrainConfig


def train_vae_run(config: VAERunConfig, folder: FilePath, resume: bool = False, progress: bool = False) -> FitResult:
    """Train the autoencoder of a configuration in its own folder, which may hold a run only to ``resume`` it."""
    folder = Path(folder)
    check_folder(config, folder, resume)
    dataset = load_dataset(config.data, config.train.seed)
    if not isinstance(dataset.train, Tensor):
        raise ValueError("data.stream: an autoencoder needs its data in memory; set it to false")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        vae = config.model.build(dataset.metadata)
        vae.to(resolve_device(config.train.device))
        build_estimator(vae, config.train)  # raises before anything is written
    with open_run(folder, config):
        return fit_vae(vae, dataset.train, dataset.valid, config.train, folder, resume, progress)


def load_vae_run(folder: FilePath, device: str = "cpu") -> Run[VAERunConfig, VAE]:
    """Read a run that :func:`train_vae_run` finished."""
    folder = Path(folder)
    return Run(folder, finished_config(folder, VAERunConfig), load_vae(folder, device))
