"""Toy sets as the experiments use them: standardised, with the smallest noise on them, and their true density."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from arcsm.data.toys import Toy, toy

_HERMITE_NODES = 24


@dataclass(frozen=True)
class ToyRows:
    """Rows of a toy set in standardised units, noise added: what every model of an experiment is of.

    Attributes:
        toy: The set.
        train: ``(N, 2)``, without noise.
        test: ``(M, 2)``, with noise.
        shift: Of the standardisation, ``(2,)``.
        scale: Of the standardisation, ``(2,)``.
        sigma: The noise, in standardised units.
    """

    toy: Toy
    train: Tensor
    test: Tensor
    shift: Tensor
    scale: Tensor
    sigma: float

    def noisy(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Rows with fresh noise."""
        return x + self.sigma * torch.randn(x.shape, generator=generator)

    def fresh(self, count: int, generator: torch.Generator) -> Tensor:
        """New rows of the set ``(count, 2)``, standardised and with noise."""
        return self.noisy((self.toy.sample(count, generator) - self.shift) / self.scale, generator)

    def true_log_prob(self, z: Tensor) -> Tensor | None:
        """True log density of the noisy set at standardised points ``(N, 2)``, or ``None`` where it is not known.

        The noise is integrated out by Gauss-Hermite quadrature; on the checkerboard, whose density jumps, in closed
        form.
        """
        noise = self.sigma * self.scale.double()  # data units
        x = z.double() * self.scale.double() + self.shift.double()
        if self.toy.name == "checkerboard":
            found = _noisy_checkerboard(x, noise)
        elif self.toy.log_prob is not None:
            found = torch.cat([_smoothed(self.toy, part, noise) for part in x.split(256)])
        else:
            return None
        return found + self.scale.double().log().sum()


def toy_rows(name: str, train: int, test: int, sigma: float, seed: int) -> ToyRows:
    """Train and test rows of a toy set, standardised by its train rows."""
    chosen = toy(name)
    generator = torch.Generator().manual_seed(seed)
    x, held_out = chosen.sample(train, generator), chosen.sample(test, generator)
    shift, scale = x.mean(0), x.std(0)
    noise = sigma * torch.randn(held_out.shape, generator=generator)
    return ToyRows(chosen, (x - shift) / scale, (held_out - shift) / scale + noise, shift, scale, sigma)


def _smoothed(chosen: Toy, x: Tensor, noise: Tensor) -> Tensor:
    """Log density of the set with noise ``(2,)`` on it, at ``x (n, 2)``."""
    assert chosen.log_prob is not None
    nodes, weights = np.polynomial.hermite_e.hermegauss(_HERMITE_NODES)
    t, log_w = torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2.0 * math.pi)).log()
    offsets = torch.cartesian_prod(t, t) * noise  # (K, 2)
    log_weights = (log_w[:, None] + log_w[None, :]).flatten()
    values = chosen.log_prob((x[:, None, :] + offsets).reshape(-1, 2)).view(len(x), -1)
    return torch.logsumexp(values + log_weights, 1)


def _noisy_checkerboard(x: Tensor, noise: Tensor) -> Tensor:
    """Eight squares of side 2 and density 1/32, each coordinate blurred."""
    edges = torch.arange(-4.0, 5.0, 2.0, dtype=x.dtype)
    below = torch.special.ndtr((edges - x[..., None]) / noise[:, None])  # (n, 2, 5)
    inside = below.diff(dim=-1)  # (n, 2, 4) of the four columns and rows
    coloured = (torch.arange(4)[:, None] + torch.arange(4)[None, :]) % 2 == 0
    mass = (inside[:, 0, :, None] * inside[:, 1, None, :] * coloured).sum((1, 2))
    return torch.log(mass.clamp(min=1e-300) / 32.0)
