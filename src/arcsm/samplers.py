"""Samplers of one dimension given those before it. Each is one function of the conditionals at hand.

The model walks the dimensions in order and calls a sampler for each (paper, Section 4.2), with the conditionals of
that dimension for all rows of the batch; a sampler returns one value for each row.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from arcsm.conditionals import Accuracy, Conditionals, Method, starting_nodes
from arcsm.draws import open_uniform_like
from arcsm.heads import Head
from arcsm.heads.score import FULL_SPAN, ScoreHead
from arcsm.piecewise import PiecewiseDensity
from arcsm.quadrature import doubt, from_nodes

_LEAST_PRECISION = 0.05  # of a conditional at the largest noise, in those of the noise alone, which is the most
_FARTHEST = 10.0  # of its mean, in sigmas
#: Nodes around a nearly normal conditional, in its deviations: no cell with mass in it is wider than may be.
_STEPS_AROUND = (-6.0, -3.75, -3.0, -2.25, -1.5, -0.75, 0.0, 0.75, 1.5, 2.25, 3.0, 3.75, 6.0)

_REACH = 2.4  # of a coarse density, in deviations of the data with the noise: images end at two of them
_BLURRED = 2.8  # sigmas between neighbouring nodes of it, at most
_FEWEST_NODES, _MOST_NODES = 5, 32
_LARGEST_TAILS = 0.1  # mass beyond its outer nodes

#: A sampler takes ``N`` conditionals, a generator and its own options, and returns ``(N,)`` values.
Sampler = Callable[..., Tensor]


def langevin(
    conditionals: Conditionals,
    generator: torch.Generator | None = None,
    steps: int = 20,
    step_size: float | None = None,
) -> Tensor:
    """Annealed one-dimensional Langevin dynamics (paper, Appendix C.3, Eq. 22).

    .. math:: x \\leftarrow x + \\tfrac{\\epsilon}{2} s_{\\sigma_i}(x) + \\sqrt{\\epsilon}\\, z, \\qquad
        \\epsilon = \\epsilon_0\\, \\sigma_i^2 / \\sigma_L^2

    Arguments:
        conditionals: The conditionals, with their ladder; without one, plain Langevin dynamics.
        generator: Source of randomness.
        steps: Steps :math:`T` at each level (paper: 20 for MNIST, 10 for colour images).
        step_size: :math:`\\epsilon_0`, in squared standardised units; by default :math:`0.4\\,\\sigma_L^2`
            (0.01 without a ladder).

    Raises:
        ValueError: for no steps, or a step size that is not positive and finite.
    """
    check_langevin(steps, step_size)
    return annealed_langevin(
        conditionals, _normal(conditionals, generator), conditionals.path, generator, steps, step_size
    )


def check_langevin(steps: int, step_size: float | None) -> None:
    """Steps and step sizes of Langevin dynamics.

    Raises:
        ValueError: for no steps, or a step size that is not positive and finite.
    """
    if steps < 1 or not (step_size is None or 0.0 < step_size < math.inf):
        raise ValueError(f"steps, step_size: expected at least 1 and a positive number, got {steps} and {step_size}")


def annealed_langevin(
    conditionals: Conditionals,
    x: Tensor,
    levels: Sequence[float],
    generator: torch.Generator | None,
    steps: int,
    step_size: float | None,
) -> Tensor:
    """The dynamics of :func:`langevin` from values ``x`` on, ``(N,)``, down some levels of the noise (none: plain)."""
    ladder: Sequence[float | None] = levels or (None,)
    smallest = ladder[-1]
    if step_size is None:
        step_size = 0.01 if smallest is None else 0.4 * smallest**2
    for sigma in ladder:
        epsilon = step_size if sigma is None or smallest is None else step_size * (sigma / smallest) ** 2
        for _ in range(steps):
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = x + 0.5 * epsilon * conditionals.score(x, sigma) + epsilon**0.5 * noise
    return x


def probability_flow(conditionals: Conditionals, generator: torch.Generator | None = None, tol: float = 1e-3) -> Tensor:
    """An exact draw at the largest noise, then the probability-flow ODE down the ladder by Heun steps.

    .. math:: x_{\\sigma_1} = F_{\\sigma_1}^{-1}(u), \\qquad dx / d\\sigma = -\\sigma\\, s_\\sigma(x)

    What it draws from is the model's density by ``method="flow"``, up to ``tol`` (and up to steps that would fold,
    which :func:`arcsm.flow.flow_down` looks for and this does not).

    Arguments:
        conditionals: The conditionals, with their ladder.
        generator: Source of randomness.
        tol: Accuracy of the density at the largest noise, in nats.

    Raises:
        ValueError: for a model without a noise ladder.
    """
    top = _largest_noise(conditionals, "probability_flow")
    x = _exact_draw(conditionals, top, _uniform(conditionals, generator), tol)
    for high, low in itertools.pairwise(conditionals.path):
        first = conditionals.score(x, high)
        second = conditionals.score(torch.add(x, first, alpha=(high - low) * high), low)
        x = torch.add(x, first, alpha=0.5 * (high - low) * high).add_(second, alpha=0.5 * (high - low) * low)
    return x


def fast_flow(conditionals: Conditionals, generator: torch.Generator | None = None, tol: float = 0.1) -> Tensor:
    """Nearly the same flow for a handful of evaluations: few nodes at the largest noise, then one score a step.

    At the largest noise most conditionals are smooth, so a few scores with their slopes give the whole distribution
    function; where these leave a doubt, the conditional is integrated. Down from there goes a multistep method of
    second order in :math:`\\log \\sigma`: with Tweedie's :math:`m = x + \\sigma^2 s_\\sigma(x)`, that of the step
    before :math:`m'`, and :math:`\\lambda` the logarithm of :math:`\\sigma / \\sigma_{next}`,

    .. math:: x \\leftarrow \\tfrac{\\sigma_{next}}{\\sigma} x + \\big(1 - \\tfrac{\\sigma_{next}}{\\sigma}\\big)
        \\big(m + \\tfrac{\\lambda}{2 \\lambda'} (m - m')\\big)

    What a few steps, ``model.sample(n, "fast_flow", steps=10)``, cost and give is measured by the experiment
    ``sampling-cost``.

    References:
        DPM-Solver++ (Lu et al., 2022), for the multistep method, https://arxiv.org/abs/2211.01095

    Arguments:
        conditionals: The conditionals, with their ladder.
        generator: Source of randomness.
        tol: Doubt about the density at the largest noise, in nats, beyond which a conditional is integrated to it.

    Raises:
        ValueError: for a model without a noise ladder.
    """
    top = _largest_noise(conditionals, "fast_flow")
    u = _uniform(conditionals, generator)
    if conditionals.head.normalised:
        x = replace(conditionals, path=(top,), method="closed_form").icdf(u)
    else:
        x = _coarse_draw(conditionals, top, u, tol)
    x = x.to(conditionals.dtype)
    mean_before, step_before = x, math.inf
    for high, low in itertools.pairwise(conditionals.path):
        mean, step = torch.add(x, conditionals.score(x, high), alpha=high**2), math.log(high / low)
        foretold = torch.lerp(mean_before, mean, 1.0 + 0.5 * step / step_before)
        x = torch.lerp(foretold, x, low / high)
        mean_before, step_before = mean, step
    return x


def inverse_cdf(conditionals: Conditionals, generator: torch.Generator | None = None, tol: float = 1e-4) -> Tensor:
    """An exact draw at the smallest noise: the quantile of a uniform, in closed form or by quadrature.

    Arguments:
        conditionals: The conditionals.
        generator: Source of randomness.
        tol: Accuracy of the density in nats, where it is integrated.
    """
    method: Method = "closed_form" if conditionals.head.normalised else "quadrature"
    exact = replace(conditionals, method=method, accuracy=Accuracy(tol), unsure=0)
    x = exact.icdf(_uniform(conditionals, generator))
    conditionals.unsure += exact.unsure
    return x


def _uniform(conditionals: Conditionals, generator: torch.Generator | None) -> Tensor:
    """Numbers in (0, 1) of the precision that densities have: half precision knows but a few hundred."""
    return open_uniform_like(conditionals.projection[:, 0].to(conditionals.dtype), generator)


SAMPLERS: Mapping[str, Sampler] = {
    "langevin": langevin,
    "probability_flow": probability_flow,
    "fast_flow": fast_flow,
    "inverse_cdf": inverse_cdf,
}


def _largest_noise(conditionals: Conditionals, sampler: str) -> float:
    if not conditionals.path:
        raise ValueError(f'sampler: "{sampler}" needs a noise ladder; use "inverse_cdf" or "langevin"')
    return conditionals.path[0]


def _exact_draw(conditionals: Conditionals, sigma: float, u: Tensor, tol: float) -> Tensor:
    """The quantiles ``u (N,)`` at a noise level, by quadrature that begins where the mass is."""
    exact = replace(conditionals, path=(sigma,), method="quadrature", accuracy=Accuracy(tol), unsure=0)
    x = exact.icdf(u, _nodes_around(exact, *_normal_at(conditionals, sigma)))
    conditionals.unsure += exact.unsure
    return x


def _coarse_draw(conditionals: Conditionals, sigma: float, u: Tensor, tol: float) -> Tensor:
    """The quantiles ``u (N,)`` at a noise level from few nodes, and exactly of those conditionals that need more."""
    width = math.hypot(sigma, _data_std(conditionals.head))
    count = max(_FEWEST_NODES, 1 + math.ceil(2.0 * _REACH * width / (_BLURRED * sigma)))
    if count > _MOST_NODES:
        return _exact_draw(conditionals, sigma, u, tol)
    density = _coarse_density(conditionals, sigma, width, count)
    x = density.quantile(u[:, None].double(), tolerance=1e-3)[:, 0].to(u.dtype)
    beyond = density.tails.sum(1) / torch.exp(density.log_mass)
    rows = (~((doubt(density) <= tol) & (beyond <= _LARGEST_TAILS))).nonzero()[:, 0]
    if len(rows):
        part = replace(conditionals, projection=conditionals.projection[rows], unsure=0)
        x[rows] = _exact_draw(part, sigma, u[rows], tol)
        conditionals.unsure += part.unsure
    return x


def _coarse_density(conditionals: Conditionals, sigma: float, width: float, count: int) -> PiecewiseDensity:
    """The conditionals as scores and slopes at evenly spaced points describe them.

    Beyond the outer points the tails are normal, and no wider than those of the data with the noise, ``width``.
    """
    like = conditionals.projection
    grid = torch.linspace(-_REACH, _REACH, count, dtype=torch.float64, device=like.device) * width
    x = grid.expand(len(like), -1)
    s, ds = conditionals.score_and_derivative(x, slice(0, len(x)), sigma)
    outer = ds[:, :: count - 1].clamp(max=-(width**-2))
    return from_nodes(x, s, torch.cat([outer[:, :1], ds[:, 1:-1], outer[:, 1:]], 1))


def _data_std(head: Head) -> float:
    return head.data_std if isinstance(head, ScoreHead) else 1.0


def _normal_at(conditionals: Conditionals, sigma: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the normal distribution whose score is the conditional's at two points.

    First at one sigma to either side of zero, then at one deviation to either side of the mean found, ``(N,)`` each. A
    secant sees the width of the whole; the slope at one point would see the ripples of a learned score.
    """
    mean = conditionals.projection.new_zeros(len(conditionals))
    deviation = torch.full_like(mean, sigma)
    for _ in range(2):
        low, high = conditionals.score(torch.stack([mean - deviation, mean + deviation]), sigma)
        precision = ((low - high) / (2.0 * deviation)).clamp(_LEAST_PRECISION / sigma**2, 1.0 / sigma**2)
        mean = (mean + 0.5 * (low + high) / precision).clamp(-_FARTHEST * sigma, _FARTHEST * sigma)
        deviation = precision.rsqrt()
    return mean, deviation


def _nodes_around(conditionals: Conditionals, mean: Tensor, deviation: Tensor) -> Tensor:
    """Where to begin to integrate conditionals that are nearly normal, ``(N, K)`` in double precision.

    Close together where the mass seems to be, so that mostly one pass will do, and the outermost nodes of the head.
    """
    ends = starting_nodes(conditionals.head, conditionals.projection, conditionals.sigma, (FULL_SPAN,))
    low, middle, high = ends.split(1, 1)
    half = high - middle
    centre = mean[:, None].clamp(middle - 0.8 * half, middle + 0.8 * half)
    room = (half - (centre - middle).abs()) / (1.1 * _STEPS_AROUND[-1])
    steps = _steps_around(low.dtype, low.device)
    return torch.cat([low, torch.addcmul(centre, torch.minimum(deviation[:, None], room), steps), high], 1)


@functools.cache
def _steps_around(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept may later be differentiated through
        return torch.tensor(_STEPS_AROUND, dtype=dtype, device=device)


def _normal(conditionals: Conditionals, generator: torch.Generator | None) -> Tensor:
    like = conditionals.projection
    return torch.randn(len(conditionals), generator=generator, device=like.device, dtype=like.dtype)
