"""Sets that a value may be restricted to, with draws from the conditional within them."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arcsm._runtime.sizes import whole_numbers
from arcsm.conditionals import Conditionals
from arcsm.heads import CategoricalHead, NormalisedHead

_CONDITIONALS_AT_A_TIME = 20_000
_LEAST_MASS = 1e-12  # of an interval in the upper tail, next to 1 in double precision


class Constraint(ABC):
    """A set of values of one column, in data units."""

    @abstractmethod
    def draw(self, conditionals: Conditionals, u: Tensor, shift: float, scale: float) -> tuple[Tensor, Tensor]:
        """Return draws from ``N`` conditionals within the set, and the log probability of the set, ``(N,)`` each.

        The draws are the quantiles ``u (N,)`` in (0, 1) of the truncated conditionals. They and the conditionals are in
        standardised units ``(x - shift) / scale``.
        """

    @abstractmethod
    def intersection(self, other: "Constraint") -> "Constraint | None":
        """Return the values that both sets have, which must be of one kind; ``None`` if there are none."""

    def nearest(self, x: Tensor) -> Tensor:
        """Return values ``(*)`` in data units, moved into the set if rounding has left them outside."""
        return x


@dataclass(frozen=True, init=False)
class Intervals(Constraint):
    """Numbers within one of several intervals that do not overlap.

    Probabilities are differences of distribution functions in double precision: those of intervals far in the upper
    tail have an absolute error of 1e-15. Draws from one whose probability is below 1e-12 count as inaccurate, and are
    the subject of an AccuracyWarning.

    Arguments:
        bounds: Lower and upper end of each interval, which may be infinite. ``None`` is an open end, too.

    Raises:
        ValueError: If there is no interval, one is empty, or two overlap.
    """

    bounds: tuple[tuple[float, float], ...]

    def __init__(self, bounds: Sequence[tuple[float | None, float | None]]) -> None:
        try:
            ordered = sorted((_end(low, -math.inf), _end(high, math.inf)) for low, high in bounds)
        except (TypeError, ValueError):
            raise ValueError(
                f"bounds: expected intervals (low, high), with None for an open end, got {bounds!r:.60}"
            ) from None
        object.__setattr__(self, "bounds", tuple(ordered))
        if not ordered:
            raise ValueError("bounds: expected at least one interval, got none")
        for low, high in ordered:
            if not low < high:
                raise ValueError(f"bounds: expected intervals (low, high) with low < high, got ({low:g}, {high:g})")
        for (_, high), (low, _) in itertools.pairwise(ordered):
            if low < high:
                raise ValueError(
                    f"bounds: expected intervals that do not overlap, got one to {high:g}, one from {low:g}"
                )

    def draw(self, conditionals: Conditionals, u: Tensor, shift: float, scale: float) -> tuple[Tensor, Tensor]:
        if conditionals.head.discrete:
            raise ValueError("constraint: expected levels for a nominal column, got intervals")
        ends = [((low - shift) / scale, (high - shift) / scale) for low, high in self.bounds]
        lower, upper = _cdf(conditionals, [end for pair in ends for end in pair]).unflatten(0, (-1, 2)).unbind(1)
        masses = (upper - lower).clamp(min=0.0)  # (R, N)
        total, below = masses.sum(0), masses.cumsum(0)
        target = u.double() * total
        index = (below <= target).sum(0, keepdim=True).clamp(max=len(ends) - 1)  # interval of each draw
        inside = lower.gather(0, index) + target - (below - masses).gather(0, index)  # (1, N)
        limits = torch.tensor(ends, dtype=torch.float64, device=u.device)[index[0]]  # (N, 2)
        conditionals.unconverged += int(((total < _LEAST_MASS) & (lower[0] > 0.5)).sum())
        x = conditionals.icdf(inside[0].clamp(0.0, 1.0)).double()
        return torch.minimum(torch.maximum(x, limits[:, 0]), limits[:, 1]).to(u), torch.log(total).to(u)

    def intersection(self, other: Constraint) -> "Intervals | None":
        if not isinstance(other, Intervals):
            raise ValueError("constraint: expected levels for a nominal column, got intervals")
        pairs = [(max(low, lower), min(high, upper)) for low, high in self.bounds for lower, upper in other.bounds]
        common = [(low, high) for low, high in pairs if low < high]
        return Intervals(common) if common else None

    def nearest(self, x: Tensor) -> Tensor:
        moved = torch.stack([x.clamp(low, high) for low, high in self.bounds])  # (R, *)
        return moved.gather(0, (moved - x).abs().argmin(0, keepdim=True))[0]


@dataclass(frozen=True)
class Levels(Constraint):
    """Some of the levels of a nominal column, by their numbers.

    Arguments:
        levels: The levels.
        shares: The share of each level that is allowed, in (0, 1], if levels are made up of parts. Default: all of it.

    Raises:
        ValueError: If there is no level, or ``shares`` do not fit the levels.
    """

    levels: Sequence[int]
    shares: Sequence[float] | None = None

    def __post_init__(self) -> None:
        levels = list(whole_numbers("levels", self.levels))
        if not levels:
            raise ValueError("levels: expected at least one, got none")
        if self.shares is None:
            object.__setattr__(self, "levels", tuple(sorted(set(levels))))
            return
        if len(set(levels)) < len(levels):
            raise ValueError(f"levels: expected each once with shares, got {self.levels!r:.60}")
        if len(self.shares) != len(levels) or not all(0.0 < share <= 1.0 for share in self.shares):
            raise ValueError(f"shares: expected a number in (0, 1] for each level, got {self.shares!r:.60}")
        ordered = sorted(zip(levels, map(float, self.shares), strict=True))
        object.__setattr__(self, "levels", tuple(level for level, _ in ordered))
        object.__setattr__(self, "shares", tuple(share for _, share in ordered))

    def draw(self, conditionals: Conditionals, u: Tensor, shift: float, scale: float) -> tuple[Tensor, Tensor]:
        head = conditionals.head
        if not (isinstance(head, NormalisedHead) and head.discrete):
            raise ValueError("constraint: expected intervals for a numeric column, got levels")
        if isinstance(head, CategoricalHead) and not 0 <= self.levels[0] <= self.levels[-1] < head.levels:
            raise ValueError(f"levels: expected numbers from 0 to {head.levels - 1}, got {self.levels}")
        allowed = torch.tensor(self.levels, device=u.device)
        values = allowed.to(conditionals.projection).expand(len(u), -1)
        log_masses = head.projected_log_prob(conditionals.projection.unsqueeze(1), values)  # (N, K)
        if self.shares is not None:
            log_masses = log_masses + torch.tensor(self.shares, device=u.device).log().to(log_masses)
        log_total = torch.logsumexp(log_masses, 1)
        below = (log_masses - log_total[:, None]).exp().cumsum(1)
        places = (below < u[:, None]).sum(1).clamp(max=len(allowed) - 1)
        return allowed[places].to(u), log_total.to(u)

    def intersection(self, other: Constraint) -> "Levels | None":
        """Return the levels of both sets. Of two shares of a level, the smaller one is a part of the other."""
        if not isinstance(other, Levels):
            raise ValueError("constraint: expected intervals for a numeric column, got levels")
        own, others = (dict(zip(s.levels, s.shares or [1.0] * len(s.levels), strict=True)) for s in (self, other))
        both = {level: min(share, others[level]) for level, share in own.items() if level in others}
        if not both:
            return None
        return Levels(list(both), None if self.shares is other.shares is None else list(both.values()))


def _end(value: float | None, open_end: float) -> float:
    return open_end if value is None else float(value)


def _cdf(conditionals: Conditionals, x: Sequence[float]) -> Tensor:
    """Return the distribution functions at numbers that may be infinite, ``(K, N)`` in double precision."""
    projection = conditionals.projection.double()  # single precision would round 1 - F
    same = len(projection) > 1 and bool((projection == projection[:1]).all())  # of the first column to be drawn
    distinct = projection[:1] if same else projection
    numbers = torch.tensor(x, dtype=torch.float64, device=projection.device)
    found = torch.heaviside(numbers, numbers.new_zeros(()))[:, None].repeat(1, len(distinct))
    finite, place = numbers[numbers.isfinite()].unique(return_inverse=True)
    parts = [finite.new_empty(0, len(distinct))]
    for part in finite.split(max(1, _CONDITIONALS_AT_A_TIME // max(1, len(distinct)))) if len(finite) else ():
        of_part = replace(conditionals, projection=distinct.repeat(len(part), 1), unconverged=0)
        parts.append(of_part.cdf(part.repeat_interleave(len(distinct))).view(len(part), len(distinct)))
        conditionals.unconverged += of_part.unconverged * (len(projection) if same else 1)
    found[numbers.isfinite()] = torch.cat(parts)[place]
    return found.expand(-1, len(projection))
