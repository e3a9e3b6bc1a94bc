"""The registry of parts: contexts, heads, objectives and samplers by name, this package's and other packages'.

A part is registered once, when its module is imported, and is then known by name to configurations, saved files and
commands. Another package declares its parts as entry points of the group ``arcsm.parts``; they are imported the first
time a name is looked up that is not registered yet.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, Literal, TypeVar

Seam = Literal["context", "head", "objective", "sampler"]
Part = TypeVar("Part", bound=Callable[..., Any])

ENTRY_POINT_GROUP = "arcsm.parts"

_PARTS: dict[Seam, dict[str, Callable[..., Any]]] = {"context": {}, "head": {}, "objective": {}, "sampler": {}}
_FIRST_PARAMETER: dict[str, Seam] = {"model": "objective", "conditionals": "sampler"}
_loaded_entry_points = False


def register(part: Part) -> Part:
    """Make a part known by its name, so that models with it can be saved, loaded, configured and reported.

    Use it as a decorator or call it. Contexts and heads are classes that derive from :class:`~arcsm.Context` or
    :class:`~arcsm.Head`. An objective is a function whose first parameter is ``model``; a sampler is a function whose
    first parameter is ``conditionals``.

    Arguments:
        part: The class or function. Its ``__name__`` is the name in configurations and files.

    Returns:
        The part itself.

    Raises:
        ValueError: If ``part`` is none of the four kinds, or if another part has its name.

    Example:
        >>> import arcsm
        >>> @arcsm.register
        ... def halved_csm(model, x, condition=None, generator=None):
        ...     return 0.5 * arcsm.objectives.csm(model, x, condition=condition, generator=generator)
        >>> arcsm.TrainConfig(objective="halved_csm").objective
        'halved_csm'
    """
    seam, name = _seam_of(part), part.__name__
    known = _PARTS[seam].get(name)
    if known is not None and (known.__module__, known.__qualname__) != (part.__module__, part.__qualname__):
        raise ValueError(f"register: the {seam} {name} of {known.__module__} is already registered; rename yours")
    _PARTS[seam][name] = part
    return part


def parts(seam: Seam) -> Mapping[str, Callable[..., Any]]:
    """Return all registered parts of a seam by name, those of installed packages included."""
    _load_entry_points()
    return MappingProxyType(_PARTS[seam])


def find(seam: Seam, name: object, key: str | None = None) -> Callable[..., Any]:
    """Return a registered part.

    Arguments:
        seam: Its kind.
        name: Its name.
        key: What the name is called in the error message. Default: the seam.

    Raises:
        ValueError: If no part of this seam has that name.
    """
    if isinstance(name, str) and name in _PARTS[seam]:
        return _PARTS[seam][name]
    known = parts(seam)
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"{key or seam}: expected one of {', '.join(known)}, got {name!r:.60}; "
            "a part of your own must be registered first (arcsm.register)"
        )
    return known[name]


def check_registered(seam: Seam, part: object) -> None:
    """Refuse to write a file that names a part which the registry does not know.

    Raises:
        ValueError: If the class of ``part`` is not registered.
    """
    kind = type(part)
    if _PARTS[seam].get(kind.__name__) is not kind:
        raise ValueError(
            f"{seam}: {kind.__name__} is not registered, so the file could not be read; "
            f"call arcsm.register({kind.__name__}) first"
        )


def build(seam: Seam, config: Mapping[str, Any]) -> Any:
    """Build a context or a head from its configuration, ``{"kind": NAME, **arguments}``.

    Raises:
        ValueError: If the kind is not registered.
    """
    arguments = dict(config)
    return find(seam, arguments.pop("kind", None), f"{seam}.kind")(**arguments)


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's configuration with the default of each argument that an older version did not write."""
    completed = dict(config)
    for seam in ("context", "head"):
        constructor = find(seam, config[seam]["kind"])  # type: ignore[arg-type]
        parameters = inspect.signature(constructor).parameters.values()
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


def _seam_of(part: object) -> Seam:
    if inspect.isclass(part):
        seam: Seam | None = getattr(part, "seam", None)
        if seam in _PARTS:
            return seam
    elif callable(part) and hasattr(part, "__name__"):
        parameters = list(inspect.signature(part).parameters)
        if parameters and parameters[0] in _FIRST_PARAMETER:
            return _FIRST_PARAMETER[parameters[0]]
    raise ValueError(
        "register: expected a Context, a Head, an objective(model, x, ...) or a sampler(conditionals, ...), "
        f"got {part!r:.80}"
    )


def _load_entry_points() -> None:
    global _loaded_entry_points
    if _loaded_entry_points:
        return
    _loaded_entry_points = True
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        register(entry_point.load())
