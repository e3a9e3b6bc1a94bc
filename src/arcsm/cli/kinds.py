"""The kinds of models that runs are of, and what the commands do with each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from arcsm._runtime.process_group import group
from arcsm.cli.console import show_likelihood_table, show_likelihoods
from arcsm.cli.launching import join_processes
from arcsm.cli.model_rows import sample_share
from arcsm.implicit.networks.vae import KIND, VAE, load_vae
from arcsm.implicit.vae.runs import VAERunConfig, load_vae_run, train_vae_run
from arcsm.model import AutoregressiveModel, load
from arcsm.serialization import read_header, weights_path
from arcsm.training.loop import FitResult
from arcsm.training.run_config import RunConfig, parse_tree, read_text, run_config_path
from arcsm.training.runs import class_labels, load_run, train_run


@dataclass(frozen=True)
class ModelKind:
    """What the commands do with one kind of model."""

    config: type[BaseModel]
    loss_name: str
    join: Callable[..., None]  # as join_processes
    train: Callable[[Any, Path, bool, bool], FitResult]  # (config, folder, resume, progress)
    load: Callable[[Path, str], Any]  # (run, folder or file, device)
    #: (model, n, sampler, denoise, label, seed); returns (n, D) in the first process
    sample: Callable[[Any, int, str | None, bool, int | None, int], Tensor]
    #: (run, page, samples, sampler, seed, device); also prints the likelihoods
    report: Callable[[Path, Path, int, str | None, int, str], None]


def _load_density(path: Path, device: str) -> AutoregressiveModel:
    return load(path, group().device(device))


def _sample_density(
    model: AutoregressiveModel, n: int, sampler: str | None, denoise: bool, label: int | None, seed: int
) -> Tensor:
    return sample_share(model, n, sampler, class_labels(model, n, label), seed, denoise, group())


def _report_density(run: Path, page: Path, samples: int, sampler: str | None, seed: int, device: str) -> None:
    from arcsm.reports.run import write_report  # matplotlib takes a second to import

    show_likelihoods(write_report(load_run(run, device), page, samples, sampler, seed, progress=True))


def _refuse_processes(devices: int, nodes: int, hint: str = "") -> None:
    if devices * nodes > 1:
        raise ValueError("--devices: an autoencoder uses one process")


def _sample_vae(model: VAE, n: int, sampler: str | None, denoise: bool, label: int | None, seed: int) -> Tensor:
    if sampler is not None or denoise or label is not None:
        raise ValueError("--sampler, --denoise, --class: not supported for autoencoders")
    return model.sample(n, torch.Generator(model.device).manual_seed(seed)).cpu()


def _report_vae(run: Path, page: Path, samples: int, sampler: str | None, seed: int, device: str) -> None:
    from arcsm.reports.vae import write_vae_report  # matplotlib takes a second to import

    if sampler is not None:
        raise ValueError(f"--sampler {sampler}: not supported for autoencoders")
    numbers = write_vae_report(load_vae_run(run, device), page, samples, seed, progress=True)
    show_likelihood_table(numbers.log_likelihood)


TABLE_KIND = "table"  # of files from arcsm fit

_DENSITY = ModelKind(
    RunConfig, "best objective", join_processes, train_run, _load_density, _sample_density, _report_density
)
_VAE = ModelKind(
    VAERunConfig,
    "quick upper bound of the held-out -log p(x) (tighter in arcsm report):",
    _refuse_processes,
    train_vae_run,
    load_vae,
    _sample_vae,
    _report_vae,
)


def kind_in_config(tree: dict[str, Any]) -> ModelKind:
    """Return the kind of model that a run configuration, or the header of a file, describes."""
    return _VAE if tree.get("kind") == KIND else _DENSITY


def kind_at(path: Path) -> ModelKind:
    """Return the kind of model in a run, a folder or a file; a density if there is none, which loading then reports."""
    config, file = run_config_path(path), weights_path(path)
    if config.is_file():
        return kind_in_config(parse_tree(read_text(config), str(config)))
    try:
        return kind_in_config(read_header(file) if file.is_file() else {})
    except ValueError:
        return _DENSITY


def is_fitted_table(path: Path) -> bool:
    """Return whether a file or folder holds a table from ``arcsm fit``."""
    file = weights_path(path)
    try:
        return file.is_file() and read_header(file).get("kind") == TABLE_KIND
    except ValueError:
        return False
