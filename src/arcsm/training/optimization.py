"""What the training loop is set up with: parts of a batch, precision and processes, the optimizer, the average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from arcsm._runtime import process_group
from arcsm._runtime.process_group import Group
from arcsm.contexts.made import RandomMasking
from arcsm.model import AutoregressiveModel
from arcsm.training.config import TrainConfig

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

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
    parts = process_group.even_slices(batch, count)
    return {number: parts[number] for number in range(count)[group.share(count)]}


def fabric_of(group: Group, device: torch.device, precision: str, loggers: Sequence[Logger]) -> Fabric:
    """Precision, loggers and, where there are several processes, their common gradient."""
    from lightning_fabric import Fabric  # takes seconds
    from lightning_fabric.plugins import MixedPrecision
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    class MixedProducts(MixedPrecision):
        """Half precision for products alone: rows are in units of the data, which it would not tell apart."""

        def convert_input(self, data: Any) -> Any:
            return data

    plugins: list[Any] = [] if precision == "32-true" else [MixedProducts(precision, device.type)]  # type: ignore[arg-type]
    options: dict[str, Any] = {"accelerator": device.type}
    if group.size == 1:
        devices = [device.index] if device.index is not None else 1
        plugins.append(LightningEnvironment())  # whatever a scheduler has put into the environment
        return Fabric(devices=devices, loggers=list(loggers), plugins=plugins, **options)
    fabric = Fabric(
        devices=group.local_size,
        num_nodes=group.size // group.local_size,
        strategy="ddp",
        loggers=list(loggers) if group.first else None,
        plugins=plugins,
        **options,
    )
    fabric.launch()
    return fabric


def is_random(layer: nn.Module) -> bool:
    """Whether a layer draws from torch's own generator while training."""
    drops = isinstance(layer, _DROPOUTS) and layer.p > 0.0
    return drops or isinstance(layer, nn.RReLU) or (isinstance(layer, RandomMasking) and layer.share > 0.0)


def optimizer_of(model: AutoregressiveModel, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of a configuration, over all weights of a model."""
    if config.optimizer == "adamw":
        rate, decay = config.learning_rate, config.weight_decay
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)


def averaging(decay: float) -> Callable[..., None]:
    """Exponential average whose memory grows with what there is to remember, up to that asked for."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        warm = min(decay, (1.0 + float(count)) / (10.0 + float(count)))
        torch._foreach_lerp_(averaged, current, 1.0 - warm)

    return update
