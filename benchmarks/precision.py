"""One training step of PixelCNN++ on CIFAR-10's size: single precision, bfloat16, and the score network in C.

python -m benchmarks.precision
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from arcsm import AutoregressiveModel, objectives
from arcsm.training.run_config import load_config
from benchmarks.timing import interleaved_medians, show

BATCH, IMAGE_SHAPE = 16, (3, 32, 32)


def step(model: AutoregressiveModel, x: Tensor, bf16: bool, compiled: bool) -> None:
    """Compute the CSM loss and all gradients, always with the same noise."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        generator = torch.Generator().manual_seed(1)
        objectives.csm(model, x, mix=0.1, generator=generator, compiled=compiled).backward()


def gradient(model: AutoregressiveModel, x: Tensor, bf16: bool, compiled: bool) -> Tensor:
    step(model, x, bf16, compiled)
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    metadata = {"image_shape": list(IMAGE_SHAPE), "levels": 256}
    model = load_config("cifar-pixelcnn").model.build(3 * 32 * 32, metadata)
    x = torch.rand(BATCH, model.features) * 2.0 - 1.0
    ways: dict[str, tuple[bool, bool]] = {
        "single": (False, False),
        "single_compiled_head": (False, True),
        "bf16": (True, False),
        "bf16_compiled_head": (True, True),
    }
    steps: dict[str, Callable[[], object]] = {name: lambda way=way: step(model, x, *way) for name, way in ways.items()}
    seconds = interleaved_medians(steps, repeats=5)
    exact = gradient(model, x, False, False)
    cosines = {name: torch.cosine_similarity(gradient(model, x, *way), exact, 0) for name, way in ways.items()}
    show(
        "precision",
        {
            "sizes": {"images": BATCH, "image_shape": IMAGE_SHAPE},
            "seconds_a_step": {name: round(value, 3) for name, value in seconds.items()},
            "times_faster_than_single": {name: round(seconds["single"] / value, 2) for name, value in seconds.items()},
            "cosine_of_the_gradient_with_that_of_single": {name: round(float(c), 6) for name, c in cosines.items()},
            "processor_has_bf16": bool(getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)()),
        },
    )


if __name__ == "__main__":
    main()
