"""Bounds on the sizes of networks: a mistyped or hostile size fails before memory is taken."""

import itertools
import operator
from collections.abc import Iterable, Sequence
from numbers import Integral

MAX_SIZE = 1 << 20
MAX_LAYERS = 256
MAX_WEIGHTS = 1 << 30  # of one network


def check_size(owner: str, least: int = 1, most: int = MAX_SIZE, **sizes: int) -> None:
    """Check that sizes, given by the name of their argument, are whole numbers from ``least`` to ``most``."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or not least <= size <= most:
            raise ValueError(f"{owner}: expected whole numbers from {least} to {most}, got {name}={size!r:.60}")


def whole_numbers(argument: str, values: Iterable[int]) -> tuple[int, ...]:
    """Return the whole numbers of an argument as a tuple, without rounding."""
    try:
        return tuple(map(operator.index, values))
    except TypeError:
        raise ValueError(f"{argument}: expected whole numbers, got {values!r:.60}") from None


def check_layers(owner: str, inputs: int, hidden_features: Sequence[int], outputs: int) -> None:
    """Check the widths of the hidden layers of a perceptron, their number and the number of weights."""
    if len(hidden_features) > MAX_LAYERS:
        raise ValueError(f"{owner}: expected at most {MAX_LAYERS} hidden_features, got {len(hidden_features)}")
    for width in hidden_features:
        check_size(owner, hidden_features=width)
    weights = sum(a * b for a, b in itertools.pairwise((inputs, *hidden_features, outputs)))
    if weights > MAX_WEIGHTS:
        shown = ", ".join(map(str, hidden_features[:6])) + (", ..." if len(hidden_features) > 6 else "")
        raise ValueError(
            f"{owner}: expected at most {MAX_WEIGHTS} weights, got {weights} with {inputs} inputs, "
            f"hidden_features=({shown}) and {outputs} outputs"
        )
