"""The registry of parts: contexts, heads, condition networks, objectives and samplers by name.

Configurations, saved files and commands refer to parts by name. A part is registered once, when its module is imported;
those of this package are imported the first time that one is looked up. Another package declares its parts as entry
points of the group ``arcsm.parts``; they are imported the first time that a list of parts, or a name that is not
registered yet, is needed.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from arcsm.errors import warn

Seam = Literal["context", "head", "condition_net", "objective", "sampler"]
Part = TypeVar("Part", bound=Callable[..., Any])

ENTRY_POINT_GROUP = "arcsm.parts"

_PARTS: dict[Seam, dict[str, Callable[..., Any]]] = {
    "context": {},
    "head": {},
    "condition_net": {},
    "objective": {},
    "sampler": {},
}
_SEAM_OF_FIRST_PARAMETER: dict[str, Seam] = {"model": "objective", "conditionals": "sampler"}
_entry_points_loaded = False


def register(part: Part) -> Part:
    """Register a part under its name, so that models with it can be configured, saved and loaded; return the part.

    Use it as a decorator or call it. Contexts, heads and condition networks are classes that derive from
    :class:`~arcsm.Context`, :class:`~arcsm.Head` or :class:`~arcsm.ConditionNet`. An objective is a function whose
    first parameter is ``model``; a sampler is a function whose first parameter is ``conditionals``.

    Arguments:
        part: The class, with all methods of its kind, or the function. Its ``__name__``, which no other part may have,
            is the name in configurations and files. A part that is defined again in the same place, as in a notebook,
            replaces the earlier one.

    Example:
        >>> import arcsm
        >>> @arcsm.register
        ... def halved_csm(model, x, condition=None, generator=None):
        ...     return 0.5 * arcsm.objectives.csm(model, x, condition=condition, generator=generator)
        >>> arcsm.TrainConfig(objective="halved_csm").objective
        'halved_csm'
    """
    seam = seam_of(part)
    if not str(part.__module__).startswith("arcsm."):  # None in doctests
        _load_own_parts()  # whose names are taken
    if missing := getattr(part, "__abstractmethods__", None):
        raise ValueError(f"register: {part.__name__} does not define {', '.join(sorted(missing))}")
    known = _PARTS[seam].get(part.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (part.__module__, part.__qualname__):
        raise ValueError(f"register: the {seam} {part.__name__} of {known.__module__} is registered; rename yours")
    _PARTS[seam][part.__name__] = part
    return part


def seam_of(part: object) -> Seam:
    """Return which kind of part a class or function is."""
    if inspect.isclass(part):
        seam: Seam | None = getattr(part, "seam", None)
        if seam in _PARTS:
            return seam
    elif callable(part) and hasattr(part, "__name__"):
        first = next(iter(inspect.signature(part).parameters), "")
        if first in _SEAM_OF_FIRST_PARAMETER:
            return _SEAM_OF_FIRST_PARAMETER[first]
    raise ValueError(
        "part: expected a Context, a Head, a ConditionNet, an objective(model, x, ...) "
        "or a sampler(conditionals, ...), "
        f"got {' '.join(repr(part).split())[:80]}"
    )


@cache
def _load_own_parts() -> None:
    """Import the parts of this package, which register themselves."""
    for seam in ("contexts", "heads", "objectives", "samplers"):
        import_module(f"arcsm.{seam}")


def parts(seam: Seam) -> Mapping[str, Callable[..., Any]]:
    """Return the registered parts of a seam by name, including the parts of installed packages."""
    _load_own_parts()
    _load_entry_points()
    return MappingProxyType(_PARTS[seam])


def find(seam: Seam, name: object, key: str | None = None) -> Callable[..., Any]:
    """Return a registered part; the error for an unknown name begins with ``key``, by default the seam."""
    if isinstance(name, str):
        if name not in _PARTS[seam]:
            _load_own_parts()
        if name not in _PARTS[seam]:
            _load_entry_points()
        if name in _PARTS[seam]:
            return _PARTS[seam][name]
    raise ValueError(
        f"{key or seam}: expected one of {', '.join(parts(seam))}, got {name!r:.60}; "
        "register a part of your own first (arcsm.register)"
    )


def check_registered(seam: Seam, part: object) -> None:
    """Check that a module or a function is registered, so that a file which names it can be read again."""
    kind: Any = part if inspect.isroutine(part) else type(part)
    if parts(seam).get(kind.__name__) is not kind:
        raise ValueError(
            f"{seam}: {kind.__name__} is not registered, so no file can refer to it; "
            f"call arcsm.register({kind.__name__}) first"
        )


def build(seam: Seam, config: Mapping[str, Any]) -> Any:
    """Build a context, a head or a condition network from its configuration, ``{"kind": NAME, **arguments}``."""
    arguments = dict(config)
    return find(seam, arguments.pop("kind", None), f"{seam}.kind")(**arguments)


def constructor_arguments(part: object) -> dict[str, Any]:
    """Return the attributes named like the constructor's arguments; tuples become lists for JSON.

    Raises:
        ValueError: If there is no such attribute.
    """
    names = inspect.signature(type(part)).parameters
    if missing := [name for name in names if not hasattr(part, name)]:
        raise ValueError(
            f"{type(part).__name__}: does not store its argument {missing[0]}, so it cannot be rebuilt from a file; "
            f"set self.{missing[0]} in the constructor"
        )
    arguments = {name: getattr(part, name) for name in names}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model configuration with defaults for the arguments that an older version did not write."""
    seams: tuple[Seam, ...] = ("context", "head")
    completed = dict(config)
    for seam in seams:
        parameters = inspect.signature(find(seam, config[seam]["kind"])).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        completed[seam] = {**defaults, **config[seam]}
    return completed


@contextmanager
def configuration_errors() -> Iterator[None]:
    """Turn any error that a configuration causes while a model is built into a one-line ``ValueError``."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"model configuration: {type(error).__name__}: {message}") from error


def _load_entry_points() -> None:
    """Register the parts of installed packages. A package that is broken costs a warning and its own parts only."""
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    _entry_points_loaded = True
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            register(entry_point.load())
        except Exception as error:
            warn(f"entry point {entry_point.value} of {ENTRY_POINT_GROUP} is left out: {error}")
