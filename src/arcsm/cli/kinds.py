"""The kinds of models that runs are of, and what the commands do with each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor

from arcsm._runtime.processes import group
from arcsm.cli.console import show_likelihood_table, show_likelihoods
from arcsm.cli.launching import join_processes
from arcsm.cli.model_rows import sample_share
from arcsm.implicit.networks.vae import KIND, VAE, load_vae
from arcsm.implicit.vae.runs import VAERunConfig, load_vae_run, train_vae_run
from arcsm.model import AutoregressiveModel, load
from arcsm.reports.run import write_report
from arcsm.reports.vae import write_vae_report
from arcsm.serialization import read_header, weights_path
from arcsm.training.loop import FitResult
from arcsm.training.run_config import RunConfig, parse_tree, read_text, run_config_path
from arcsm.training.runs import class_labels, load_run, train_run


class ModelKind(Protocol):
    """What the commands do with one kind of model.

    Attributes:
        config: Schema of the run's configuration.
        loss_name: Name of the loss that training minimises.
    """

    config: type[BaseModel]
    loss_name: str

    def join_processes(self, devices: int, nodes: int, hint: str = "") -> None:
        """Join the processes of the command; see :func:`~arcsm.cli.launching.join_processes`.

        Raises:
            ValueError: If the kind supports one process only and several are requested.
        """

    def train(self, config: Any, folder: Path, resume: bool) -> FitResult:
        """Train the model of a configuration."""

    def load(self, path: Path, device: str) -> Any:
        """Read a model from a run, a folder or a file."""

    def sample(self, model: Any, n: int, sampler: str | None, denoise: bool, label: int | None, seed: int) -> Tensor:
        """Return samples ``(n, D)`` in the first process.

        Raises:
            ValueError: If the kind does not support an option.
        """

    def report(self, run: Path, page: Path, samples: int, sampler: str | None, seed: int, device: str) -> None:
        """Write the report of a run and print its likelihoods.

        Raises:
            ValueError: If the kind does not support an option.
        """


class DensityKind:
    """Autoregressive densities."""

    config: type[BaseModel] = RunConfig
    loss_name = "best objective"

    def join_processes(self, devices: int, nodes: int, hint: str = "") -> None:
        join_processes(devices, nodes, hint)

    def train(self, config: RunConfig, folder: Path, resume: bool) -> FitResult:
        return train_run(config, folder, resume, progress=True)

    def load(self, path: Path, device: str) -> AutoregressiveModel:
        return load(path, group().device(device))

    def sample(
        self, model: AutoregressiveModel, n: int, sampler: str | None, denoise: bool, label: int | None, seed: int
    ) -> Tensor:
        return sample_share(model, n, sampler, class_labels(model, n, label), seed, denoise, group())

    def report(self, run: Path, page: Path, samples: int, sampler: str | None, seed: int, device: str) -> None:
        show_likelihoods(write_report(load_run(run, device), page, samples, sampler, seed, progress=True))


class VAEKind:
    """Variational autoencoders."""

    config: type[BaseModel] = VAERunConfig
    loss_name = "held-out bound of -log p(x)"

    def join_processes(self, devices: int, nodes: int, hint: str = "") -> None:
        if devices * nodes > 1:
            raise ValueError("--devices: an autoencoder uses one process")

    def train(self, config: VAERunConfig, folder: Path, resume: bool) -> FitResult:
        return train_vae_run(config, folder, resume, progress=True)

    def load(self, path: Path, device: str) -> VAE:
        return load_vae(path, device)

    def sample(self, model: VAE, n: int, sampler: str | None, denoise: bool, label: int | None, seed: int) -> Tensor:
        if sampler is not None or denoise or label is not None:
            raise ValueError("--sampler, --denoise, --class: expected none of them; this is an autoencoder")
        return model.sample(n, torch.Generator(model.device).manual_seed(seed)).cpu()

    def report(self, run: Path, page: Path, samples: int, sampler: str | None, seed: int, device: str) -> None:
        if sampler is not None:
            raise ValueError(f"--sampler {sampler}: expected none; this is an autoencoder")
        numbers = write_vae_report(load_vae_run(run, device), page, samples, seed, progress=True)
        show_likelihood_table(numbers.log_likelihood)


_DENSITY: ModelKind = DensityKind()
_KINDS: dict[Any, ModelKind] = {KIND: VAEKind()}


def kind_in_config(tree: dict[str, Any]) -> ModelKind:
    """Return the kind of model that a run configuration describes."""
    kind = tree.get("kind")
    return _KINDS.get(kind, _DENSITY) if isinstance(kind, str) else _DENSITY


def kind_at(path: Path) -> ModelKind:
    """Return the kind of model in a run, a folder or a file; a density if there is none, whose loading then fails."""
    config, file = run_config_path(path), weights_path(path)
    if config.is_file():
        return kind_in_config(parse_tree(read_text(config), str(config)))
    try:
        return kind_in_config(read_header(file) if file.is_file() else {})
    except ValueError:
        return _DENSITY
