"""Training rows: checked, standardised, and read in random order from memory or from a larger file."""

import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arcsm._runtime.conditions import VECTOR, Condition, check_type, map_condition, tensors_of
from arcsm._runtime.devices import widest_float
from arcsm._runtime.random import dequantised, fold_in
from arcsm.contexts import Context
from arcsm.contexts.linear_base import LinearBase
from arcsm.contexts.linear_features import LinearFeatures
from arcsm.data.arrays import native, without_mask
from arcsm.data.checks import check_precision
from arcsm.data.streams import RowStream
from arcsm.errors import warn
from arcsm.heads import DiscretisedLogisticMixtureHead
from arcsm.model import AutoregressiveModel
from arcsm.training.config import TrainConfig
from arcsm.training.purposes import Purpose

_ROUNDING = 1e-13  # relative error of moments in double precision

#: Returns rows ``(n, D)`` and their conditions for a range of places in the random order of one epoch.
Epoch = Callable[[slice], tuple[Tensor, Condition | None]]


class RowsInMemory:
    """Rows and conditions that are on the device."""

    def __init__(self, x: Tensor, condition: Condition | None) -> None:
        self.x, self.condition = x, condition

    def __len__(self) -> int:
        return len(self.x)

    def epoch(self, seed: int) -> Epoch:
        generator = torch.Generator(self.x.device).manual_seed(seed)
        order = torch.randperm(len(self.x), generator=generator, device=self.x.device)

        def read(places: slice) -> tuple[Tensor, Condition | None]:
            chosen = order[places]
            return self.x[chosen], map_condition(lambda part: part[chosen], self.condition)

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
    if x.is_complex() or x.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense tensor of real numbers, got {x.dtype}, {x.layout}")
    if len(x) == 0:
        raise ValueError(f"{name}: expected at least one row, got none")
    bad = x.isinf() if model.context.missing else ~torch.isfinite(x)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{name}: {int(bad.sum())} values are NaN or infinite, the first in row {row}, column {column}"
        )
    model.check_levels(x, name)
    return x.to(model.shift.dtype)


def check_resolution(model: AutoregressiveModel, x: Tensor) -> None:
    """Check that a model in single precision resolves the values of each column; see :func:`check_precision`."""
    if x.dtype == torch.float64 and model.shift.dtype != torch.float64:
        columns = [str(name) for name in model.metadata.get("columns") or range(x.shape[1])]
        check_precision(x.detach().cpu().numpy(), columns, "x_train")


def as_tensor(x: Any, name: str) -> Any:
    """Return an array as a tensor, with NaN where it is masked, and anything else as it is."""
    if isinstance(x, Tensor) or not hasattr(x, "__array__"):
        return x
    try:
        with warnings.catch_warnings():  # arrays of a frame are read-only, and nothing here writes into rows
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.as_tensor(native(np.asarray(without_mask(x))))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected an array of numbers ({' '.join(str(error).split())})") from error


def as_condition(condition: Any) -> Any:
    """Return a condition with its arrays as tensors."""
    if isinstance(condition, Mapping):
        return {name: as_tensor(part, "condition") for name, part in condition.items()}
    return as_tensor(condition, "condition")


def check_condition(context: Context, x: Tensor, condition: Any) -> None:
    """Check that the conditions fit rows and context."""
    if condition is not None:
        check_type(condition)
    for part in tensors_of(condition):
        if part.ndim < 1 or len(part) != len(x):
            raise ValueError(f"condition: expected one for each of {len(x)} rows, got shape {tuple(part.shape)}")
    context.check_condition(condition, (len(x),))  # a condition_net would see units of the data here


def moved(
    device: torch.device, x: Tensor, condition: Condition | None, max_rows: int | None = None
) -> tuple[Tensor, Condition | None]:
    """Return the first ``max_rows`` rows and conditions on a device."""

    def move(rows: Tensor) -> Tensor:
        rows = rows[:max_rows].detach().to(device)
        return rows.clone() if rows.is_inference() else rows

    return move(x), map_condition(move, condition)


def fingerprint(x: Tensor | RowStream, condition: Condition | None) -> dict[str, int]:
    """Return the number of rows and a checksum of rows and conditions, by which a resumed run recognises its data.

    The checksum of streamed rows is that of their moments.
    """
    parts = [x.mean, x.deviation] if isinstance(x, RowStream) else [x, *tensors_of(condition)]
    checksum = 0
    for part in parts:
        numbers = torch.as_tensor(part).detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        checksum = zlib.crc32(numbers.data, checksum)
    return {"rows": len(x), "checksum": checksum}


def dequantisation_widths(config: TrainConfig, model: AutoregressiveModel) -> Tensor:
    """Return the width of the uniform noise of each column, ``(D,)`` in double precision; 0 for nominal columns."""
    features = model.features
    widths = torch.tensor(config.dequantise, dtype=torch.float64)
    if widths.ndim and len(widths) != features:
        raise ValueError(f"dequantise: expected one width or {features} of them, got {len(widths)}")
    widths = widths.expand(features)
    nominal = [d for d, discrete in enumerate(model.discrete) if discrete and widths[d] > 0.0]
    if nominal:
        hint = "" if isinstance(config.dequantise, tuple) else "; give one width per column"
        raise ValueError(f"dequantise: expected 0 for nominal column {nominal[0]}, got {widths[nominal[0]]:g}{hint}")
    return widths


def check_grey_levels(model: AutoregressiveModel, x: Tensor | RowStream, widths: Tensor) -> None:
    """Check that grey levels are dequantised: contexts see values between them in samples."""
    if isinstance(x, RowStream) or model.features == 1:
        return
    for head, columns in model.head.parts(model.features):
        if not isinstance(head, DiscretisedLogisticMixtureHead):
            continue
        values, width = x[:, list(columns)], 2.0 / head.levels
        if bool((head.are_edges(values) | values.isnan()).all()) and not bool(widths[list(columns)].any()):
            raise ValueError(
                f"dequantise: x_train holds grey levels, but samples lie between them; give dequantise={width:g}, so "
                "that contexts have seen such values"
            )


def set_moments(
    model: AutoregressiveModel, x: Tensor | RowStream, condition: Condition | None, config: TrainConfig
) -> None:
    """Set what a model takes from the training data at once: its units, and the correlations of an AnyOrder.

    The correlations are those of dequantised rows, which the training sees: values on a grid may be related exactly,
    but with independent noise on each they are not.

    A model that keeps its units (``standardise="none"``) keeps correlations that it has, too: its weights rely on them.
    """
    x = model.context.resolved(x) if isinstance(x, Tensor) else x
    standardise(model, x, condition, config)
    base, linear = getattr(model.context, "base", None), getattr(model.context, "linear", None)
    has_base, has_features = isinstance(base, LinearBase), isinstance(linear, LinearFeatures)
    if not has_base and not has_features:
        return
    if not isinstance(x, Tensor):
        argument = "located" if has_base else "linear_features"
        raise ValueError(f"x_train: the correlations of an AnyOrder need rows in memory; leave out {argument}=True")
    x = x.to(model.shift)
    random = torch.Generator(x.device).manual_seed(fold_in(config.seed, Purpose.MOMENTS, 0))
    x = dequantised(x, dequantisation_widths(config, model), random)
    z = model.standardise(x)
    keeps = config.standardise == "none"
    if isinstance(base, LinearBase) and not (keeps and base.is_fitted):
        base.set_maps(base.exponent, model.shift, model.scale)
        base.fit(z.masked_fill(torch.tensor(model.discrete, device=x.device), torch.nan))
    if isinstance(linear, LinearFeatures) and not (keeps and linear.is_fitted):
        linear.fit(z)


def standardise(
    model: AutoregressiveModel, x: Tensor | RowStream, condition: Condition | None, config: TrainConfig
) -> None:
    """Set the units of data and condition vectors to the moments of the training data (``config.standardise``)."""
    if config.standardise == "none":
        return
    if any(isinstance(head, DiscretisedLogisticMixtureHead) for head, _ in model.head.parts(model.features)):
        raise ValueError(
            f'standardise: grey levels must stay in [-1, 1), so give standardise="none", not "{config.standardise}"'
        )
    if condition is not None and model.context.condition_features:
        vectors = condition[VECTOR] if isinstance(condition, Mapping) else condition
        mean, deviation = _moments(vectors, columns=True)
        constant = _is_constant(mean, deviation)
        if bool(constant.any()):
            warn(f"condition_train: column {int(constant.nonzero()[0])} is constant, so it tells nothing")
        model.set_condition_standardisation(mean, torch.where(constant, 1.0, deviation))
    columns = config.standardise == "columns"
    mean, deviation = _moments(x, columns)
    widths = dequantisation_widths(config, model)
    if config.standardise == "centre" and not any(model.discrete):
        model.set_standardisation(mean + 0.5 * widths.mean(), 1.0)
        return
    if bool(mean.isnan().any()):
        which = f"column {int(mean.isnan().nonzero()[0])}" if columns else "x"
        raise ValueError(f"x_train: {which} holds nothing but missing values; leave it out")
    width = widths if columns else widths.mean()
    deviation = (deviation.square() + width.square() / 12.0).sqrt()
    if any(model.discrete):  # numbers of levels stay as they are
        if not columns:
            raise ValueError('standardise: a model with nominal columns needs "columns" or "none"')
        discrete = torch.tensor(model.discrete)
        mean, deviation, width = mean.masked_fill(discrete, 0.0), deviation.masked_fill(discrete, 1.0), width.clone()
        width[discrete] = 0.0
    constant = _is_constant(mean, deviation)
    if bool(constant.any()):
        which = f"column {int(constant.nonzero()[0])} is constant" if columns else "all values are the same"
        raise ValueError(f'x_train: {which}, so it has no density; leave it out, dequantise, or standardise="none"')
    model.set_standardisation(mean + 0.5 * width, deviation)


def _is_constant(mean: Tensor, deviation: Tensor) -> Tensor:
    return deviation <= _ROUNDING * mean.abs().clamp(min=_ROUNDING)


def _moments(x: Tensor | RowStream, columns: bool) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each column, or of all values, without NaN.

    They are in double precision and on the CPU, like the configuration, wherever the rows are.
    """
    if isinstance(x, Tensor):
        x = x.detach()
        x = (x if widest_float(x.device) == torch.float64 else x.cpu()).double()
        mean = x.nanmean(0) if columns else x.nanmean()
        return mean.cpu(), (x - mean).square().nanmean(0 if columns else None).sqrt().cpu()
    if columns:
        return x.mean, x.deviation
    mean = x.mean.mean()
    return mean, (x.deviation.square() + (x.mean - mean).square()).mean().sqrt()
