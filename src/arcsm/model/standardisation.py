"""Data units and standardised units of a model, for its data and for its conditions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from arcsm._runtime.conditions import CLASSES, VECTOR, Condition, is_condition
from arcsm._runtime.devices import widest_float
from arcsm.contexts import Context
from arcsm.errors import all_finite, any_infinite, readable

_CONDITION_UNITS = "condition_shift", "condition_scale"

Values = Tensor | Sequence[float] | float  #: One for each dimension, ``(D,)``, or a number for all.


class Standardised(nn.Module):
    """A model that takes and returns data units, and computes in standardised units :math:`(x - shift) / scale`.

    Attributes:
        context: The network that sees rows and conditions in standardised units.
        shift, scale: Of the data, ``(D,)`` each.
        condition_shift, condition_scale: Of condition vectors, ``(F,)`` each, in double precision: times may be far
            from zero.
    """

    context: Context
    shift: Tensor
    scale: Tensor
    condition_shift: Tensor
    condition_scale: Tensor

    @property
    def features(self) -> int:
        """Number of dimensions :math:`D`."""
        return self.context.features

    def register_standardisation(self) -> None:
        """Add the buffers, as the identity. The context must be there."""
        own, condition = (self.features, torch.get_default_dtype()), (self.context.condition_features, torch.float64)
        for name, (size, dtype) in (("", own), ("condition_", condition)):
            self.register_buffer(f"{name}shift", torch.zeros(size, dtype=dtype), persistent=size > 0)
            self.register_buffer(f"{name}scale", torch.ones(size, dtype=dtype), persistent=size > 0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the module; the units of conditions stay in double precision, if the device has it."""
        if widest_float(fn(torch.zeros(1)).device) != torch.float64:
            return super()._apply(lambda x: fn(x.float() if x.dtype == torch.float64 else x), recurse)
        units = {name: self.get_buffer(name) for name in _CONDITION_UNITS}
        super()._apply(fn, recurse)
        for name, exact in units.items():
            moved = self.get_buffer(name)
            if moved.dtype != torch.float64:
                setattr(self, name, (moved if exact.is_meta else exact).to(moved.device, torch.float64))
        return self

    def set_standardisation(self, shift: Values, scale: Values) -> None:
        """Set the affine map between data and standardised units, ``(D,)`` or a number each.

        Raises:
            ValueError: If a shift is not finite, a scale not positive and finite, or a size wrong.
        """
        self._set_units("", shift, scale, "leave constant columns out")

    def set_condition_standardisation(self, shift: Values, scale: Values) -> None:
        """Set the affine map through which contexts see condition vectors, ``(F,)`` or a number each.

        Errors are as in :meth:`set_standardisation`.
        """
        self._set_units("condition_", shift, scale, "1 for constant columns")

    @torch.no_grad()
    def _set_units(self, prefix: str, shift: Values, scale: Values, hint: str) -> None:
        given = {}
        for name, value in ((f"{prefix}shift", shift), (f"{prefix}scale", scale)):
            buffer = self.get_buffer(name)
            given[name] = value = torch.as_tensor(value).to(buffer)
            if value.ndim > 1 or (value.ndim and len(value) != len(buffer)):
                raise ValueError(f"{name}: expected a number or {len(buffer)} of them, got {tuple(value.shape)}")
            known = readable(value)
            if known is not None and not bool((known.isfinite() & ((known > 0) | name.endswith("shift"))).all()):
                expected = "finite numbers" if name.endswith("shift") else f"positive finite numbers ({hint})"
                raise ValueError(f"{name}: expected {expected}")
        for name, value in given.items():
            self.get_buffer(name).copy_(value.expand_as(self.get_buffer(name)))

    def standardise(self, x: Tensor, missing: bool | None = None) -> Tensor:
        """Check data ``(*, D)`` and convert it from data units to standardised units.

        If ``missing`` (default: if the context accepts missing values), NaN marks a missing value.

        Raises:
            ValueError: If the shape or type is wrong, or a value is infinite or an unexpected NaN.
        """
        if not isinstance(x, Tensor):
            raise ValueError(f"x: expected a torch.Tensor, got {type(x).__name__}; use torch.as_tensor")
        if x.shape[-1:] != (self.features,):
            raise ValueError(f"x: expected shape (*, {self.features}), got {tuple(x.shape)}")
        if x.is_complex() or x.dtype == torch.bool:
            raise ValueError(f"x: expected real numbers, got {x.dtype}")
        x = x.to(self.shift)
        if self.context.missing if missing is None else missing:
            if any_infinite(x):
                raise ValueError(f"x: contains infinity (as {x.dtype}); mark missing values with NaN")
        elif not all_finite(x):
            raise ValueError(f"x: contains NaN or infinity (as {x.dtype}); drop or fill those rows")
        return (x - self.shift) / self.scale

    def standardise_condition(
        self, condition: Condition | None, batch_shape: Sequence[int] | None = None
    ) -> Condition | None:
        """Move a condition to the model's device, and convert vectors ``(*, F)`` to standardised units.

        Labels stay as they are. The context checks the shape, type and values; with a ``batch_shape`` it does so here,
        and each row of the batch gets its own.
        """
        device, size = self.shift.device, self.context.condition_features

        def standardised(part: Tensor) -> Tensor:
            part = part.to(device)
            if not size or part.is_complex() or part.shape[-1:] != (size,):
                return part
            exact = (part.to(self.condition_shift.dtype) - self.condition_shift) / self.condition_scale
            return exact.to(part.dtype) if part.is_floating_point() else exact

        if isinstance(condition, Tensor):
            condition = condition.to(device) if self.context.classes else standardised(condition)
        elif is_condition(condition):
            both = cast(Mapping[str, Tensor], condition)
            condition = {CLASSES: both[CLASSES].to(device), VECTOR: standardised(both[VECTOR])}
        if batch_shape is None:
            return condition
        return cast("Condition | None", self.context.check_condition(condition, batch_shape))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if self.context.condition_features and f"{prefix}shift" in state_dict:  # files of older versions lack these
            state_dict.setdefault(f"{prefix}condition_shift", torch.zeros_like(self.condition_shift))
            state_dict.setdefault(f"{prefix}condition_scale", torch.ones_like(self.condition_scale))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
