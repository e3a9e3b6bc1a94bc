"""Cost of the paper-scale image runs: operations, memory and hours, from counts and one measured share.

One training step of every network is run and its operations are counted, both at the paper's scale and at that of the
``cpu`` preset. The large network reaches some share of the speed of a bare matrix product here. The same share of a
GPU's nominal speed turns the counts into hours. As a check, it also predicts the time of the small network's step here.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from arcsm.experiments import image_models
from arcsm.experiments.base import Count, Preset, Result, Study, parameter_count, seeded, study
from arcsm.metrics.costs import interleaved_medians
from arcsm.reports import plots
from arcsm.training.config import configured_objective
from arcsm.training.run_config import load_config

SHAPES: Mapping[str, tuple[int, int, int]] = {"mnist": (1, 28, 28), "cifar": (3, 32, 32), "faces": (3, 32, 32)}
#: Training images of the sets (CelebA for the faces, as in the paper).
IMAGES: Mapping[str, int] = {"mnist": 60_000, "cifar": 50_000, "faces": 162_770}
_LAUNCH_SECONDS = 5e-6  # shortest time between two operations on a GPU, as a rule of thumb
_MEMORY_PASSES = 4  # of saved activations: written and read, in the forward and the backward pass
_COPIES = 4  # of each weight: itself, two moments and the average
_BYTES = 4


@dataclass(frozen=True)
class GPU:
    """Nominal speeds of a GPU, in bytes per second, and its memory in bytes."""

    operations: float  # in floating point, per second, dense matrices in bfloat16
    bandwidth: float  # of the memory
    link: float  # to other GPUs in one direction
    memory: float


#: From NVIDIA's data sheets (SXM modules, without sparsity).
GPUS: Mapping[str, GPU] = {
    "A100 80 GB": GPU(312e12, 2.04e12, 300e9, 80e9),
    "H100 80 GB": GPU(989e12, 3.35e12, 450e9, 80e9),
}


class PlanSettings(image_models.ImageModels):
    """Large networks are those of ``fig4 --preset paper``, small ones those of ``--preset cpu``."""

    several_seeds: ClassVar[bool] = False
    models: tuple[str, ...] = Field(image_models.NAMES, min_length=1)
    small_pixelcnn: tuple[str, ...] = image_models.CPU_PIXELCNN
    small_made: tuple[str, ...] = ()
    rows: int = Field(2, ge=1)  # of a step of the large networks
    small_rows: int = Field(32, ge=1)  # of a step of the small networks, and of MADE
    repeats: int = Field(5, ge=1)
    product: Count = 1024  # size of the bare matrix product


PRESETS: Mapping[Preset, PlanSettings] = {
    "smoke": PlanSettings(
        models=("mnist-made", "cifar-pixelcnn"), changes=image_models.LIKE_PAPER,
        pixelcnn_changes=("model.context.nr_filters=8", "model.context.context_features=4"),
        made_changes=("model.context.hidden_features=[64, 64]",), small_pixelcnn=image_models.TINY_PIXELCNN,
        small_made=image_models.TINY_MADE, rows=1, small_rows=2, repeats=1, product=64,
    ),
    "cpu": PlanSettings(**image_models.PRESET_CHANGES["paper"]),
    "paper": PlanSettings(rows=8, small_rows=64, repeats=21, product=8192, **image_models.PRESET_CHANGES["paper"]),
}  # fmt: skip


def body(run: Study[PlanSettings]) -> Result:
    """Count and time a step of both networks of every model, and estimate hours on GPUs."""
    names = run.settings.models
    machines = {  # GPU, number, and batch size in units of the preset's
        f"{count} x {gpu}{', batch times 8' if batches > 1 else ''}": (gpu, count, batches)
        for gpu in GPUS
        for count, batches in ((1, 1), (8, 1), (8, 8))
    }
    cells = run.compute_all({name: partial(_measure_model, run, name) for name in names})
    models = {}
    for name in names:
        large, small = cells[name]["large"], cells[name]["small"]
        share = large["operations_a_second"] / large["of_the_matrix_product"]
        predicted = small["operations_of_a_step"] / (share * small["of_the_matrix_product"])
        models[name] = {
            **cells[name],
            "share_of_the_matrix_product": share,
            "predicted_seconds_of_the_small_step": predicted,
            "predicted_by_measured": predicted / small["seconds_of_a_step"],
            "gpus": {
                machine: _estimate(cells[name], GPUS[gpu], min(1.0, share), count, batches)
                for machine, (gpu, count, batches) in machines.items()
            },
        }
    return {
        "models": models,
        "assumptions": {
            "gpus": {name: asdict(gpu) for name, gpu in GPUS.items()},
            "seconds_between_operations": _LAUNCH_SECONDS,
            "times_that_kept_values_cross_the_memory": _MEMORY_PASSES,
            "images": dict(IMAGES),
        },
        "figure": run.figure(_figure(models)),
    }


def _measure_model(run: Study[PlanSettings], name: str) -> Result:
    settings, pixelcnn = run.settings, "pixelcnn" in name
    large = (*settings.changes, *(settings.pixelcnn_changes if pixelcnn else settings.made_changes))
    small = settings.small_pixelcnn if pixelcnn else settings.small_made
    config = load_config(name, list(large)).train
    images = IMAGES[name.split("-")[0]] * (1.0 - load_config(name).data.validation)
    return {
        "large": _step(run, name, large, settings.rows if pixelcnn else settings.small_rows),
        "small": _step(run, name, small, settings.small_rows),
        "batch_size": config.batch_size,
        "steps": math.ceil((config.epochs or 0.0) * (images // config.batch_size)) or config.steps,
    }


def _step(run: Study[PlanSettings], name: str, changes: tuple[str, ...], rows: int) -> Result:
    config, shape = load_config(name, list(changes)), SHAPES[name.split("-")[0]]
    with seeded(0):
        model = config.model.build(math.prod(shape), {"image_shape": list(shape), "levels": 256})
    model.train().to(run.device)
    x = torch.rand(rows, model.features, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    x, objective = x.to(run.device), configured_objective(config.train)

    def step() -> None:  # without the optimizer's step, a thousandth of the cost
        model.zero_grad()
        objective(model, x, generator=torch.Generator(x.device).manual_seed(0)).backward()

    step()
    with FlopCounterMode(display=False) as operations, _CallCounter() as calls, _saved_bytes(model) as saved:
        step()
    a = torch.randn(run.settings.product, run.settings.product, device=run.device)
    seconds, product = interleaved_medians([step, lambda: torch.mm(a, a)], run.settings.repeats, run.device)
    count = int(operations.get_total_flops())
    return {
        "weights": parameter_count(model),
        "images": rows,
        "operations_of_a_step": count,
        "operations_an_image": count / rows,
        "calls_of_a_step": calls.count,
        "kept_bytes_an_image": sum(saved.values()) / rows,
        "seconds_of_a_step": seconds,
        "operations_a_second": count / seconds,
        "of_the_matrix_product": 2.0 * run.settings.product**3 / product,
    }


class _CallCounter(TorchDispatchMode):
    count = 0  # of operations, except views

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = [value.alias_info for value in func._schema.returns]
        self.count += any(alias is None or alias.is_write for alias in returned)
        return func(*args, **(kwargs or {}))


@contextmanager
def _saved_bytes(model: nn.Module) -> Iterator[dict[int, int]]:
    """Record the bytes saved for the backward pass, by address, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _estimate(cell: Result, gpu: GPU, share: float, count: int, batches: int) -> Result:
    """Estimate time and memory of a run on ``count`` GPUs that divide batches of ``batches`` times the preset's size.

    Arithmetic runs at ``share`` of the GPU's speed. It does not overlap with memory traffic; launches overlap with
    both. Gradients are summed around a ring after each step.
    """
    large, rows = cell["large"], cell["batch_size"] * batches / count
    weights = _BYTES * large["weights"]
    arithmetic = large["operations_an_image"] * rows / (share * gpu.operations)
    traffic = (_MEMORY_PASSES * large["kept_bytes_an_image"] * rows + 2 * _COPIES * weights) / gpu.bandwidth
    calls = large["calls_of_a_step"] * _LAUNCH_SECONDS
    ring = 2.0 * (count - 1) / count * weights / gpu.link
    memory = large["kept_bytes_an_image"] * rows + (_COPIES + 1) * weights
    step, steps = max(arithmetic + traffic, calls) + ring, cell["steps"] / batches
    parts = {"arithmetic": arithmetic, "traffic": traffic, "calls": calls, "gradients between GPUs": ring}
    return {
        "milliseconds_of_a_step": 1e3 * step,
        "hours": step * steps / 3600.0,
        "at_least_hours": large["operations_an_image"] * rows / gpu.operations * steps / 3600.0,
        "largest_part": max(parts, key=lambda part: parts[part]),
        "memory_gb": memory / 1e9,
        "fits": memory < gpu.memory,
    }


def _figure(models: Mapping[str, Result]) -> Figure:
    figure, [axes] = plots.open_panels(9.5, 3.4)
    machines = list(next(iter(models.values()))["gpus"])
    width = 0.8 / len(machines)
    for index, machine in enumerate(machines):
        places = [place + (index - 0.5 * (len(machines) - 1)) * width for place in range(len(models))]
        axes.bar(places, [cell["gpus"][machine]["hours"] for cell in models.values()], width, label=machine)
    axes.set(yscale="log", ylabel="hours", xticks=range(len(models)))
    axes.set_xticklabels(models)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure


PLAN = study("plan", "hours of the paper-scale runs of images on GPUs, from counted operations", PRESETS, body)
