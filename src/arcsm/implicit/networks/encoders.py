"""Encoders: from an input and noise to samples of latents, reparameterised."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from arcsm import _native
from arcsm.implicit.networks.densities import log_density
from arcsm.implicit.networks.trunks import Trunk

_NODES = 8  # of the noise of one latent, for the moments of its conditional


class Encoder(nn.Module, ABC):
    """A sampler of :math:`q_\\phi(z \\mid x)`: inputs ``(B, F)`` and noise ``(B, K, D)`` to latents ``(B, K, D)``.

    Attributes:
        latents: The size :math:`D`.
    """

    latents: int

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """All that it makes of the inputs alone, ``(B, ...)``: computed once, however often it is drawn from."""

    def begin(self, features: Tensor) -> tuple[Tensor, ...]:
        """What all draws of the same features share, ``(B, ...)`` each."""
        return (features,)

    @abstractmethod
    def draw(self, begun: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        """Samples ``(B, K, D)`` from what was begun and standard normal noise ``(B, K, D)``."""

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Samples ``(B, K, D)`` for standard normal noise ``(B, K, D)``."""
        return self.draw(self.begin(self.features(x)), noise)


class LocationScaleEncoder(Encoder):
    """An encoder that makes samples in units of its own: :math:`z = m(x) + e^{\\ell(x)} u`.

    Arguments:
        trunk: Of the input alone.
        latents: The size :math:`D`.
    """

    def __init__(self, trunk: Trunk, latents: int) -> None:
        super().__init__()
        self.trunk, self.latents = trunk, latents
        self.location_and_log_scale = nn.Linear(trunk.out_features, 2 * latents)

    def features(self, x: Tensor) -> Tensor:
        return self.trunk(x)  # type: ignore[no-any-return]

    def location_scale(self, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Location :math:`m` and log scale :math:`\\ell`, ``(B, D)`` each, by the features of the inputs."""
        if features is None:
            raise ValueError("features: this encoder needs inputs, got None")
        location, log_scale = self.location_and_log_scale(features).chunk(2, -1)
        return location, log_scale

    def begin(self, features: Tensor) -> tuple[Tensor, ...]:
        """Location and log scale, ``(B, D)`` each, and after them what else an encoder of this kind needs."""
        return self.location_scale(features)

    def draw(self, begun: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return self._placed(begun, self.draw_units(begun, noise))

    @torch.no_grad()
    def draw_with_log_prob(self, begun: tuple[Tensor, ...], noise: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`draw` gives, up to rounding, and :meth:`log_prob` of it before it is rounded.

        Rounded latents of a narrow encoder, or near a fold of its maps, no longer tell where they came from.
        """
        begun = tuple(t.double() for t in begun)
        u = self.draw_units(begun, noise.double())
        return self._placed(begun, u).to(noise), self._log_prob_of_units(begun, u).to(noise)

    @torch.no_grad()
    def log_prob(self, begun: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """:math:`\\log q(z \\mid x)` in nats, ``(B, K)``, computed in double precision.

        Arguments:
            begun: What :meth:`begin` gave for the inputs.
            z: Latents of theirs, ``(B, K, D)``; of those that the encoder draws, see :meth:`draw_with_log_prob`.

        Raises:
            NonFiniteError: (a ``ValueError``) for an encoder whose weights are no numbers, or far too large.
        """
        begun = tuple(t.double() for t in begun)
        location, log_scale = (t.unsqueeze(1) for t in begun[:2])
        return self._log_prob_of_units(begun, (z.double() - location) * torch.exp(-log_scale)).to(z)

    def _placed(self, begun: tuple[Tensor, ...], u: Tensor) -> Tensor:
        location, log_scale = (t.unsqueeze(1) for t in begun[:2])
        return location + log_scale.exp() * u

    def _log_prob_of_units(self, begun: tuple[Tensor, ...], u: Tensor) -> Tensor:
        return (self.log_density_of_units(begun, u) - begun[1].unsqueeze(1)).sum(-1)

    @abstractmethod
    def draw_units(self, begun: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        """:math:`u`, ``(B, K, D)``, from what was begun and standard normal noise ``(B, K, D)``."""

    @abstractmethod
    def log_density_of_units(self, begun: tuple[Tensor, ...], u: Tensor) -> Tensor:
        """Log densities of every :math:`u_d` given those before it, ``(B, K, D)``; no gradient flows."""


class GaussianEncoder(LocationScaleEncoder):
    """The usual explicit encoder: a Gaussian of independent latents, whose :math:`u` is the noise itself."""

    def draw_units(self, begun: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return noise

    def log_density_of_units(self, begun: tuple[Tensor, ...], u: Tensor) -> Tensor:
        return -0.5 * (u.square() + math.log(2.0 * math.pi))


class ImplicitEncoder(Encoder):
    """A network of the input and the noise, with no structure that would make a density tractable.

    Arguments:
        trunk: Of the input and, as extras, the noise.
        latents: The size :math:`D`.
    """

    def __init__(self, trunk: Trunk, latents: int) -> None:
        super().__init__()
        if trunk.extra_features != latents:
            raise ValueError(f"trunk: expected one with {latents} extra features, got {trunk.extra_features}")
        self.trunk, self.latents = trunk, latents
        self.output = nn.Linear(trunk.out_features, latents)

    def features(self, x: Tensor) -> Tensor:
        return self.trunk.start(x)

    def draw(self, begun: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return self.output(self.trunk.finish(begun[0], noise))  # type: ignore[no-any-return]


class AutoregressiveEncoder(LocationScaleEncoder):
    """An implicit encoder whose latents come one after the other, :math:`z_d = h_d(\\epsilon_d, z_{<d}, x)`.

    That is what scores of conditionals ask for (paper, Appendix D.2). In its own units

    .. math:: u_d = \\epsilon_d + w_d^\\top \\tanh(A_d f(x) + B_d u_{<d} + v_d \\epsilon_d), \\qquad
        z_d = m_d(x) + e^{\\ell_d(x)} u_d

    where :math:`f` is the trunk. The map of the noise need not be monotone, so that the conditionals may have several
    modes. :meth:`log_prob` finds every noise that a latent may have come from.

    Arguments:
        trunk: Of the input alone.
        latents: The size :math:`D`.
        units: Units of the hidden layer of every latent.

    Example:
        >>> from arcsm.implicit import DenseTrunk
        >>> encoder = AutoregressiveEncoder(DenseTrunk(5, (16,)), latents=3)
        >>> encoder(torch.zeros(2, 5), torch.randn(2, 7, 3)).shape
        torch.Size([2, 7, 3])
    """

    def __init__(self, trunk: Trunk, latents: int, units: int = 32) -> None:
        super().__init__(trunk, latents)
        self.units = units
        self.of_input = nn.Linear(trunk.out_features, latents * units)
        self.of_latents = nn.Parameter(torch.empty(latents, latents, units).uniform_(-1.0, 1.0) / math.sqrt(latents))
        self.of_noise = nn.Parameter(torch.empty(latents, units).uniform_(-1.0, 1.0))
        self.output = nn.Parameter(torch.empty(latents, units).uniform_(-1.0, 1.0) / units)

    def begin(self, features: Tensor) -> tuple[Tensor, ...]:
        return *self.location_scale(features), self.of_input(features).unflatten(-1, (self.latents, self.units))

    def draw_units(self, begun: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        fixed = begun[2].repeat_interleave(noise.shape[1], 0) if noise.shape[1] != 1 else begun[2]  # (B * K, D, U)
        weights = (weight.to(noise) for weight in (self.of_noise, self.of_latents, self.output))
        return chained(fixed, noise.flatten(0, 1), *weights).view_as(noise)

    def log_density_of_units(self, begun: tuple[Tensor, ...], u: Tensor) -> Tensor:
        earlier = u.new_ones(self.latents, self.latents).tril(-1).unsqueeze(-1) * self.of_latents.to(u)  # (D, D, U)
        inner = begun[2].unsqueeze(1) + torch.tensordot(u, earlier.transpose(0, 1), 1)  # (B, K, D, U)
        weights = (weight.to(u).expand_as(inner).flatten(0, -2) for weight in (self.of_noise, self.output))
        return log_density(u.flatten(), inner.flatten(0, -2), *weights).view_as(u)

    @torch.no_grad()
    def conditional_moments(self, begun: tuple[Tensor, ...], z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of every :math:`z_d` given :math:`z_{<d}` and the input, ``(B, K, D)`` each.

        Given what comes before, a latent is a function of one normal variable, so that both are one-dimensional
        integrals: by Gauss-Hermite quadrature.

        Arguments:
            begun: What :meth:`begin` gave for the inputs.
            z: Latents of theirs, ``(B, K, D)``.
        """
        location, log_scale = (t.unsqueeze(1) for t in begun[:2])
        u = (z - location) * torch.exp(-log_scale)
        fixed = begun[2].repeat_interleave(z.shape[1], 0) if z.shape[1] != 1 else begun[2]  # (B * K, D, U)
        mean, variance = chained_moments(fixed, u.flatten(0, 1), self.of_noise, self.of_latents, self.output)
        return location + log_scale.exp() * mean.view_as(z), log_scale + 0.5 * torch.log(variance.view_as(z))


@cache
def _normal_quadrature() -> tuple[list[float], list[float]]:
    """Nodes and weights of expectations of a function of a standard normal variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return nodes.tolist(), (weights / weights.sum()).tolist()


def chained(fixed: Tensor, noise: Tensor, of_noise: Tensor, of_latents: Tensor, output: Tensor) -> Tensor:
    """:math:`u_d = \\epsilon_d + w_d^\\top \\tanh(f_d + v_d \\epsilon_d + B_d u_{<d})`, one latent after the other.

    In C where that is possible (:mod:`arcsm._native`). It is differentiable once: a second derivative is not there, and
    torch does not always say so.

    Arguments:
        fixed: :math:`f`, ``(N, D, U)``.
        noise: :math:`\\epsilon`, ``(N, D)``.
        of_noise: :math:`v`, ``(D, U)``.
        of_latents: :math:`B`, ``(D, D, U)``, of which what is earlier than d is used.
        output: :math:`w`, ``(D, U)``.

    Returns:
        ``(N, D)``.
    """
    if _native.supports(fixed, noise, of_noise, of_latents, output) and _native.available():
        in_c: Tensor = _ChainInC.apply(fixed, noise, of_noise, of_latents, output)
        return in_c
    rows = (fixed + noise.unsqueeze(-1) * of_noise).transpose(0, 1)  # (D, N, U)
    u: Tensor = _Chain.apply(rows, noise, of_latents, output)
    return u


@torch.no_grad()
def chained_moments(
    fixed: Tensor, u: Tensor, of_noise: Tensor, of_latents: Tensor, output: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of every :math:`u_d` of :func:`chained` given those before it, over its noise, ``(N, D)`` each.

    Arguments:
        fixed: As in :func:`chained`, like all the weights.
        u: Latents, ``(N, D)``.
    """
    nodes, weights = _normal_quadrature()
    if _native.supports(fixed, u, of_noise, of_latents, output) and _native.available():
        return _native.latent_chain_moments(fixed, u, of_noise, of_latents, output, nodes, weights)
    earlier = u.new_ones(of_latents.shape[:2]).tril(-1).unsqueeze(-1)
    inner = fixed.transpose(0, 1) + u @ (earlier * of_latents)  # (D, N, U)
    values = torch.stack([
        node + (torch.tanh_(inner + node * of_noise.unsqueeze(1)) @ output.unsqueeze(-1)).squeeze(-1) for node in nodes
    ])  # fmt: skip
    weight = values.new_tensor(weights)
    mean = torch.tensordot(weight, values, 1)
    variance = torch.tensordot(weight, (values - mean).square(), 1)
    return mean.T, variance.T


class _ChainInC(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fixed: Tensor, noise: Tensor, of_noise: Tensor, of_latents: Tensor, output: Tensor) -> Tensor:
        found = _native.latent_chain_forward(fixed, noise, of_noise, of_latents, output)
        ctx.save_for_backward(noise, of_noise, of_latents, output, found.u, *found.hidden)
        return found.u

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        noise, of_noise, of_latents, output, u, *kept = ctx.saved_tensors
        return _native.latent_chain_backward(grad, noise, of_noise, of_latents, output, _native.LatentChain(u, kept))


class _Chain(torch.autograd.Function):
    """:math:`u_d = \\epsilon_d + w_d^\\top \\tanh(f_d + B_d u_{<d})`, one latent after the other, and back.

    The same as a loop over autograd's own operations, without their overhead: what each latent gives to the weights is
    summed up in one product at the end.
    """

    @staticmethod
    def forward(ctx: Any, fixed: Tensor, noise: Tensor, of_latents: Tensor, output: Tensor) -> Tensor:
        """Fixed parts ``(D, N, U)``, noise ``(N, D)``, weights ``(D, D, U)`` and ``(D, U)``, to ``u``, ``(N, D)``."""
        hidden, u = torch.empty_like(fixed, memory_format=torch.contiguous_format), torch.empty_like(noise)
        for d in range(len(fixed)):
            torch.addmm(fixed[d], u[:, :d], of_latents[d, :d], out=hidden[d]) if d else hidden[d].copy_(fixed[d])
            u[:, d] = torch.addmv(noise[:, d], hidden[d].tanh_(), output[d])
        ctx.save_for_backward(hidden, u, of_latents, output)
        return u

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden, u, of_latents, output = ctx.saved_tensors
        total, inner = grad.clone(), torch.empty_like(hidden)  # by u, and by what is under the tanh
        for d in reversed(range(len(hidden))):
            torch.mul(1.0 - hidden[d].square(), torch.outer(total[:, d], output[d]), out=inner[d])
            if d:
                total[:, :d].addmm_(inner[d], of_latents[d, :d].T)
        by_latents = torch.einsum("nj,dnu->dju", u, inner)
        earlier = torch.ones(u.shape[1], u.shape[1], dtype=torch.bool, device=u.device).tril(-1)
        by_latents = by_latents * earlier.unsqueeze(-1)
        return inner, total, by_latents, torch.einsum("nd,dnu->du", total, hidden)
