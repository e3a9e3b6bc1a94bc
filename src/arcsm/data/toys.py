"""Two-dimensional toy distributions with exact samplers and true densities.

The sets are those of the flow literature (Grathwohl et al., FFJORD, 2019, and scikit-learn's moons, swiss roll and S),
with one change: curves carry isotropic Gaussian noise, so that their densities are one-dimensional integrals.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 16  # of one (points, centres) block in a density; fits into the cache


class Distribution(Protocol):
    """A sampler of points ``(n, 2)`` in float64, and the log density at points ``(*, 2)``."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor: ...

    def log_prob(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Toy:
    """A named two-dimensional distribution with a seeded sampler and its true log density.

    Example:
        >>> import torch
        >>> rings = toy("rings")
        >>> x = rings.sample(5, torch.Generator().manual_seed(0))
        >>> x.shape, x.dtype, rings.log_prob(x).shape
        (torch.Size([5, 2]), torch.float32, torch.Size([5]))
    """

    name: str
    description: str
    distribution: Distribution

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw points, ``(n, 2)`` in float32, on the generator's device."""
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"n: expected a positive integer, got {n!r}")
        return self.distribution.sample(n, generator).to(torch.float32)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density in nats, ``(*)``, at points ``(*, 2)``; differentiable, evaluated in float64."""
        return self.distribution.log_prob(x)


def toy(name: str) -> Toy:
    """Return the toy distribution of a name.

    Raises:
        ValueError: If there is none; the message lists all names and suggests the closest.
    """
    if name in TOYS:
        return TOYS[name]
    close = difflib.get_close_matches(str(name), TOYS, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ValueError(f"toy: expected one of {', '.join(TOYS)}, got {name!r}{hint}")


class Checkerboard:
    """Uniform on the eight squares of side 2 of one colour in [-4, 4)^2."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        column = torch.randint(4, (n,), generator=generator, device=device)
        row = 2 * torch.randint(2, (n,), generator=generator, device=device) + column % 2
        # Offsets are odd multiples of 2^-21, exact in float32, so that rounding moves no point across an edge.
        offset = torch.randint(1 << 20, (n, 2), generator=generator, device=device).double().add(0.5) / (1 << 20)
        return 2 * (torch.stack([column, row], dim=-1) + offset) - 4  # (n, 2)

    def log_prob(self, x: Tensor) -> Tensor:
        _check_points(x)
        inside = ((x >= -4) & (x < 4)).all(dim=-1)
        coloured = torch.floor(x / 2).sum(dim=-1).remainder(2) == 0
        return torch.full_like(x[..., 0], -math.log(32)).masked_fill(~(inside & coloured), -math.inf)


@dataclass(frozen=True)
class Gaussians:
    """Equal mixture of isotropic Gaussians at angles ``2 pi k / count`` on a circle."""

    count: int
    radius: float
    noise: float

    def centres(self, device: torch.device) -> Tensor:
        angle = torch.arange(self.count, device=device, dtype=torch.float64) * (2 * math.pi / self.count)
        return self.radius * _unit(angle)  # (K, 2)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        component = torch.randint(self.count, (n,), generator=generator, device=generator.device)
        return self.centres(generator.device)[component] + self.noise * _normal((n, 2), generator)

    def log_prob(self, x: Tensor) -> Tensor:
        centres = self.centres(x.device)
        log_weights = torch.full((self.count,), -math.log(self.count), dtype=torch.float64, device=x.device)
        return _gaussian_mixture_log_prob(x, centres, log_weights, self.noise)


@dataclass(frozen=True)
class Rings:
    """Mixture of circles with isotropic Gaussian noise; a circle of radius 0 is a Gaussian.

    At distance r from the origin, a circle of radius R with noise sigma has the density
    ``exp(-(r - R)^2 / (2 sigma^2)) i0e(r R / sigma^2) / (2 pi sigma^2)``: the Gaussian averaged over the angle, with
    ``i0e(z) = exp(-z) I_0(z)`` (Abramowitz and Stegun, 9.6.16).
    """

    radii: tuple[float, ...]
    noises: tuple[float, ...]
    weights: tuple[float, ...]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        radii, noises, weights = self._parameters(generator.device)
        component = torch.multinomial(weights, n, replacement=True, generator=generator)
        circle = radii[component, None] * _unit(2 * math.pi * _uniform((n,), generator))
        return circle + noises[component, None] * _normal((n, 2), generator)

    def log_prob(self, x: Tensor) -> Tensor:
        _check_points(x)
        radii, noises, weights = self._parameters(x.device)
        r = torch.linalg.vector_norm(x.double(), dim=-1, keepdim=True)  # (*, 1)
        bessel = torch.special.i0e(r * radii / noises**2)  # (*, K)
        log_terms = -((r - radii) ** 2) / (2 * noises**2) + bessel.log() - (2 * math.pi * noises**2).log()
        return torch.logsumexp(log_terms + weights.log(), dim=-1).to(x.dtype)

    def _parameters(self, device: torch.device) -> Tensor:
        return torch.tensor([self.radii, self.noises, self.weights], dtype=torch.float64, device=device)  # (3, K)


@dataclass(frozen=True)
class NoisyCurve:
    """``x = c_k(t) + noise * N(0, I)`` with a random arm k and a parameter t of density q on [low, high].

    ``log_prob`` computes the integral ``mean_k int q(t) N(x; c_k(t), noise^2 I) dt`` by composite Gauss-Legendre
    quadrature with 16 nodes in each panel. With the panels chosen here it is exact to 1e-9 nats where the density
    exceeds exp(-50), and to 1e-3 nats anywhere in [-5, 5]^2. ``panels`` is even, so that a kink in the middle lies on
    the edge of a panel.
    """

    arms: Callable[[Tensor], Tensor]  # t (n,) -> points (n, K, 2)
    noise: float
    low: float
    high: float
    quantile: Callable[[Tensor], Tensor] | None = None  # inverse CDF of q; None: q is uniform
    density: Callable[[Tensor], Tensor] | None = None  # q
    panels: int = 24

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        u = _uniform((n,), generator)
        points = self.arms(self.low + (self.high - self.low) * u if self.quantile is None else self.quantile(u))
        arm = torch.randint(points.shape[1], (n,), generator=generator, device=generator.device)
        chosen = points[torch.arange(n, device=arm.device), arm]  # (n, 2)
        return chosen + self.noise * _normal((n, 2), generator)

    def log_prob(self, x: Tensor) -> Tensor:
        t, weights = _gauss_legendre(self.low, self.high, self.panels, x.device)
        q = torch.full_like(t, 1 / (self.high - self.low)) if self.density is None else self.density(t)
        points = self.arms(t)  # (J, K, 2)
        log_weights = (weights * q / points.shape[1]).log()[:, None].expand(points.shape[:2])
        return _gaussian_mixture_log_prob(x, points.flatten(0, 1), log_weights.flatten(), self.noise)


def _gauss_legendre(low: float, high: float, panels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return nodes and weights, ``(16 panels,)``, of the 16-point rule on each of the equal panels of [low, high]."""
    nodes, weights = (torch.from_numpy(part).to(device) for part in np.polynomial.legendre.leggauss(16))
    half = (high - low) / (2 * panels)
    middles = low + half * (2 * torch.arange(panels, dtype=torch.float64, device=device) + 1)
    return (middles[:, None] + half * nodes).flatten(), (half * weights).repeat(panels)


def _gaussian_mixture_log_prob(x: Tensor, centres: Tensor, log_weights: Tensor, noise: float) -> Tensor:
    """Return the log density ``(*)`` at x ``(*, 2)`` of a mixture of ``N(centre_j, noise^2 I)``, in the dtype of x."""
    _check_points(x)
    log_scaled = log_weights - math.log(2 * math.pi * noise**2)
    parts = []
    for part in x.double().reshape(-1, 2).split(max(1, _CHUNK_ELEMENTS // len(centres))):
        square = (part[:, None, 0] - centres[:, 0]) ** 2 + (part[:, None, 1] - centres[:, 1]) ** 2  # (n, J)
        parts.append(torch.logsumexp(log_scaled - square / (2 * noise**2), dim=-1))
    return torch.cat(parts).reshape(x.shape[:-1]).to(x.dtype)


def _check_points(x: Tensor) -> None:
    if x.ndim < 1 or x.shape[-1] != 2 or not x.is_floating_point():
        raise ValueError(f"x: expected floating-point points of shape (*, 2), got {tuple(x.shape)} of {x.dtype}")


def _unit(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)


def _moons(t: Tensor) -> Tensor:
    upper = torch.stack([t.cos() - 0.5, t.sin() - 0.25], dim=-1)
    return 2 * torch.stack([upper, -upper], dim=-2)  # (n, 2, 2)


def _spirals(t: Tensor) -> Tensor:
    arm = t[:, None] / 3 * torch.stack([-t.cos(), t.sin()], dim=-1)
    return torch.stack([arm, -arm], dim=-2)  # (n, 2, 2)


def _swiss_roll(t: Tensor) -> Tensor:
    return t[:, None, None] / 5 * _unit(t)[:, None]  # (n, 1, 2)


def _s_curve(t: Tensor) -> Tensor:
    return 1.5 * torch.stack([t.sin(), t.sign() * (t.cos() - 1)], dim=-1)[:, None]  # (n, 1, 2)


def _pinwheel(t: Tensor) -> Tensor:
    radius = 1 + 0.3 * t  # (n,)
    turn = torch.arange(5, dtype=t.dtype, device=t.device) * (2 * math.pi / 5)  # (5,)
    return 2 * radius[:, None, None] * _unit(turn + 0.25 * radius.exp()[:, None])  # (n, 5, 2)


_TAIL_MASS = 0.5 * math.erfc(3 / math.sqrt(2))  # of a standard normal below -3


def _truncated_normal_quantile(u: Tensor) -> Tensor:
    return torch.special.ndtri(_TAIL_MASS + (1 - 2 * _TAIL_MASS) * u)


def _truncated_normal_density(t: Tensor) -> Tensor:
    return torch.exp(-(t**2) / 2) / (math.sqrt(2 * math.pi) * (1 - 2 * _TAIL_MASS))


_SPIRAL_END = 3 * math.pi  # last angle of the spirals, after one and a half turns


def _spiral_quantile(u: Tensor) -> Tensor:
    return _SPIRAL_END * u.sqrt()


def _spiral_density(t: Tensor) -> Tensor:
    return 2 * t / _SPIRAL_END**2


_SETS = (
    Toy("checkerboard", "Uniform on the eight squares of one colour of a 4 x 4 board on [-4, 4]^2", Checkerboard()),
    Toy(
        "rings",
        "Four concentric circles with Gaussian noise",
        Rings(radii=(0.75, 1.5, 2.25, 3.0), noises=(0.1,) * 4, weights=(0.25,) * 4),
    ),
    Toy("eight_gaussians", "Eight Gaussians on a circle", Gaussians(8, 2 * math.sqrt(2), noise=0.5 / math.sqrt(2))),
    Toy("two_moons", "Two interleaved half circles with Gaussian noise", NoisyCurve(_moons, 0.2, 0.0, math.pi)),
    Toy(
        "pinwheel",
        "Five bent arms with Gaussian noise",
        NoisyCurve(_pinwheel, 0.15, -3.0, 3.0, _truncated_normal_quantile, _truncated_normal_density, panels=32),
    ),
    Toy(
        "two_spirals",
        "Two spirals of one and a half turns, Gaussian noise",
        NoisyCurve(_spirals, 0.1, 0.0, _SPIRAL_END, _spiral_quantile, _spiral_density, panels=96),
    ),
    Toy(
        "swiss_roll",
        "One spiral of one and a half turns with Gaussian noise",
        NoisyCurve(_swiss_roll, 0.2, 1.5 * math.pi, 4.5 * math.pi, panels=48),
    ),
    Toy(
        "ring_and_blob",
        "A circle and a Gaussian at its centre, half of the mass each",
        Rings(radii=(3.0, 0.0), noises=(0.2, 0.5), weights=(0.5, 0.5)),
    ),
    Toy("s_curve", "The letter S with Gaussian noise", NoisyCurve(_s_curve, 0.15, -1.5 * math.pi, 1.5 * math.pi)),
)

#: The toy distributions by name.
TOYS: Mapping[str, Toy] = MappingProxyType({entry.name: entry for entry in _SETS})
