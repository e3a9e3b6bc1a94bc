"""Tests that contexts and heads share: the constructor, the round trip of ``config()``, gradients of all weights."""

import inspect
import json
from collections.abc import Callable
from typing import TypeVar, get_type_hints

import torch
from torch import Tensor

from arcsm.checking.requirements import normal, require, require_equal, seeded
from arcsm.contexts import AnyOrder, ConditionNet, Context
from arcsm.errors import PartError
from arcsm.heads import Head, ScoreHead

_REBUILT_TOLERANCE = 1e-6  # buffers may have been made in single precision
_NETWORK_OF_SCORE_HEAD = ("hidden.", "output.")  # its parameters

ModulePart = TypeVar("ModulePart", Context, Head)
AnyPart = TypeVar("AnyPart", Context, Head, ConditionNet)


def check_constructor(part: Context | Head | ConditionNet, *required: str) -> None:
    """Check that the constructor has the arguments that are set by the data or the model, and annotates all of them."""
    parameters, hints = inspect.signature(type(part)).parameters, get_type_hints(type(part).__init__)
    for name in required:
        require(name in parameters, f"the constructor has no argument {name}")
    for name in parameters:
        require(name in hints, f"the constructor's argument {name} has no type annotation")


def check_config(part: ModulePart, outputs: Callable[[ModulePart, torch.Generator], Tensor]) -> None:
    """Check that ``config()``, through JSON, rebuilds a part with the same weights and, given their values, outputs."""
    rebuilt = check_rebuilding(part)
    before, after = outputs(part, seeded(1)), outputs(rebuilt, seeded(1))
    require_equal(after, before, "outputs of the part rebuilt from config()", _REBUILT_TOLERANCE)


def check_rebuilding(part: AnyPart) -> AnyPart:
    """Check that ``config()``, through JSON, rebuilds a part with the same weights, and return it with their values."""
    arguments = part.config()
    try:
        config = json.loads(json.dumps(arguments, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PartError(f"config() is not JSON: {error}") from error
    try:
        rebuilt = type(part)(**config).double().eval()
    except Exception as error:
        raise PartError(f"the constructor does not accept config(): {error}") from error
    kept = json.loads(json.dumps(rebuilt.config())) == config
    require(kept, f"config() changes when the part is rebuilt: from {config} to {rebuilt.config()}")
    own, other = part.state_dict(), rebuilt.state_dict()
    for name in sorted(own.keys() | other.keys()):
        require(name in own and name in other, f"config() rebuilds other weights: {name} is in one part only")
        shapes = tuple(own[name].shape), tuple(other[name].shape)
        require(shapes[0] == shapes[1], f"config() rebuilds other weights: {name} is {shapes[0]}, then {shapes[1]}")
    rebuilt.load_state_dict(own)
    return rebuilt


def check_gradients(part: Context | Head, outputs: Tensor, generator: torch.Generator) -> None:
    """Check that the gradient of a random combination of outputs reaches every parameter.

    A :class:`ScoreHead` with a network of its own need not use the one that it inherits. A context without lines has no
    residuals, and one without correlations no linear predictions.
    """
    if not any(parameter.requires_grad for parameter in part.parameters()):
        return
    replaced = isinstance(part, ScoreHead) and not part.has_original_score
    unused = _NETWORK_OF_SCORE_HEAD if replaced else ()
    without_lines = isinstance(part, AnyOrder) and part.base is not None and not part.base.index
    idle = ["residual_weight"] if without_lines else []
    if isinstance(part, AnyOrder) and part.linear is not None and not part.linear.has_correlations:
        idle.append("unit_weight")
    (outputs * normal(generator, *outputs.shape)).sum().backward()
    for name, parameter in part.named_parameters():
        reached = parameter.grad is not None and bool((parameter.grad != 0.0).any())
        may_be_idle = not parameter.requires_grad or name.startswith(unused) or name.endswith(tuple(idle))
        require(reached or may_be_idle, f"none reaches the parameter {name}")
