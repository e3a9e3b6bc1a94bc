"""Rows to train on: checked, standardised, made continuous; from memory or from a file that is larger than it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from arcsm.contexts import Context
from arcsm.data.checks import check_precision
from arcsm.data.streams import RowStream, StreamEpoch
from arcsm.model import AutoregressiveModel
from arcsm.training.config import TrainConfig


class Epoch(Protocol):
    """All rows to train on in one order."""

    def rows(self, part: slice) -> tuple[Tensor, Tensor | None]:
        """Rows from and up to a place in it, ``(n, D)``, and what they are conditioned on."""


class Rows(Protocol):
    """Where the rows to train on come from."""

    def __len__(self) -> int: ...

    def epoch(self, seed: int) -> Epoch: ...


class InMemory:
    """Rows and conditions that lie on the device."""

    def __init__(self, x: Tensor, condition: Tensor | None) -> None:
        self.x, self.condition = x, condition

    def __len__(self) -> int:
        return len(self.x)

    def epoch(self, seed: int) -> Epoch:
        generator = torch.Generator(self.x.device).manual_seed(seed)
        order = torch.randperm(len(self.x), generator=generator, device=self.x.device)
        return _EpochInMemory(self, order)


@dataclass(frozen=True)
class _EpochInMemory:
    source: InMemory
    order: Tensor

    def rows(self, part: slice) -> tuple[Tensor, Tensor | None]:
        rows, condition = self.order[part], self.source.condition
        return self.source.x[rows], None if condition is None else condition[rows]


class OnDisk:
    """Rows that are read as they are needed.

    Arguments:
        stream: The rows.
        like: Of the type and on the device that they are to have.
    """

    def __init__(self, stream: RowStream, like: Tensor) -> None:
        self.stream, self.like = stream, like

    def __len__(self) -> int:
        return len(self.stream)

    def epoch(self, seed: int) -> Epoch:
        return _EpochOnDisk(self.stream.epoch(seed), self.like)


@dataclass(frozen=True)
class _EpochOnDisk:
    epoch: StreamEpoch
    like: Tensor

    def rows(self, part: slice) -> tuple[Tensor, Tensor | None]:
        return self.epoch.rows(part).to(self.like), None


# Before they are trained on -------------------------------------------------------------------------------------------


def on_device(
    device: torch.device, x: Tensor, condition: Tensor | None, context: Context, most: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Rows, of many the first ``most``, and what the contexts are conditioned on, on a device.

    Raises:
        ValueError: for conditions that do not go with the rows or with the contexts.
    """
    if condition is not None and not isinstance(condition, Tensor):
        raise ValueError(f"condition: expected a torch.Tensor, got {type(condition).__name__}; use torch.as_tensor")
    if condition is not None and (condition.ndim < 1 or len(condition) != len(x)):
        raise ValueError(f"condition: expected one for each of {len(x)} rows, got shape {tuple(condition.shape)}")
    with torch.no_grad():  # the first one, as all of them
        context.begin((1,), None if condition is None else condition[:1].to(next(context.parameters()).device))
    return _own(x[:most], device), None if condition is None else _own(condition[:most], device)


def _own(rows: Tensor, device: torch.device) -> Tensor:
    """Rows on a device, without the graph that they may come from."""
    rows = rows.detach().to(device)
    return rows.clone() if rows.is_inference() else rows


def fingerprint(x: Tensor | RowStream, condition: Tensor | None) -> dict[str, int]:
    """By what rows and conditions are told from others, when a run goes on: their number and a check sum.

    Of rows in files the sum is that of their moments.
    """
    parts = [x.mean, x.deviation] if isinstance(x, RowStream) else [x] if condition is None else [x, condition]
    checksum = 0
    for part in parts:
        numbers = torch.as_tensor(part).detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        checksum = zlib.crc32(numbers.data, checksum)
    return {"rows": len(x), "checksum": checksum}


def checked_stream(model: AutoregressiveModel, x: RowStream, condition: Tensor | None) -> RowStream:
    """Rows that have been looked at already."""
    if condition is not None:
        raise ValueError("condition_train: expected none; rows that are streamed have none")
    if x.shape[1] != model.features:
        raise ValueError(f"x_train: expected rows of {model.features} columns, got {x.shape[1]}")
    return x


def checked(model: AutoregressiveModel, x: Tensor, name: str) -> Tensor:
    """Rows ``(N, D)`` of the model's type; the model checks the rest."""
    if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != model.features:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name}: expected a tensor (N, {model.features}), got {got}")
    if len(x) == 0:
        raise ValueError(f"{name}: expected at least one row, got none")
    bad = x.isinf() if model.context.missing else ~torch.isfinite(x)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{name}: {int(bad.sum())} values are NaN or infinite, the first in row {row}, column {column}"
        )
    return x.to(model.shift.dtype)


def check_told_apart(model: AutoregressiveModel, x: Tensor) -> None:
    """A model in single precision must tell the values of every column apart; see :func:`check_precision`.

    Raises:
        ValueError: which names a column whose values it cannot tell apart.
    """
    if x.dtype == torch.float64 and model.shift.dtype != torch.float64:
        columns = [str(name) for name in model.metadata.get("columns") or range(x.shape[1])]
        check_precision(x.detach().cpu().numpy(), columns, "x_train")


def widths(config: TrainConfig, features: int) -> Tensor:
    """Widths of the uniform noise, ``(D,)`` in double precision.

    Raises:
        ValueError: for another number of them than columns.
    """
    given = torch.tensor(config.dequantise, dtype=torch.float64)
    if given.ndim and len(given) != features:
        raise ValueError(f"dequantise: expected one width or {features} of them, got {len(given)}")
    return given.expand(features)


def _moments(x: Tensor | RowStream, columns: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in double precision, of each column or of all values; NaN are missing values."""
    if isinstance(x, Tensor):
        x = x.double()
        mean = x.nanmean(0) if columns else x.nanmean()
        return mean, (x - mean).square().nanmean(0 if columns else None).sqrt()
    if columns:
        return x.mean, x.deviation
    mean = x.mean.mean()
    return mean, (x.deviation.square() + (x.mean - mean).square()).mean().sqrt()


def standardise(model: AutoregressiveModel, x: Tensor | RowStream, config: TrainConfig) -> None:
    """Give the model the shift and scale of the training data.

    Raises:
        ValueError: for constant columns.
    """
    if config.standardise == "none":
        return
    columns = config.standardise == "columns"
    mean, deviation = _moments(x, columns)
    if config.standardise == "centre":
        model.set_standardisation(mean + 0.5 * widths(config, x.shape[1]).mean(), 1.0)
        return
    if bool(mean.isnan().any()):
        which = f"column {int(mean.isnan().nonzero()[0])}" if columns else "x"
        raise ValueError(f"x_train: {which} holds nothing but missing values; leave it out")
    width = widths(config, x.shape[1])
    width = width if columns else width.mean()
    deviation = (deviation.square() + width.square() / 12.0).sqrt()
    constant = deviation <= 1e-9 * mean.abs().clamp(min=1e-9)
    if bool(constant.any()):
        which = f"column {int(constant.nonzero()[0])} is constant" if columns else "all values are the same"
        raise ValueError(f'x_train: {which}, which has no density; leave it out, dequantise, or standardise="none"')
    model.set_standardisation(mean + 0.5 * width, deviation)
