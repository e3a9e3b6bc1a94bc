"""A forward and backward pass of a MADE for CIFAR-10: ours, with masked weights, and bare matrix products.

python -m benchmarks.made
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from arcsm import MADE
from arcsm._runtime.memory import keep_freed_memory
from arcsm.contexts.made import MaskedLinear
from benchmarks.timing import interleaved_medians, show

_ROWS, _FEATURES, _CONTEXT, _HIDDEN = 64, 3072, 6, (1024, 1024)


class MaskedWeights(MaskedLinear):
    """The naive way: multiply the mask into the weight and take the whole product."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.masked_weight(), self.bias)


def step(made: MADE, x: Tensor) -> None:
    """Sum the contexts and compute all gradients."""
    made.zero_grad()
    made(x).square().sum().backward()


def gradient(made: MADE, x: Tensor) -> Tensor:
    """Compute all gradients, one after another."""
    step(made, x)
    return torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])


def products(made: MADE) -> Callable[[], None]:
    """Compute, for every layer, output, weight gradient and (except for the first) input gradient, without masks."""
    layers = []
    for layer in made.modules():
        if isinstance(layer, MaskedLinear):
            units, inputs = layer.weight.shape
            x, y, weight = torch.randn(_ROWS, inputs), torch.randn(_ROWS, units), layer.weight.detach()
            layers.append((x, y, weight, torch.empty_like(y), torch.empty_like(weight), torch.empty_like(x)))

    def run() -> None:
        for place, (x, y, weight, output, of_weight, of_input) in enumerate(layers):
            torch.mm(x, weight.T, out=output)
            torch.mm(y.T, x, out=of_weight)
            if place:
                torch.mm(y, weight, out=of_input)

    return run


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()  # for all methods
    ours = MADE(_FEATURES, _CONTEXT, _HIDDEN, residual=True)
    masked = MADE(_FEATURES, _CONTEXT, _HIDDEN, residual=True)
    masked.load_state_dict(ours.state_dict())
    for layer in masked.modules():
        if isinstance(layer, MaskedLinear):
            layer.__class__ = MaskedWeights
    x = torch.randn(_ROWS, _FEATURES)
    expected = gradient(masked, x)
    error = float((gradient(ours, x) - expected).norm() / expected.norm())
    del expected
    with torch.no_grad():
        bare = products(ours)
    seconds = interleaved_medians(
        {"ours": lambda: step(ours, x), "masked_weights": lambda: step(masked, x), "matrix_products": bare}
    )
    show(
        "made",
        {
            "sizes": {"rows": _ROWS, "features": _FEATURES, "context": _CONTEXT, "hidden": _HIDDEN},
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "times_faster_than_masked_weights": round(seconds["masked_weights"] / seconds["ours"], 2),
            "times_the_matrix_products": round(seconds["ours"] / seconds["matrix_products"], 2),
            "relative_error_of_the_gradient": error,
        },
    )


if __name__ == "__main__":
    main()
