"""Encoders: from an input and noise to reparameterised samples of latents."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from arcsm.contexts import MADE
from arcsm.implicit.networks.autoregressive_map import autoregressive_map, conditional_moments
from arcsm.implicit.networks.folded_density import log_density
from arcsm.implicit.networks.trunks import Trunk


class Encoder(nn.Module, ABC):
    """A sampler of :math:`q_\\phi(z \\mid x)`: inputs ``(B, F)`` and noise ``(B, K, D)`` to latents ``(B, K, D)``.

    Sampling has three stages, so that repeated samples share the work on the inputs: :meth:`features`,
    :meth:`precompute` and :meth:`draw`. The attribute ``latents`` is the size :math:`D`.
    """

    latents: int

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Return features of the inputs, ``(B, ...)``."""

    def precompute(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return what all samples of the same features share, ``(B, ...)`` each."""
        return (features,)

    @abstractmethod
    def draw(self, precomputed: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        """Return latents ``(B, K, D)`` for the result of :meth:`precompute` and standard normal noise ``(B, K, D)``."""

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return latents ``(B, K, D)`` for standard normal noise ``(B, K, D)``."""
        return self.draw(self.precompute(self.features(x)), noise)


class LocationScaleEncoder(Encoder):
    """An encoder that samples in its own units: :math:`z = m(x) + e^{\\ell(x)} u`, with a trunk of the input alone."""

    def __init__(self, trunk: Trunk, latents: int) -> None:
        super().__init__()
        self.trunk, self.latents = trunk, latents
        self.location_and_log_scale = nn.Linear(trunk.out_features, 2 * latents)

    def features(self, x: Tensor) -> Tensor:
        return self.trunk(x)  # type: ignore[no-any-return]

    def location_scale(self, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return location :math:`m` and log scale :math:`\\ell`, ``(B, D)`` each."""
        if features is None:
            raise ValueError("features: this encoder needs inputs, got None")
        location, log_scale = self.location_and_log_scale(features).chunk(2, -1)
        return location, log_scale

    def precompute(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return location and log scale, ``(B, D)`` each, followed by anything else that a subclass needs."""
        return self.location_scale(features)

    def draw(self, precomputed: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return _to_latents(precomputed, self.draw_units(precomputed, noise))

    @torch.no_grad()
    def draw_with_log_prob(self, precomputed: tuple[Tensor, ...], noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents as :meth:`draw`, up to rounding, and their :meth:`log_prob` before rounding.

        The rounded latents of a narrow encoder, or near a fold of its map, no longer determine their density.
        """
        precomputed = tuple(t.double() for t in precomputed)
        u = self.draw_units(precomputed, noise.double())
        return _to_latents(precomputed, u).to(noise), self._log_prob(precomputed, u).to(noise)

    @torch.no_grad()
    def log_prob(self, precomputed: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """Return :math:`\\log q(z \\mid x)` in nats, ``(B, K)``, for latents ``(B, K, D)``, in double precision.

        For the encoder's own samples see :meth:`draw_with_log_prob`. Weights that are NaN, infinite or far too large
        raise a :class:`NonFiniteError`.
        """
        precomputed = tuple(t.double() for t in precomputed)
        return self._log_prob(precomputed, _to_units(precomputed, z.double())).to(z)

    def _log_prob(self, precomputed: tuple[Tensor, ...], u: Tensor) -> Tensor:
        return (self.log_density_of_units(precomputed, u) - precomputed[1].unsqueeze(1)).sum(-1)

    @abstractmethod
    def draw_units(self, precomputed: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        """Return :math:`u`, ``(B, K, D)``, for standard normal noise ``(B, K, D)``."""

    @abstractmethod
    def log_density_of_units(self, precomputed: tuple[Tensor, ...], u: Tensor) -> Tensor:
        """Return the log density of each :math:`u_d` given the earlier ones, ``(B, K, D)``, without gradient."""


class GaussianEncoder(LocationScaleEncoder):
    """The usual explicit encoder: independent Gaussian latents, whose :math:`u` is the noise itself."""

    def draw_units(self, precomputed: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return noise

    def log_density_of_units(self, precomputed: tuple[Tensor, ...], u: Tensor) -> Tensor:
        return -0.5 * (u.square() + math.log(2.0 * math.pi))


class ImplicitEncoder(Encoder):
    """A network of the input and the noise, without a structure that would make its density tractable.

    The noise is the extra features of the trunk.
    """

    def __init__(self, trunk: Trunk, latents: int) -> None:
        super().__init__()
        if trunk.extra_features != latents:
            raise ValueError(f"trunk: expected {latents} extra features, got {trunk.extra_features}")
        self.trunk, self.latents = trunk, latents
        self.output = nn.Linear(trunk.out_features, latents)

    def features(self, x: Tensor) -> Tensor:
        return self.trunk.project_input(x)

    def draw(self, precomputed: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return self.output(self.trunk.finish(precomputed[0], noise))  # type: ignore[no-any-return]


class AutoregressiveEncoder(LocationScaleEncoder):
    """An implicit encoder of one latent after another, :math:`z_d = h_d(\\epsilon_d, z_{<d}, x)` (paper, Appendix D.2).

    In the encoder's units, with trunk :math:`f` and ``units`` hidden units for each latent,

    .. math:: u_d = \\epsilon_d + w_d^\\top \\tanh(A_d f(x) + B_d u_{<d} + v_d \\epsilon_d), \\qquad
        z_d = m_d(x) + e^{\\ell_d(x)} u_d

    The map of the noise need not be monotone, so conditionals may have several modes. :meth:`log_prob` sums over all
    noise values that map to a latent.

    Example:
        >>> from arcsm.implicit import DenseTrunk
        >>> encoder = AutoregressiveEncoder(DenseTrunk(5, (16,)), latents=3)
        >>> encoder(torch.zeros(2, 5), torch.randn(2, 7, 3)).shape
        torch.Size([2, 7, 3])
    """

    def __init__(self, trunk: Trunk, latents: int, units: int = 32) -> None:
        super().__init__(trunk, latents)
        self.units = units  # the attribute names below are tensor names in saved files
        self.of_input = nn.Linear(trunk.out_features, latents * units)  # A
        self.of_latents = nn.Parameter(torch.empty(latents, latents, units).uniform_(-1.0, 1.0) / math.sqrt(latents))
        self.of_noise = nn.Parameter(torch.empty(latents, units).uniform_(-1.0, 1.0))  # v
        self.output = nn.Parameter(torch.empty(latents, units).uniform_(-1.0, 1.0) / units)  # w

    def precompute(self, features: Tensor) -> tuple[Tensor, ...]:
        return *self.location_scale(features), self.of_input(features).unflatten(-1, (self.latents, self.units))

    def draw_units(self, precomputed: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        weights = (weight.to(noise) for weight in (self.of_noise, self.of_latents, self.output))
        return autoregressive_map(_from_input(precomputed, noise), noise.flatten(0, 1), *weights).view_as(noise)

    def log_density_of_units(self, precomputed: tuple[Tensor, ...], u: Tensor) -> Tensor:
        earlier = u.new_ones(self.latents, self.latents).tril(-1).unsqueeze(-1) * self.of_latents.to(u)  # (D, D, U)
        inner = precomputed[2].unsqueeze(1) + torch.tensordot(u, earlier.transpose(0, 1), 1)  # (B, K, D, U)
        weights = (weight.to(u).expand_as(inner).flatten(0, -2) for weight in (self.of_noise, self.output))
        return log_density(u.flatten(), inner.flatten(0, -2), *weights).view_as(u)

    @torch.no_grad()
    def conditional_moments(self, precomputed: tuple[Tensor, ...], z: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of each :math:`z_d` given the earlier ones, ``(B, K, D)`` each."""
        location, log_scale = (t.unsqueeze(1) for t in precomputed[:2])
        u = _to_units(precomputed, z).flatten(0, 1)
        weights = self.of_noise, self.of_latents, self.output
        mean, variance = conditional_moments(_from_input(precomputed, z), u, *weights)
        return location + log_scale.exp() * mean.view_as(z), log_scale + 0.5 * torch.log(variance.view_as(z))


class MaskedEncoder(Encoder):
    """A masked perceptron of the input and the noise, :math:`z_d = g_d(\\epsilon_{\\le d}, x)` (paper, Appendix D.2).

    A :class:`~arcsm.MADE` of the noise, conditioned on the trunk's features, gives the contexts :math:`c_d`, which
    depend on :math:`\\epsilon_{<d}` and :math:`x`. The last hidden layer has ``units`` for each latent:

    .. math:: z_d = w_d^\\top \\tanh(c_d + v_d \\epsilon_d) + b_d

    Unlike :class:`AutoregressiveEncoder` it has neither units of its own nor a tractable density.

    Example:
        >>> from arcsm.implicit import DenseTrunk
        >>> encoder = MaskedEncoder(DenseTrunk(5, (16,)), latents=3)
        >>> encoder(torch.zeros(2, 5), torch.randn(2, 7, 3)).shape
        torch.Size([2, 7, 3])
    """

    def __init__(self, trunk: Trunk, latents: int, units: int = 32) -> None:
        super().__init__()
        self.trunk, self.latents, self.units = trunk, latents, units
        self.contexts = MADE(latents, units, (trunk.out_features,), condition_features=trunk.out_features)
        self.of_noise = nn.Parameter(torch.empty(latents, units).uniform_(-1.0, 1.0))  # v
        self.output = nn.Parameter(torch.empty(latents, units).uniform_(-1.0, 1.0) / math.sqrt(units))  # w
        self.bias = nn.Parameter(torch.zeros(latents))

    def features(self, x: Tensor) -> Tensor:
        return self.trunk(x)  # type: ignore[no-any-return]

    def draw(self, precomputed: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        condition = precomputed[0].repeat_interleave(noise.shape[1], 0)
        contexts = self.contexts(noise.flatten(0, 1), condition).view(*noise.shape, self.units)
        return (torch.tanh(contexts + noise.unsqueeze(-1) * self.of_noise) * self.output).sum(-1) + self.bias


def _to_latents(precomputed: tuple[Tensor, ...], u: Tensor) -> Tensor:
    location, log_scale = (t.unsqueeze(1) for t in precomputed[:2])
    return location + log_scale.exp() * u


def _to_units(precomputed: tuple[Tensor, ...], z: Tensor) -> Tensor:
    location, log_scale = (t.unsqueeze(1) for t in precomputed[:2])
    return (z - location) * torch.exp(-log_scale)


def _from_input(precomputed: tuple[Tensor, ...], samples: Tensor) -> Tensor:
    """Return the inputs' share of pre-activations, ``(B * K, D, U)``, for samples ``(B, K, D)``."""
    count = samples.shape[1]
    return precomputed[2].repeat_interleave(count, 0) if count != 1 else precomputed[2]
