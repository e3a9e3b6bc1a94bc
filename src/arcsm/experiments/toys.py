"""Toy sets for experiments: standardised, with Gaussian noise, and their true density."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from arcsm import AutoregressiveModel, FitResult, fit
from arcsm.data.toys import Toy, toy
from arcsm.experiments.base import seeded
from arcsm.metrics import energy_distance, sliced_wasserstein
from arcsm.training.run_config import load_config

_HERMITE_NODES = 24


@dataclass(frozen=True)
class ToyRows:
    """Rows of a toy set in standardised units."""

    toy: Toy
    train: Tensor  # without noise, (N, 2)
    test: Tensor  # with noise, (M, 2)
    shift: Tensor  # mean that was subtracted, (2,)
    scale: Tensor  # standard deviation that was divided by, (2,)
    sigma: float  # standard deviation of the noise, in standardised units

    def add_noise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return rows with fresh noise."""
        return x + self.sigma * torch.randn(x.shape, generator=generator)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw new rows ``(count, 2)``, standardised and with noise."""
        return self.add_noise((self.toy.sample(count, generator) - self.shift) / self.scale, generator)

    def true_log_prob(self, z: Tensor) -> Tensor | None:
        """Return the true log density of the noisy set at standardised points ``(N, 2)``; ``None`` if unknown.

        The noise is integrated by Gauss-Hermite quadrature; for the checkerboard, whose density jumps, in closed form.
        """
        noise = self.sigma * self.scale.double()  # data units
        x = z.double() * self.scale.double() + self.shift.double()
        if self.toy.name == "checkerboard":
            log_prob = _noisy_checkerboard(x, noise)
        elif self.toy.log_prob is not None:
            log_prob = torch.cat([_smoothed(self.toy, part, noise) for part in x.split(256)])
        else:
            return None
        return log_prob + self.scale.double().log().sum()


def toy_rows(name: str, train: int, test: int, sigma: float, seed: int) -> ToyRows:
    """Return training and test rows of a toy set, standardised by the training rows."""
    toy_set, generator = toy(name), torch.Generator().manual_seed(seed)
    x, held_out = toy_set.sample(train, generator), toy_set.sample(test, generator)
    shift, scale = x.mean(0), x.std(0)
    noise = sigma * torch.randn(held_out.shape, generator=generator)
    return ToyRows(toy_set, (x - shift) / scale, (held_out - shift) / scale + noise, shift, scale, sigma)


def distances(a: Tensor, b: Tensor) -> dict[str, float]:
    """Return distances between two samples of the same size, ``(N, 2)``, by name."""
    return {"energy_distance": energy_distance(a, b), "sliced_wasserstein": sliced_wasserstein(a, b)}


PAPER = "toy-paper"  #: the preset of the paper's own model, for any toy set


def train_toy(
    name: str,
    changes: Sequence[str],
    train: int,
    test: int,
    seed: int,
    device: torch.device,
    preset: str | None = None,
) -> tuple[AutoregressiveModel, ToyRows, FitResult]:
    """Train the model of a preset, by default of the set's own ``toy-*`` preset, on standardised rows."""
    fixed = ["train.standardise=none", f"train.seed={seed}", f"train.device={device}"]
    config = load_config(preset or f"toy-{name.replace('_', '-')}", [*changes, *fixed])
    with seeded(seed):
        model = config.model.build(2, {})
    assert model.noise is not None
    rows = toy_rows(name, train, test, model.noise.sigma_min, seed)
    return model, rows, fit(model, rows.train, config=config.train)


def _smoothed(toy_set: Toy, x: Tensor, noise: Tensor) -> Tensor:
    """Return the log density of the set with noise ``(2,)`` at ``x (n, 2)``."""
    assert toy_set.log_prob is not None
    nodes, weights = np.polynomial.hermite_e.hermegauss(_HERMITE_NODES)
    t, log_w = torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2.0 * math.pi)).log()
    offsets = torch.cartesian_prod(t, t) * noise  # (K, 2)
    log_weights = (log_w[:, None] + log_w[None, :]).flatten()
    values = toy_set.log_prob((x[:, None, :] + offsets).reshape(-1, 2)).view(len(x), -1)
    return torch.logsumexp(values + log_weights, 1)


def _noisy_checkerboard(x: Tensor, noise: Tensor) -> Tensor:
    """Return the log density of eight blurred squares of side 2 and density 1/32."""
    edges = torch.arange(-4.0, 5.0, 2.0, dtype=x.dtype)
    below = torch.special.ndtr((edges - x[..., None]) / noise[:, None])  # (n, 2, 5)
    inside = below.diff(dim=-1)  # (n, 2, 4): the four columns and rows
    coloured = (torch.arange(4)[:, None] + torch.arange(4)[None, :]) % 2 == 0
    mass = (inside[:, 0, :, None] * inside[:, 1, None, :] * coloured).sum((1, 2))
    return torch.log(mass.clamp(min=1e-300) / 32.0)
