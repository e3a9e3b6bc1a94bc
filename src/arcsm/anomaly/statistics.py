"""How outlying rows are, by what an autoregressive model says of them.

Every score of a row is a number, and **larger means more outlying**. Likelihoods, norms of scores and the statistics
"tails" and "squares" of PIT values look at one side only; but rows far more likely than those that the model was
trained on are outlying too (a constant image under a model of photographs), and which side an unknown outlier takes
nobody knows. How uniform the PIT values are (KS, AD) and :class:`Combination`, which needs inliers only, see both.

Models are of rows alone: one that needs a condition cannot be asked here. The scores of a row that lacks values are
NaN; :class:`arcsm.estimators.ScoreOutlierDetector` knows what to do with gaps.

With a noise ladder a model's density is that of the data *plus* its smallest noise. Scores are of the rows as they are
given: for PIT values that are uniform on inliers, add that noise first
(:func:`arcsm.metrics.add_smallest_noise`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from torch import Tensor

from arcsm._runtime.progress import track
from arcsm.conditionals.conditionals import Accuracy, Conditionals, Method, choose_method
from arcsm.conditionals.traversal import warn_unconverged
from arcsm.model import AutoregressiveModel

#: Scores by name, each ``(N,)``, in double precision.
Table = Mapping[str, Tensor]

_CONDITIONALS = 1 << 16  # of a chunk of rows


# Scores of a row ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def score_sum(model: AutoregressiveModel, x: Tensor, level: int = -1, sign: float = 1.0) -> Tensor:
    """The paper's statistic (Section 5.5), ``(N,)`` in standardised units.

    .. math:: h(x) = \\pm \\sum_{d=1}^{D} s_d(x)

    Arguments:
        model: The model.
        x: Rows ``(N, D)`` in data units.
        level: Noise level of the scores; 0 is the largest, -1 the smallest. The paper does not say which.
        sign: Of :math:`h`. The paper does not say which end it counts as outlying.

    Raises:
        ValueError: for a wrong shape, NaN or infinity, or a level that the ladder does not have.
    """
    sigma = _sigma(model, level)
    parts = [model.head.projected_score(projection, z, sigma).double().sum(1) for z, projection in _contexts(model, x)]
    return sign * torch.cat(parts).cpu()


@torch.no_grad()
def score_norms(model: AutoregressiveModel, x: Tensor) -> Tensor:
    """Euclidean norm of the vector of conditional scores at every noise level, ``(N, L)`` in standardised units.

    The first column is the largest noise; a model without a ladder has one column.

    Raises:
        ValueError: for a wrong shape, NaN or infinity.
    """
    sigmas = _sigmas(model)
    parts = [
        torch.stack([model.head.projected_score(projection, z, sigma).double().norm(dim=1) for sigma in sigmas], 1)
        for z, projection in _contexts(model, x)
    ]
    return torch.cat(parts).cpu()


@torch.no_grad()
def negative_log_prob(
    model: AutoregressiveModel, x: Tensor, method: str | None = None, tol: float = 1e-3, max_evaluations: int = 512
) -> Tensor:
    """Negative log density of rows ``(N, D)`` in nats, ``(N,)``; arguments as in :meth:`AutoregressiveModel.log_prob`.

    NaN of a row that lacks values: with fewer of them it is another density.

    Raises:
        ValueError: for a wrong shape, NaN or infinity, or a method that the model does not offer.
    """
    _check_rows(model, x)
    found = -model.log_prob(x, method=method, tol=tol, max_evaluations=max_evaluations).double().cpu()
    return found.masked_fill(x.isnan().any(1).cpu(), math.nan)


# How uniform the PIT values of a row are ----------------------------------------------------------------------------


def kolmogorov_smirnov(u: Tensor) -> Tensor:
    """Largest distance between the distribution of each row's values ``(N, D)`` and the uniform, ``(N,)``.

    Example:
        >>> kolmogorov_smirnov(torch.tensor([[0.25, 0.75]]))
        tensor([0.2500])
    """
    ordered, count = u.sort(1).values, u.shape[1]
    steps = torch.arange(count + 1, dtype=u.dtype, device=u.device) / count
    return torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).amax(1)


def anderson_darling(u: Tensor) -> Tensor:
    """Anderson and Darling's distance of each row's values ``(N, D)`` from the uniform, ``(N,)``: minds the ends.

    .. math:: A^2 = -D - \\frac1D \\sum_{i=1}^{D} (2 i - 1) \\big[\\log u_{(i)} + \\log(1 - u_{(D + 1 - i)})\\big]
    """
    ordered, count = _inside(u).sort(1).values, u.shape[1]
    weights = 2.0 * torch.arange(1, count + 1, dtype=ordered.dtype, device=u.device) - 1.0
    return -count - (weights * (torch.log(ordered) + torch.log1p(-ordered.flip(1)))).mean(1)


def tail_surprise(u: Tensor) -> Tensor:
    """Mean of :math:`-\\log(4 u (1 - u))` of each row ``(N, D)``, ``(N,)``: :math:`2 - \\log 4` for uniform values."""
    u = _inside(u)
    return -(math.log(4.0) + torch.log(u) + torch.log1p(-u)).mean(1)


def squared_normal_scores(u: Tensor) -> Tensor:
    """Sum of :math:`\\Phi^{-1}(u_d)^2` of each row ``(N, D)``, ``(N,)``: chi-squared of ``D`` degrees if uniform."""
    return normal_scores(u).square().sum(1)


def lag_one(u: Tensor) -> Tensor:
    """Autocorrelation at lag one of each row's normal scores ``(N, D)``, ``(N,)``, in the order of the columns.

    .. math:: \\sum_d z_d z_{d+1} \\Big/ \\sum_d z_d^2, \\qquad z_d = \\Phi^{-1}(u_d)
    """
    z = normal_scores(u)
    return (z[:, :-1] * z[:, 1:]).sum(1) / z.square().sum(1).clamp(min=torch.finfo(z.dtype).tiny)


def normal_scores(u: Tensor) -> Tensor:
    """:math:`\\Phi^{-1}(u)`, with values that have been rounded to 0 or 1 kept inside."""
    return torch.special.ndtri(_inside(u))


def pit_statistics(u: Tensor) -> dict[str, Tensor]:
    """All statistics of this module of how far each row's PIT values ``(N, D)`` are from uniform, by name.

    Arguments:
        u: Values of :meth:`AutoregressiveModel.cdf`, the columns in the order of the chain rule.
    """
    statistics = {
        "KS": kolmogorov_smirnov(u),
        "AD": anderson_darling(u),
        "tails": tail_surprise(u),
        "squares": squared_normal_scores(u),
    }
    return statistics if u.shape[1] < 2 else {**statistics, "lag 1": lag_one(u)}


def _inside(u: Tensor) -> Tensor:
    eps = torch.finfo(u.dtype).eps
    return u.clamp(eps, 1.0 - eps)


# All of them in one pass --------------------------------------------------------------------------------------------


@torch.no_grad()
def features(
    model: AutoregressiveModel,
    x: Tensor,
    levels: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    tol: float = 1e-3,
    max_evaluations: int = 512,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Every score of every row, from one pass of the context network, in bounded memory.

    The columns are ``h, SIGMA`` (:func:`score_sum`) and ``|s|, SIGMA`` (:func:`score_norms`) for each level, and for
    each method ``-log q, METHOD`` and ``PIT NAME, METHOD`` (:func:`pit_statistics`).

    Arguments:
        model: The model.
        x: Rows ``(N, D)`` in data units.
        levels: Noise levels of the scores; by default all.
        methods: How densities are normalised, as in :meth:`AutoregressiveModel.log_prob`. By default the model's own
            default and, where that is not in closed form, quadrature at the smallest noise. ``()`` for no densities,
            which cost far more than scores.
        tol: Error of each conditional in nats to aim for.
        max_evaluations: Largest number of evaluations of the score for one conditional and integral.
        progress: Show a progress bar (on a terminal).

    Returns:
        Columns ``(N,)`` on the processor, in double precision.

    Raises:
        ValueError: for a wrong shape, NaN or infinity, or levels and methods that the model does not have.

    Warns:
        AccuracyWarning: once a call, if some integrals missed ``tol``.

    Example:
        >>> from arcsm import MADE, AutoregressiveModel, GaussianHead
        >>> model = AutoregressiveModel(MADE(3, 4, (8,)), GaussianHead(4))
        >>> list(features(model, torch.zeros(2, 3)))[:4]
        ['h', '|s|', '-log q, closed_form', 'PIT KS, closed_form']
    """
    sigmas = _sigmas(model) if levels is None else tuple(_sigma(model, level) for level in levels)
    builders = [
        _Densities(model, choose_method(model.head, model.path(), method), Accuracy(tol, max_evaluations))
        for method in (_default_methods(model) if methods is None else methods)
    ]
    tables = []
    with track("scoring", len(x), progress) as advance:
        for z, projection in _contexts(model, x):
            table = _of_scores(model, z, projection, sigmas)
            for builder in builders:
                table |= builder.columns(z, projection)
            tables.append({name: column.double().cpu() for name, column in table.items()})
            advance(len(z))
    warn_unconverged(sum(builder.unconverged for builder in builders), x.numel() * len(builders))
    return {name: torch.cat([table[name] for table in tables]) for name in tables[0]}


def _of_scores(
    model: AutoregressiveModel, z: Tensor, projection: Tensor, sigmas: Sequence[float | None]
) -> dict[str, Tensor]:
    sums, norms = {}, {}
    for sigma in sigmas:
        s = model.head.projected_score(projection, z, sigma).double()  # (B, D)
        at = "" if sigma is None else f", {sigma:.4g}"
        sums[f"h{at}"], norms[f"|s|{at}"] = s.sum(1), s.norm(dim=1)
    return sums | norms


@dataclass
class _Densities:
    """The log densities and the PIT values of rows by one method; what is integrated serves both."""

    model: AutoregressiveModel
    method: Method
    accuracy: Accuracy
    unconverged: int = 0

    def columns(self, z: Tensor, projection: Tensor) -> dict[str, Tensor]:
        flat, at = projection.flatten(0, 1), z.flatten()  # (B * D, P) and (B * D,)
        if self.method == "closed_form":  # in single precision the upper tail would end at 1 - 6e-8
            flat, at = flat.double(), at.double()
        conditionals = Conditionals(self.model.head, flat, self.model.path(), self.method, self.accuracy)
        log_prob, u = (t.view_as(z) for t in conditionals.log_prob_and_cdf(at))
        self.unconverged += conditionals.unconverged
        nats = torch.log(self.model.scale.double()).sum() - log_prob.sum(1)
        statistics = pit_statistics(u[:, list(self.model.context.order)])
        by = self.method
        return {f"-log q, {by}": nats, **{f"PIT {name}, {by}": column for name, column in statistics.items()}}


def _default_methods(model: AutoregressiveModel) -> tuple[Method, ...]:
    own = choose_method(model.head, model.path(), None)
    return (own,) if own in ("closed_form", "quadrature") else (own, "quadrature")


def _sigmas(model: AutoregressiveModel) -> tuple[float | None, ...]:
    return model.path() or (None,)


def _sigma(model: AutoregressiveModel, level: int) -> float | None:
    path = model.path(level)
    return path[-1] if path else None


def _check_rows(model: AutoregressiveModel, x: Tensor) -> None:
    if isinstance(x, Tensor) and (x.ndim != 2 or len(x) == 0):
        raise ValueError(f"x: expected rows of shape (N, {model.features}), at least one, got {tuple(x.shape)}")
    model.standardise(x[:0] if isinstance(x, Tensor) else x)


def _contexts(model: AutoregressiveModel, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Standardised rows ``(B, D)`` and what the head needs of their contexts ``(B, D, P)``, some rows at a time."""
    _check_rows(model, x)
    for part in x.split(max(1, _CONDITIONALS // model.features)):
        z = model.standardise(part)
        yield z, model.head.project(model.context(z))


# Several scores as one ----------------------------------------------------------------------------------------------


class Combination:
    """How far rows are from known inliers in several scores at once, to either side. No outlier is needed.

    Each score is mapped to normal scores by its ranks among the inliers: by their quantiles, linearly between them
    and, at the slope of the half of the inliers on that side, beyond the outermost. The score of a row is its squared
    Mahalanobis distance, with a covariance that is shrunk.

    .. math:: (z - \\bar z)^\\top\\, \\Sigma^{-1}\\, (z - \\bar z)

    Fit it on rows that the model was not trained on: a model knows its training rows a little too well.

    References:
        A well-conditioned estimator for large-dimensional covariance matrices (Ledoit and Wolf, 2004)

    Arguments:
        knots: Number of quantiles.

    Attributes:
        columns_: Names of the scores.
        maps_: The map to normal scores of each column.
        covariance_: scikit-learn's estimate.

    Example:
        >>> inliers = {"a": torch.linspace(-1.0, 1.0, 101), "b": torch.linspace(-1.0, 1.0, 101) ** 3}
        >>> near, far, too_near = Combination().fit(inliers).score(
        ...     {"a": torch.tensor([0.5, 3.0, 0.5]), "b": torch.tensor([0.125, 27.0, -1.0])}
        ... ).tolist()
        >>> near < far and near < too_near
        True
    """

    def __init__(self, knots: int = 101) -> None:
        self.knots = knots

    def fit(self, inliers: Table) -> Self:
        """Learn the distribution of the scores from a table of inliers.

        Raises:
            ValueError: for columns of different lengths, fewer than three rows, no column, NaN, infinity, or a
                column that is the same for nearly all rows.
        """
        if self.knots < 2:
            raise ValueError(f"knots: expected at least 2, got {self.knots}")
        values = _matrix("inliers", inliers, tuple(inliers))
        if len(values) < 3:
            raise ValueError(f"inliers: expected at least 3 rows, got {len(values)}")
        maps = [_NormalScores.of(column, min(self.knots, len(values))) for column in values.T]
        constant = [name for name, to_normal in zip(inliers, maps, strict=True) if len(to_normal.x) < 2]
        if constant:
            raise ValueError(f"inliers: {constant[0]} is the same for nearly all rows; leave it out")
        self.columns_, self.maps_ = tuple(inliers), maps
        self.covariance_ = LedoitWolf().fit(self._mapped(values))
        return self

    def score(self, table: Table) -> Tensor:
        """Squared distance of the rows of a table with the same columns, ``(N,)``.

        Raises:
            ValueError: before :meth:`fit`; for missing columns, NaN or infinity.
        """
        if not hasattr(self, "columns_"):
            raise ValueError("Combination: not fitted yet; call fit with the scores of inliers")
        return torch.from_numpy(self.covariance_.mahalanobis(self._mapped(_matrix("table", table, self.columns_))))

    def _mapped(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([to_normal(column) for to_normal, column in zip(self.maps_, values.T, strict=True)], 1)


@dataclass(frozen=True)
class _NormalScores:
    """An increasing, piecewise linear map that makes a sample about standard normal.

    Attributes:
        x: Quantiles of the sample, ascending.
        z: Those of the normal.
        slopes: Below the first and above the last.
    """

    x: NDArray[np.float64]
    z: NDArray[np.float64]
    slopes: tuple[float, float]

    @classmethod
    def of(cls, sample: NDArray[np.float64], knots: int) -> Self:
        shares = (np.arange(knots) + 0.5) / knots
        x, index = np.unique(np.quantile(sample, shares), return_inverse=True)
        z = np.bincount(index, stats.norm.ppf(shares)) / np.bincount(index)  # one for values that are tied
        if len(x) < 2:
            return cls(x, z, (0.0, 0.0))
        below, above = len(x) // 2, (len(x) - 1) // 2
        slopes = (z[below] - z[0]) / (x[below] - x[0]), (z[-1] - z[above]) / (x[-1] - x[above])
        return cls(x, z, (float(slopes[0]), float(slopes[1])))

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = np.interp(values, self.x, self.z)
        below, above = np.minimum(values - self.x[0], 0.0), np.maximum(values - self.x[-1], 0.0)
        return inside + self.slopes[0] * below + self.slopes[1] * above


def _matrix(name: str, table: Table, columns: Sequence[str]) -> NDArray[np.float64]:
    """Columns of a table side by side, ``(N, P)``, checked."""
    missing = [column for column in columns if column not in table]
    if missing or not columns:
        raise ValueError(f"{name}: expected the columns {', '.join(columns) or '(at least one)'}, got {list(table)}")
    shapes = {tuple(table[column].shape) for column in columns}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"{name}: expected columns of one length, got shapes {sorted(shapes)}")
    values = np.stack([table[column].double().cpu().numpy() for column in columns], 1)
    bad = ~np.isfinite(values).all(0)
    if bad.any():
        raise ValueError(f"{name}: {columns[int(bad.argmax())]} holds NaN or infinity")
    return values


# How well a score tells outliers ------------------------------------------------------------------------------------


def auroc(inliers: Tensor, outliers: Tensor) -> float:
    """Area under the receiver operating characteristic of scores ``(N,)`` and ``(M,)``.

    The probability that an outlier scores higher than an inlier: 1 if all do, 0.5 for a score that knows nothing, and
    less than that for one whose sign is wrong.

    Raises:
        ValueError: for no scores, NaN or infinity.

    Example:
        >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 0.5]))
        0.75
    """
    first, second = _scores("inliers", inliers), _scores("outliers", outliers)
    labels = np.repeat([0, 1], [len(first), len(second)])
    return float(roc_auc_score(labels, np.concatenate([first, second])))


def auroc_standard_error(inliers: Tensor, outliers: Tensor, resamples: int = 200, seed: int = 0) -> float:
    """Standard error of :func:`auroc` by the bootstrap: inliers and outliers are drawn again, each on their own.

    Raises:
        ValueError: for no scores, NaN or infinity, or fewer than two resamples.
    """
    if resamples < 2:
        raise ValueError(f"resamples: expected at least 2, got {resamples}")
    first, second = _scores("inliers", inliers), _scores("outliers", outliers)
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(scores, (resamples, len(scores))) for scores in (first, second)]
    ranks = stats.rankdata(np.concatenate(drawn, 1), axis=1)  # (R, N + M), ties shared
    above = ranks[:, len(first) :].mean(1) - 0.5 * (len(second) + 1)  # inliers below an outlier, on average
    return float(np.std(above / len(first), ddof=1))


def _scores(name: str, scores: Tensor) -> NDArray[np.float64]:
    values = scores.detach().double().cpu().numpy()
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"{name}: expected finite scores of shape (N,), at least one, got {tuple(scores.shape)}")
    return values
