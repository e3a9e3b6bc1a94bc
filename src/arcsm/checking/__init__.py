"""Tests of a part against its contract, the same for the parts of this package and of others."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from arcsm import registry
from arcsm.checking.contexts import CONTEXT_CHECKS
from arcsm.checking.functions import check_objective, check_sampler
from arcsm.checking.heads import HEAD_CHECKS, MIXED_HEAD_CHECKS
from arcsm.checking.modules import check_constructor, check_rebuilding
from arcsm.checking.requirements import normal, seeded
from arcsm.contexts import ConditionNet, Context
from arcsm.errors import PartError
from arcsm.heads import Head, MixedHead

__all__ = ["PartError", "check"]

_CHECKS: dict[registry.Seam, dict[str, Callable[[Any, torch.Generator], None]]] = {
    "context": CONTEXT_CHECKS,
    "head": HEAD_CHECKS,
    "condition_net": {
        "constructor": lambda net, _: check_constructor(net),
        "config": lambda net, _: check_rebuilding(net),
    },
    "objective": {"loss": check_objective},
    "sampler": {"values": check_sampler},
}


def check(
    part: Context | Head | ConditionNet | Callable[..., Tensor], *, generator: torch.Generator | None = None
) -> None:
    """Test a part against its contract, as the package tests its own.

    - Context: shapes, causality (by its Jacobian), agreement of :meth:`~arcsm.Context.forward` with
      :meth:`~arcsm.Context.begin` and :meth:`~arcsm.Context.step`, derivatives by differences, conditions and missing
      values if it accepts them. If it has its own ``training_terms``, their mean, against that over all orders. For
      an ``AnyOrder``, agreement of ``forward`` with the methods that add known values, and with the conditionals.
    - Head: broadcasting, :math:`\\partial_x s` against automatic differentiation, and for a normalised head the
      agreement of score, density or mass, distribution function, quantiles and bracket. If it accepts noise levels, a
      score that depends on them. For a ``ScoreHead``, scores that point inwards at the ends of its range. Each head of
      a ``MixedHead``.
    - Both: gradients of all parameters, the round trip of ``config()``, the signature and the registration.
    - Condition network: the round trip of ``config()``, the signature and the registration. The rest is tested with the
      context that it belongs to.
    - Objective: a finite scalar with gradients, reproducible from its generator, and not the sum over the batch.
    - Sampler: one finite value for each conditional, reproducible from its generator, and independent of the other
      conditionals of the batch.

    The test runs on a copy in double precision with slightly perturbed weights, so that no zero weight hides a mistake.
    The part and torch's global state stay as they are. A small part, with 2 to about 50 features, takes a second.
    An image must be two pixels high and wide: a smaller one leaves weights of a context of images unused.

    Arguments:
        part: An instance of a context, head or condition network, or the function itself.
        generator: Source of the test's weights and data, on the CPU. Default: one with a fixed seed.

    Raises:
        PartError: If a property does not hold. The message says which, where and by how much.
        ValueError: If ``part`` is not one of these kinds, or is a class in place of an instance.

    Example:
        >>> from arcsm import MADE
        >>> check(MADE(features=3, context_features=2, hidden_features=(8,)))
    """
    if inspect.isclass(part):
        raise ValueError(f"part: expected an instance, got the class {part.__name__}; pass {part.__name__}(...)")
    kind = type(part) if isinstance(part, nn.Module) else part
    seam = registry.seam_of(kind)
    generator = seeded(0) if generator is None else generator
    of_kind = MIXED_HEAD_CHECKS if isinstance(part, MixedHead) else _CHECKS[seam]
    checks = {**of_kind, "registration": lambda part, _: registry.check_registered(seam, part)}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        for subject, examine in checks.items():
            try:
                examine(_perturbed(part, generator) if isinstance(part, nn.Module) else part, generator)
            except PartError as error:
                raise PartError(f"{kind.__name__}: {subject}: {error}") from error.__cause__
            except Exception as error:
                message = " ".join(str(error).split())
                raise PartError(f"{kind.__name__}: {subject}: {type(error).__name__}: {message}") from error


def _perturbed(part: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return a copy in double precision on the CPU, in evaluation mode, with noise added to all weights."""
    part = copy.deepcopy(part).cpu().double().eval()
    part.zero_grad()
    with torch.no_grad():
        for parameter in filter(Tensor.is_floating_point, part.parameters()):
            parameter.add_(normal(generator, *parameter.shape), alpha=0.1)
    return part
