"""Conditions of rows: a tensor of vectors or labels, or a mapping that holds both."""

from collections.abc import Callable, Mapping
from typing import TypeGuard, overload

from torch import Tensor

CLASSES, VECTOR = "classes", "vector"  #: Keys of a mapping, in the order of its parts.

#: Vectors ``(*, F)`` or labels ``(*)``; for a model with both, ``{"classes": labels, "vector": vectors}``.
Condition = Tensor | Mapping[str, Tensor]


def is_condition(condition: object) -> TypeGuard[Condition]:
    """Return whether this is a tensor, or a mapping of labels and vectors."""
    if isinstance(condition, Mapping):
        return set(condition) == {CLASSES, VECTOR} and all(isinstance(part, Tensor) for part in condition.values())
    return isinstance(condition, Tensor)


def check_type(condition: object) -> None:
    """Check that a condition is a tensor, or a mapping of labels and vectors."""
    if isinstance(condition, Mapping) and not is_condition(condition):
        kinds = {name: type(part).__name__ for name, part in condition.items()}
        raise ValueError(f"condition: expected tensors under the keys {CLASSES!r} and {VECTOR!r}, got {kinds}")
    if not is_condition(condition):
        raise ValueError(f"condition: expected a torch.Tensor, got {type(condition).__name__}; use torch.as_tensor")


def combine(labels: Tensor | None, vectors: Tensor | None) -> Condition | None:
    """Return the condition on labels, on vectors or on both; ``None`` for neither."""
    if labels is None or vectors is None:
        return vectors if labels is None else labels
    return {CLASSES: labels, VECTOR: vectors}


@overload
def map_condition(function: Callable[[Tensor], Tensor], condition: Condition) -> Condition: ...
@overload
def map_condition(function: Callable[[Tensor], Tensor], condition: None) -> None: ...
@overload
def map_condition(function: Callable[[Tensor], Tensor], condition: Condition | None) -> Condition | None: ...
def map_condition(function: Callable[[Tensor], Tensor], condition: Condition | None) -> Condition | None:
    """Apply a function to each tensor of a condition."""
    if condition is None or isinstance(condition, Tensor):
        return None if condition is None else function(condition)
    return {name: function(condition[name]) for name in (CLASSES, VECTOR)}


def flatten_rows(condition: Condition, batch: int) -> Condition:
    """Flatten the leading ``batch`` dimensions of a condition, ``(*, ...)`` to ``(B, ...)``."""
    return map_condition(lambda part: part.reshape(-1, *part.shape[batch:]), condition)


def tensors_of(condition: Condition | None) -> list[Tensor]:
    """Return the tensors of a condition."""
    if condition is None or isinstance(condition, Tensor):
        return [] if condition is None else [condition]
    return [condition[name] for name in (CLASSES, VECTOR)]
