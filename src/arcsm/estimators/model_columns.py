"""How the columns of a table become the dimensions of a model: numbers, levels, and spikes among numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from arcsm.estimators.column_types import MAX_LEVELS_OF_NUMBERS, Categories, Column, Grid
from arcsm.estimators.rough_levels import rough_levels
from arcsm.queries import Constraint, Intervals, Levels
from arcsm.stored_values import stored

_REFLECTED = 0.5  # standard deviations of a column, within which of an end some numbers are reflected
_MIN_NEAR, _NEAR = 10, 0.01  # of the numbers of a column that are no spikes: those that count as near one


@stored
@dataclass(frozen=True)
class ModelColumns:
    """The dimensions of the model of ``M`` columns.

    Dimension ``m < M`` is the number of column ``m``, or in a nominal column its level. The numbers that occur have
    levels in their order, except that in a column of many categories, the rarest share the last one. A column of
    numbers that has *spikes*, numbers with a probability each, has a second dimension, which says which spike a value
    is: level ``k`` for the ``k``-th of them, and level 0 for any other number. Only then does the dimension of the
    number have a value. On a grid, the level of a spike stands for its probability in excess of the numbers near it.

    Attributes:
        counts: Number of levels of each dimension; 0 for numbers.
        levels: The numbers of the levels of nominal columns, in ascending order.
        widths: Distance between the numbers of each discrete column that the model treats as numbers; 0 for the others.
        rarest: Probabilities ``(K,)`` of the numbers that share the last level of a column, given that level.
        log_unseen: Log probability of any number without a level, in each nominal column, and of any beyond the ends.
        ends: The ends of the range of each column that has any, in which densities and draws are mirrored.
        spikes: The spikes ``(K,)`` of columns, in ascending order.
        spike_dimension: The second dimension of each column with spikes.
        kinds: The types of the columns.
        rough: The columns with an order whose levels are learned one by one, as names are.
    """

    counts: tuple[int, ...]
    levels: dict[int, Tensor]
    widths: tuple[float, ...]
    rarest: dict[int, Tensor]
    log_unseen: tuple[float, ...]
    ends: dict[int, tuple[float, float]]
    spikes: dict[int, Tensor]
    spike_dimension: dict[int, int]
    kinds: tuple[Column, ...]
    rough: frozenset[int] = frozenset()

    @classmethod
    def of_columns(cls, kinds: Sequence[Column], with_spikes: bool = True) -> Self:
        """Return the dimensions of columns of these types, with or without spikes and mirrors."""
        levels = {m: torch.from_numpy(kind.level_numbers) for m, kind in enumerate(kinds) if len(kind.level_numbers)}
        counts = tuple(len(levels.get(m, ())) for m in range(len(kinds)))
        widths = tuple(float(kind.discrete and not count) for kind, count in zip(kinds, counts, strict=True))
        shares = {m: kind.shares_of_last_level for m, kind in enumerate(kinds) if m in levels}
        rarest = {m: torch.tensor(share, dtype=torch.float64) for m, share in shares.items() if len(share) > 1}
        log_unseen = tuple(kind.log_unseen for kind in kinds)
        numbers = {m: kind.spike_numbers for m, kind in enumerate(kinds) if with_spikes}
        spikes = {m: torch.from_numpy(found) for m, found in numbers.items() if len(found)}
        ends = {m: kind.ends for m, kind in enumerate(kinds) if with_spikes and kind.ends is not None}
        dimension = {m: len(kinds) + place for place, m in enumerate(spikes)}
        counts += tuple(1 + len(numbers) for numbers in spikes.values())
        widths += (0.0,) * len(spikes)
        return cls(counts, levels, widths, rarest, log_unseen, ends, spikes, dimension, tuple(kinds))

    @property
    def columns(self) -> int:
        """Number of columns :math:`M`."""
        return len(self.log_unseen)

    @property
    def nominal(self) -> list[bool]:
        """Whether each column has levels."""
        return [count > 0 for count in self.counts[: self.columns]]

    @property
    def parents(self) -> list[int]:
        """The dimension that says whether each one has a value, -1 for those that always have one."""
        return [self.spike_dimension.get(d, -1) for d in range(len(self.counts))]

    @property
    def ordered(self) -> list[bool]:
        """Whether each dimension has levels with an order, so many that each one has few rows."""
        many = [m for m in self.ranked if self.counts[m] > MAX_LEVELS_OF_NUMBERS and m not in self.rough]
        return [d in many for d in range(len(self.counts))]

    @property
    def ranked(self) -> list[int]:
        """The dimensions whose levels have an order; to linear predictors ranks say more than single levels."""
        kinds = {m: self.kinds[m] for m in self.levels}
        return [m for m, kind in kinds.items() if not isinstance(kind, Categories) or kind.ordered]

    def with_rough_levels(self, x: Tensor) -> Self:
        """Return the dimensions that learn levels one by one where rows ``(N, M)`` say so; see :func:`rough_levels`."""
        candidates = [m for m, in_order in enumerate(self.ordered) if in_order]
        found = rough_levels(self.inputs(x), list(self.counts), candidates) if candidates else []
        return replace(self, rough=frozenset(found))

    def dimensions(self, order: Sequence[int]) -> list[int]:
        """Return the dimensions of columns in an order."""
        return [d for m in order for d in (self.spike_dimension.get(m), m) if d is not None]

    def inputs(self, x: Tensor, others: Mapping[int, Tensor] | None = None) -> Tensor:
        """Return rows ``(N, M)`` of numbers as the model sees them, ``(N, D)``.

        A number without a level has the nearest one, if it is near, or else NaN. Spikes count as other numbers in the
        rows that ``others`` has for their column; see :meth:`others`.
        """
        found = torch.cat([x, x.new_zeros(*x.shape[:-1], len(self.spikes))], -1)
        for m in self.levels:
            found[..., m] = self._nearest_level(m, x[..., m])
        for m, dimension in self.spike_dimension.items():
            spike = self.spike(m, x[..., m])
            if others is not None:
                spike = torch.where(others[m], 0.0, spike)
            found[..., dimension] = spike
            found[..., m] = torch.where(spike > 0.0, torch.nan, x[..., m])
        return found

    def numbers(
        self, z: Tensor, generator: torch.Generator, constraints: Mapping[int, Constraint] | None = None
    ) -> Tensor:
        """Return the numbers ``(*, M)`` of drawn rows ``(*, D)``; draw one where several share a level.

        It is drawn within the constraint of the column, if there is one.
        """
        constraints = constraints or {}
        found = z[..., : self.columns].clone()
        for m, levels in self.levels.items():
            found[..., m] = levels.to(found)[z[..., m].long()]
        for m in self.rarest:
            merged = z[..., m] == self.counts[m] - 1
            if bool(merged.any()):
                constraint = constraints.get(m)
                assert constraint is None or isinstance(constraint, Levels)
                weights = self._allowed_shares(m, constraint).to(generator.device)
                drawn = torch.multinomial(weights, int(merged.sum()), replacement=True, generator=generator)
                found[..., m][merged] += drawn.to(found)
        for m, dimension in self.spike_dimension.items():
            spike = z[..., dimension].nan_to_num(nan=0.0).long()
            values = torch.cat([self.spikes[m].new_zeros(1), self.spikes[m]]).to(found)
            found[..., m] = torch.where(spike > 0, values[spike], found[..., m])
        return found

    def by_column(self, terms: Tensor) -> Tensor:
        """Add the terms ``(*, D)`` of both dimensions of columns with spikes, ``(*, M)``."""
        found = terms[..., : self.columns].clone()
        for m, dimension in self.spike_dimension.items():
            found[..., m] += terms[..., dimension]
        return found

    def level(self, m: int, numbers: Tensor) -> Tensor:
        """Return the levels in the model of numbers ``(*,)`` of one nominal column; NaN for unknown ones."""
        levels = self.levels[m].to(numbers)
        number = numbers.nan_to_num(nan=-1.0).round()
        place = torch.searchsorted(levels, number.contiguous()).clamp(max=len(levels) - 1)
        beyond = number - levels[-1]
        known = (levels[place] == number) | (beyond > 0.0) & (beyond < self._numbers_of_last_level(m))
        known &= (numbers - number).abs() < 0.5  # half-way between two levels there is none
        return torch.where(known, place.to(numbers), torch.nan)

    def _nearest_level(self, m: int, numbers: Tensor) -> Tensor:
        """Return :meth:`level`; a number without a level has the nearest one, if it is near."""
        found, kind = self.level(m, numbers), self.kinds[m]
        unseen = self._is_unseen(m, numbers)
        if isinstance(kind, Grid) and bool(unseen.any()):
            near = torch.from_numpy(kind.near_levels(numbers[unseen].double().cpu().numpy())).to(numbers)
            found[unseen] = self.level(m, near)
        return found

    def _is_unseen(self, m: int, numbers: Tensor) -> Tensor:
        """Return which numbers ``(*,)`` of a nominal column have no level."""
        return self.level(m, numbers).isnan() & ~numbers.isnan()

    def seen(self, x: Tensor) -> Tensor:
        """Return where numbers ``(*, M)`` have a term in the density: not where a nominal column has no such level."""
        found = torch.ones_like(x, dtype=torch.bool)
        for m in self.levels:
            found[..., m] = ~self._is_unseen(m, x[..., m])
        return found

    def spike(self, m: int, numbers: Tensor) -> Tensor:
        """Return which spike each number ``(*,)`` of a column is, counted from 1; 0 for none and NaN if missing."""
        found = torch.from_numpy(self.kinds[m].spike_of(numbers.double().cpu().numpy())).to(numbers)
        return torch.where(numbers.isnan(), torch.nan, found)

    def constraints(self, constraints: Mapping[int, Constraint]) -> dict[int, Constraint]:
        """Return constraints of the numbers of columns as constraints of dimensions."""
        found = dict[int, Constraint]()
        for m, constraint in constraints.items():
            if m in self.levels:
                assert isinstance(constraint, Levels)
                found[m] = self._levels(m, constraint)
                continue
            found[m] = self._with_images(m, constraint)
            if m in self.spikes:
                found[self.spike_dimension[m]] = Levels([0, *self._spikes_within(m, constraint)])
        return found

    def parts(self, m: int, constraint: Constraint) -> list[dict[int, Constraint]]:
        """Return disjoint parts that together make up one constraint of a column, as constraints of dimensions.

        In a column with spikes they are its spikes within the constraint, and the other numbers.
        """
        if m not in self.spikes:
            return [self.constraints({m: constraint})]
        dimension, inside = self.spike_dimension[m], self._spikes_within(m, constraint)
        others: dict[int, Constraint] = {dimension: Levels([0]), m: self._with_images(m, constraint)}
        return [{dimension: Levels(inside)}, others] if inside else [others]

    def mirrored(self, m: int, numbers: Tensor) -> Tensor:
        """Return drawn numbers ``(*,)`` of a dimension, those beyond the ends of its range mirrored into it.

        Those farther beyond than the range is wide become the end.
        """
        if m not in self.ends:
            return numbers
        low, high = self.ends[m]
        image = torch.where(numbers < low, 2.0 * low - numbers, numbers)
        image = torch.where(numbers > high, 2.0 * high - numbers, image)
        is_leak = (low <= image) & (image <= high)
        return torch.where(is_leak, image, numbers).clamp(low, high)

    def others(self, x: Tensor, shares: Mapping[int, Tensor], generator: torch.Generator) -> dict[int, Tensor]:
        """Return which of the rows ``(N, M)`` count as having no spike, ``(N,)`` for each column with ends or spikes.

        Of the rows with a spike on a grid, the given shares do, chosen at random: otherwise the density of the other
        numbers would have a hole there.
        """
        found = {m: self._is_other(m, x) for m in {*self.ends, *self.spikes}}
        for m, share in shares.items():
            of_level = torch.cat([share.new_zeros(1), share]).to(x)
            of_row = of_level[self.spike(m, x[:, m]).nan_to_num(nan=0.0).long()]
            found[m] |= torch.rand(len(x), generator=generator).to(x) < of_row
        return found

    def shares_of_others(self, x: Tensor) -> dict[int, Tensor]:
        """Return the shares ``(K,)`` of :meth:`others` for the spikes on each grid, by rows ``(N, M)``.

        A share is the mean number of rows of the steps near a spike, divided by the number of rows with the spike.
        """
        found = {}
        for m, spikes in self.spikes.items():
            if not self.widths[m]:
                continue
            (low, high), others = self.ends[m], x[self._is_other(m, x), m]
            near = min(len(others), max(_MIN_NEAR, round(_NEAR * len(others))))
            shares = []
            for k, spike in enumerate(spikes.tolist(), 1):
                reach = float((others - spike).abs().kthvalue(near).values) + 0.5
                first, last = max(low, spike - reach), min(high, spike + reach)
                steps = last - first - int(((first < spikes) & (spikes < last)).sum())
                expected = int(((first < others) & (others < last)).sum()) / steps
                shares.append(min(1.0, expected / max(1, int((self.spike(m, x[:, m]) == k).sum()))))
            found[m] = torch.tensor(shares, dtype=x.dtype)
        return found

    def reflected(
        self, x: Tensor, others: Mapping[int, Tensor], widths: Mapping[int, float], generator: torch.Generator
    ) -> Tensor:
        """Return rows ``(N, M)``, some of their numbers near the ends of a range replaced by mirror images beyond them.

        A model would round off the edge of a density. Of the :meth:`others` at a distance :math:`d < w` from an end,
        the share :math:`\\tfrac14 (1 + \\cos(\\pi d / w))` is replaced, half of those at the end. So the density is
        smooth across it, and mirrored, it is the one of the rows all the same.
        """
        x = x.clone()
        for m, ends in self.ends.items():
            numbers, u = x[:, m].clone(), torch.rand(len(x), generator=generator).to(x)
            for end in ends:
                distance = ((numbers - end).abs() / widths[m]).clamp(max=1.0)
                share = 0.25 * (1.0 + torch.cos(math.pi * distance))
                x[:, m] = torch.where(others[m] & (u < share), 2.0 * end - numbers, x[:, m])
        return x

    def reflection_widths(self, x: Tensor) -> dict[int, float]:
        """Return the distance :math:`w` of :meth:`reflected` in each column with ends, of rows ``(N, M)``."""
        numbers = {m: x[self._is_other(m, x), m] for m in self.ends}
        return {m: _REFLECTED * float(found.std(correction=0)) or 1.0 for m, found in numbers.items()}

    def _is_other(self, m: int, x: Tensor) -> Tensor:
        """Return which rows have a number in a column that is no spike."""
        return self.spike(m, x[:, m]) == 0.0 if m in self.spikes else ~x[:, m].isnan()

    def images(self, m: int, numbers: Tensor) -> list[Tensor]:
        """Return the numbers beyond the ends of a column whose mirror images are the given ones."""
        return [2.0 * end - numbers for end in self.ends.get(m, ())]

    def _with_images(self, m: int, constraint: Constraint) -> Constraint:
        """Return intervals within the ends of a column, together with those beyond that are mirrored into them."""
        if m not in self.ends:
            return constraint
        assert isinstance(constraint, Intervals)
        low, high = self.ends[m]
        inside = [
            (max(low, first), min(high, last)) for first, last in constraint.bounds if first < high and last > low
        ]
        images = [(2.0 * end - last, 2.0 * end - first) for first, last in inside for end in (low, high)]
        return Intervals(_merged([*inside, *(pair for pair in images if pair[0] < pair[1])]))  # others have rounded

    def _spikes_within(self, m: int, constraint: Constraint) -> list[int]:
        """Return which spikes of a column a constraint allows, counted from 1."""
        assert isinstance(constraint, Intervals)
        spikes = enumerate(self.spikes[m].tolist(), 1)
        return [k for k, spike in spikes if any(low <= spike <= high for low, high in constraint.bounds)]

    def _levels(self, m: int, constraint: Levels) -> Levels:
        """Return the levels of some numbers of a column, of the last one the share that is allowed."""
        numbers = torch.tensor(constraint.levels, dtype=torch.float64)
        found = sorted(set(self.level(m, numbers).long().tolist()))
        last = self.counts[m] - 1
        if m not in self.rarest or last not in found:
            return Levels(found)
        share = min(1.0, float(self._allowed_shares(m, constraint).sum()))
        return Levels(found, [1.0] * (len(found) - 1) + [share])

    def _allowed_shares(self, m: int, constraint: Levels | None) -> Tensor:
        """Return the probabilities of the numbers that share a level, 0 for those that are not allowed, ``(K,)``."""
        if constraint is None:
            return self.rarest[m]
        numbers = self.levels[m][-1] + torch.arange(len(self.rarest[m]))
        return self.rarest[m] * torch.isin(numbers, torch.tensor(constraint.levels, dtype=numbers.dtype))

    def log_shares(self, x: Tensor) -> Tensor:
        """Return log probabilities of numbers ``(*, M)`` given their levels, or of unknown ones their own; else 0."""
        found = torch.zeros_like(x)
        for m in self.levels:
            found[..., m] = self.log_share(m, x[..., m])
        return found

    def log_share(self, m: int, numbers: Tensor) -> Tensor:
        """Return :meth:`log_shares` of numbers ``(*,)`` of one nominal column."""
        share = torch.zeros_like(numbers)
        if m in self.rarest:
            place = (numbers.nan_to_num(nan=0.0) - self.levels[m][-1]).round().long()
            rare = (place >= 0) & (place < len(self.rarest[m]))
            share[rare] = self.rarest[m].log().to(numbers)[place[rare]]
        unseen, kind = self.log_unseen[m], self.kinds[m]
        others = unseen + torch.from_numpy(kind.log_share_of_unseen(numbers.double().cpu().numpy())).to(numbers)
        found = torch.where(self.level(m, numbers).isnan(), others, share + math.log1p(-math.exp(unseen)))
        return torch.where(numbers.isnan(), 0.0, found)

    def _numbers_of_last_level(self, m: int) -> int:
        return len(self.rarest[m]) if m in self.rarest else 1


def _merged(intervals: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the union of intervals, in ascending order."""
    found = list[tuple[float, float]]()
    for low, high in sorted(intervals):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found
