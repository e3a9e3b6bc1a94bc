"""The parts of a model, its noise levels and its conditionals."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from arcsm.conditionals import Accuracy, Conditionals, EvaluationCache, choose_method, compiled_scores
from arcsm.conditionals.located import conditionals_class
from arcsm.conditionals.traversal import ConditionalsBuilder
from arcsm.heads import CategoricalHead, Head, LocatedHead
from arcsm.model.standardisation import Standardised, Values
from arcsm.noise import NoiseLadder


class ModelParts(Standardised):
    """A context, a head and a noise ladder, which together have conditionals.

    Attributes:
        head: The head of the model.
        noise: Its noise ladder, or ``None``.
        metadata: What travels with the weights; the ``image_shape`` sets default bounds of samples.
    """

    head: Head
    noise: NoiseLadder | None
    metadata: dict[str, Any]

    def path(self, level: int = -1, steps: int | None = None) -> tuple[float, ...]:
        """Return the noise levels from the largest down to ``level``, or ``steps`` geometric steps between the two.

        Raises:
            ValueError: If the ladder has no such level, or ``steps`` is below one.
        """
        if self.noise is None:
            if level not in (0, -1) or steps is not None:
                raise ValueError(f"{'steps' if level in (0, -1) else 'level'}: this model has no noise ladder")
            return ()
        sigma = self.noise.sigma(level)
        if steps is None:
            return self.noise.sigmas[: level % self.noise.levels + 1]
        if not isinstance(steps, Integral) or steps < 1:
            raise ValueError(f"steps: expected a whole number of at least 1, got {steps!r:.60}")
        if sigma == self.noise.sigma_max:
            return (sigma,)
        return NoiseLadder(self.noise.sigma_max, sigma, steps + 1).sigmas

    def sigma(self, level: int = -1) -> float | None:
        """Return the standard deviation of a noise level in standardised units, or ``None`` without a ladder."""
        path = self.path(level)
        return path[-1] if path else None

    @property
    def discrete(self) -> tuple[bool, ...]:
        """Whether each column holds numbers of levels, which are neither standardised nor given noise."""
        nominal = {d for head, columns in self.head.parts(self.features) if head.discrete for d in columns}
        return tuple(d in nominal for d in range(self.features))

    def set_standardisation(self, shift: Values, scale: Values) -> None:
        """Set the affine map between data and standardised units, ``(D,)`` or a number each.

        Nominal columns have no units: their shift stays 0 and their scale 1.

        Raises:
            ValueError: If a shift is not finite, a scale not positive and finite, or a size wrong.
        """
        if any(self.discrete):
            discrete = torch.tensor(self.discrete, device=self.shift.device)
            shift = torch.where(discrete, 0.0, torch.as_tensor(shift).to(self.shift))
            scale = torch.where(discrete, 1.0, torch.as_tensor(scale).to(self.scale))
        super().set_standardisation(shift, scale)

    def check_levels(self, x: Tensor, name: str = "x") -> None:
        """Check that the values ``x (N, D)`` of nominal columns, unless they are missing, are numbers of levels.

        Raises:
            ValueError: If one is not.
        """
        for head, columns in self.head.parts(self.features):
            if not isinstance(head, CategoricalHead):
                continue
            values = x[:, list(columns)]
            wrong = ~values.isnan() & ((values < 0) | (values >= head.levels) | (values != values.round()))
            if bool(wrong.any()):
                d = columns[int(wrong.any(0).nonzero()[0])]
                raise ValueError(f"{name}: expected whole numbers from 0 to {head.levels - 1} in nominal column {d}")

    def check_noise_units(self, action: str) -> None:
        """Check that noise has the units of the data, which that of a :class:`~arcsm.heads.LocatedHead` has not."""
        if any(isinstance(head, LocatedHead) for head, _ in self.head.parts(self.features)):
            raise ValueError(f"head: the noise of a LocatedHead has units of its own, so there is no {action}")

    def noise_units(self, contexts: Tensor) -> float | Tensor:
        """Return the standard deviations ``(*)`` of noise of 1 given contexts ``(*, C)``, in standardised units."""
        parts = self.head.parts(self.features)
        return torch.exp(contexts[..., -1]) if any(head.located for head, _ in parts) else 1.0

    def head_of(self, d: int) -> Head:
        """Return the head of column ``d``: the model's own, or one of those in a :class:`MixedHead`."""
        return next(one for one, columns in self.head.parts(self.features) if d in columns)

    def conditionals_builder(
        self,
        level: int = -1,
        method: str | None = None,
        steps: int | None = None,
        tol: float = 1e-5,
        max_evaluations: int = 512,
        cache: EvaluationCache | None = None,
    ) -> ConditionalsBuilder:
        """Return a function that maps projections ``(N, P)`` of contexts to the conditionals at a noise level.

        Arguments are as in :meth:`log_prob` and :class:`Integration`. The ``cache`` is shared by all these
        conditionals, which must then stay within one thread. For a :class:`MixedHead`, the function also takes the
        head that the projections are from.
        """
        path, accuracy = self.path(level, steps), Accuracy(tol, max_evaluations)
        continuous = self.noise is not None and self.noise.continuous and steps is None
        heads = [one for one, _ in self.head.parts(self.features)]
        methods = {one: "closed_form" if one.discrete else choose_method(one, path, method) for one in heads}
        compiled = {one: None if methods[one] == "closed_form" else compiled_scores(one) for one in heads}
        caches = dict.fromkeys(heads, cache) if len(heads) == 1 else {one: cache and EvaluationCache() for one in heads}

        def build(projection: Tensor, head: Head | None = None) -> Conditionals:
            one = self.head if head is None else head
            its_path, its_cache = () if one.discrete else path, caches[one] or EvaluationCache()
            kind = conditionals_class(one)
            return kind(
                one, projection, its_path, methods[one], accuracy, continuous, cache=its_cache, compiled=compiled[one]
            )

        return build
