"""A model as a ``torch.distributions`` distribution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from arcsm._runtime.conditions import Condition, flatten_rows, is_condition, map_condition, tensors_of
from arcsm.model import AutoregressiveModel
from arcsm.samplers import Sampler

Shape = torch.Size | list[int] | tuple[int, ...]


class AutoregressiveDistribution(Distribution):
    """The density of a model, conditional or not, with the interface of ``torch.distributions``.

    Samples carry no gradients (``has_rsample`` is false). Log densities carry gradients in closed form; see
    :meth:`AutoregressiveModel.log_prob`. A row with missing values needs ``validate_args=False``.

    Arguments:
        model: The model.
        condition: The condition, ``(*B, F)`` or labels ``(*B)``, or a mapping of both; ``B`` is then the batch shape.
        level: Noise level.
        validate_args: As in ``torch.distributions``.
        sampler: As in :meth:`AutoregressiveModel.sample`.
        generator: Source of randomness of the samples, on the model's device. Default: torch's global generator.
        method: How densities are normalised, as in :meth:`AutoregressiveModel.log_prob`.
        tol: Target error of the log density of each conditional, in nats.

    Raises:
        ValueError: If the model needs another condition, or none.

    Example:
        >>> from arcsm import GaussianHead, MADE
        >>> model = AutoregressiveModel(MADE(3, 4, (8,), condition_features=2), GaussianHead(4))
        >>> q = AutoregressiveDistribution(model, torch.randn(5, 2), generator=torch.Generator().manual_seed(0))
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
        *,
        sampler: str | Sampler | None = None,
        generator: torch.Generator | None = None,
        method: str | None = None,
        tol: float = 1e-5,
    ) -> None:
        self.model, self.condition = model, condition
        parts = tensors_of(condition) if is_condition(condition) else []
        shape = torch.broadcast_shapes(*(part.shape[: max(0, part.ndim - self._is_vector(part))] for part in parts))
        model.context.check_condition(model.standardise_condition(condition), shape)
        self._drawing: dict[str, Any] = {"level": level, "sampler": sampler, "generator": generator}
        self._density: dict[str, Any] = {"level": level, "method": method, "tol": tol}
        super().__init__(shape, torch.Size([model.features]), validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, ``(*S, *B)``, of values ``(*S, *B, D)``; leading dimensions broadcast.

        Raises:
            ValueError: If values have another number of features.
        """
        rows, condition = self._rows(value)
        return self.model.log_prob(rows, condition=condition, **self._density)

    def cdf(self, value: Tensor) -> Tensor:
        """Return the distribution function, ``(*S, *B)``, of values ``(*S, *B, 1)`` of a one-dimensional model.

        Raises:
            NotImplementedError: If the model has several dimensions.
        """
        self._check_one_dimension("cdf", "the Rosenblatt transform")
        rows, condition = self._rows(value)
        return self.model.cdf(rows, condition=condition, **self._density)[..., 0]

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantiles, ``(*S, *B, 1)``, at probabilities ``(*S, *B)`` of a one-dimensional model.

        Raises:
            ValueError: If a probability is not inside (0, 1).
            NotImplementedError: If the model has several dimensions.
        """
        self._check_one_dimension("icdf", "the inverse of the Rosenblatt transform")
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        return self.model.icdf(value.expand(shape)[..., None], condition=self._condition(shape), **self._density)

    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008 (as in torch)
        """Return a sample, ``(*S, *B, D)``."""
        shape = self._extended_shape(torch.Size(sample_shape))[:-1]
        condition, count = self._condition(shape), math.prod(shape)
        if not count:
            return self.model.shift.new_zeros(*shape, self.model.features)
        condition = None if condition is None else flatten_rows(condition, len(shape))
        return self.model.sample(count, condition=condition, **self._drawing).view(*shape, self.model.features)

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008 (as in torch)
        """Raise ``NotImplementedError``: no sampler is differentiable."""
        raise NotImplementedError("rsample: samples of an autoregressive model carry no gradients; use sample")

    @property
    def mean(self) -> Tensor:
        """Raise ``NotImplementedError``: moments have no closed form."""
        raise NotImplementedError("mean: an autoregressive model has no closed form; use sample((10_000,)).mean(0)")

    @property
    def variance(self) -> Tensor:
        """Raise ``NotImplementedError``: moments have no closed form."""
        raise NotImplementedError("variance: an autoregressive model has no closed form; use sample((10_000,)).var(0)")

    @property
    def mode(self) -> Tensor:
        """Raise ``NotImplementedError``: the mode has no closed form."""
        raise NotImplementedError("mode: an autoregressive model has no closed form; climb log_prob from a sample")

    def entropy(self) -> Tensor:
        """Raise ``NotImplementedError``: the entropy has no closed form."""
        raise NotImplementedError(
            "entropy: an autoregressive model has no closed form; use -log_prob(sample((1_000,))).mean(0)"
        )

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"{type(self).__name__}({type(self.model.context).__name__}, {type(self.model.head).__name__}, {shapes})"

    def expand(self, batch_shape: Shape, _instance: Any = None) -> AutoregressiveDistribution:
        """Return the same distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        new = self._get_checked_instance(AutoregressiveDistribution, _instance)
        new.model, new.condition = self.model, self._condition(shape)
        new._drawing, new._density = self._drawing, self._density
        super(AutoregressiveDistribution, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _rows(self, value: Tensor) -> tuple[Tensor, Condition | None]:
        """Return values and conditions, broadcast to ``(*S, *B)``."""
        if not isinstance(value, Tensor):
            raise TypeError(f"value: expected a tensor, got {type(value).__name__}")
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"value: expected shape (*, {self.model.features}), got {tuple(value.shape)}")
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.expand(*shape, self.model.features), self._condition(shape)

    def _condition(self, shape: torch.Size) -> Condition | None:
        def expanded(part: Tensor) -> Tensor:
            return part.expand(*shape, *part.shape[-1:]) if self._is_vector(part) else part.expand(shape)

        return map_condition(expanded, self.condition)

    def _is_vector(self, part: Tensor) -> bool:
        """Return whether a tensor of the condition holds vectors, not labels."""
        return part.is_floating_point() or not self.model.context.classes

    def _check_one_dimension(self, name: str, meaning: str) -> None:
        if self.model.features > 1:
            raise NotImplementedError(
                f"{name}: defined for one dimension only, this model has {self.model.features}; "
                f"model.{name} is {meaning}, one value for each dimension"
            )
