"""The parts of a model by name: what a configuration may speak of, and what is built from it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from arcsm.contexts import MADE, Context, PixelCNNPP
from arcsm.heads import DiscretisedLogisticMixtureHead, GaussianHead, Head, LogisticMixtureHead, ScoreHead
from arcsm.noise import NoiseLadder

CONTEXTS: Mapping[str, type[Context]] = {"MADE": MADE, "PixelCNNPP": PixelCNNPP}
HEADS: Mapping[str, type[Head]] = {
    "ScoreHead": ScoreHead,
    "GaussianHead": GaussianHead,
    "LogisticMixtureHead": LogisticMixtureHead,
    "DiscretisedLogisticMixtureHead": DiscretisedLogisticMixtureHead,
}


def parts_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is built of, with fresh weights, from its configuration.

    Raises:
        ValueError: for kinds that do not exist; more, see :func:`configuring`.
    """
    for name in ("context", "head", "noise", "metadata"):
        if config.get(name) is not None and not isinstance(config[name], Mapping):
            raise ValueError(f"model configuration: {name}: expected a mapping, got {config[name]!r:.60}")
    noise = config.get("noise")
    return {
        "context": _build(CONTEXTS, config["context"], "context"),
        "head": _build(HEADS, config["head"], "head"),
        "noise": None if noise is None else NoiseLadder(**noise),
        "metadata": config.get("metadata"),
    }


@contextmanager
def configuring() -> Iterator[None]:
    """Whatever a configuration breaks while a model is built from it becomes a ``ValueError`` of one line."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError) as error:
        what = " ".join(str(error).split())
        raise ValueError(f"model configuration: {type(error).__name__}: {what}") from error


def _build(kinds: Mapping[str, type[Any]], config: Mapping[str, Any], name: str) -> Any:
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"{name}.kind: expected one of {', '.join(kinds)}, got {kind!r}")
    return kinds[kind](**arguments)


def completed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration with the arguments that an older version did not write, each with its default."""
    found = dict(config)
    for part, kinds in (("context", CONTEXTS), ("head", HEADS)):
        parameters = inspect.signature(kinds[config[part]["kind"]]).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        found[part] = {**defaults, **config[part]}
    return found
