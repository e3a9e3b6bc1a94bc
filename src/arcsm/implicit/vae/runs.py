"""Runs of autoencoders: the folder, the configuration, and what is told apart by them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from arcsm._runtime.devices import resolve_device
from arcsm.data.datasets import DataConfig, Dataset, load_dataset
from arcsm.implicit.networks.vae import KIND, VAE, VAEConfig, load_vae
from arcsm.implicit.vae.config import VAETrainConfig
from arcsm.implicit.vae.methods import estimator
from arcsm.implicit.vae.training import fit_vae
from arcsm.serialization import read_tensors, weights_path
from arcsm.training.loop import FitResult
from arcsm.training.run_config import parse_tree, read_text, run_config_path
from arcsm.training.runs import begun, check_folder, finished_config


class VAERunConfig(BaseModel):
    """A whole run of an autoencoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["vae"]
    name: str
    about: str = ""
    data: DataConfig
    model: VAEConfig
    train: VAETrainConfig


@dataclass(frozen=True)
class VAERun:
    """A trained autoencoder, read from its folder."""

    folder: Path
    config: VAERunConfig
    model: VAE


def is_vae(tree: dict[str, Any]) -> bool:
    """Whether settings are those of an autoencoder."""
    return tree.get("kind") == KIND


def is_vae_run(folder: Path) -> bool:
    """Whether a folder is a run of an autoencoder."""
    path = run_config_path(folder)
    return path.is_file() and is_vae(parse_tree(read_text(path), str(path)))


def holds_vae(path: Path) -> bool:
    """Whether a run, a folder or a file of weights is of an autoencoder."""
    file = weights_path(path)
    return is_vae_run(path) or (file.is_file() and is_vae(read_tensors(file)[1]))


def train_vae_run(
    config: VAERunConfig, folder: str | os.PathLike[str], resume: bool = False, progress: bool = False
) -> FitResult:
    """Train what a configuration describes, in a folder of its own.

    Raises:
        ValueError: where the folder holds another run, or one that ``resume`` was not asked to go on with.
    """
    folder = Path(folder)
    check_folder(config, folder, resume)
    dataset, train = _data(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        vae = config.model.build(dataset.metadata)
        vae.to(resolve_device(config.train.device))
        estimator(vae, config.train)  # what does not go together is refused before the folder holds anything
    with begun(folder, config):
        return fit_vae(vae, train, dataset.valid, config.train, folder, resume, progress)


def _data(config: VAERunConfig) -> tuple[Dataset, Tensor]:
    """The data, and the rows to train on."""
    dataset = load_dataset(config.data, config.train.seed)
    if not isinstance(dataset.train, Tensor):
        raise ValueError("data.stream: the data of an autoencoder are read into memory; set it to false")
    return dataset, dataset.train


def load_vae_run(folder: str | os.PathLike[str], device: str = "cpu") -> VAERun:
    """Read a run that :func:`train_vae_run` finished.

    Raises:
        ValueError: for a folder that holds none.
    """
    folder = Path(folder)
    return VAERun(folder, finished_config(folder, VAERunConfig), load_vae(folder, device))
