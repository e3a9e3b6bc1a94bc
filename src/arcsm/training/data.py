"""Training rows: checked, standardised, and read in random order from memory or from a larger file."""

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from arcsm.contexts import Context
from arcsm.data.checks import check_precision
from arcsm.data.streams import RowStream
from arcsm.errors import all_finite
from arcsm.model import AutoregressiveModel
from arcsm.training.config import TrainConfig

#: Returns rows ``(n, D)`` and their conditions for a range of places in the random order of one epoch.
Epoch = Callable[[slice], tuple[Tensor, Tensor | None]]


class RowsInMemory:
    """Rows and conditions that are on the device."""

    def __init__(self, x: Tensor, condition: Tensor | None) -> None:
        self.x, self.condition = x, condition

    def __len__(self) -> int:
        return len(self.x)

    def epoch(self, seed: int) -> Epoch:
        generator = torch.Generator(self.x.device).manual_seed(seed)
        order = torch.randperm(len(self.x), generator=generator, device=self.x.device)

        def read(places: slice) -> tuple[Tensor, Tensor | None]:
            chosen = order[places]
            return self.x[chosen], None if self.condition is None else self.condition[chosen]

        return read


class RowsOnDisk:
    """Rows that are read when they are needed, in the type and on the device of a tensor ``like``."""

    def __init__(self, stream: RowStream, like: Tensor) -> None:
        self.stream, self.like = stream, like

    def __len__(self) -> int:
        return len(self.stream)

    def epoch(self, seed: int) -> Epoch:
        epoch = self.stream.epoch(seed)
        return lambda places: (epoch.rows(places).to(self.like), None)


def check_rows(model: AutoregressiveModel, x: Tensor, name: str) -> Tensor:
    """Check rows ``(N, D)`` for shape, infinite values and unexpected NaN, and convert them to the model's type."""
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


def check_resolution(model: AutoregressiveModel, x: Tensor) -> None:
    """Check that a model in single precision resolves the values of each column; see :func:`check_precision`."""
    if x.dtype == torch.float64 and model.shift.dtype != torch.float64:
        columns = [str(name) for name in model.metadata.get("columns") or range(x.shape[1])]
        check_precision(x.detach().cpu().numpy(), columns, "x_train")


def to_device(
    device: torch.device, x: Tensor, condition: Tensor | None, context: Context, max_rows: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Check that the conditions fit rows and context, and move the first ``max_rows`` of both to a device."""
    if condition is not None and not isinstance(condition, Tensor):
        raise ValueError(f"condition: expected a torch.Tensor, got {type(condition).__name__}; use torch.as_tensor")
    if condition is not None and (condition.ndim < 1 or len(condition) != len(x)):
        raise ValueError(f"condition: expected one for each of {len(x)} rows, got shape {tuple(condition.shape)}")
    if condition is not None and condition.is_floating_point() and not all_finite(condition):
        raise ValueError("condition: holds NaN or infinity")
    with torch.no_grad():  # the first condition shows whether all of them fit
        context.begin((1,), None if condition is None else condition[:1])
    moved = [None if rows is None else rows[:max_rows].detach().to(device) for rows in (x, condition)]
    rows, conditions = (t.clone() if t is not None and t.is_inference() else t for t in moved)
    assert rows is not None
    return rows, conditions


def fingerprint(x: Tensor | RowStream, condition: Tensor | None) -> dict[str, int]:
    """Return the number of rows and a checksum of rows and conditions, by which a resumed run recognises its data.

    The checksum of streamed rows is that of their moments.
    """
    parts = [x.mean, x.deviation] if isinstance(x, RowStream) else [x] if condition is None else [x, condition]
    checksum = 0
    for part in parts:
        numbers = torch.as_tensor(part).detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        checksum = zlib.crc32(numbers.data, checksum)
    return {"rows": len(x), "checksum": checksum}


def dequantisation_widths(config: TrainConfig, features: int) -> Tensor:
    """Return the width of the uniform noise of each column, ``(D,)`` in double precision."""
    widths = torch.tensor(config.dequantise, dtype=torch.float64)
    if widths.ndim and len(widths) != features:
        raise ValueError(f"dequantise: expected one width or {features} of them, got {len(widths)}")
    return widths.expand(features)


def standardise(
    model: AutoregressiveModel, x: Tensor | RowStream, condition: Tensor | None, config: TrainConfig
) -> None:
    """Set the units of data and condition vectors to the moments of the training data (``config.standardise``)."""
    if config.standardise == "none":
        return
    if condition is not None and model.context.condition_features:
        mean, deviation = _moments(condition, columns=True)
        model.set_condition_standardisation(mean, torch.where(_is_constant(mean, deviation), 1.0, deviation))
    columns = config.standardise == "columns"
    mean, deviation = _moments(x, columns)
    widths = dequantisation_widths(config, x.shape[1])
    if config.standardise == "centre":
        model.set_standardisation(mean + 0.5 * widths.mean(), 1.0)
        return
    if bool(mean.isnan().any()):
        which = f"column {int(mean.isnan().nonzero()[0])}" if columns else "x"
        raise ValueError(f"x_train: {which} holds nothing but missing values; leave it out")
    width = widths if columns else widths.mean()
    deviation = (deviation.square() + width.square() / 12.0).sqrt()
    constant = _is_constant(mean, deviation)
    if bool(constant.any()):
        which = f"column {int(constant.nonzero()[0])} is constant" if columns else "all values are the same"
        raise ValueError(f'x_train: {which}, so it has no density; leave it out, dequantise, or standardise="none"')
    model.set_standardisation(mean + 0.5 * width, deviation)


def _is_constant(mean: Tensor, deviation: Tensor) -> Tensor:
    return deviation <= 1e-9 * mean.abs().clamp(min=1e-9)


def _moments(x: Tensor | RowStream, columns: bool) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each column, or of all values, without NaN.

    They are in double precision and on the CPU, like the configuration, wherever the rows are.
    """
    if isinstance(x, Tensor):
        x = x.detach().double()
        mean = x.nanmean(0) if columns else x.nanmean()
        return mean.cpu(), (x - mean).square().nanmean(0 if columns else None).sqrt().cpu()
    if columns:
        return x.mean, x.deviation
    mean = x.mean.mean()
    return mean, (x.deviation.square() + (x.mean - mean).square()).mean().sqrt()
