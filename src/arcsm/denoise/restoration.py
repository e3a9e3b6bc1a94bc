"""Restoration of rows with a known corruption, one dimension after another (paper, Section 5.4).

Each function visits the dimensions in the order of the context, which sees the restored values of earlier dimensions:

- :func:`tweedie`: one step along the score, the paper's method for Gaussian noise;
- :func:`langevin`: Langevin dynamics from the corrupted value, the paper's method for salt and pepper;
- :func:`posterior`: mean, median or a sample of the exact one-dimensional posterior.

They restore :math:`x_d` from earlier values and its own corrupted value. Only :func:`arcsm.denoise.particle_filter`
also uses later values.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from arcsm._runtime.batching import ROWS, condition_rows, slices_of
from arcsm._runtime.conditions import Condition
from arcsm._runtime.progress import track
from arcsm._runtime.random import open_uniform_like
from arcsm.conditionals.conditionals import Conditionals, Count, EvaluationCache
from arcsm.conditionals.traversal import ConditionalsBuilder, ancestral, warn_unconverged
from arcsm.denoise.corruptions import Corruption, standardised_at
from arcsm.model import AutoregressiveModel
from arcsm.samplers import annealed_langevin, check_langevin

Estimate = Literal["mean", "median", "sample"]

_ROUNDING = 1e-6  # relative; how far rounding may put a sigma outside the ladder


def tweedie(
    model: AutoregressiveModel, y: Tensor, sigma: float, condition: Condition | None = None, progress: bool = False
) -> Tensor:
    """Remove Gaussian noise in one step by Tweedie's formula (paper, Section 5.4).

    .. math:: x_d = y_d + \\sigma^2 s_\\sigma(y_d \\mid x_{<d}) = \\mathbb{E}[x_d \\mid y_d, x_{<d}]

    It takes one score evaluation for each value and is exact if the score of the level :math:`\\sigma` is.

    Arguments:
        model: A model with a noise ladder.
        y: Noisy rows, ``(*, D)`` in data units, like the result.
        sigma: Standard deviation of the noise in data units, within the ladder. It may lie between two levels.
        condition: Condition of each row, as in :meth:`arcsm.AutoregressiveModel.score`.
        progress: Show progress; see :func:`arcsm.fit`.

    Example:
        >>> from arcsm import MADE, GaussianHead, NoiseLadder
        >>> model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4), NoiseLadder(1.0, 0.1, levels=5))
        >>> tweedie(model, torch.zeros(3, 2), sigma=0.6).shape
        torch.Size([3, 2])
    """
    if model.noise is None:
        raise ValueError("sigma: this model has no noise ladder, so no score of noisy data; use posterior")
    lowest = model.noise.sigma_min * float(model.scale.max())
    highest = model.noise.sigma_max * float(model.scale.min())
    if not lowest * (1.0 - _ROUNDING) <= sigma <= highest * (1.0 + _ROUNDING):
        raise ValueError(f"sigma: expected one within the ladder, {lowest:g} to {highest:g} in data units, got {sigma}")

    def restore(conditionals: Conditionals, d: int, y: Tensor) -> Tensor:
        level = sigma / float(model.scale[d])
        return y + level**2 * conditionals.score(y, level)

    return _restore(model, y, condition, model.conditionals_builder(cache=EvaluationCache()), restore, progress)


def langevin(
    model: AutoregressiveModel,
    y: Tensor,
    corrupted: Tensor | None = None,
    first_level: int = 0,
    steps: int = 20,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
    condition: Condition | None = None,
    progress: bool = False,
) -> Tensor:
    """Run Langevin dynamics down the ladder from the corrupted values (paper, Section 5.4, for salt and pepper).

    The dynamics (:func:`arcsm.samplers.langevin`, paper, Eq. 22) use a corrupted value only as their start. Many steps
    at a large noise forget it; few steps at the last levels stay near it. Without a ladder, the dynamics are not
    annealed. Restored values carry the smallest noise of the ladder. Other arguments and the result are as in
    :func:`tweedie`.

    Arguments:
        y: Corrupted rows, ``(*, D)`` in data units.
        corrupted: Which values may be corrupted, booleans ``(*, D)``; all others stay as they are. Default: all.
        first_level: Noise level to start at; 0 is the largest, -1 the smallest.
        steps: Steps at each level.
        step_size: As in :func:`arcsm.samplers.langevin`.
        generator: Source of randomness, on the model's device.

    Example:
        >>> from arcsm import MADE, GaussianHead
        >>> model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4))
        >>> y = torch.tensor([[0.5, 9.0]])
        >>> langevin(model, y, corrupted=y > 5.0)[0, 0].item()
        0.5
    """
    check_langevin(steps, step_size)
    if corrupted is not None and (corrupted.dtype != torch.bool or corrupted.shape != y.shape):
        raise ValueError(
            f"corrupted: expected booleans of shape {tuple(y.shape)}, got {corrupted.dtype} {tuple(corrupted.shape)}"
        )
    model.path(first_level)  # raises if there is no such level
    levels = model.path()[first_level:]

    def restore(conditionals: Conditionals, d: int, y: Tensor) -> Tensor:
        return annealed_langevin(conditionals, y, levels, generator, steps, step_size)

    build = model.conditionals_builder(cache=EvaluationCache())
    return _restore(model, y, condition, build, restore, progress, corrupted)


def posterior(
    model: AutoregressiveModel,
    y: Tensor,
    corruption: Corruption,
    estimate: Estimate = "mean",
    generator: torch.Generator | None = None,
    condition: Condition | None = None,
    method: str | None = None,
    tol: float = 1e-4,
    max_evaluations: int = 512,
    progress: bool = False,
) -> Tensor:
    """Estimate each value from its exact posterior given its corrupted value and the restored values before it.

    .. math:: p(x_d \\mid y_d, x_{<d}) \\propto q(x_d \\mid x_{<d})\\, p(y_d \\mid x_d)

    With a noise ladder, the prior :math:`q` is the model's density of the data *plus* the smallest noise.
    (:func:`tweedie` does not blur the prior.) Other arguments and the result are as in :func:`tweedie`.

    Arguments:
        corruption: :class:`GaussianNoise`, :class:`SaltAndPepper` or another :class:`Corruption`.
        estimate: ``"mean"`` (least squared error), ``"median"`` (least absolute error) or ``"sample"``.
        generator: Source of randomness for ``"sample"``, on the model's device.
        method: How :math:`q` is normalised; it, ``tol`` and ``max_evaluations`` are as in
            :meth:`AutoregressiveModel.log_prob`. By quadrature, posteriors of Gaussian noise are as exact as the score.
            Through the flow, a density is cut into at least 128 cells; the error of the mean is about 0.01 standard
            deviations of the posterior.

    Warns:
        AccuracyWarning: Once a call, if some integrals missed ``tol``.

    Example:
        >>> from arcsm import MADE, GaussianHead
        >>> from arcsm.denoise import GaussianNoise
        >>> model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4))
        >>> posterior(model, torch.zeros(3, 2), GaussianNoise(0.5), estimate="median").shape
        torch.Size([3, 2])
    """
    if estimate not in get_args(Estimate):
        raise ValueError(f"estimate: expected one of {', '.join(get_args(Estimate))}, got {estimate!r}")

    def restore(conditionals: Conditionals, d: int, y: Tensor) -> Tensor:
        posteriors = standardised_at(corruption, model, d).posterior(conditionals, y)
        if estimate == "mean":
            return posteriors.mean()
        return posteriors.icdf(torch.full_like(y, 0.5) if estimate == "median" else open_uniform_like(y, generator))

    build = model.conditionals_builder(-1, method, None, tol, max_evaluations, EvaluationCache())
    return _restore(model, y, condition, build, restore, progress)


@torch.no_grad()
def _restore(
    model: AutoregressiveModel,
    y: Tensor,
    condition: Condition | None,
    build: ConditionalsBuilder,
    restore: Callable[[Conditionals, int, Tensor], Tensor],
    progress: bool,
    corrupted: Tensor | None = None,
) -> Tensor:
    """Restore data by ``restore(conditionals, d, y)``, which maps standardised values ``(n,)`` of dimension ``d``."""
    model.check_noise_units("restoration of noisy values")
    flat = model.standardise(y).reshape(-1, model.features)
    mask = torch.ones_like(flat, dtype=torch.bool) if corrupted is None else corrupted.reshape(flat.shape)
    rows = condition_rows(model.standardise_condition(condition, y.shape[:-1]), y.ndim - 1)
    z = torch.zeros_like(flat)
    unconverged: Count = 0
    with track("denoising", model.features * -(-len(flat) // ROWS), progress) as advance:
        for part in slices_of(len(flat)):

            def choose(conditionals: Conditionals, d: int, part: slice = part) -> Tensor:
                values, selected = flat[part, d], mask[part, d].nonzero()[:, 0]
                restored = conditionals.apply(lambda subset: restore(subset, d, values[selected]), selected)
                return values.index_put((selected,), restored)

            unconverged += ancestral(choose, model.context, model.head, z[part], rows(part), build, advance)
    warn_unconverged(unconverged, flat.numel())
    return (z * model.scale + model.shift).reshape(y.shape)
