"""The best linear predictor of each dimension given any set of others."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from arcsm.errors import readable

_LEAST_EIGENVALUE = 1e-8  # of a correlation matrix: no error of a predictor is below its root
_FOLDS = 5  # that measure the errors of predictors on rows which they have not seen
_MAX_ERRORS = 10.0  # scales between a predictor and the farthest row
_MIN_COMPLETE = 10  # complete rows for each column, from which EM may start
_LEAST_SCALE = 1e-4  # in place of the zero of a value that is known
_MAX_ON_LINE = 32  # dimensions, whose correlations are inverted for each row of a batch
_EM_STEPS, _EM_CHANGE = 100, 1e-6  # at most, and the change of correlations from which on they have converged
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
        self._index: tuple[int, ...] = ()  # these dimensions, for programs that cannot branch on values

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
        return torch.exp(self.given_others(values, torch.ones_like(values))[0, :, 1])

    def fit(self, z: Tensor) -> None:
        """Estimate means, deviations and correlations from standardised rows ``(N, D)``; NaN is missing.

        Dimensions that hold nothing else, such as nominal ones, correlate with none. Scales grow by the error on rows
        that the predictor has not seen, in its own units, or by a tenth of the largest one.
        """
        most = _MAX_ROWS if bool(z.isfinite().all()) else max(_MIN_ROWS, _MAX_ELEMENTS // z.shape[1] ** 2)
        z = z[:: -(-len(z) // most)].double()
        self.set_moments(_moments(z))
        index = torch.tensor(self._index, dtype=torch.long, device=z.device)
        if not len(index):
            return
        z = z[:, index]
        known, values, location = ~z.isnan(), z.nan_to_num(nan=0.0), torch.zeros_like(z)
        parts = torch.arange(len(z), device=z.device) % _FOLDS
        for part in range(min(_FOLDS, len(z))):
            of_rest, its = _moments(z[parts != part]), parts == part
            location[its] = of_rest.predict(_of_others, values[its], known[its])[0]
        moments = _moments(z)
        scale = moments.predict(_of_others, values, known)[1]
        near = known & (scale < self.near * moments.deviation)
        error = torch.where(near, (values - location).abs() / scale, 0.0)
        deviation = (error.square().sum(0) / (error > 0.0).sum(0).clamp(min=1)).sqrt()
        self.mean[index], self.deviation[index] = moments.mean, moments.deviation
        self.correlation[index[:, None], index] = moments.correlation
        self.inflation[index] = torch.maximum(deviation, error.amax(0) / _MAX_ERRORS).clamp(min=1.0)

    def set_moments(self, moments: "Moments") -> None:
        """Set means, deviations and correlations. Only those of the dimensions that take part are kept."""
        matrix = moments.correlation
        ones = torch.ones_like(matrix[:1])
        scale = _of_others(matrix, torch.zeros_like(ones), ones > 0.0)[1][0]
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
            self._index = tuple(self.on_line.nonzero()[:, 0].tolist())

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._find_index()

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        """Return location and log scale of all dimensions given a set of values, ``(B, D, 2)``.

        Arguments:
            x: Rows ``(B, D)``.
            known: Which of their values are in the set, ``(B, D)``.
        """
        return self._predicted(_given, x, known)

    def in_order(self, x: Tensor, known: Tensor, order: Tensor) -> Tensor:
        """Return the same given the known values before each dimension in an order, ``(D,)`` or ``(B, D)``."""
        places = order.argsort(-1)[..., list(self._index)]
        return self._predicted(partial(_in_order, order=places.argsort(-1)), x, known)

    def given_others(self, x: Tensor, known: Tensor) -> Tensor:
        """Return the same given all other known values."""
        return self._predicted(_of_others, x, known)

    def _predicted(self, predict: "Predict", x: Tensor, known: Tensor) -> Tensor:
        """Return location and log scale ``(B, D, 2)``, moved towards (0, 0) where the predictor is not near."""
        pairs = x.new_zeros(*x.shape, 2)
        if not self._index:
            return pairs
        index = torch.tensor(self._index, device=x.device)
        moments = Moments(self.mean[index], self.deviation[index], self.correlation[index[:, None], index])
        location, scale = moments.predict(predict, x[:, index].double(), known[:, index] > 0.0)
        scale = scale * self.inflation[index]
        weight = ((self.near - scale / moments.deviation) / (0.5 * self.near)).clamp(0.0, 1.0)
        log_scale = torch.log((weight * scale + 1.0 - weight).clamp(min=_LEAST_SCALE))  # 0 for a known value
        pair = torch.stack([weight * location, log_scale], -1).to(pairs)
        return pairs.index_copy(1, index, pair)


#: Returns means and errors ``(B, K)`` of dimensions with some correlations, from values and which are known.
Predict = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Moments(NamedTuple):
    """Means, standard deviations ``(D,)`` and correlations ``(D, D)`` of dimensions."""

    mean: Tensor
    deviation: Tensor
    correlation: Tensor

    def predict(self, predict: Predict, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Return what ``predict`` does in units of the means and deviations, for values ``x (B, D)``."""
        values = torch.where(known, (x - self.mean) / self.deviation, 0.0)
        location, scale = predict(self.correlation, values, known)
        return self.mean + self.deviation * location, self.deviation * scale


def _given(matrix: Tensor, values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and errors ``(B, K)`` of all dimensions given a set of ``known`` values."""
    if _holds((known == known[:1]).all()):  # one matrix for all rows
        known = known[:1]
    lower = torch.linalg.cholesky(_masked(matrix, known))
    half = torch.linalg.solve_triangular(lower, matrix * known.double().unsqueeze(-1), upper=False)  # (B or 1, K, K)
    errors = torch.linalg.solve_triangular(lower, values.unsqueeze(-1), upper=False)
    return (half * errors).sum(-2), _error_scale(half).expand_as(values)


def _in_order(matrix: Tensor, values: Tensor, known: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same given the ``known`` values before each dimension in an order, ``(K,)`` or ``(B, K)``."""
    index = order.expand(values.shape[0], -1)
    arranged, place = values.gather(1, index), index.argsort(-1)
    if order.ndim == 1 and _holds(known.all()):  # one matrix for all rows
        lower = torch.linalg.cholesky(matrix[order][:, order])
        errors = torch.linalg.solve_triangular(lower, arranged.T, upper=False).T
        scale = lower.diagonal().expand_as(arranged)
        return (arranged - scale * errors).gather(1, place), scale.gather(1, place)
    masked = _masked(matrix, known)
    rows, columns = index.unsqueeze(-1).expand_as(masked), index.unsqueeze(-2).expand_as(masked)
    lower = torch.linalg.cholesky(masked.gather(1, rows).gather(2, columns))
    half = torch.linalg.solve_triangular(lower, (matrix * known.double().unsqueeze(-1)).gather(1, rows), upper=False)
    errors = torch.linalg.solve_triangular(lower, arranged.unsqueeze(-1), upper=False)
    half = half * (
        torch.arange(values.shape[1], device=values.device)[:, None] < place.unsqueeze(-2)
    )  # of those before
    return (half * errors).sum(-2), _error_scale(half)


def _of_others(matrix: Tensor, values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same given all other ``known`` values."""
    complete = _holds(known.all())
    inverse = torch.linalg.inv(_masked(matrix, known[:1] if complete else known))
    square = 1.0 / inverse.diagonal(dim1=-2, dim2=-1)
    location, scale = values - square * (inverse @ values.unsqueeze(-1))[..., 0], square.sqrt().expand_as(values)
    if complete:
        return location, scale
    of_missing, its = _given(matrix, values, known)
    return torch.where(known, location, of_missing), torch.where(known, scale, its)


def _holds(condition: Tensor) -> bool:
    """Return whether a condition ``()`` is known to hold; inside a transform it is not known."""
    known = readable(condition)
    return known is not None and bool(known.all())


def _error_scale(half: Tensor) -> Tensor:
    """Return the standard deviation of errors, of products ``(*, D, D)`` that sum to what is explained, ``(*, D)``."""
    return (1.0 - half.square().sum(-2)).clamp(min=0.0).sqrt()


def _masked(matrix: Tensor, known: Tensor) -> Tensor:
    """Return the matrix ``(B, D, D)`` of known values ``(B, D)``; the rows and columns of others are the identity's."""
    k = known.to(matrix)
    return matrix * (k.unsqueeze(-1) * k.unsqueeze(-2)) + torch.diag_embed(1.0 - k)


def _moments(z: Tensor) -> Moments:
    """Return the moments of rows ``(N, D)`` with NaN for missing values; correlations have a positive spectrum.

    Missing values are filled by the EM algorithm of the normal distribution, from those that are known.
    """
    known = ~z.isnan()
    seen = known.sum(0) > 1
    if not bool(seen.all()):
        eye, index = torch.eye(z.shape[1], dtype=z.dtype, device=z.device), seen.nonzero()[:, 0]
        found = Moments(torch.zeros_like(eye[0]), torch.ones_like(eye[0]), eye)
        if len(index):
            part = _moments(z[:, index])
            found.mean[index], found.deviation[index] = part.mean, part.deviation
            found.correlation[index[:, None], index] = part.correlation
        return found
    shift = z.nanmean(0)
    unit = (z - shift).square().nanmean(0).sqrt().clamp(min=1e-12)
    x, complete = torch.where(known, (z - shift) / unit, 0.0), known.all(1)
    enough = int(complete.sum()) >= _MIN_COMPLETE * z.shape[1]  # else EM starts from no correlation, and takes longer
    if enough:
        mean = x[complete].mean(0)
        deviation, matrix = _regular((x[complete] - mean).T @ (x[complete] - mean) / int(complete.sum()))
    else:
        mean, deviation = torch.zeros_like(shift), torch.ones_like(shift)
        matrix = torch.eye(len(shift), dtype=z.dtype, device=z.device)
    for _ in range(0 if bool(complete.all()) else _EM_STEPS):
        k, covariance = known.to(z), matrix * deviation * deviation[:, None]
        lower = torch.linalg.cholesky(_masked(covariance, known))
        half = torch.linalg.solve_triangular(lower, covariance * k.unsqueeze(-1), upper=False)
        errors = torch.linalg.solve_triangular(lower, torch.where(known, x - mean, 0.0).unsqueeze(-1), upper=False)
        filled = torch.where(known, x, mean + (half * errors).sum(-2))
        unknown = (1.0 - k).unsqueeze(-1) * (1.0 - k).unsqueeze(-2)
        rest = ((covariance - half.transpose(1, 2) @ half) * unknown).sum(0)
        before, mean = (mean, matrix), filled.mean(0)
        deviation, matrix = _regular(((filled - mean).T @ (filled - mean) + rest) / len(z))
        change = torch.maximum((matrix - before[1]).abs().max(), (mean - before[0]).abs().max())
        if float(change) < _EM_CHANGE:
            break
    return Moments(shift + unit * mean, unit * deviation, matrix)


def _regular(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return deviations ``(D,)`` and correlations ``(D, D)`` with a positive spectrum."""
    deviation = moments.diagonal().clamp(min=1e-12).sqrt()
    matrix = moments / (deviation * deviation[:, None])
    matrix = 0.5 * (matrix + matrix.T)
    matrix.fill_diagonal_(1.0)
    values, vectors = torch.linalg.eigh(matrix)
    matrix = (vectors * values.clamp(min=_LEAST_EIGENVALUE)) @ vectors.T
    root = matrix.diagonal().sqrt()
    return deviation, matrix / (root * root[:, None])
