"""Tests of objectives and samplers, with tiny models."""

from collections.abc import Callable

import torch
from torch import Tensor

from arcsm._runtime.random import Share
from arcsm.checking.requirements import normal, require, require_equal, require_shape, seeded
from arcsm.contexts import MADE
from arcsm.errors import PartError
from arcsm.heads import GaussianHead, ScoreHead
from arcsm.model import AutoregressiveModel
from arcsm.noise import NoiseLadder

_HALVES = (slice(0, 8), slice(8, 16))  # of a batch of 16 rows
_PART_TOLERANCE = 1e-6  # an integration of many conditionals may round differently


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
    """Check that an objective returns a finite mean over the batch with gradients, which its generator determines."""
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
        shares = [(x[rows], Share(seeded(1), len(x), rows.start)) for rows in _HALVES]
        parts = torch.stack(
            [objective(model, part, condition=None, generator=share).detach() for part, share in shares]
        )
        is_sum = torch.allclose(parts.sum(), loss) and not torch.allclose(parts.mean(), loss)
        require(not is_sum, "the loss of a batch is the sum of those of its halves; return the mean over the rows")

    _check_each_model(examine)


def check_sampler(sampler: Callable[..., Tensor], generator: torch.Generator) -> None:
    """Check that a sampler returns one finite value for each conditional, which its generator determines.

    A part of the conditionals must get the values that it gets within the batch.
    """
    contexts = normal(generator, 16, 4)

    def examine(model: AutoregressiveModel) -> None:
        def draw(seed: int, rows: slice | None = None) -> Tensor:
            source = seeded(seed) if rows is None else Share(seeded(seed), len(contexts), rows.start)
            projection = model.head.project(contexts if rows is None else contexts[rows]).detach()
            return sampler(model.conditionals_builder()(projection), source)

        x = draw(1)
        require_shape(x, (len(contexts),), "values")
        require(torch.equal(draw(1), x), "two generators with one seed give different values")
        require(not torch.equal(draw(2), x), "the values do not depend on the generator")
        halves = torch.cat([draw(1, rows) for rows in _HALVES])
        what = "values of half of the batch (draw with arcsm.samplers.uniforms or normals), against the whole batch"
        require_equal(halves, x, what, _PART_TOLERANCE)

    _check_each_model(examine)
