"""Small models and samples for tests: random ones of every kind, and Gaussian ones with closed forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.stats import kstest
from torch import Tensor

from arcsm import MADE, AutoregressiveModel, GaussianHead, Head, LogisticMixtureHead, NoiseLadder, ScoreHead

MakeModel = Callable[..., AutoregressiveModel]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_model(
    kind: str = "score",
    features: int = 2,
    noise: NoiseLadder | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    strength: float = 1.0,
    shift: Any = 0.0,
    scale: Any = 1.0,
    metadata: dict[str, Any] | None = None,
    **context: Any,
) -> AutoregressiveModel:
    """Return a small model whose conditionals depend on the context and are far from their initial shape.

    Arguments:
        kind: ``"score"``, ``"gaussian"`` or ``"mixture"``.
        features: Number of dimensions.
        noise: The noise ladder.
        dtype: Type of the weights.
        seed: Seed of the weights.
        strength: Scale of the random weights of a score head.
        shift: Shift of the model.
        scale: Scale of the model.
        metadata: Metadata of the model.
        context: Further arguments of the context.
    """
    torch.manual_seed(seed)
    made = MADE(features=features, context_features=3, hidden_features=(12,), **context)
    head: Head
    if kind == "score":
        head = ScoreHead(context_features=3, hidden_features=(16, 16), sinusoids=2, max_frequency=3.0)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.normal_().mul_(strength / parameter.shape[-1] ** 0.5)
            head.output.bias.zero_()
    elif kind == "gaussian":
        head = GaussianHead(context_features=3)
    else:
        head = LogisticMixtureHead(context_features=3, components=3)
    return AutoregressiveModel(made, head, noise, shift, scale, metadata).to(dtype).eval()


# Samples ------------------------------------------------------------------------------------------------------------


def in_units(model: AutoregressiveModel, z: Tensor) -> Tensor:
    """Convert standardised to data units."""
    return z * model.scale + model.shift


def points(model: AutoregressiveModel, *shape: int, seed: int = 1) -> Tensor:
    """Return standard normal rows ``(*shape, D)``, converted to data units."""
    z = torch.randn(*shape, model.features, generator=seeded(seed), dtype=torch.float64)
    return in_units(model, z.to(model.shift.dtype))


def assert_uniform(u: Tensor) -> None:
    """Check that PIT values ``(N, D)`` are uniform, and the first two dimensions independent."""
    u = u.detach()
    for d in range(u.shape[-1]):
        assert kstest(u[:, d].numpy(), "uniform").pvalue > 0.001, f"dimension {d}"
    if u.shape[-1] > 1:
        sums = (u[:, 0] + u[:, 1]) % 1.0
        assert kstest(sums.numpy(), "uniform").pvalue > 0.001


# Linear Gaussian models ---------------------------------------------------------------------------------------------

COEFFICIENTS = ((0.0, 0.0, 0.0), (0.8, 0.0, 0.0), (-0.5, 1.2, 0.0))
OFFSETS, DEVIATIONS = (0.3, -0.2, 0.1), (1.0, 0.5, 0.3)


def linear_gaussian_model(
    coefficients: Sequence[Sequence[float]] = COEFFICIENTS,
    offsets: Sequence[float] = OFFSETS,
    deviations: Sequence[float] = DEVIATIONS,
    noise: NoiseLadder | None = None,
    order: Sequence[int] | None = None,
    **units: Any,
) -> AutoregressiveModel:
    """Return x_i ~ N(offset_i + sum_j coefficient_ij x_j, deviation_i^2), standardised, i and j by position."""
    features = len(offsets)
    made, head = MADE(features, 2, (), order=order).double(), GaussianHead(2).double()
    layer: Any = made.layers[0]
    log_deviations = torch.tensor(deviations, dtype=torch.float64).log()
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight.view(features, 2, features)[:, 0] = torch.tensor(coefficients, dtype=torch.float64)
        layer.bias.view(features, 2)[:, 0] = torch.tensor(offsets, dtype=torch.float64)
        layer.bias.view(features, 2)[:, 1] = torch.log(torch.expm1(log_deviations + 7.0)) - 7.0  # inverts the floor
        head.parameters_of.weight.copy_(torch.eye(2))
    return AutoregressiveModel(made, head, noise, **units).double()


def one_gaussian(mean: float = 0.3, deviation: float = 0.7, **options: Any) -> AutoregressiveModel:
    """Return a normal distribution."""
    return linear_gaussian_model(((0.0,),), (mean,), (deviation,), **options)


def sequential_posterior_mean(y: Tensor, sigma: float, order: Sequence[int] = (0, 1, 2)) -> Tensor:
    """Return each value's posterior mean under :func:`linear_gaussian_model`, given restored earlier values."""
    x = torch.zeros_like(y)
    for i, d in enumerate(order):
        mean = OFFSETS[i] + sum(COEFFICIENTS[i][j] * x[:, order[j]] for j in range(i))
        x[:, d] = mean + DEVIATIONS[i] ** 2 / (DEVIATIONS[i] ** 2 + sigma**2) * (y[:, d] - mean)
    return x


def random_rows(n: int, seed: int = 0) -> Tensor:
    """Return standard normal rows ``(n, 3)``."""
    return torch.randn(n, 3, generator=seeded(seed), dtype=torch.float64)
