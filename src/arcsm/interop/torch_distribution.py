"""A model as a ``torch.distributions`` distribution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from arcsm._runtime.conditions import Condition, flatten_rows, map_condition, tensors_of
from arcsm.model import AutoregressiveModel

Shape = torch.Size | list[int] | tuple[int, ...]


class AutoregressiveDistribution(Distribution):
    """The density of a model, conditional or not, with the interface of ``torch.distributions``.

    Samples come from the model's default sampler and carry no gradients (``has_rsample`` is false). Log densities of
    normalised heads carry gradients; see :meth:`AutoregressiveModel.log_prob`.

    Arguments:
        model: The model.
        condition: The condition, ``(*B, F)`` or labels ``(*B)``, or a mapping of both; ``B`` is then the batch shape.
        level: Noise level.
        validate_args: As in ``torch.distributions``.

    Raises:
        ValueError: If the condition does not have the size that the model's context expects.

    Example:
        >>> from arcsm import GaussianHead, MADE
        >>> model = AutoregressiveModel(MADE(3, 4, (8,), condition_features=2), GaussianHead(4))
        >>> q = AutoregressiveDistribution(model, torch.randn(5, 2))
        >>> q.batch_shape, q.event_shape, q.sample((7,)).shape, q.log_prob(torch.zeros(3)).shape
        (torch.Size([5]), torch.Size([3]), torch.Size([7, 5, 3]), torch.Size([5]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (as in torch)
    support = constraints.real_vector  # type: ignore[assignment]
    has_rsample = False

    def __init__(
        self,
        model: AutoregressiveModel,
        condition: Condition | None = None,
        level: int = -1,
        validate_args: bool | None = None,
    ) -> None:
        self.model, self.condition, self.level = model, condition, level
        size, shape = model.context.condition_features, torch.Size()
        for part in tensors_of(condition):
            is_vector = part.is_floating_point() or not model.context.classes
            if is_vector and part.shape[-1:] != (size,):
                raise ValueError(f"condition: expected (*, {size}), got {tuple(part.shape)}")
            shape = torch.broadcast_shapes(shape, part.shape[: part.ndim - is_vector])
        super().__init__(shape, torch.Size([model.features]), validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, ``(*S, *B)``, of values ``(*S, *B, D)``; leading dimensions broadcast."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return self.model.log_prob(value.expand(*shape, self.model.features), self.level, self._condition(shape))

    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008 (as in torch)
        """Return a sample ``(*S, *B, D)``, drawn with torch's global generator."""
        shape = self._extended_shape(torch.Size(sample_shape))[:-1]
        condition, count = self._condition(shape), math.prod(shape)
        if not count:
            return self.model.shift.new_zeros(*shape, self.model.features)
        condition = None if condition is None else flatten_rows(condition, len(shape))
        return self.model.sample(count, condition=condition, level=self.level).view(*shape, self.model.features)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> AutoregressiveDistribution:
        """Return the same distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        new = self._get_checked_instance(AutoregressiveDistribution, _instance)
        new.model, new.level, new.condition = self.model, self.level, self._condition(shape)
        super(AutoregressiveDistribution, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _condition(self, shape: torch.Size) -> Condition | None:
        def expanded(part: Tensor) -> Tensor:
            is_vector = part.is_floating_point() or not self.model.context.classes
            return part.expand(*shape, *part.shape[-1:]) if is_vector else part.expand(shape)

        return map_condition(expanded, self.condition)
