"""Training steps of the presets, log densities and samples on a GPU, beside flows and the products of the card.

python -m benchmarks.gpu [--device DEVICE] [--small]

It takes about ten minutes on a CUDA machine. ``--small`` tries it out, on a processor too.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, SplineHead
from arcsm.errors import without_waiting
from arcsm.experiments.peers import import_zuko
from arcsm.training.config import configured_objective
from arcsm.training.optimization import build_optimizer
from arcsm.training.run_config import RunConfig, load_config
from benchmarks.timing import show

#: Image shapes of presets, or their numbers of columns.
PRESETS: Mapping[str, tuple[int, ...]] = {
    "toy-checkerboard": (2,),
    "table": (21,),
    "digits": (1, 8, 8),
    "mnist-made": (1, 28, 28),
    "mnist-pixelcnn": (1, 28, 28),
    "cifar-made": (3, 32, 32),
    "cifar-pixelcnn": (3, 32, 32),
}
COLUMNS, ROWS = (21, 784), (512, 32_768)
_SECONDS = 3.0  # of the measurement of a function
_PRODUCT = 8192  # rows and columns of the matrices whose product says what the card can do

Measured = dict[str, Any]


class Card:
    """A device, and how long functions take on it."""

    def __init__(self, name: str, small: bool) -> None:
        self.device, self.small = torch.device(name), small

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, function: Callable[[], object]) -> float:
        """Return the median seconds of a call, each with the wait for the device."""
        for _ in range(1 if self.small else 3):
            function()
        self.wait()
        found: list[float] = []
        while not found or (not self.small and len(found) < 50 and sum(found) < _SECONDS):
            begun = time.perf_counter()
            function()
            self.wait()
            found.append(time.perf_counter() - begun)
        return statistics.median(found)

    def products(self, dtype: torch.dtype) -> float:
        """Return how many multiplications and additions of matrices the device makes in a second."""
        size = 64 if self.small else _PRODUCT
        first, second = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(first)
        return 2.0 * size**3 / self.seconds(lambda: torch.mm(first, second, out=out))

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def training(card: Card, config: RunConfig, shape: tuple[int, ...], limits: Mapping[str, float]) -> Measured:
    """Return the time of a training step in single and half precision, and that of its products alone."""
    features = 1
    for size in shape:
        features *= size
    metadata = {"image_shape": list(shape), "levels": 256} if len(shape) == 3 else {}
    batch = 4 if card.small else config.train.batch_size
    found: Measured = {"rows": batch}
    for name, half in (("single", False), ("bf16", True)):
        torch.manual_seed(0)
        model = config.model.build(features, metadata).to(card.device).train()
        x = torch.rand(batch, features, device=card.device) * 2.0 - 1.0
        optimizer, objective = build_optimizer(model, config.train), configured_objective(config.train)

        def step(
            model: AutoregressiveModel = model,
            x: Tensor = x,
            optimizer: Any = optimizer,
            objective: Callable[..., Tensor] = objective,
            half: bool = half,
        ) -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast(card.device) if half else nullcontext(), without_waiting():
                loss = objective(model, x)
            loss.backward()
            optimizer.step()

        seconds = card.seconds(step)
        with FlopCounterMode(display=False) as counter:
            step()
        limit = counter.get_total_flops() / limits[name]
        found[name] = {"milliseconds": ms(seconds), "times_the_products": ratio(seconds / limit)}
        del model, x, optimizer, objective, step
        card.free()
    return found


def autocast(device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16)


def methods(card: Card, columns: int) -> Iterator[tuple[str, Callable[[Tensor], object], Callable[[int], object]]]:
    """Yield the name of each method, its log density of rows, and its samples."""
    zuko = import_zuko()
    torch.manual_seed(0)
    hidden = (16, 16) if card.small else (256, 256)
    score = ScoreHead(16, (64, 64), sinusoids=4, max_frequency=8.0)
    ours = AutoregressiveModel(MADE(columns, 16, hidden), score, NoiseLadder(1.5, 0.1, 10)).to(card.device)
    yield "arcsm: flow", lambda x: ours.log_prob(x, tol=1e-3), ours.sample
    yield "arcsm: fast flow", lambda x: ours.log_prob(x, tol=1e-3), partial(ours.sample, sampler="fast_flow", steps=4)
    spline = AutoregressiveModel(MADE(columns, 16, hidden), SplineHead(16)).to(card.device)
    yield "arcsm: SplineHead", spline.log_prob, spline.sample
    flows: dict[str, nn.Module] = {
        "zuko: NSF": zuko.flows.NSF(columns, transforms=3, hidden_features=hidden),
        "zuko: MAF": zuko.flows.MAF(columns, transforms=5, hidden_features=hidden),
    }
    for name, flow in flows.items():
        flow = flow.to(card.device)
        yield name, lambda x, flow=flow: flow().log_prob(x), lambda n, flow=flow: flow().sample((n,))


@torch.no_grad()
def evaluation(card: Card, columns: int, rows: int) -> Measured:
    """Return the time of log densities and samples by each method, absolute and relative to ours."""
    x = torch.randn(rows, columns, device=card.device)
    found: Measured = {"log densities": {}, "samples": {}}
    for name, log_prob, draw in methods(card, columns):
        actions: dict[str, Callable[[], object]] = {"samples": partial(draw, rows)}
        if name != "arcsm: fast flow":  # whose log densities are those of the flow
            actions["log densities"] = partial(log_prob, x)
        for what, action in actions.items():
            seconds = card.seconds(action)
            first = next(iter(found[what].values()), {"milliseconds": ms(seconds)})["milliseconds"]
            found[what][name] = {"milliseconds": ms(seconds), "times_ours": ratio(ms(seconds) / first)}
        card.free()
    return found


def ms(seconds: float) -> float:
    return float(f"{1e3 * seconds:.4g}")


def ratio(value: float) -> float:
    return float(f"{value:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="few rows and columns, to try the benchmark out")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("needs a CUDA device; try it out with --device cpu --small")
    card = Card(given.device, given.small)
    limits = {"single": card.products(torch.float32), "bf16": card.products(torch.bfloat16)}
    steps: Measured = {}
    for name, shape in PRESETS.items():
        if card.small and len(shape) == 3 and shape[1] > 8:
            continue
        print(f"training steps of {name} ...", file=sys.stderr)
        steps[name] = training(card, load_config(name), shape, limits)
    evaluations: Measured = {}
    for columns in COLUMNS[:1] if card.small else COLUMNS:
        for rows in (8,) if card.small else ROWS:
            print(f"{rows} rows of {columns} columns ...", file=sys.stderr)
            evaluations[f"{rows} rows of {columns} columns"] = evaluation(card, columns, rows)
    named = torch.cuda.get_device_name(card.device) if card.device.type == "cuda" else card.device.type
    teraflops = {name: ratio(limit / 1e12) for name, limit in limits.items()}
    show("gpu", {"device": named, "teraflops_of_products": teraflops, "training": steps, "evaluation": evaluations})


if __name__ == "__main__":
    main()
