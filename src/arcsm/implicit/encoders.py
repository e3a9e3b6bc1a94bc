"""Encoders: from an input and noise to samples of latents, reparameterised."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from arcsm.implicit.trunks import Trunk


class Encoder(nn.Module, ABC):
    """A sampler of :math:`q_\\phi(z \\mid x)`: inputs ``(B, F)`` and noise ``(B, K, D)`` to latents ``(B, K, D)``.

    Attributes:
        latents: The size :math:`D`.
    """

    latents: int

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """All that it makes of the inputs alone, ``(B, ...)``: computed once, however often it is drawn from."""

    @abstractmethod
    def draw(self, features: Tensor, noise: Tensor) -> Tensor:
        """Samples ``(B, K, D)`` from features and standard normal noise ``(B, K, D)``."""

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Samples ``(B, K, D)`` for standard normal noise ``(B, K, D)``."""
        return self.draw(self.features(x), noise)


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


class GaussianEncoder(LocationScaleEncoder):
    """The usual explicit encoder: a Gaussian of independent latents, whose :math:`u` is the noise itself."""

    def draw(self, features: Tensor, noise: Tensor) -> Tensor:
        location, log_scale = (t.unsqueeze(1) for t in self.location_scale(features))
        return location + log_scale.exp() * noise


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

    def draw(self, features: Tensor, noise: Tensor) -> Tensor:
        return self.output(self.trunk.finish(features, noise))  # type: ignore[no-any-return]


class AutoregressiveEncoder(LocationScaleEncoder):
    """An implicit encoder whose latents come one after the other, :math:`z_d = h_d(\\epsilon_d, z_{<d}, x)`.

    That is what scores of conditionals ask for (paper, Appendix D.2). In its own units

    .. math:: u_d = \\epsilon_d + w_d^\\top \\tanh(A_d f(x) + B_d u_{<d} + v_d \\epsilon_d), \\qquad
        z_d = m_d(x) + e^{\\ell_d(x)} u_d

    where :math:`f` is the trunk. The map of the noise need not be monotone, so that the conditionals may have several
    modes and no density in closed form.

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

    def draw(self, features: Tensor, noise: Tensor) -> Tensor:
        location, log_scale = (t.unsqueeze(1) for t in self.location_scale(features))
        fixed = self.of_input(features).unflatten(-1, (self.latents, self.units)).unsqueeze(1)  # (B, 1, D, U)
        fixed = fixed + noise.unsqueeze(-1) * self.of_noise  # (B, K, D, U)
        found: list[Tensor] = []
        for d, (of_input, e) in enumerate(zip(fixed.unbind(2), noise.unbind(2), strict=True)):
            if found:
                of_input = of_input + torch.stack(found, -1) @ self.of_latents[d, :d]
            found.append(e + torch.tanh(of_input) @ self.output[d])
        return location + log_scale.exp() * torch.stack(found, -1)
