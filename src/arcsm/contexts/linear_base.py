"""The best linear predictor of each dimension given any set of others."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arcsm._runtime.devices import constant
from arcsm.contexts.normal_moments import (
    Moments,
    PreciseModule,
    Predictor,
    estimate_moments,
    given_others,
    given_set,
    in_order,
    some_rows,
)
from arcsm.contexts.number_maps import log_slope, map_values, unmap_numbers

_FOLDS = 5  # that measure the errors of predictors on rows which they have not seen
_MAX_ERRORS = 10.0  # scales between a predictor and the farthest row
_LEAST_SCALE = 1e-4  # in place of the zero of a value that is known
_MAX_ON_LINE = 32  # dimensions, whose correlations are inverted for each row of a batch
_MAX_ELEMENTS = 400_000  # of the matrices of rows with missing values


class LinearBase(PreciseModule):
    """The best linear predictor of each dimension given any set of others, where it is nearly exact.

    With the correlations :math:`R` of the dimensions, in units of their deviations from the mean, that of :math:`x_d`
    given the values :math:`x_S` has the mean and the standard deviation of the error

    .. math:: m_d = R_{dS} R_{SS}^{-1} x_S, \\qquad s_d^2 = 1 - R_{dS} R_{SS}^{-1} R_{Sd}

    A network finds relations with an error of a few tenths without it, in the units that all values have, where it also
    sees which values repeat. It cannot find a line that is a hundred times narrower. So the predictor counts only
    there: :math:`(m_d, s_d)` moves to :math:`(0, 1)`, linearly in the error, from ``near / 2`` to ``near``. Only
    dimensions whose error given all others is below ``near`` take part, as what is predicted and as predictors.

    Skewed numbers that were mapped, :math:`x = T(v)`, may be on a line before the map, as totals and their parts are.
    Then all of this is about :math:`v`, and mean and error become :math:`T(m_d)` and :math:`T'(m_d)\\,s_d`, to first
    order in the error; see :meth:`set_maps`.

    Arguments:
        features: Number of dimensions :math:`D`, in standardised units.
        near: The error from which on a predictor does not count.
    """

    mean: Tensor
    deviation: Tensor
    correlation: Tensor
    inflation: Tensor
    on_line: Tensor
    exponent: Tensor
    shift: Tensor
    unit: Tensor
    slope: Tensor

    def __init__(self, features: int, near: float = 0.2) -> None:
        super().__init__()
        self.near = float(near)
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("deviation", torch.ones(features, dtype=torch.float64))
        self.register_buffer("correlation", torch.eye(features, dtype=torch.float64))
        self.register_buffer("inflation", torch.ones(features, dtype=torch.float64))  # of the scales of each dimension
        self.register_buffer("on_line", torch.zeros(features, dtype=torch.bool))  # the dimensions that take part
        self.register_buffer("exponent", torch.ones(features, dtype=torch.float64))  # of the maps of numbers
        self.register_buffer("shift", torch.zeros(features, dtype=torch.float64))  # of mapped numbers, of unit 1
        self.register_buffer("unit", torch.ones(features, dtype=torch.float64))
        self.register_buffer("slope", torch.ones(features, dtype=torch.float64))  # typical one of a map
        self.index: tuple[int, ...] = ()  # the dimensions on a line, for programs that cannot branch on values
        self.has_maps = False

    def extra_repr(self) -> str:
        return f"near={self.near}"

    @property
    def scales(self) -> Tensor:
        """The scale of each dimension given all others, ``(D,)``; 1 where no predictor counts."""
        found = torch.ones_like(self.mean)
        if not self.index:
            return found
        moments, index = self._moments(), self._places
        mean = moments.mean.unsqueeze(0)
        scale = moments.predict(given_others, mean, torch.ones_like(mean) > 0.0).scale[0] * self.inflation[index]
        weight = self._weight(scale, self.slope[index].log())
        found[index] = weight * scale * self.slope[index] + 1.0 - weight
        return found.clamp(min=_LEAST_SCALE)

    def set_maps(self, exponent: Tensor, shift: Tensor | None = None, unit: Tensor | None = None) -> None:
        """Say which numbers are on a line before the map that they went through.

        Arguments:
            exponent: Of the map of each dimension, ``(D,)``: 1 for none; see
                :func:`~arcsm.contexts.number_maps.map_values`.
            shift: What standardised rows are relative to, ``(D,)``. Default: as it was.
            unit: The unit of standardised rows, ``(D,)``. Default: as it was.
        """
        for name, value in {"exponent": exponent, "shift": shift, "unit": unit}.items():
            if value is not None:
                getattr(self, name).copy_(value)
        self._find_index()

    def fit(self, z: Tensor) -> None:
        """Estimate means, deviations and correlations from standardised rows ``(N, D)``; NaN is missing.

        Dimensions that hold nothing else, such as nominal ones, correlate with none. Scales grow by the error on rows
        that the predictor has not seen, in its own units, or by a tenth of the largest one. With about as many
        dimensions as rows, all seem to be on a line; those that are not near on unseen rows are dropped.
        """
        z = self._before_maps(some_rows(z, _MAX_ELEMENTS).double())
        if self.has_maps:
            slopes = log_slope(z, self.exponent) - self.unit.log()
            self.slope.copy_(torch.where(self.exponent == 1.0, 1.0, slopes.nanmean(0).exp().nan_to_num(nan=1.0)))
        self.set_moments(estimate_moments(z))
        while self.index and not self._fit_those_on_line(z):
            pass  # those left are fitted again, without the ones that only seemed to be on a line

    def _fit_those_on_line(self, z: Tensor) -> bool:
        """Estimate the errors of dimensions on a line from unseen rows; return whether none of them had to leave."""
        index = torch.tensor(self.index, dtype=torch.long, device=z.device)
        z = z[:, index]
        known, values, location = ~z.isnan(), z.nan_to_num(nan=0.0), torch.zeros_like(z)
        parts = torch.arange(len(z), device=z.device) % _FOLDS
        for part in range(min(_FOLDS, len(z))):
            of_rest, its = estimate_moments(z[parts != part]), parts == part
            location[its] = of_rest.predict(given_others, values[its], known[its]).location
        moments = estimate_moments(z)
        scale = moments.predict(given_others, values, known).scale
        near = known & (scale < self.near * moments.deviation)
        error = torch.where(near, (values - location).abs() / scale, 0.0)
        deviation = (error.square().sum(0) / (error > 0.0).sum(0).clamp(min=1)).sqrt()
        self.mean[index], self.deviation[index] = moments.mean, moments.deviation
        self.correlation[index[:, None], index] = moments.correlation
        self.inflation[index] = torch.maximum(deviation, error.amax(0) / _MAX_ERRORS).clamp(min=1.0)
        every = torch.ones_like(values[:1])
        given_all = moments.predict(given_others, every, every > 0.0).scale[0]
        leaves = index[given_all * deviation.clamp(min=1.0) >= self.near * moments.deviation]  # not for one row far off
        self.on_line[leaves] = False
        self.inflation[leaves] = 1.0
        self.correlation[leaves] = self.correlation[:, leaves] = 0.0
        self.correlation[leaves, leaves] = 1.0
        self._find_index()
        return not len(leaves)

    def set_moments(self, moments: Moments) -> None:
        """Set means, deviations and correlations. Only those of the dimensions that take part are kept."""
        matrix = moments.correlation
        ones = torch.ones_like(matrix[:1])
        scale = given_others(matrix, torch.zeros_like(ones), ones > 0.0).scale[0]
        on_line = (scale < self.near) & (scale.argsort().argsort() < _MAX_ON_LINE)
        self.on_line.copy_(on_line)
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        self.correlation.copy_(torch.where(on_line & on_line.unsqueeze(1), matrix, eye))
        self.mean.copy_(moments.mean)
        self.deviation.copy_(moments.deviation)
        self.inflation.fill_(1.0)
        self._find_index()

    def _find_index(self) -> None:
        if not self.on_line.is_meta:
            self.index = tuple(self.on_line.nonzero()[:, 0].tolist())
            self.has_maps = bool((self.exponent != 1.0).any())

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._find_index()

    def forward(self, x: Tensor, known: Tensor) -> "OnLine":
        """Return what a set of values says of all dimensions.

        Arguments:
            x: Rows ``(B, D)``.
            known: Which of their values are in the set, ``(B, D)``.
        """
        return self._predicted(given_set, x, known, [0] * x.shape[1])

    def in_order(self, x: Tensor, known: Tensor, order: Tensor) -> "OnLine":
        """Return the same given the known values before each dimension in an order, ``(D,)`` or ``(B, D)``."""
        places = order.argsort(-1)
        its = places[..., self._places]
        before = (its.unsqueeze(-2) < places.unsqueeze(-1)).sum(-1)  # dimensions on a line before each one
        return self._predicted(partial(in_order, order=its.argsort(-1)), x, known, before)

    def given_others(self, x: Tensor, known: Tensor) -> "OnLine":
        """Return the same given all other known values."""
        place = {d: k for k, d in enumerate(self.index)}
        return self._predicted(given_others, x, known, [place.get(d, len(place)) for d in range(x.shape[1])])

    def located_by_others(self, x: Tensor, known: Tensor) -> Tensor:
        """Return the locations and log scales alone, ``(B, D, 2)``, which takes less memory."""
        return self._predicted(given_others, x, known, None).pairs

    def _predicted(
        self, predictor: Predictor, x: Tensor, known: Tensor, sets: Tensor | Sequence[int] | None
    ) -> "OnLine":
        """Return what a predictor says as far as it is near. Each dimension has one of its ``sets``, ``(*, D)``."""
        pairs, residuals = x.new_zeros(*x.shape, 2), x.new_zeros(*x.shape, 0)
        if not self.index:
            return OnLine(pairs, residuals)
        moments, index = self._moments(), self._places
        values, inflation = self._before_maps(x.to(self.mean.dtype))[:, index], self.inflation[index]
        is_known = known[:, index] > 0.0
        values = torch.where(is_known, values, moments.mean)
        found = moments.predict(predictor, values, is_known)
        location, slope = self._after_maps(found.location)
        scale = found.scale * inflation
        weight = self._weight(scale, slope)
        log_scale = torch.log((weight * scale * slope.exp() + 1.0 - weight).clamp(min=_LEAST_SCALE))  # 0 if known
        pairs = pairs.index_copy(1, index, torch.stack([weight * location, log_scale], -1).to(pairs))
        if sets is not None:
            its, error = found.residuals()
            _, slope = self._after_maps(values)
            weight = self._weight(error * moments.deviation * inflation, slope.unsqueeze(1))
            every = torch.asinh(weight * its / inflation).to(pairs)  # (B, N, K)
            if not isinstance(sets, Tensor):
                sets = constant(tuple(sets), torch.long, x.device)
            if sets.ndim == 1:
                residuals = every[:, sets]
            else:
                residuals = every.gather(1, sets.unsqueeze(-1).expand(-1, -1, len(index)))
        return OnLine(pairs, residuals)

    @property
    def _places(self) -> Tensor:
        """The dimensions on a line, ``(K,)``, on the device of the moments."""
        return constant(self.index, torch.long, self.mean.device)

    def _moments(self) -> Moments:
        """Return the moments of the dimensions on a line."""
        index = self._places
        return Moments(self.mean[index], self.deviation[index], self.correlation[index[:, None], index])

    def _weight(self, scale: Tensor, slope: Tensor) -> Tensor:
        """Return how far predictors with some errors ``(*, K)`` count: 1 if they are near, 0 if they are not.

        Errors are relative to deviations, those of mapped numbers to their unit, with log slopes ``(*, K)``.
        """
        index = self._places
        relative = scale / self.deviation[index]
        if self.has_maps:
            relative = torch.where(self.exponent[index] == 1.0, relative, scale * slope.exp())
        return ((self.near - relative) / (0.5 * self.near)).clamp(0.0, 1.0)

    def _before_maps(self, z: Tensor) -> Tensor:
        """Return standardised rows ``(B, D)`` as they were before the maps."""
        if not self.has_maps:
            return z
        return torch.where(self.exponent == 1.0, z, unmap_numbers(self.shift + self.unit * z, self.exponent))

    def _after_maps(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return values ``(B, K)`` of the dimensions on a line in standardised units, and log slopes of the maps."""
        if not self.has_maps:
            return values, torch.zeros_like(values)
        index = self._places
        exponent, unit = self.exponent[index], self.unit[index]
        mapped = (map_values(values, exponent) - self.shift[index]) / unit
        slope = log_slope(values, exponent) - unit.log()
        plain = exponent == 1.0
        return torch.where(plain, values, mapped), torch.where(plain, 0.0, slope)


class OnLine(NamedTuple):
    """What the known values of ``B`` rows say about lines."""

    #: Location and log scale of each dimension given its set, moved towards (0, 0) where the predictor is not near.
    pairs: Tensor  # (B, D, 2)

    #: How far each value in the set of a dimension is from its prediction by the others in it, in units of the error,
    #: compressed by asinh; 0 for values that are not in it or not near. The K dimensions are those on a line.
    residuals: Tensor  # (B, D, K)
