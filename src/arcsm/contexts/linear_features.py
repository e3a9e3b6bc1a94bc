"""What the best linear predictor says of each dimension given any set of others, as features of a network."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from arcsm._native import available, may_train, normal_given_set, normal_in_order, supports
from arcsm._runtime.devices import constant
from arcsm.contexts.normal_moments import Moments, PreciseModule, estimate_moments, given_set, some_rows

_MAX_LEVELS = 16  # of a dimension without ranks that takes part
_MAX_ELEMENTS = 4_000_000  # of the matrices of rows with missing values
_LEAST_SCALE = 0.05  # of an error, in standard deviations
_UNCERTAIN_ROWS = 10  # of a level, whose correlations are halved
_LEAST_DEVIATION = 1e-6  # of a unit that varies
_TOLERANCE = 1e-4  # of correlations, which is much less than their error


class LinearFeatures(PreciseModule):
    """Mean and log error of the best linear predictor of each dimension given any set of others.

    A number is one unit, the rank of a level likewise, and each level of a dimension without ranks has one unit, 1 or
    0. In units of their deviations from the mean, with correlations :math:`R` and the units :math:`S` of the known
    values, the features of a unit :math:`e` are

    .. math:: m_e = R_{eS} R_{SS}^{-1} x_S, \\qquad \\log s_e, \\quad s_e^2 = 1 - R_{eS} R_{SS}^{-1} R_{Se}

    With few rows, a network overfits large sets before it has learned what two values tell of a third; the predictor
    knows at once. The estimated correlations of different units are multiplied by :math:`N / (N + K)`, for
    :math:`N` rows and :math:`K` units; that is ridge regression, which exists for more units than rows, too. Those of a
    level that :math:`n` rows have are further multiplied by :math:`n / (n + 10)`, and a unit without variance has none.

    Arguments:
        levels: The number of levels of each dimension, 0 for numbers. Dimensions of more than 16 levels without ranks
            take no part.
        ranked: The dimensions whose levels have an order.
    """

    mean: Tensor
    deviation: Tensor
    correlation: Tensor
    owner: Tensor  # the dimension of each unit, (K,)
    level: Tensor  # its level, or -1 for a number or a rank, (K,)

    def __init__(self, levels: Sequence[int], ranked: Sequence[int] = ()) -> None:
        super().__init__()
        units = units_of(levels, ranked)
        if not units:
            raise ValueError(f"linear_features: expected a column of numbers, or of at most {_MAX_LEVELS} levels")
        self.units = len(units)
        self.owners = tuple(d for d, _ in units)
        self._units_of = {d: [k for k, unit in enumerate(units) if unit[0] == d] for d, _ in units}  # in order
        self.register_buffer("owner", torch.tensor(self.owners, dtype=torch.long), persistent=False)
        self.register_buffer("level", torch.tensor([level for _, level in units], dtype=torch.long), persistent=False)
        self.register_buffer("mean", torch.zeros(self.units, dtype=torch.float64))
        self.register_buffer("deviation", torch.ones(self.units, dtype=torch.float64))
        self.register_buffer("correlation", torch.eye(self.units, dtype=torch.float64))

    def fit(self, z: Tensor) -> None:
        """Estimate means, deviations and correlations from standardised rows ``(N, D)``; NaN is missing."""
        z = some_rows(self._of_units(z), _MAX_ELEMENTS)
        moments, rows = estimate_moments(z, _TOLERANCE), len(z)
        counts = moments.mean * rows
        trust = torch.where(self.level < 0, 1.0, counts / (counts + _UNCERTAIN_ROWS))
        varies = moments.deviation > _LEAST_DEVIATION
        trust = torch.where(varies, trust, 0.0)
        shrunk = moments.correlation * (trust * trust.unsqueeze(1)) * (rows / (rows + self.units))
        shrunk.fill_diagonal_(1.0)
        self.set_moments(Moments(moments.mean, torch.where(varies, moments.deviation, 1.0), shrunk))

    def set_moments(self, moments: Moments) -> None:
        """Set means, deviations and correlations of the units."""
        self.mean.copy_(moments.mean)
        self.deviation.copy_(moments.deviation)
        self.correlation.copy_(moments.correlation)

    @property
    def has_correlations(self) -> bool:
        """Whether any two units are correlated; else there is nothing to predict."""
        return int((self.correlation != 0.0).sum()) > self.units

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        """Return the features of all units given one set for each row, ``(B, K, 2)``.

        Arguments:
            x: Rows ``(B, D)`` in standardised units.
            known: Which of their values are in the set, ``(B, D)``.
        """
        correlation, values, known = self._values_of_units(x, known)
        if self._may_use_c(correlation, values):
            return self._features(*normal_given_set(correlation, values, known.float()), x)
        location, scale, _ = given_set(correlation, values, known)
        return self._features(location, scale, x)

    def in_order(self, x: Tensor, known: Tensor, order: Tensor) -> Tensor:
        """Return the same given the known values before each dimension in an order, ``(D,)`` or ``(B, D)``.

        In C, one order for all rows takes as long as one set, and less if rows have no gaps.
        """
        if order.ndim == 1:
            correlation, values, are_known = self._values_of_units(x, known)
            if self._may_use_c(correlation, values):
                units = [k for d in order.tolist() for k in self._units_of.get(d, ())]
                found = normal_in_order(correlation, values, are_known.float(), units, self.owners)
                return self._features(*found, x)
        place = order.argsort(-1)
        return self.given_each(x, known.unsqueeze(1) * (place.unsqueeze(-2) < place.unsqueeze(-1)))

    def given_others(self, x: Tensor, known: Tensor, parents: Mapping[int, int]) -> Tensor:
        """Return the same given all other known values; a parent is not given its child, which would reveal it.

        Arguments:
            x: Rows ``(B, D)`` in standardised units.
            known: Which of their values are known, ``(B, D)``.
            parents: The parent of each dimension that has one.
        """
        others = 1.0 - torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        for child, parent in parents.items():
            others[parent, child] = 0.0
        return self.given_each(x, others * known.unsqueeze(1))

    def given_each(self, x: Tensor, sets: Tensor) -> Tensor:
        """Return the features of the units of each dimension given its own set, ``(B, K, 2)``.

        Arguments:
            x: Rows ``(B, D)`` in standardised units.
            sets: Which values are in the set of each dimension, ``(B, D, D)``: the second index is the set's.
        """
        found = [x.new_zeros(x.shape[0], 0, 2)]
        for d, units in self._units_of.items():
            found.append(self(x, sets[:, d])[:, constant(tuple(units), torch.long, x.device)])
        return torch.cat(found, 1)

    def _values_of_units(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the correlations, and the values of the units and which are known, ``(B, K)``, in one precision."""
        known = known[:, self.owner] > 0.0
        values = torch.where(known, (self._of_units(x) - self.mean) / self.deviation, 0.0)
        dtype = torch.promote_types(x.dtype, torch.float32)  # enough here: the correlations were reduced
        return self.correlation.to(dtype), values.to(dtype), known

    def _may_use_c(self, correlation: Tensor, values: Tensor) -> bool:
        return may_train() and not values.requires_grad and supports(correlation, values) and available()

    def _features(self, location: Tensor, scale: Tensor, like: Tensor) -> Tensor:
        return torch.stack([location, scale.clamp(min=_LEAST_SCALE).log()], -1).to(like)

    def _of_units(self, x: Tensor) -> Tensor:
        """Return the values of the units of rows ``(B, D)``, ``(B, K)``."""
        values = x[:, self.owner].to(self.mean.dtype)
        is_level = torch.where(values.isnan(), values, (values.round() == self.level).to(values))
        return torch.where(self.level < 0, values, is_level)


def units_of(levels: Sequence[int], ranked: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Return the dimension of each unit of :class:`LinearFeatures`, and its level, or -1 for a number or a rank."""
    units = list[tuple[int, int]]()
    for d, count in enumerate(levels):
        if not count or d in ranked:
            units.append((d, -1))
        elif count <= _MAX_LEVELS:
            units += [(d, level) for level in range(count)]
    return units
