"""A pretend accelerator: it holds real data, and counts kernels, synchronisations with the host and mixed devices.

Within :class:`PretendDevice`, tensors on the device ``"meta"`` have values, and each operation on them is carried out
on the CPU and counted as one kernel. What a real accelerator would refuse, or stop for, is counted by the line of the
package that asked for it.
"""

import sys
from collections import Counter
from types import TracebackType
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_CPU = torch.device("cpu")
#: Operations that launch nothing: views, and memory without values.
_FREE = {
    "view", "_unsafe_view", "expand", "as_strided", "t", "transpose", "permute", "select", "slice", "unsqueeze",
    "squeeze", "detach", "alias", "unbind", "split", "split_with_sizes", "unflatten", "_reshape_alias", "diagonal",
    "unfold", "empty", "empty_like", "new_empty", "empty_strided", "lift_fresh", "chunk",
}  # fmt: skip
#: Operations whose result, or its shape, the host waits for.
_WAITED_FOR = {
    "_local_scalar_dense", "_linalg_check_errors", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2",
    "unique_consecutive",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_COPIES = {"copy_", "_to_copy"}
_PlainGenerator: Any = torch.Generator
_MASKS = (torch.bool, torch.uint8)


class _Held(Tensor):
    """A tensor on the pretend device, and its values on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls: type["_Held"], values: Tensor) -> "_Held":
        held = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device=DEVICE,
        )  # fmt: skip
        held.values = values
        return held

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        """Whether there are no values."""
        return False

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: outside of the PretendDevice")


class PretendDevice(TorchDispatchMode):
    """What a real device would do; see the module.

    Attributes:
        kernels: Number of operations by name.
        waits: Where the host waits for the device: values, shapes that depend on values, copies to the CPU.
        uploads: Where the host sends values to the device.
        mixed: Operations on tensors of both devices, which fail on a real one.
        doubles: Number of results in double precision, which some devices do not have, by the name of the operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()
        self.doubles: Counter[str] = Counter()
        self._constants = _Constants(self)
        self._changes = (  # torch knows none of these for this device
            mock.patch("torch.optim.adam._device_dtype_check_for_fused"),
            mock.patch("torch.is_autocast_enabled", return_value=False),
            mock.patch("torch.Generator", _Generator),
            mock.patch("arcsm._runtime.devices._may_keep", return_value=True),
            mock.patch.dict("arcsm._runtime.devices._KEPT", clear=True),
        )

    def clear(self) -> None:
        """Count anew."""
        for counter in (self.kernels, self.waits, self.uploads, self.mixed, self.doubles):
            counter.clear()

    def __enter__(self) -> Self:
        for change in self._changes:
            change.start()
        self._overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # `tensor.data = ...` would not change values
        self._constants.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._constants.__exit__(kind, error, trace)
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwrites)
        for change in self._changes:
            change.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[-1]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        held = [tensor for tensor in tensors if isinstance(tensor, _Held)]
        target = kwargs.get("device")
        is_here = bool(held) if target is None else torch.device(target).type == DEVICE.type
        self._count(name, args, tensors, held, is_here)
        args, kwargs = tree_map(lambda leaf: leaf.values if isinstance(leaf, _Held) else leaf, (args, kwargs))
        if target is not None:
            kwargs["device"] = _CPU
        result = torch.zeros(*args, **kwargs) if name == "_efficientzerotensor" else func(*args, **kwargs)
        if not is_here:
            return result
        return self._wrapped(func, name, result, args, tensors)

    def _count(self, name: str, args: Any, tensors: list[Tensor], held: list[Tensor], is_here: bool) -> None:
        others = [tensor for tensor in tensors if not isinstance(tensor, _Held)]
        if held and any(tensor.ndim for tensor in others) and name not in _COPIES | _INDEXING:
            self.mixed[f"{name} {_line()}"] += 1
        if is_here and name not in _FREE:
            self.kernels[name] += 1
        if (held and name in _WAITED_FOR) or (held and name == "_to_copy" and not is_here):
            self.waits[f"{name} {_line()}"] += 1
        if name == "copy_" and others and held:
            is_upload = isinstance(args[0], _Held)
            (self.uploads if is_upload else self.waits)[f"{name} {_line()}"] += 1
        if name == "_to_copy" and is_here and not held:
            self.uploads[f"{name} {_line()}"] += 1
        if held and name in _INDEXING:
            indices = [index for index in args[1] if isinstance(index, Tensor)]
            if any(index.dtype in _MASKS for index in indices):
                self.waits[f"{name} by a mask {_line()}"] += 1
            if any(not isinstance(index, _Held) for index in indices):
                self.uploads[f"{name} by an index of the CPU {_line()}"] += 1

    def _wrapped(self, func: Any, name: str, result: Any, args: Any, tensors: list[Tensor]) -> Any:
        by_values = {id(tensor.values): tensor for tensor in tensors if isinstance(tensor, _Held)}

        def wrapped(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or isinstance(leaf, _Held):
                return leaf
            if id(leaf) in by_values:  # changed in place
                return by_values[id(leaf)]
            if leaf.dtype == torch.float64:
                self.doubles[name] += 1
            return _Held(leaf)

        return tree_map(wrapped, result)


class _AnyGenerator(type(_PlainGenerator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _PlainGenerator)


class _Generator(_PlainGenerator, metaclass=_AnyGenerator):
    """A generator of the CPU, also for the pretend device."""

    def __new__(cls, device: Any = _CPU) -> "_Generator":
        return super().__new__(cls, _CPU if torch.device(device) == DEVICE else device)


class _Constants(TorchFunctionMode):
    """Puts new constants on the pretend device: torch would not keep their values there."""

    def __init__(self, device: PretendDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        target = kwargs.get("device")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], _Held):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(self._uploaded(place) for place in places), *args[2:])
        if func is Tensor.tolist and isinstance(args[0], _Held):
            self.device.waits[f"tolist {_line()}"] += 1
            return args[0].values.tolist()
        if func in (torch.tensor, torch.as_tensor) and target is not None and torch.device(target).type == DEVICE.type:
            data = args[0] if args else kwargs["data"]
            if not isinstance(data, _Held):
                self.device.uploads[f"{func.__name__} {_line()}"] += 1
                return _Held(func(*args, **{**kwargs, "device": _CPU}))
        return func(*args, **kwargs)

    def _uploaded(self, place: Any) -> Any:
        """Return an index by a list on the device, where torch would put it."""
        if not isinstance(place, list):
            return place
        self.device.uploads[f"index by a list {_line()}"] += 1
        return _Held(torch.tensor(place))


def _line() -> str:
    """Return the innermost line of the package that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/arcsm/" in name and "/tests/" not in name:
            return f"{name.split('/arcsm/')[-1]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside"
