"""Contexts of 16 images of 32 x 32 x 3 by PixelCNN++: one value at a time, or a full forward pass for each pixel.

python -m benchmarks.pixelcnn
"""

from __future__ import annotations

import torch
from torch import Tensor

from arcsm import PixelCNNPP
from benchmarks.timing import median_seconds, show

IMAGES, SHAPE, FILTERS, RESNETS = 16, (3, 32, 32), 32, 2


def one_value_at_a_time(network: PixelCNNPP, x: Tensor) -> Tensor:
    state = network.begin((IMAGES,))
    contexts = x.new_empty(*x.shape, network.context_features)
    previous = None
    for d in network.order:
        contexts[:, d] = network.step(state, previous)
        previous = x[:, d]
    return contexts


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = PixelCNNPP(SHAPE, 16, FILTERS, RESNETS).eval()
    x = torch.randn(IMAGES, network.features)
    forward = median_seconds(lambda: network(x), repeats=7)
    incremental = median_seconds(lambda: one_value_at_a_time(network, x), repeats=3, warm_up=1)
    pixels = SHAPE[1] * SHAPE[2]
    show(
        "pixelcnn",
        {
            "sizes": {"images": IMAGES, "image_shape": SHAPE, "nr_filters": FILTERS, "nr_resnet": RESNETS},
            "seconds": {"one_forward_pass": round(forward, 4), "all_values_incrementally": round(incremental, 3)},
            "times_one_forward_pass": round(incremental / forward, 2),
            "times_faster_than_a_forward_pass_for_each_pixel": round(pixels * forward / incremental),
            "largest_difference": float((one_value_at_a_time(network, x) - network(x)).abs().max()),
        },
    )


if __name__ == "__main__":
    main()
