"""Outlier scores of rows from scores, densities and PIT values of an autoregressive model.

Each score of a row is one number, and **larger means more outlying**. Likelihoods, norms of scores and the PIT
statistics ``tails`` and ``squares`` are one-sided. But rows far more likely than the training rows are outliers too (a
constant image under a model of photographs), and the side of an unknown outlier is unknown. The uniformity of PIT
values (``KS``, ``AD``) and :class:`Combination`, which is fitted to inliers alone, see both sides.

Models must be unconditional. Scores of a row with missing values are NaN;
:class:`arcsm.estimators.ScoreOutlierDetector` handles missing values.

With a noise ladder, a model's density is that of the data *plus* its smallest noise. Scores do not add noise. For PIT
values that are uniform on inliers, add it first (:func:`arcsm.metrics.add_smallest_noise`).
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from arcsm._runtime.progress import track
from arcsm.anomaly.pit import pit_statistics
from arcsm.conditionals import Count
from arcsm.conditionals.conditionals import Accuracy, choose_method
from arcsm.conditionals.located import conditionals_class
from arcsm.conditionals.traversal import warn_unconverged
from arcsm.model import AutoregressiveModel

VALUES_AT_A_TIME = 1 << 16  #: values scored together


@torch.no_grad()
def score_sum(model: AutoregressiveModel, x: Tensor, level: int = -1, sign: float = 1.0) -> Tensor:
    """Return the paper's statistic (Section 5.5), ``(N,)`` in standardised units.

    .. math:: h(x) = \\pm \\sum_{d=1}^{D} s_d(x)

    Arguments:
        x: Finite rows ``(N, D)`` in data units.
        level: Noise level of the scores; 0 is the largest, -1 the smallest. The paper does not specify it.
        sign: Sign of :math:`h`. The paper does not specify which end is outlying.
    """
    sigma = model.sigma(level)
    parts = [model.head.projected_score(projection, z, sigma).double().sum(1) for z, projection in _project(model, x)]
    return sign * torch.cat(parts).cpu()


@torch.no_grad()
def score_norms(model: AutoregressiveModel, x: Tensor) -> Tensor:
    """Return the Euclidean norm of the conditional scores at every noise level, ``(N, L)`` in standardised units.

    The first column is the largest noise. Without a ladder there is one column.
    """
    sigmas = model.path() or (None,)
    parts = [
        torch.stack([model.head.projected_score(projection, z, sigma).double().norm(dim=1) for sigma in sigmas], 1)
        for z, projection in _project(model, x)
    ]
    return torch.cat(parts).cpu()


@torch.no_grad()
def negative_log_prob(
    model: AutoregressiveModel, x: Tensor, method: str | None = None, tol: float = 1e-3, max_evaluations: int = 512
) -> Tensor:
    """Return the negative log density of rows ``(N, D)`` in nats, ``(N,)``; see :meth:`AutoregressiveModel.log_prob`.

    It is NaN for a row with missing values, whose density has fewer dimensions. Errors are as in that method.
    """
    _check_rows(model, x)
    nats = -model.log_prob(x, method=method, tol=tol, max_evaluations=max_evaluations).double().cpu()
    return nats.masked_fill(x.isnan().any(1).cpu(), math.nan)


@torch.no_grad()
def outlier_scores(
    model: AutoregressiveModel,
    x: Tensor,
    levels: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    tol: float = 1e-3,
    max_evaluations: int = 512,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Return every score of every row, from one pass of the context network, in bounded memory.

    There are columns ``h, SIGMA`` (:func:`score_sum`) and ``|s|, SIGMA`` (:func:`score_norms`) for each level, and
    ``-log q, METHOD`` and ``PIT NAME, METHOD`` (:func:`pit_statistics`) for each method, ``(N,)`` each on the CPU, in
    double precision. Other arguments are as in :meth:`AutoregressiveModel.log_prob`.

    Arguments:
        x: Finite rows ``(N, D)`` in data units.
        levels: Noise levels of the scores. Default: all.
        methods: How densities are normalised, as in :meth:`AutoregressiveModel.log_prob`. Default: the model's own
            default and, unless that is in closed form, quadrature at the smallest noise. ``()``, the default of heads
            without a density, computes no densities, which cost far more than scores.

    Warns:
        AccuracyWarning: Once a call, if some integrals missed ``tol``.

    Example:
        >>> from arcsm import MADE, AutoregressiveModel, GaussianHead
        >>> model = AutoregressiveModel(MADE(3, 4, (8,)), GaussianHead(4))
        >>> list(outlier_scores(model, torch.zeros(2, 3)))[:4]
        ['h', '|s|', '-log q, closed_form', 'PIT KS, closed_form']
    """
    sigmas = model.path() or (None,) if levels is None else tuple(map(model.sigma, levels))
    if methods is None and not model.head.has_density:
        methods = ()
    elif methods is None:
        default = choose_method(model.head, model.path(), None)
        methods = (default, "quadrature") if default == "flow" else (default,)
    chosen = [choose_method(model.head, model.path(), method) for method in methods]
    accuracy, order = Accuracy(tol, max_evaluations), list(model.context.order)
    log_scale = torch.log(model.scale.double()).sum()
    tables = []
    unconverged: Count = 0
    with track("scoring", len(x), progress) as advance:
        for z, projection in _project(model, x):
            s = [model.head.projected_score(projection, z, sigma).double() for sigma in sigmas]  # L of (B, D)
            labels = ["" if sigma is None else f", {sigma:.4g}" for sigma in sigmas]
            table = {f"h{label}": scores.sum(1) for label, scores in zip(labels, s, strict=True)}
            table |= {f"|s|{label}": scores.norm(dim=1) for label, scores in zip(labels, s, strict=True)}
            for method in chosen:
                rows, values = projection.flatten(0, 1), z.flatten()  # (B * D, P) and (B * D,)
                if method == "closed_form":  # in single precision the upper tail would end at 1 - 6e-8
                    rows, values = rows.double(), values.double()
                conditionals = conditionals_class(model.head)(model.head, rows, model.path(), method, accuracy)
                log_prob, u = (both.view_as(z) for both in conditionals.log_prob_and_cdf(values))
                unconverged += conditionals.unconverged
                table[f"-log q, {method}"] = log_scale - log_prob.sum(1)
                table |= {f"PIT {name}, {method}": column for name, column in pit_statistics(u[:, order]).items()}
            tables.append({name: column.double().cpu() for name, column in table.items()})
            advance(len(z))
    warn_unconverged(unconverged, x.numel() * len(chosen))
    return {name: torch.cat([table[name] for table in tables]) for name in tables[0]}


def _check_rows(model: AutoregressiveModel, x: Tensor) -> None:
    if isinstance(x, Tensor) and (x.ndim != 2 or len(x) == 0):
        raise ValueError(f"x: expected rows of shape (N, {model.features}), at least one, got {tuple(x.shape)}")
    model.standardise(x[:0] if isinstance(x, Tensor) else x)


def _project(model: AutoregressiveModel, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield standardised rows ``(B, D)`` and projections of their contexts ``(B, D, P)``."""
    _check_rows(model, x)
    for part in x.split(max(1, VALUES_AT_A_TIME // model.features)):
        z = model.standardise(part)
        yield z, model.head.project(model.context(z))
