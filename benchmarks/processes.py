"""Memory and time of a training step of PixelCNN++: one process, one process with two parts, two processes.

python -m benchmarks.processes
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from arcsm import AutoregressiveModel, TrainConfig, fit
from arcsm._runtime import process_group
from arcsm.metrics.costs import extra_memory_mib
from arcsm.training.run_config import load_config
from benchmarks.timing import show

SHAPE, ROWS, STEPS = (3, 32, 32), 32, 4


def build() -> tuple[AutoregressiveModel, Tensor]:
    torch.manual_seed(0)
    model = load_config("cifar-pixelcnn").model.build(3072, {"image_shape": list(SHAPE), "levels": 256})
    return model, torch.rand(ROWS * STEPS, 3072) * 2.0 - 1.0


def work(folder: Path, accumulate: int) -> None:
    """Train in one process and write its numbers (the first process: its weights too) to the folder."""
    torch.set_num_threads(1)
    group = process_group.join()
    short = TrainConfig(batch_size=2, mix=0.1, standardise="none", device="cpu", steps=1)
    whole = short.model_copy(update={"batch_size": ROWS, "accumulate": accumulate, "steps": STEPS})
    model, x = build()
    fit(model, x[:2], config=short)  # allocates library buffers
    model, x = build()
    begun = time.perf_counter()
    memory = extra_memory_mib(lambda: fit(model, x, config=whole), torch.device("cpu"))
    numbers = {"extra_memory_mib": round(memory), "seconds_a_step": round((time.perf_counter() - begun) / STEPS, 3)}
    (folder / f"{group.rank}.json").write_text(json.dumps(numbers))
    if group.first:
        save_file(model.state_dict(), folder / "weights.safetensors")


def measured(count: int, accumulate: int = 1) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Return the numbers of every process, and the weights."""
    with tempfile.TemporaryDirectory() as name:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
        command = [*torchrun, "-m", "benchmarks.processes", name, str(accumulate)]
        subprocess.run(command, check=True, capture_output=True)
        found = [json.loads((Path(name) / f"{rank}.json").read_text()) for rank in range(count)]
        return {key: [one[key] for one in found] for key in found[0]}, load_file(Path(name) / "weights.safetensors")


def main() -> None:
    (one, weights), (parts, of_parts), (two, of_two) = measured(1), measured(1, 2), measured(2)

    def difference(other: dict[str, Tensor]) -> float:
        return max(float((tensor - other[name]).abs().max()) for name, tensor in weights.items())

    numbers = {
        "images": ROWS,
        "steps": STEPS,
        "one_process": one,
        "one_process_in_two_parts": {**parts, "largest_difference_of_weights": difference(of_parts)},
        "two_processes": {**two, "largest_difference_of_weights": difference(of_two)},
        "memory_of_a_process_by_that_of_one_alone": round(max(two["extra_memory_mib"]) / one["extra_memory_mib"][0], 2),
        "times_faster": round(one["seconds_a_step"][0] / max(two["seconds_a_step"]), 2),
    }
    show("processes", numbers)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
