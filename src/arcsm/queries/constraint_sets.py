"""Constraints of several columns at once: checks, those of parents, and what two sets have in common."""

from collections.abc import Collection, Mapping, Sequence
from numbers import Integral

from torch import Tensor

from arcsm.contexts import AnyOrder
from arcsm.queries.constraints import Constraint, Levels


def check_columns(columns: Collection[int], features: int, name: str) -> None:
    unknown = [d for d in columns if not isinstance(d, Integral) or not 0 <= d < features]
    if unknown:
        raise ValueError(f"{name}: expected columns from 0 to {features - 1}, got {unknown[0]!r:.60}")


def check_constraints(z: Tensor, constraints: Mapping[int, Constraint], targets: Sequence[int], name: str) -> None:
    """Check that constraints belong to columns that are unknown in all rows ``z (N, D)``."""
    check_columns(constraints, z.shape[1], name)
    for d, constraint in constraints.items():
        if not isinstance(constraint, Constraint):
            raise ValueError(f"{name}: expected Intervals or Levels for column {d}, got {constraint!r:.60}")
        if not bool(z[:, d].isnan().all()):
            raise ValueError(f"{name}: column {d} is known; leave it out, or make it NaN in x")
        if d not in targets:
            raise ValueError(f"{name}: the model has no conditionals of column {d}, which is not among its targets")


def with_parents_of(constraints: Mapping[int, Constraint], context: AnyOrder, z: Tensor) -> Mapping[int, Constraint]:
    """Return the constraints, with level 0 of each unknown parent of a constrained dimension: it must have a value."""
    parents = {context.parents[d] for d in constraints} - {-1, *constraints}
    return {**{parent: Levels([0]) for parent in parents if bool(z[:, parent].isnan().all())}, **constraints}


def draws_parents(context: AnyOrder, constraints: Mapping[int, Constraint], x: Tensor) -> bool:
    """Return whether the parent of a constrained dimension is unknown in some rows, but not in all."""
    parents = [context.parents[d] for d in constraints if context.parents[d] != -1]
    return any(bool(x[:, parent].isnan().any() & ~x[:, parent].isnan().all()) for parent in parents)


def in_common(
    first: Mapping[int, Constraint], second: Mapping[int, Constraint], context: AnyOrder, present: Collection[int]
) -> dict[int, Constraint] | None:
    """Return constraints that hold where both do; ``None`` if they exclude each other.

    Each of the two applies to a dimension with a parent where that has level 0. Sets that exclude each other leave the
    other levels, unless the dimension must be ``present``.
    """
    found, empty = {**first, **second}, []
    for d in {*first} & {*second}:
        both = first[d].intersection(second[d])
        if both is None:
            empty.append(d)
        else:
            found[d] = both
    for d in empty:
        parent = context.parents[d]
        if parent in (-1, *empty) or d in present or context.levels[parent] == 1:
            return None
        elsewhere = found[parent].intersection(Levels(range(1, context.levels[parent])))
        if elsewhere is None:
            return None
        found[parent] = elsewhere
        del found[d]
    return found
