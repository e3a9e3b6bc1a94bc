"""Requirements that raise a ``PartError``, and the random data of the tests."""

import torch
from torch import Tensor

from arcsm._runtime.conditions import Condition, combine
from arcsm.contexts import Context
from arcsm.errors import PartError

TOLERANCE = 1e-9  # relative, in double precision
MAX_JACOBIAN_ROWS = 32


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def random_condition(context: Context, shape: tuple[int, ...], generator: torch.Generator) -> Condition | None:
    """Return a condition for rows of this shape, or ``None`` for a context without one."""
    classes, size = context.classes, context.condition_features
    labels = torch.randint(classes, shape, generator=generator) if classes else None
    vectors = normal(generator, *shape, size) if size else None
    return combine(labels, vectors)


def require(holds: bool, message: str) -> None:
    if not holds:
        raise PartError(message)


def require_shape(actual: object, shape: tuple[int, ...], what: str) -> None:
    """Require a tensor of this shape, without NaN or infinity."""
    if not isinstance(actual, Tensor):
        raise PartError(f"{what}: expected a tensor, got {type(actual).__name__}")
    require(tuple(actual.shape) == shape, f"{what}: expected shape {shape}, got {tuple(actual.shape)}")
    require(bool(actual.isfinite().all()), f"{what}: contains NaN or infinity")


def require_equal(actual: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Require two tensors to be equal, up to a fraction of the largest expected value (at least 1)."""
    require_shape(actual, tuple(expected.shape), what)
    if expected.numel():
        difference = float((actual - expected).detach().abs().max())
        largest = float(expected.detach().abs().max())
        require(difference <= tolerance * max(1.0, largest), f"{what}: differs by {difference:.2g}")
