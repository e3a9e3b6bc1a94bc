"""A run: a folder with the exact configuration, the model, its training checkpoint and its log."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from arcsm.checkpoint import WEIGHTS_NAME, write_text
from arcsm.config import RunConfig, dump_config, parse_config, run_config_path
from arcsm.data.datasets import load_dataset
from arcsm.model import AutoregressiveModel, load
from arcsm.training import STATE_NAME, FitResult, fit


@dataclass(frozen=True)
class Run:
    """A trained run, read from its folder."""

    folder: Path
    config: RunConfig
    model: AutoregressiveModel


def train_run(
    config: RunConfig, folder: str | os.PathLike[str], resume: bool = False, progress: bool = False
) -> FitResult:
    """Train what a configuration describes, in a folder of its own.

    Raises:
        ValueError: where the folder holds another run, or one that ``resume`` was not asked to go on with.
    """
    folder = Path(folder)
    text, path = dump_config(config), run_config_path(folder)
    begun = path.is_file() or (folder / STATE_NAME).exists() or (folder / WEIGHTS_NAME).exists()
    if begun and not resume:
        raise ValueError(f"{folder}: holds a run already; give --resume to go on with it, or another --out")
    dataset = load_dataset(config.data, config.train.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = config.model.build(dataset.train.shape[1], dataset.metadata)
    write_text(path, text)
    return fit(
        model, dataset.train, dataset.valid, config.for_dataset(dataset), run=folder, resume=resume, progress=progress
    )


def load_run(folder: str | os.PathLike[str], device: str = "cpu") -> Run:
    """Read a run that :func:`train_run` finished.

    Raises:
        ValueError: for a folder that holds none.
    """
    folder = Path(folder)
    path = run_config_path(folder)
    if not path.is_file():
        raise ValueError(f"{folder}: not a run (no config.yaml); train one with: arcsm train PRESET --out {folder}")
    if not (folder / WEIGHTS_NAME).is_file():
        raise ValueError(f"{folder}: has no model yet; finish it with: arcsm train {path} --out {folder} --resume")
    config = parse_config(path.read_text(encoding="utf-8"), str(path))
    return Run(folder, config, load(folder, device))
