"""What the training loop is set up with: parts of a batch, precision and processes, the optimiser, the average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from arcsm import processes
from arcsm.contexts.made import Hide
from arcsm.model import AutoregressiveModel
from arcsm.processes import Group
from arcsm.train_config import TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.loggers.logger import Logger


def own_parts(group: Group, batch: int, accumulate: int) -> dict[int, slice]:
    """The parts of a batch that this process computes one after another, by their number.

    Raises:
        ValueError: for more parts than rows.
    """
    count = group.size * accumulate
    if count > batch:
        raise ValueError(
            f"batch_size: {batch} rows cannot be divided into {count} parts, {accumulate} for each of "
            f"{group.size} processes"
        )
    parts = processes.shares(batch, count)
    return {number: parts[number] for number in range(count)[group.share(count)]}


def fabric_of(group: Group, device: torch.device, precision: str, loggers: Sequence[Logger]) -> Fabric:
    """Precision, loggers and, where there are several processes, their common gradient."""
    from lightning_fabric import Fabric  # takes seconds
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    options: dict[str, Any] = {"accelerator": device.type, "precision": precision}
    if group.size == 1:
        devices = [device.index] if device.index is not None else 1
        alone: list[Any] = [LightningEnvironment()]  # whatever a scheduler has put into the environment
        return Fabric(devices=devices, loggers=list(loggers), plugins=alone, **options)
    fabric = Fabric(
        devices=group.local_size,
        num_nodes=group.size // group.local_size,
        strategy="ddp",
        loggers=list(loggers) if group.first else None,
        **options,
    )
    fabric.launch()
    return fabric


def is_random(layer: nn.Module) -> bool:
    """Whether a layer draws from torch's own generator while training."""
    return (isinstance(layer, nn.Dropout) and layer.p > 0.0) or (isinstance(layer, Hide) and layer.share > 0.0)


def optimizer_of(model: AutoregressiveModel, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a configuration, over all weights of a model."""
    if config.optimizer == "adamw":
        rate, decay = config.learning_rate, config.weight_decay
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)


def averaging(decay: float) -> Callable[..., None]:
    """Exponential average that starts as a plain mean of the first steps."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        warm = min(decay, (1.0 + float(count)) / (10.0 + float(count)))
        torch._foreach_lerp_(averaged, current, 1.0 - warm)

    return update
