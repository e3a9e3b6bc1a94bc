"""The best linear predictor of each dimension given any set of others."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from arcsm.contexts.normal_moments import (
    Moments,
    Predictor,
    estimate_moments,
    given_others,
    given_set,
    in_order,
)

_FOLDS = 5  # that measure the errors of predictors on rows which they have not seen
_MAX_ERRORS = 10.0  # scales between a predictor and the farthest row
_LEAST_SCALE = 1e-4  # in place of the zero of a value that is known
_MAX_ON_LINE = 32  # dimensions, whose correlations are inverted for each row of a batch
_MAX_ROWS = 20_000  # from which correlations are estimated
_MIN_ROWS, _MAX_ELEMENTS = 500, 400_000  # with missing values: fewer, for a matrix each


class LinearBase(nn.Module):
    """The best linear predictor of each dimension given any set of others, where it is nearly exact.

    With the correlations :math:`R` of the dimensions, in units of their deviations from the mean, that of :math:`x_d`
    given the values :math:`x_S` has the mean and the standard deviation of the error

    .. math:: m_d = R_{dS} R_{SS}^{-1} x_S, \\qquad s_d^2 = 1 - R_{dS} R_{SS}^{-1} R_{Sd}

    A network finds relations with an error of a few tenths without it, in the units that all values have, where it also
    sees which values repeat. It cannot find a line that is a hundred times narrower. So the predictor counts only
    there: :math:`(m_d, s_d)` moves to :math:`(0, 1)`, linearly in the error, from ``near / 2`` to ``near``. Only
    dimensions whose error given all others is below ``near`` take part, as what is predicted and as predictors.

    Arguments:
        features: Number of dimensions :math:`D`, in standardised units.
        near: The error from which on a predictor does not count.
    """

    mean: Tensor
    deviation: Tensor
    correlation: Tensor
    inflation: Tensor
    on_line: Tensor

    def __init__(self, features: int, near: float = 0.2) -> None:
        super().__init__()
        self.near = float(near)
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("deviation", torch.ones(features, dtype=torch.float64))
        self.register_buffer("correlation", torch.eye(features, dtype=torch.float64))
        self.register_buffer("inflation", torch.ones(features, dtype=torch.float64))  # of the scales of each dimension
        self.register_buffer("on_line", torch.zeros(features, dtype=torch.bool))  # the dimensions that take part
        self.index: tuple[int, ...] = ()  # these dimensions, for programs that cannot branch on values

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the moments to another device; they stay in double precision, or a narrow line would be lost."""
        precise = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in precise.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        return f"near={self.near}"

    @property
    def scales(self) -> Tensor:
        """The scale of each dimension given all others, ``(D,)``; 1 where no predictor counts."""
        values = torch.zeros_like(self.correlation[:1])
        return torch.exp(self.located_by_others(values, torch.ones_like(values))[0, :, 1])

    def fit(self, z: Tensor) -> None:
        """Estimate means, deviations and correlations from standardised rows ``(N, D)``; NaN is missing.

        Dimensions that hold nothing else, such as nominal ones, correlate with none. Scales grow by the error on rows
        that the predictor has not seen, in its own units, or by a tenth of the largest one.
        """
        most = _MAX_ROWS if bool(z.isfinite().all()) else max(_MIN_ROWS, _MAX_ELEMENTS // z.shape[1] ** 2)
        z = z[:: -(-len(z) // most)].double()
        self.set_moments(estimate_moments(z))
        index = torch.tensor(self.index, dtype=torch.long, device=z.device)
        if not len(index):
            return
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
        its = places[..., list(self.index)]
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
        index = torch.tensor(self.index, device=x.device)
        moments = Moments(self.mean[index], self.deviation[index], self.correlation[index[:, None], index])
        found = moments.predict(predictor, x[:, index].double(), known[:, index] > 0.0)
        inflation = self.inflation[index]
        scale = found.scale * inflation
        weight = self._weight(scale / moments.deviation)
        log_scale = torch.log((weight * scale + 1.0 - weight).clamp(min=_LEAST_SCALE))  # 0 for a known value
        pairs = pairs.index_copy(1, index, torch.stack([weight * found.location, log_scale], -1).to(pairs))
        if sets is not None:
            its, error = found.residuals()
            every = torch.asinh(self._weight(error * inflation) * its / inflation).to(pairs)  # (B, N, K)
            sets = torch.as_tensor(sets, device=x.device).expand(len(x), -1)
            residuals = every.gather(1, sets.unsqueeze(-1).expand(-1, -1, len(index)))
        return OnLine(pairs, residuals)

    def _weight(self, scale: Tensor) -> Tensor:
        """Return how far predictors with these errors, in deviations, count: 1 if they are near, 0 if they are not."""
        return ((self.near - scale) / (0.5 * self.near)).clamp(0.0, 1.0)


class OnLine(NamedTuple):
    """What the known values of ``B`` rows say about lines."""

    #: Location and log scale of each dimension given its set, moved towards (0, 0) where the predictor is not near.
    pairs: Tensor  # (B, D, 2)

    #: How far each value in the set of a dimension is from its prediction by the others in it, in units of the error,
    #: compressed by asinh; 0 for values that are not in it or not near. The K dimensions are those on a line.
    residuals: Tensor  # (B, D, K)
