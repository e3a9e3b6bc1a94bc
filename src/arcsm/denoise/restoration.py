"""Restoring rows that a known corruption has spoilt, one dimension after the other (paper, Section 5.4).

Every function takes a model and noisy rows in data units and walks the dimensions in the order of the context, the
restored values of the dimensions before being what the context of the next one sees:

- :func:`tweedie`: one step along the score, the paper's way for Gaussian noise;
- :func:`langevin`: Langevin dynamics from the noisy value, the paper's way for salt and pepper;
- :func:`posterior`: the exact one-dimensional posterior of each value, its mean, median or a draw;
- :func:`particles`: many candidates for each row, weighed by how well they explain *all* noisy values.

The first three choose :math:`x_d` by what comes before it and its own noisy value; only the last lets later values
have a say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from arcsm._runtime.batching import ROWS, condition_rows, slices_of
from arcsm._runtime.progress import track
from arcsm._runtime.random import open_uniform_like
from arcsm.conditionals.conditionals import Conditionals, EvaluationCache
from arcsm.conditionals.traversal import ancestral, warn_unconverged
from arcsm.denoise.corruptions import Corruption, GaussianNoise, SaltAndPepper, standardised_at
from arcsm.denoise.particles import Particles, particles, systematic
from arcsm.denoise.posteriors import Posterior, ask
from arcsm.model import AutoregressiveModel
from arcsm.samplers import annealed_langevin, check_langevin

__all__ = [
    "Corruption",
    "GaussianNoise",
    "Particles",
    "Posterior",
    "SaltAndPepper",
    "langevin",
    "particles",
    "posterior",
    "systematic",
    "tweedie",
]

Estimate = Literal["mean", "median", "sample"]

_OUTSIDE = 1e-6  # relative; how far a sigma may be outside the ladder by rounding


# The paper's two ways ---------------------------------------------------------------------------------------------


def tweedie(
    model: AutoregressiveModel, y: Tensor, sigma: float, condition: Tensor | None = None, progress: bool = False
) -> Tensor:
    """Remove Gaussian noise in a single step (paper, Section 5.4; Tweedie's formula).

    .. math:: x_d = y_d + \\sigma^2 s_\\sigma(y_d \\mid x_{<d}) = \\mathbb{E}[x_d \\mid y_d, x_{<d}]

    One evaluation of the score for each value; exact if the score of the level :math:`\\sigma` is.

    Arguments:
        model: A model with a noise ladder.
        y: Noisy rows, ``(*, D)`` in data units.
        sigma: Standard deviation of the noise in data units. It may lie between two levels of the ladder.
        condition: What the model is conditioned on, ``(*, F)`` or labels ``(*)``.
        progress: Show a progress bar (on a terminal).

    Returns:
        Restored rows, ``(*, D)`` in data units.

    Raises:
        ValueError: for a model without a ladder, or a sigma outside of it.

    Example:
        >>> from arcsm import MADE, GaussianHead, NoiseLadder
        >>> model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4), NoiseLadder(1.0, 0.1, levels=5))
        >>> tweedie(model, torch.zeros(3, 2), sigma=0.6).shape
        torch.Size([3, 2])
    """
    _check_level(model, sigma)

    def restore(conditionals: Conditionals, d: int, noisy: Tensor) -> Tensor:
        level = sigma / float(model.scale[d])
        return noisy + level**2 * conditionals.score(noisy, level)

    return _restore(model, y, condition, model.conditionals_of(cache=EvaluationCache()), restore, progress)


def langevin(
    model: AutoregressiveModel,
    y: Tensor,
    suspect: Tensor | None = None,
    first_level: int = 0,
    steps: int = 20,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
    condition: Tensor | None = None,
    progress: bool = False,
) -> Tensor:
    """Langevin dynamics down the ladder, from the noisy value on (paper, Section 5.4, for salt and pepper).

    The dynamics are those of :func:`arcsm.samplers.langevin` (paper, Eq. 22); they do not know the noisy value but as
    their start. Many steps at a large noise forget it, few steps at the last levels stay near it.

    Arguments:
        model: The model; without a ladder, plain Langevin dynamics.
        y: Noisy rows, ``(*, D)`` in data units.
        suspect: Which values may be wrong, boolean, ``(*, D)``; the others stay. By default all.
        first_level: Level of the ladder to start at; 0 is the largest, -1 the smallest.
        steps: Steps at each level.
        step_size: :math:`\\epsilon_0`, in squared standardised units; by default :math:`0.4\\,\\sigma_L^2`
            (0.01 without a ladder).
        generator: Source of randomness, on the model's device.
        condition: What the model is conditioned on, ``(*, F)`` or labels ``(*)``.
        progress: Show a progress bar (on a terminal).

    Returns:
        Restored rows, ``(*, D)`` in data units; restored values carry the smallest noise of the ladder.

    Raises:
        ValueError: for a level that the ladder does not have, steps or a step size that are not positive (and finite),
            or a mask of another shape.

    Example:
        >>> from arcsm import MADE, GaussianHead
        >>> model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4))
        >>> y = torch.tensor([[0.5, 9.0]])
        >>> langevin(model, y, suspect=y > 5.0)[0, 0].item()
        0.5
    """
    check_langevin(steps, step_size)
    if suspect is not None and (suspect.dtype != torch.bool or suspect.shape != y.shape):
        raise ValueError(
            f"suspect: expected booleans of shape {tuple(y.shape)}, got {suspect.dtype} {tuple(suspect.shape)}"
        )
    model.path(first_level)  # raises for one that does not exist
    levels = model.path()[first_level:]

    def restore(conditionals: Conditionals, d: int, x: Tensor) -> Tensor:
        return annealed_langevin(conditionals, x, levels, generator, steps, step_size)

    return _restore(model, y, condition, model.conditionals_of(cache=EvaluationCache()), restore, progress, suspect)


# Exact posteriors -------------------------------------------------------------------------------------------------


def posterior(
    model: AutoregressiveModel,
    y: Tensor,
    corruption: Corruption,
    estimate: Estimate = "mean",
    generator: torch.Generator | None = None,
    condition: Tensor | None = None,
    method: str | None = None,
    tol: float = 1e-4,
    max_evaluations: int = 512,
    progress: bool = False,
) -> Tensor:
    """Replace each value by an estimate from its exact posterior, given its noisy value and the restored ones before.

    .. math:: p(x_d \\mid y_d, x_{<d}) \\propto q(x_d \\mid x_{<d})\\, p(y_d \\mid x_d)

    With a noise ladder, :math:`q` is the model's density of the data *plus* the smallest noise, which stands for that
    of the data (:func:`tweedie` has no such blur).

    Arguments:
        model: The model.
        y: Noisy rows, ``(*, D)`` in data units.
        corruption: How they came about, :class:`GaussianNoise` or :class:`SaltAndPepper`, or your own.
        estimate: ``"mean"`` (least squared error), ``"median"`` (least absolute error) or ``"sample"``, a draw.
        generator: Source of randomness of ``"sample"``, on the model's device.
        condition: What the model is conditioned on, ``(*, F)`` or labels ``(*)``.
        method: How :math:`q` is normalised, as in :meth:`AutoregressiveModel.log_prob`: ``"closed_form"``, ``"flow"``
            or ``"quadrature"``. By quadrature the posteriors of Gaussian noise are as exact as the score; through
            the flow, a density is cut into 128 cells.
        tol: Error of a log density in nats to aim for.
        max_evaluations: Largest number of evaluations of the score for one integral.
        progress: Show a progress bar (on a terminal).

    Returns:
        Restored rows, ``(*, D)`` in data units.

    Raises:
        ValueError: for an unknown estimate or method.

    Warns:
        AccuracyWarning: once a call, if some integrals missed ``tol``.

    Example:
        >>> from arcsm import MADE, GaussianHead
        >>> model = AutoregressiveModel(MADE(2, 4, (8,)), GaussianHead(4))
        >>> posterior(model, torch.zeros(3, 2), GaussianNoise(0.5), estimate="median").shape
        torch.Size([3, 2])
    """
    if estimate not in get_args(Estimate):
        raise ValueError(f"estimate: expected one of {', '.join(get_args(Estimate))}, got {estimate!r}")

    def restore(conditionals: Conditionals, d: int, noisy: Tensor) -> Tensor:
        found = standardised_at(corruption, model, d).posterior(conditionals, noisy)
        if estimate == "mean":
            return found.mean()
        return found.quantile(
            torch.full_like(noisy, 0.5) if estimate == "median" else open_uniform_like(noisy, generator)
        )

    build = model.conditionals_of(-1, method, None, tol, max_evaluations, EvaluationCache())
    return _restore(model, y, condition, build, restore, progress)


# What they share --------------------------------------------------------------------------------------------------


def _check_level(model: AutoregressiveModel, sigma: float) -> None:
    """Whether a sigma in data units is within the ladder in every dimension."""
    if model.noise is None:
        raise ValueError("sigma: this model has no noise ladder, so no score of noisy data; use posterior")
    lowest = model.noise.sigma_min * float(model.scale.max())
    highest = model.noise.sigma_max * float(model.scale.min())
    if not lowest * (1.0 - _OUTSIDE) <= sigma <= highest * (1.0 + _OUTSIDE):
        raise ValueError(f"sigma: expected one within the ladder, {lowest:g} to {highest:g} in data units, got {sigma}")


@torch.no_grad()
def _restore(
    model: AutoregressiveModel,
    y: Tensor,
    condition: Tensor | None,
    build: Callable[[Tensor], Conditionals],
    restore: Callable[[Conditionals, int, Tensor], Tensor],
    progress: bool,
    suspect: Tensor | None = None,
) -> Tensor:
    """Restore one dimension after the other: ``(*, D)`` in data units to the same.

    ``restore(conditionals, d, noisy)`` gives the values of dimension ``d``, standardised, of noisy ones ``(n,)``.
    """
    flat = model.standardise(y).reshape(-1, model.features)
    wrong = torch.ones_like(flat, dtype=torch.bool) if suspect is None else suspect.reshape(flat.shape)
    rows = condition_rows(condition, y.shape[:-1])
    z, unconverged = torch.zeros_like(flat), 0
    with track("denoising", model.features * -(-len(flat) // ROWS), progress) as advance:
        for part in slices_of(len(flat)):

            def choose(conditionals: Conditionals, d: int, part: slice = part) -> Tensor:
                noisy, chosen = flat[part, d], wrong[part, d].nonzero()[:, 0]
                values = ask(conditionals, chosen, lambda doubtful: restore(doubtful, d, noisy[chosen]))
                return noisy.index_put((chosen,), values)

            unconverged += ancestral(choose, model.context, model.head, z[part], rows(part), build, advance)
    warn_unconverged(unconverged, flat.numel())
    return (z * model.scale + model.shift).reshape(y.shape)
