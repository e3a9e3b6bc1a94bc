"""Splines: conditionals of any shape whose density, distribution function and quantiles take one evaluation."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcsm._native import SplineLimits, available, may_evaluate, spline_project, spline_values, supports
from arcsm._runtime.sizes import check_layers, check_size, whole_numbers
from arcsm.heads.base import NormalisedHead, ScoreAndDerivative, Sigma
from arcsm.heads.located import Located

_MIN_LOG_SCALE = -7.0
_MAX_LOG_SCALE = 15.0  # beyond any data: keeps contexts far from the training data from overflowing
_LEAST_WIDTH, _LEAST_SLOPE = 1e-3, 1e-3  # of a bin, as a share of all; of the spline, at its knots
_SLOPE_OFFSET = math.log(math.expm1(1.0 - _LEAST_SLOPE))  # so that slopes are 1 at first
_BRACKET = 6.5  # standard deviations, which hold all but 1e-10 of the mass


class _Bins(NamedTuple):
    """The bins of some values, ``(*)`` each."""

    left: Tensor  # the left knot
    width: Tensor
    low: Tensor  # the spline at the left knot
    height: Tensor
    first: Tensor  # the slope of the spline at the left knot
    last: Tensor  # and at the right one


class _Spline(NamedTuple):
    """The spline at some points, ``(*)`` each."""

    value: Tensor
    log_slope: Tensor
    first: Tensor | None = None  # derivative of the log slope
    second: Tensor | None = None


class SplineHead(NormalisedHead):
    """A variable that a monotone rational-quadratic spline turns into a standard normal one.

    .. math:: q(x \\mid c) = \\mathcal{N}\\big(g(z);\\, 0, 1\\big)\\, \\frac{g'(z)}{\\tau}, \\qquad
        z = \\frac{x - \\mu(c)}{\\tau(c)}

    The spline :math:`g` maps :math:`[-B, B]` to itself, and is linear elsewhere, so that the tails are Gaussian.
    Location, scale and spline depend on the context through a perceptron, or one linear layer. Density, distribution
    function and quantile have closed forms. Train it by likelihood, ``objective="mle"``, or distil it from a model
    with scores, :func:`arcsm.distil`. The density is continuous, but its score jumps at the knots of the spline.

    The convolution with noise has no closed form: a model with this head has no ladder.

    Arguments:
        context_features: Size :math:`C` of the contexts.
        bins: Number of bins of the spline.
        bound: The end :math:`B` of the spline, in units of the scale from the location.
        hidden_features: Units of each hidden layer. A layer is added to the one before it if that is as wide.
        located: Whether the last two features of a context are a location and a log scale. Values are then in units of
            these, as for a :class:`LocatedHead`.

    References:
        Neural Spline Flows (Durkan, Bekasov, Murray and Papamakarios, 2019), https://arxiv.org/abs/1906.04032

    Example:
        >>> head = SplineHead(context_features=4)
        >>> x = head.projected_icdf(head.project(torch.randn(3, 4)), torch.tensor([0.1, 0.5, 0.9]))
        >>> head.log_prob(torch.zeros(3, 4), torch.zeros(3)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        context_features: int = 16,
        bins: int = 16,
        bound: float = 5.0,
        hidden_features: Sequence[int] = (),
        located: bool = False,
    ) -> None:
        super().__init__()
        hidden_features = whole_numbers("hidden_features", hidden_features)
        check_size("SplineHead", least=3 if located else 1, context_features=context_features)
        check_size("SplineHead", least=2, bins=bins)
        check_layers("SplineHead", context_features, hidden_features, 3 * bins + 3)
        if not 0.0 < bound < math.inf:
            raise ValueError(f"bound: expected a positive number, got {bound}")
        if bins * _LEAST_WIDTH >= 1.0:
            raise ValueError(f"bins: expected fewer than {1.0 / _LEAST_WIDTH:g}, got {bins}")
        self.context_features, self.bins, self.bound = context_features, bins, float(bound)
        self.hidden_features, self.located = hidden_features, located
        sizes = (context_features - 2 * located, *hidden_features)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.parameters_of = nn.Linear(sizes[-1], 3 * bins + 3)
        with torch.no_grad():  # start near a Gaussian
            self.parameters_of.weight[2:].mul_(0.1)
            self.parameters_of.bias.zero_()

    def project(self, context: Tensor) -> Tensor:
        """Return location, log scale, and the inner knots, values and all slopes of the spline, ``(*, 3 K + 1)``."""
        units = Located.split(context) if self.located else None
        inner = context if units is None else units.inner
        projection = self._project(inner) if context.dtype == torch.float32 else None
        if projection is None:
            projection = self._project_in_torch(inner)
        return projection if units is None else self._in_units(projection, units)

    def in_single_precision(self, context: Tensor) -> Tensor:
        units = Located.split(context) if self.located else None
        projection = self._project((context if units is None else units.inner).float())
        if projection is None:
            return self.project(context)
        # relative to a small scale, a location needs all of its digits
        return projection if units is None else self._in_units(projection.to(context.dtype), units)

    @staticmethod
    def _in_units(projection: Tensor, units: Located) -> Tensor:
        location = units.from_units(projection[..., 0])
        log_scale = projection[..., 1] + units.log_scale
        return torch.cat([torch.stack([location, log_scale], -1), projection[..., 2:]], -1)

    def _project(self, inner: Tensor) -> Tensor | None:
        """Return projections in units of the location and the scale in single precision, from C; ``None`` without."""
        if not may_evaluate():
            return None
        layers = [(layer.weight.float(), layer.bias.float()) for layer in (*self.hidden, self.parameters_of)]
        if not supports(inner, *(t.detach() for layer in layers for t in layer)) or not available():
            return None
        limits = SplineLimits(
            self.bins, self.bound, _LEAST_WIDTH, _LEAST_SLOPE, _SLOPE_OFFSET,
            math.exp(_MIN_LOG_SCALE), math.exp(_MAX_LOG_SCALE),
        )  # fmt: skip
        return spline_project(limits, layers, inner.reshape(-1, inner.shape[-1])).view(
            *inner.shape[:-1], 3 * self.bins + 1
        )

    def _project_in_torch(self, h: Tensor) -> Tensor:
        k = self.bins
        for layer in self.hidden:
            above = F.silu(layer(h))
            h = h + above if above.shape == h.shape else above
        location, log_scale, widths, heights, slopes = self.parameters_of(h).split([1, 1, k, k, k + 1], -1)
        log_scale = F.softplus(log_scale - _MIN_LOG_SCALE) + _MIN_LOG_SCALE  # a smooth minimum
        slopes = _LEAST_SLOPE + F.softplus(slopes + _SLOPE_OFFSET)
        ends = self._knots(widths), self._knots(heights)
        return torch.cat([location, log_scale.clamp(max=_MAX_LOG_SCALE), *ends, slopes], -1)

    def _knots(self, raw: Tensor) -> Tensor:
        """Return the inner ones of the ends of bins whose sizes are ``raw (*, K)`` on a log scale, ``(*, K - 1)``."""
        shares = _LEAST_WIDTH + (1.0 - _LEAST_WIDTH * self.bins) * torch.softmax(raw, -1)
        return self.bound * (2.0 * shares.cumsum(-1)[..., :-1] - 1.0)

    def _units(self, projection: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        """Return location and scale, ``(*)`` each."""
        if sigma is not None:
            raise ValueError("SplineHead: has no noise levels; leave the ladder of the model out")
        return projection[..., 0], torch.exp(projection[..., 1])

    def _bins(self, projection: Tensor, value: Tensor, of_values: bool = False) -> _Bins:
        """Return the bins of points ``(*)``, or of values of the spline."""
        inner = self.bins - 1
        knots, values, slopes = projection[..., 2:].split([inner, inner, inner + 2], -1)
        place = (value.unsqueeze(-1) >= (values if of_values else knots)).sum(-1, keepdim=True)

        def at_ends(every: Tensor) -> tuple[Tensor, Tensor]:
            every = every.expand(*place.shape[:-1], -1)
            return every.gather(-1, place)[..., 0], every.gather(-1, place + 1)[..., 0]

        def between(inner: Tensor) -> Tensor:
            return F.pad(F.pad(inner, (1, 0), value=-self.bound), (0, 1), value=self.bound)

        (left, right), (low, high) = at_ends(between(knots)), at_ends(between(values))
        return _Bins(left, right - left, low, high - low, *at_ends(slopes))

    def _spline(self, projection: Tensor, z: Tensor, derivatives: bool = False) -> _Spline:
        """Evaluate the spline at points ``(*)``, and its ``derivatives``.

        In a bin, with the fraction :math:`\\xi` of its width, the mean slope :math:`\\delta` and the slopes
        :math:`d_0, d_1` at its ends, it rises by the fraction :math:`(\\delta \\xi^2 + d_0 \\xi (1 - \\xi)) / D` of its
        height, with :math:`D = \\delta + (d_0 + d_1 - 2 \\delta)\\, \\xi (1 - \\xi)`, and its slope is
        :math:`\\delta^2 P / D^2`, with :math:`P = d_1 \\xi^2 + 2 \\delta \\xi (1 - \\xi) + d_0 (1 - \\xi)^2`.
        """
        inside, clamped = z.abs() < self.bound, z.clamp(-self.bound, self.bound)
        left, width, low, height, first, last = self._bins(projection, clamped)
        tail_slope = torch.where(z < 0.0, first, last)
        xi, delta = (clamped - left) / width, height / width
        rest, bend = 1.0 - xi, first + last - 2.0 * delta
        p, d = last * xi.square() + 2.0 * delta * xi * rest + first * rest.square(), delta + bend * xi * rest
        value = low + height * xi * (delta * xi + first * rest) / d
        log_slope = torch.where(inside, 2.0 * torch.log(delta / d) + torch.log(p), torch.log(tail_slope))
        value = torch.where(inside, value, clamped + tail_slope * (z - clamped))
        if not derivatives:
            return _Spline(value, log_slope)
        p_first, d_first = 2.0 * (last * xi + delta * (rest - xi) - first * rest) / p, bend * (rest - xi) / d
        p_second, d_second = 2.0 * bend / p, -2.0 * bend / d
        log_slope_first = (p_first - 2.0 * d_first) / width
        log_slope_second = (p_second - p_first.square() - 2.0 * (d_second - d_first.square())) / width.square()
        parts = (torch.where(inside, part, 0.0) for part in (log_slope_first, log_slope_second))
        return _Spline(value, log_slope, *parts)

    def _values(self, projection: Tensor, z: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor] | None:
        """Return the spline and its log slope at points ``(*)``, or its inverse, from C; ``None`` without.

        C reads projections in single precision, one for each point.
        """
        if projection.shape[:-1] != z.shape or not may_evaluate() or not supports(projection) or not available():
            return None
        flat = projection.reshape(-1, projection.shape[-1]), z.detach().float().flatten()
        value, log_slope = (
            found.to(z.dtype).view_as(z) for found in spline_values(self.bins, self.bound, *flat, inverse)
        )
        return value, log_slope

    def projected_log_prob(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        location, scale = self._units(projection, sigma)
        z = (x - location) / scale
        found = self._values(projection, z)
        value, log_slope = found if found is not None else self._spline(projection, z)[:2]
        return log_slope - 0.5 * value.square() - projection[..., 1] - 0.5 * math.log(2.0 * math.pi)

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        location, scale = self._units(projection, sigma)
        g = self._spline(projection, (x - location) / scale, derivatives=True)
        assert g.first is not None
        assert g.second is not None
        slope = torch.exp(g.log_slope)
        score = g.first - g.value * slope
        derivative = g.second - slope.square() - g.value * slope * g.first
        return score / scale, derivative / scale.square()

    def projected_cdf(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        location, scale = self._units(projection, sigma)
        z = (x - location) / scale
        found = self._values(projection, z)
        value = found[0] if found is not None else self._spline(projection, z).value
        return 0.5 * torch.erfc(-math.sqrt(0.5) * value)  # ndtr would lose the lower tail

    def projected_icdf(self, projection: Tensor, u: Tensor, sigma: Sigma = None) -> Tensor:
        location, scale = self._units(projection, sigma)
        normal = torch.special.ndtri(u.double()).to(u.dtype)
        found = self._values(projection, normal, inverse=True)
        if found is not None:
            return location + scale * found[0]
        inside, clamped = normal.abs() < self.bound, normal.clamp(-self.bound, self.bound)
        left, width, low, height, first, last = self._bins(projection, clamped, of_values=True)
        delta, rise = height / width, clamped - low
        bend = first + last - 2.0 * delta
        a, b, c = height * (delta - first) + rise * bend, height * first - rise * bend, -delta * rise
        xi = 2.0 * c / (-b - torch.sqrt((b.square() - 4.0 * a * c).clamp(min=0.0)))
        tail_slope = torch.where(normal < 0.0, first, last)
        return location + scale * torch.where(inside, left + xi * width, clamped + (normal - clamped) / tail_slope)

    def bracket(self, projection: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        location, scale = self._units(projection, sigma)
        left, right = projection[..., -self.bins - 1], projection[..., -1]  # slopes of the tails
        beyond = max(0.0, _BRACKET - self.bound)
        return location - scale * (self.bound + beyond / left), location + scale * (self.bound + beyond / right)
