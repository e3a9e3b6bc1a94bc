"""Tests of objectives and samplers, with tiny models."""

from collections.abc import Callable

import torch
from torch import Tensor

from arcsm.checking.requirements import normal, require, require_shape, seeded
from arcsm.contexts import MADE
from arcsm.errors import PartError
from arcsm.heads import GaussianHead, ScoreHead
from arcsm.model import AutoregressiveModel
from arcsm.noise import NoiseLadder


def _check_each_model(examine: Callable[[AutoregressiveModel], None]) -> None:
    """Check a function with some models. It may reject some of them with a ``ValueError``, but not all."""
    models = [
        AutoregressiveModel(MADE(3, 4, (8,)), head, noise).double()
        for noise in (NoiseLadder(1.0, 0.1, 4), None)
        for head in (ScoreHead(4, (8,)), GaussianHead(4))
    ]
    errors = []
    for model in models:
        name = f"{type(model.head).__name__} {'with' if model.noise else 'without'} a noise ladder"
        try:
            examine(model)
        except PartError as error:
            raise PartError(f"{name}: {error}") from error
        except ValueError as error:
            errors.append(f"{name}: {error}")
    require(len(errors) < len(models), f"rejects every model: {'; '.join(errors)}")


def check_objective(objective: Callable[..., Tensor], generator: torch.Generator) -> None:
    """Check that an objective returns a finite scalar with gradients, which its generator determines."""
    x = normal(generator, 16, 3)
    before = x.clone()

    def examine(model: AutoregressiveModel) -> None:
        loss = objective(model, x, condition=None, generator=seeded(1))
        require_shape(loss, (), "loss")
        require(loss.requires_grad, "the loss has no gradient")
        loss.backward()
        for name, part in (("context", model.context), ("head", model.head)):
            reached = any(p.grad is not None and bool((p.grad != 0.0).any()) for p in part.parameters())
            require(reached, f"no gradient reaches the {name}")
        again = objective(model, x, condition=None, generator=seeded(1))
        require(bool(again == loss), f"two generators with one seed give {loss.item()} and {again.item()}")
        require(torch.equal(x, before), "x was changed in place")

    _check_each_model(examine)


def check_sampler(sampler: Callable[..., Tensor], generator: torch.Generator) -> None:
    """Check that a sampler returns one finite value for each conditional, which its generator determines."""
    contexts = normal(generator, 7, 4)

    def examine(model: AutoregressiveModel) -> None:
        def draw(seed: int) -> Tensor:
            projection = model.head.project(contexts).detach()
            return sampler(model.conditionals_builder()(projection), seeded(seed))

        x = draw(1)
        require_shape(x, (len(contexts),), "values")
        require(torch.equal(draw(1), x), "two generators with one seed give different values")
        require(not torch.equal(draw(2), x), "the values do not depend on the generator")

    _check_each_model(examine)
