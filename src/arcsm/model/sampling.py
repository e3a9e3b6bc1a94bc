"""Rows from a model, one dimension after another: samples, and quantiles of given probabilities."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from arcsm import registry
from arcsm._runtime.batching import condition_rows, slices_of
from arcsm._runtime.conditions import Condition
from arcsm._runtime.devices import constant
from arcsm._runtime.progress import track
from arcsm._runtime.random import Source, blocks_of, shares_of
from arcsm.conditionals import Conditionals, Count, EvaluationCache
from arcsm.conditionals.traversal import (
    Integration,
    ancestral,
    checked_integration,
    warn_unconverged,
)
from arcsm.contexts.base import Order, order_arguments
from arcsm.errors import AccuracyWarning, warn
from arcsm.model.parts import ModelParts
from arcsm.samplers import Sampler, inverse_cdf

_TIE, _TIE_ROUNDINGS = 1e-7, 128.0  # relative to a probability: what it may differ by from the value it came from
_RUNAWAY = 1e4  # standard deviations

Adjustment = Callable[[int, Tensor], Tensor]


class Sampling(ModelParts):
    """A model that rows can be drawn from."""

    @torch.no_grad()
    def icdf(
        self,
        u: Tensor,
        level: int = -1,
        condition: Condition | None = None,
        method: str | None = None,
        order: Order | None = None,
        **integration: Unpack[Integration],
    ) -> Tensor:
        """Return the inverse of :meth:`arcsm.AutoregressiveModel.cdf`, one dimension after another.

        It maps ``u (*, D)`` in (0, 1) to ``(*, D)``. A probability that the distribution function of a discrete value
        reaches, up to rounding, gives that value: values before it may have come back with rounding errors. Other
        arguments and warnings are as in :meth:`arcsm.AutoregressiveModel.log_prob`; an order must be the same for all
        rows, ``(D,)``.

        Raises:
            ValueError: If a value is not inside (0, 1).
        """
        if not isinstance(u, Tensor):
            raise ValueError(f"u: expected a torch.Tensor, got {type(u).__name__}")
        if u.shape[-1:] != (self.features,):
            raise ValueError(f"u: expected shape (*, {self.features}), got {tuple(u.shape)}")
        u = u.to(self.shift.device)
        discrete = constant(tuple(self.discrete), torch.bool, u.device)
        last_level = (u == 1.0) & discrete
        if not bool(((u > 0) & (u < 1) | last_level).all()):
            raise ValueError("u: expected values inside (0, 1); the CDF of a value far out rounds to 0 or 1")
        build = self.conditionals_builder(level, method, **checked_integration(integration))
        targets = u.reshape(-1, self.features).to(self.shift)
        tie = max(_TIE, _TIE_ROUNDINGS * torch.finfo(targets.dtype).eps)
        targets = torch.where(discrete, targets * (1.0 - tie), targets)
        z = torch.zeros_like(targets)
        unconverged: Count = 0
        rows = condition_rows(self.standardise_condition(condition, u.shape[:-1]), u.ndim - 1)
        order_arguments(self.context, order)  # raises unless the context has it
        for part in slices_of(len(targets)):

            def quantile(conditionals: Conditionals, d: int, part: slice = part) -> Tensor:
                return conditionals.icdf(targets[part, d])

            unconverged += ancestral(quantile, self.context, self.head, z[part], rows(part), build, order=order)
        warn_unconverged(unconverged, targets.numel())
        return (z * self.scale + self.shift).reshape(u.shape)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        sampler: str | Sampler | None = None,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        progress: bool = False,
        level: int = -1,
        steps: int | None = None,
        denoise: bool = False,
        batch_size: int = 1024,
        bounds: tuple[float, float] | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        order: Order | None = None,
        adjust: Adjustment | None = None,
    ) -> Tensor:
        """Draw rows from the model, one dimension after another (paper, Section 4.2).

        Arguments:
            n: Number of rows.
            sampler: ``"probability_flow"`` (default with a ladder), ``"fast_flow"`` (nearly the same from fewer
                evaluations), ``"inverse_cdf"`` (default of normalised heads and without a ladder), ``"langevin"`` (the
                paper's, and the default of heads without a density), the name of a registered sampler, or a function;
                see :mod:`arcsm.samplers`. The default of a :class:`~arcsm.MixedHead` is that of each column's head, or
                Langevin dynamics for all scores if one of them has no density.
            generator: Source of randomness, on the model's device. The same seed gives the same sample.
            condition: ``(n, F)`` or labels ``(n,)``, or one condition for all rows; for a model with both, a mapping
                ``{"classes": labels, "vector": vectors}``.
            progress: Show progress; see :func:`arcsm.fit`.
            level: Noise level to stop at.
            steps: Steps down the ladder. Default: from level to level, one fewer than there are levels. Langevin
                dynamics visits ``steps + 1`` levels. The probability flow divides steps that are too long for its
                tolerance; by default, it chooses all of them by the tolerance if the ladder is continuous.
            denoise: Remove the remaining noise by a last step of Tweedie's formula, :math:`x_d + \\sigma_L^2 s_d`.
            batch_size: Largest number of rows drawn at a time; never more than 1,024 on a CPU and 16,384 elsewhere. Up
                to rounding, the sample does not depend on it.
            bounds: Range of all values, in data units. A value outside moves to the nearer bound before the next
                conditionals see it, as in PixelCNN++. Without bounds, one value far out in a tail would give contexts
                unlike any in training. Default: [-1, 1] plus four times the smallest sigma for images (metadata with an
                ``image_shape``), no bounds for other rows.
            sampler_options: Keywords for the sampler, such as ``{"steps": 20}`` for ``"langevin"``.
            order: As in :meth:`arcsm.AutoregressiveModel.score`, the same for all rows, ``(D,)``.
            adjust: A function of a dimension and its draws ``(N,)`` in data units that returns those to keep, such as
                rounded ones, before the next conditionals see them.

        Returns:
            ``(n, D)`` in data units.

        Raises:
            ValueError: If ``n`` is not a positive integer, the sampler or an option is unknown, the ladder does not
                have the level or number of steps, or the bounds are out of order.

        Warns:
            AccuracyWarning: Once a call, if some integrals missed the sampler's ``tol``; if samples ran away.
        """
        if not all(isinstance(size, numbers.Integral) and size >= 1 for size in (n, batch_size)):
            raise ValueError(f"n, batch_size: expected integers of at least 1, got {n} and {batch_size}")
        if denoise:
            self.check_noise_units("step that removes it; leave out denoise")
        draw = self.drawing(sampler, sampler_options)
        order_arguments(self.context, order)  # raises unless the context has it
        path = self.path(level, steps)
        low, high = self._bounds(bounds, path)
        build = self.conditionals_builder(level, steps=steps, cache=EvaluationCache())
        rows = condition_rows(self.standardise_condition(condition, (n,)), 1)
        z = self.shift.new_zeros(n, self.features)
        unconverged: Count = 0
        blocks = blocks_of(n, batch_size, z.device)
        with track("sampling", self.features * sum(map(len, blocks)), progress) as advance:
            for part, source in chain.from_iterable(shares_of(block, generator, z.device) for block in blocks):

                def choose(conditionals: Conditionals, d: int, source: Source = source) -> Tensor:
                    values = draw(conditionals, source).clamp(low[d], high[d])
                    return values if adjust is None else self.adjusted(adjust, d, values)

                unconverged += ancestral(choose, self.context, self.head, z[part], rows(part), build, advance, order)
                if denoise and path:
                    contexts = self.context(z[part], rows(part), **order_arguments(self.context, order))
                    score = self.head.score(contexts, z[part], path[-1])
                    z[part] = (z[part] + path[-1] ** 2 * score.nan_to_num(nan=0.0)).clamp(low, high)
        warn_unconverged(unconverged, z.numel())
        self._warn_of_runaways(z)
        return z * self.scale + self.shift

    def _warn_of_runaways(self, z: Tensor) -> None:
        """Warn of samples ``(N, D)`` that left the range of the data by far: Langevin steps that are too long."""
        far = (z.abs() > _RUNAWAY).any(0).cpu() & ~torch.tensor(self.discrete)
        if far.any():
            warn(
                f"samples of dimension {far.nonzero()[0].item()} ran away, beyond {_RUNAWAY:g} standard deviations: "
                "take another sampler, or a smaller step_size in sampler_options",
                AccuracyWarning,
            )

    def adjusted(self, adjust: Adjustment, d: int, values: Tensor) -> Tensor:
        """Apply an adjustment to draws ``(N,)`` of a dimension in standardised units."""
        return (adjust(d, values * self.scale[d] + self.shift[d]) - self.shift[d]) / self.scale[d]

    def drawing(
        self,
        sampler: str | Sampler | None,
        options: Mapping[str, Any] | None = None,
        default: str = "probability_flow",
    ) -> Callable[[Conditionals, Source], Tensor]:
        """Return a sampler with its options as a function.

        ``None`` chooses by column, as the default method of densities does: ``"inverse_cdf"`` for a normalised head or
        without a ladder, ``"langevin"`` for a head without a density, else the ``default``. Levels of nominal columns
        always come from their probabilities.

        Raises:
            ValueError: If the sampler or an option is unknown.
        """
        by_column = sampler is None
        if sampler is None:
            sampler = default if self.noise and not self.head.normalised else "inverse_cdf"
            sampler = sampler if self.head.has_density else "langevin"
        draw = sampler if callable(sampler) else cast(Sampler, registry.find("sampler", sampler))
        chosen, accepted = dict(options or {}), sorted(list(inspect.signature(draw).parameters)[2:])
        if unknown := sorted(chosen.keys() - set(accepted)):
            name = getattr(sampler, "__name__", sampler)
            raise ValueError(
                f"sampler_options: {', '.join(unknown)}: not an option of {name}; it takes {', '.join(accepted)}"
            )

        def values(conditionals: Conditionals, source: Source) -> Tensor:
            head = conditionals.head
            exact = head.discrete or (by_column and head.normalised)
            if exact:
                return inverse_cdf(conditionals, source)
            core = conditionals.core
            drawn = conditionals.from_core(draw(core, source, **chosen))
            if core is not conditionals:
                conditionals.unconverged += core.unconverged
            return drawn

        return values

    def _noise_of_teacher(self) -> float:
        """Return the noise that :func:`arcsm.distil` learned with the data; 0 for other models without a ladder."""
        found = self.metadata.get("distillation")  # from anybody's file
        sigma = found.get("sigma") if isinstance(found, Mapping) else None
        return float(sigma) if isinstance(sigma, float) and 0.0 < sigma < math.inf else 0.0

    def _bounds(self, bounds: tuple[float, float] | None, path: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Return the bounds of samples in standardised units, ``(D,)`` each; nominal columns have none."""
        if bounds is None:
            bounds = (-math.inf, math.inf)
            if "image_shape" in self.metadata:
                sigma = path[-1] if path else self._noise_of_teacher()
                margin = 4.0 * sigma * float(self.scale.max())
                bounds = (-1.0 - margin, 1.0 + margin)
        try:
            low, high = map(float, bounds)
        except (TypeError, ValueError):
            low = high = math.nan
        if not low < high:
            raise ValueError(f"bounds: expected (low, high) with low < high, got {bounds}")
        nominal = constant(tuple(self.discrete), torch.bool, self.shift.device)
        lower, upper = ((bound - self.shift) / self.scale for bound in (low, high))
        return lower.masked_fill(nominal, -math.inf), upper.masked_fill(nominal, math.inf)
