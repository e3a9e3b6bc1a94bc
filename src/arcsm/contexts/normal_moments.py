"""Means and correlations of dimensions with missing values, and the conditionals of the normal distribution."""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._runtime.devices import widest_float
from arcsm.errors import readable

_LEAST_EIGENVALUE = 1e-8  # of a correlation matrix: no error of a predictor is below its root
_MIN_COMPLETE = 10  # complete rows for each column, from which EM may start
_MAX_ROWS, _MIN_ROWS = 20_000, 500  # from which moments are estimated
_EM_STEPS = 100  # at most


class PreciseModule(nn.Module):
    """A module whose moments stay in double precision when it is moved or converted, or narrow lines would be lost.

    A device without double precision (Apple's MPS) has them in single precision.
    """

    mean: Tensor
    deviation: Tensor
    correlation: Tensor

    @property
    def is_fitted(self) -> bool:
        """Whether moments were set: means and deviations are not the initial zeros and ones."""
        return bool(((self.mean != 0.0) | (self.deviation != 1.0)).any())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if widest_float(fn(torch.zeros(1)).device) != torch.float64:
            return super()._apply(lambda x: fn(x.float() if x.dtype == torch.float64 else x), recurse)
        precise = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, exact in precise.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float64:
                setattr(self, name, (moved if exact.is_meta else exact).to(moved.device, torch.float64))
        return self

    def check_loaded(self) -> None:
        """Check the correlations that were read from a file.

        Raises:
            ValueError: If they are no symmetric, positive definite matrix.
        """
        matrix = self.correlation
        if not torch.allclose(matrix, matrix.mT) or bool(torch.linalg.cholesky_ex(matrix.double()).info):
            raise ValueError("correlation: expected a symmetric, positive definite matrix")


class Predicted(NamedTuple):
    """What the normal distribution says of ``K`` dimensions, given ``N`` sets of known values of each row."""

    location: Tensor  # mean of each dimension given its set, (B, K)
    scale: Tensor  # error of that mean, (B, K)

    #: Returns how far each value in a set is from its mean given the others in it, in units of the error of that mean,
    #: and these errors, ``(B, N, K)`` and ``(B or 1, N, K)``. With the inverse P of the correlations of the set and
    #: its values x, they are (P x)_j / sqrt(P_jj) and 1 / sqrt(P_jj). Values that are not in a set are 0 off.
    residuals: Callable[[], tuple[Tensor, Tensor]]


#: Returns what correlations ``(K, K)`` say, from values ``(B, K)``, 0 if unknown, and which are known.
Predictor = Callable[[Tensor, Tensor, Tensor], Predicted]


class Moments(NamedTuple):
    """Means, standard deviations ``(D,)`` and correlations ``(D, D)`` of dimensions."""

    mean: Tensor
    deviation: Tensor
    correlation: Tensor

    def predict(self, predictor: Predictor, x: Tensor, known: Tensor) -> Predicted:
        """Return what ``predictor`` does, with locations and scales in the units of values ``x (B, D)``."""
        values = torch.where(known, (x - self.mean) / self.deviation, 0.0)
        found = predictor(self.correlation, values, known)
        return found._replace(location=self.mean + self.deviation * found.location, scale=self.deviation * found.scale)


def given_set(matrix: Tensor, values: Tensor, known: Tensor) -> Predicted:
    """Predict all dimensions from one set, of the ``known`` values."""
    if _holds((known == known[:1]).all()):  # one matrix for all rows
        known = known[:1]
    lower = _cholesky(_masked(matrix, known))
    half = torch.linalg.solve_triangular(lower, matrix * known.to(matrix).unsqueeze(-1), upper=False)  # (B or 1, K, K)
    errors = _solve(lower, values)

    def residuals() -> tuple[Tensor, Tensor]:
        inverse = _inverse(lower)
        product = (inverse.transpose(-1, -2) @ errors)[..., 0]
        return _standardised(product.unsqueeze(1), inverse.square().sum(-2).unsqueeze(1))

    return Predicted((half * errors).sum(-2), _error_scale(half).expand_as(values), residuals)


def in_order(matrix: Tensor, values: Tensor, known: Tensor, order: Tensor) -> Predicted:
    """Predict each dimension from the ``known`` values before it, in an order ``(K,)`` or ``(B, K)``.

    Set ``n`` of ``0..K`` has those of the first ``n`` dimensions.
    """
    index = order.expand(values.shape[0], -1)
    arranged, place = values.gather(1, index), index.argsort(-1)
    if order.ndim == 1 and _holds((known == known[:1]).all()):  # one matrix for all rows
        known, index = known[:1], index[:1]
    masked = _masked(matrix, known)
    rows, columns = index.unsqueeze(-1).expand_as(masked), index.unsqueeze(-2).expand_as(masked)
    lower = _cholesky(masked.gather(1, rows).gather(2, columns))
    half = torch.linalg.solve_triangular(lower, (matrix * known.to(matrix).unsqueeze(-1)).gather(1, rows), upper=False)
    half = half * (torch.arange(values.shape[1], device=values.device)[:, None] < place.unsqueeze(-2))  # those before
    errors = torch.linalg.solve_triangular(lower, arranged.unsqueeze(-1), upper=False)

    def residuals() -> tuple[Tensor, Tensor]:
        inverse = _inverse(lower).gather(2, index.argsort(-1).unsqueeze(-2).expand_as(lower))  # columns as they were
        return _standardised(*(F.pad(terms.cumsum(1), (0, 0, 1, 0)) for terms in (inverse * errors, inverse.square())))

    return Predicted((half * errors).sum(-2), _error_scale(half).expand_as(values), residuals)


def given_others(matrix: Tensor, values: Tensor, known: Tensor) -> Predicted:
    """Predict each dimension from all other ``known`` values.

    Set ``n`` of ``0..K`` has all but that of dimension ``n``, the last one has all.
    """
    complete = _holds(known.all())
    masked = _masked(matrix, known[:1] if complete else known)
    inverse = torch.linalg.inv_ex(masked, check_errors=masked.device.type == "cpu")[0]
    diagonal, product = inverse.diagonal(dim1=-2, dim2=-1), (inverse @ values.unsqueeze(-1))[..., 0]
    location, scale = values - product / diagonal, diagonal.rsqrt().expand_as(values)
    if not complete:
        of_missing = given_set(matrix, values, known)
        location = torch.where(known, location, of_missing.location)
        scale = torch.where(known, scale, of_missing.scale)

    def residuals() -> tuple[Tensor, Tensor]:
        ratio = inverse / diagonal.unsqueeze(-1)
        apart = 1.0 - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        without = apart * (product.unsqueeze(1) - ratio * product.unsqueeze(-1))
        precision = apart * (diagonal.unsqueeze(1) - ratio * inverse)
        every = [product.unsqueeze(1), diagonal.unsqueeze(1)]
        return _standardised(*(torch.cat(pair, 1) for pair in zip((without, precision), every, strict=True)))

    return Predicted(location, scale, residuals)


def _standardised(product: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """Return residuals in units of their errors, and these; infinitely large ones have no precision."""
    scale = precision.clamp(min=torch.finfo(precision.dtype).tiny).rsqrt()
    return product * scale, scale


def _cholesky(matrix: Tensor) -> Tensor:
    """Return the lower factor; the host does not wait for an accelerator to check that there is one."""
    return torch.linalg.cholesky_ex(matrix, check_errors=matrix.device.type == "cpu")[0]


def _inverse(lower: Tensor) -> Tensor:
    eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)


def _solve(lower: Tensor, values: Tensor) -> Tensor:
    """Solve for values ``(B, K)`` with one triangular matrix for all rows or one for each; return ``(B, K, 1)``."""
    if lower.shape[0] == 1:
        return torch.linalg.solve_triangular(lower[0], values.T, upper=False).T.unsqueeze(-1)
    return torch.linalg.solve_triangular(lower, values.unsqueeze(-1), upper=False)


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


def some_rows(z: Tensor, most_elements: int) -> Tensor:
    """Return all rows ``(N, D)``, or random ones if there are too many to estimate moments from.

    With missing values, each row needs a matrix ``(D, D)``; the matrices have at most ``most_elements`` together.
    """
    most = _MAX_ROWS if bool(z.isfinite().all()) else max(_MIN_ROWS, most_elements // z.shape[1] ** 2)
    if len(z) <= most:
        return z
    return z[torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:most].to(z.device)]


def estimate_moments(z: Tensor, tolerance: float = 1e-6) -> Moments:
    """Return the moments of rows ``(N, D)`` with NaN for missing values; correlations have a positive spectrum.

    Missing values are filled by the EM algorithm of the normal distribution, from those that are known, until a step
    changes no correlation by more than the tolerance.
    """
    known = ~z.isnan()
    seen = known.sum(0) > 1
    if not bool(seen.all()):
        eye, index = torch.eye(z.shape[1], dtype=z.dtype, device=z.device), seen.nonzero()[:, 0]
        found = Moments(torch.zeros_like(eye[0]), torch.ones_like(eye[0]), eye)
        if len(index):
            part = estimate_moments(z[:, index], tolerance)
            found.mean[index], found.deviation[index] = part.mean, part.deviation
            found.correlation[index[:, None], index] = part.correlation
        return found
    shift = z.nanmean(0)
    unit = (z - shift).square().nanmean(0).sqrt().clamp(min=1e-12)
    x, complete = torch.where(known, (z - shift) / unit, 0.0), known.all(1)
    without_gaps, are_many = bool(complete.all()), int(complete.sum()) >= _MIN_COMPLETE * z.shape[1]
    if without_gaps or are_many:  # else EM starts from no correlation, and takes longer
        mean = x[complete].mean(0)
        deviation, matrix = _regular((x[complete] - mean).T @ (x[complete] - mean) / int(complete.sum()))
    else:
        mean, deviation = torch.zeros_like(shift), torch.ones_like(shift)
        matrix = torch.eye(len(shift), dtype=z.dtype, device=z.device)
    patterns, place, counts = known.unique(dim=0, return_inverse=True, return_counts=True)  # of known values, (P, D)
    k = patterns.to(z)
    unknown = (1.0 - k).unsqueeze(-1) * (1.0 - k).unsqueeze(-2) * counts[:, None, None]
    for _ in range(0 if without_gaps else _EM_STEPS):
        covariance = matrix * deviation * deviation[:, None]
        lower = torch.linalg.cholesky(_masked(covariance, patterns))
        half = torch.linalg.solve_triangular(lower, covariance * k.unsqueeze(-1), upper=False)  # (P, D, D)
        slopes = torch.linalg.solve_triangular(lower.transpose(1, 2), half, upper=True)
        centred = torch.where(known, x - mean, 0.0)
        filled = torch.where(known, x, mean + (slopes[place] * centred.unsqueeze(-1)).sum(-2))
        rest = ((covariance - half.transpose(1, 2) @ half) * unknown).sum(0)
        before, mean = (mean, matrix), filled.mean(0)
        deviation, matrix = _regular(((filled - mean).T @ (filled - mean) + rest) / len(z))
        change = torch.maximum((matrix - before[1]).abs().max(), (mean - before[0]).abs().max())
        if float(change) < tolerance:
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
