"""The best linear predictor of each dimension given any set of others."""

import torch
from torch import Tensor, nn

from arcsm.errors import readable

_LEAST_EIGENVALUE = 1e-5  # of a correlation matrix: no error of a predictor is below its root
_SHRINKAGE = 0.02  # pseudo-rows without any correlation
_FOLDS = 5  # that measure the errors of predictors on rows which they have not seen
_MAX_ERRORS = 10.0  # scales between a predictor and the farthest row
_MIN_COMPLETE = 10  # rows for each column
_EM_STEPS, _EM_CHANGE = 100, 1e-6  # at most, and the change of correlations from which on they have converged
_MAX_ROWS = 20_000  # from which correlations are estimated
_MIN_ROWS, _MAX_ELEMENTS = 500, 400_000  # with missing values: fewer, for a matrix each


class LinearBase(nn.Module):
    """The best linear predictor of each dimension given any set of others, where it is nearly exact.

    With the correlations :math:`R` of the dimensions, that of :math:`x_d` given the values :math:`x_S` has the mean and
    the standard deviation of the error

    .. math:: m_d = R_{dS} R_{SS}^{-1} x_S, \\qquad s_d^2 = 1 - R_{dS} R_{SS}^{-1} R_{Sd}

    A network finds relations with an error of a few tenths without it, in the units that all values have, where it also
    sees which values repeat. It cannot find a line that is a hundred times narrower. So the predictor counts only
    there: :math:`(m_d, s_d)` moves to :math:`(0, 1)`, linearly in the error, from ``near / 2`` to ``near``.

    Arguments:
        features: Number of dimensions :math:`D`, in standardised units.
        near: The error from which on a predictor does not count.
    """

    correlation: Tensor
    inflation: Tensor

    def __init__(self, features: int, near: float = 0.2) -> None:
        super().__init__()
        self.near = float(near)
        self.register_buffer("correlation", torch.eye(features))
        self.register_buffer("inflation", torch.ones(features))  # of the scales of each dimension

    def extra_repr(self) -> str:
        return f"near={self.near}"

    @property
    def scales(self) -> Tensor:
        """The scale of each dimension given all others, ``(D,)``; 1 where no predictor counts."""
        values = torch.zeros_like(self.correlation[:1])
        return torch.exp(self.given_others(values, torch.ones_like(values))[0, :, 1])

    def fit(self, z: Tensor) -> None:
        """Estimate the correlations from standardised rows ``(N, D)``; NaN is missing.

        Dimensions that hold nothing else, such as nominal ones, correlate with none. Scales grow by the error on rows
        that the predictor has not seen, in its own units, or by a tenth of the largest one.
        """
        most = _MAX_ROWS if bool(z.isfinite().all()) else max(_MIN_ROWS, _MAX_ELEMENTS // z.shape[1] ** 2)
        z = z[:: -(-len(z) // most)].double()
        known = ~z.isnan()
        values, location = z.nan_to_num(nan=0.0), torch.zeros_like(z)
        parts = torch.arange(len(z), device=z.device) % _FOLDS
        for part in range(min(_FOLDS, len(z))):
            self.correlation.copy_(_correlation(z[parts != part]))
            location[parts == part] = self._of_others(values[parts == part], known[parts == part])[0]
        self.correlation.copy_(_correlation(z))
        scale = self._of_others(values, known)[1]
        error = torch.where(known & (scale < self.near), (values - location).abs() / scale, 0.0)
        deviation = (error.square().sum(0) / (error > 0.0).sum(0).clamp(min=1)).sqrt()
        self.inflation.copy_(torch.maximum(deviation, error.amax(0) / _MAX_ERRORS).clamp(min=1.0))

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        """Return location and log scale of all dimensions given a set of values, ``(B, D, 2)``.

        Arguments:
            x: Rows ``(B, D)``.
            known: Which of their values are in the set, ``(B, D)``.
        """
        return self._finished(*self._given(x, known))

    def in_order(self, x: Tensor, known: Tensor, order: Tensor) -> Tensor:
        """Return the same given the known values before each dimension in an order, ``(D,)`` or ``(B, D)``."""
        values, index = torch.where(known > 0.0, x.double(), 0.0), order.expand(len(x), -1)
        arranged, place = values.gather(1, index), index.argsort(-1)
        if order.ndim == 1 and _holds((known > 0.0).all()):  # one matrix for all rows
            lower = torch.linalg.cholesky(self._matrix[order][:, order])
            errors = torch.linalg.solve_triangular(lower, arranged.T, upper=False).T
            scale = lower.diagonal().expand_as(arranged)
            return self._finished((arranged - scale * errors).gather(1, place), scale.gather(1, place))
        matrix = _masked(self._matrix, known)
        matrix = matrix.gather(1, index.unsqueeze(-1).expand_as(matrix))  # rows in the order, (B, D, D)
        lower = torch.linalg.cholesky(matrix.gather(2, index.unsqueeze(-2).expand_as(matrix)))
        of_known = (self._matrix * (known > 0.0).double().unsqueeze(-1)).gather(
            1, index.unsqueeze(-1).expand_as(matrix)
        )
        half = torch.linalg.solve_triangular(lower, of_known, upper=False)
        errors = torch.linalg.solve_triangular(lower, arranged.unsqueeze(-1), upper=False)
        half = half * (torch.arange(x.shape[1], device=x.device)[:, None] < place.unsqueeze(-2))  # of those before
        return self._finished((half * errors).sum(-2), _error_scale(half))

    def given_others(self, x: Tensor, known: Tensor) -> Tensor:
        """Return the same given all other known values."""
        return self._finished(*self._of_others(torch.where(known > 0.0, x.double(), 0.0), known > 0.0))

    @property
    def _matrix(self) -> Tensor:
        return self.correlation.double()

    def _given(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        if len(known) > 1 and _holds((known == known[:1]).all()):  # one matrix for all rows
            known = known[:1]
        k = (known > 0.0).double()
        lower = torch.linalg.cholesky(_masked(self._matrix, known))
        half = torch.linalg.solve_triangular(lower, self._matrix * k.unsqueeze(-1), upper=False)  # (B or 1, D, D)
        values = torch.where(known > 0.0, x.double(), 0.0)
        errors = torch.linalg.solve_triangular(lower, values.unsqueeze(-1), upper=False)
        return (half * errors).sum(-2), _error_scale(half).expand_as(values)

    def _of_others(self, values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        complete = _holds(known.all())
        inverse = torch.linalg.inv(_masked(self._matrix, known[:1] if complete else known))
        square = 1.0 / inverse.diagonal(dim1=-2, dim2=-1)
        location, scale = values - square * (inverse @ values.unsqueeze(-1))[..., 0], square.sqrt().expand_as(values)
        if complete:
            return location, scale
        of_missing, its = self._given(values, known)
        return torch.where(known, location, of_missing), torch.where(known, scale, its)

    def _finished(self, location: Tensor, scale: Tensor) -> Tensor:
        """Return location and log scale ``(B, D, 2)``, moved towards (0, 0) where the predictor is not near."""
        scale = scale * self.inflation.double()
        weight = ((self.near - scale) / (0.5 * self.near)).clamp(0.0, 1.0)
        log_scale = torch.log(weight * scale + 1.0 - weight)
        return torch.stack([weight * location, log_scale], -1).to(self.correlation.dtype)


def _holds(condition: Tensor) -> bool:
    """Return whether a condition ``()`` is known to hold; inside a transform it is not known."""
    known = readable(condition)
    return known is not None and bool(known.all())


def _error_scale(half: Tensor) -> Tensor:
    """Return the standard deviation of errors, of products ``(*, D, D)`` that sum to what is explained, ``(*, D)``."""
    return (1.0 - half.square().sum(-2)).clamp(min=0.0).sqrt()


def _masked(matrix: Tensor, known: Tensor) -> Tensor:
    """Return the matrix ``(B, D, D)`` of known values ``(B, D)``; the rows and columns of others are the identity's."""
    k = (known > 0.0).to(matrix)
    return matrix * (k.unsqueeze(-1) * k.unsqueeze(-2)) + torch.diag_embed(1.0 - k)


def _correlation(z: Tensor) -> Tensor:
    """Return correlations of rows ``(N, D)`` with NaN for missing values, ``(D, D)`` with a positive spectrum.

    Missing values are filled by the EM algorithm of the normal distribution, from those that are known.
    """
    known = ~z.isnan()
    seen = known.sum(0) > 1
    mean = torch.where(seen, z.nanmean(0), 0.0)
    deviation = torch.where(seen, (z - mean).square().nanmean(0).sqrt(), 1.0).clamp(min=1e-12)
    x = torch.where(known, (z - mean) / deviation, 0.0)
    complete = known[:, seen].all(1)
    enough = int(complete.sum()) >= _MIN_COMPLETE * z.shape[1]  # else EM starts from no correlation, and takes longer
    rows = x[complete if enough else []]
    matrix = _regular(rows.T @ rows / max(len(rows), 1), len(rows), seen)
    if not bool(complete.all()):
        for _ in range(_EM_STEPS):
            k = known.to(z)
            lower = torch.linalg.cholesky(_masked(matrix, known))
            half = torch.linalg.solve_triangular(lower, matrix * k.unsqueeze(-1), upper=False)
            errors = torch.linalg.solve_triangular(lower, x.unsqueeze(-1), upper=False)
            filled = torch.where(known, x, (half * errors).sum(-2))
            unknown = (1.0 - k).unsqueeze(-1) * (1.0 - k).unsqueeze(-2)
            rest = ((matrix - half.transpose(1, 2) @ half) * unknown).sum(0)
            before, matrix = matrix, _regular((filled.T @ filled + rest) / len(z), len(z), seen)
            if float((matrix - before).abs().max()) < _EM_CHANGE:
                break
    return matrix


def _regular(moments: Tensor, rows: int, seen: Tensor) -> Tensor:
    """Return second moments ``(D, D)`` as correlations, shrunk, with a positive spectrum; unseen columns have none."""
    pair = seen.unsqueeze(0) & seen.unsqueeze(1)
    deviation = moments.diagonal().clamp(min=1e-12).sqrt()
    matrix = torch.where(pair, moments / (deviation * deviation[:, None]), 0.0) * (rows / (rows + _SHRINKAGE))
    matrix = 0.5 * (matrix + matrix.T)
    matrix.fill_diagonal_(1.0)
    values, vectors = torch.linalg.eigh(matrix)
    matrix = (vectors * values.clamp(min=_LEAST_EIGENVALUE)) @ vectors.T
    deviation = matrix.diagonal().sqrt()
    return matrix / (deviation * deviation[:, None])
