"""What the paper-scale runs of images take: operations, bytes and hours, from counts and one measured share.

One step of every network is run on this machine and its operations are counted: of the network at the paper's scale,
and of the one of the ``cpu`` presets. What share of the speed of a bare matrix product the large one reaches here,
taken of the speed that its maker gives for a GPU, makes hours of the counts; and the same share predicts how long a
step of the small one takes here, which is measured too. That is the check.
"""

from __future__ import annotations

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

from arcsm.experiments.base import Count, Preset, Study, study
from arcsm.experiments.gaussians import parameters
from arcsm.experiments.image_models import CPU_PIXELCNN, PAPER, PAPER_PIXELCNN, TINY_MADE, TINY_PIXELCNN, ImageModels
from arcsm.metrics.costs import interleaved_medians
from arcsm.model import AutoregressiveModel
from arcsm.reports import plots
from arcsm.training.config import TrainConfig, configured_objective
from arcsm.training.run_config import load_config

SHAPES: Mapping[str, tuple[int, int, int]] = {"mnist": (1, 28, 28), "cifar": (3, 32, 32), "faces": (3, 32, 32)}
#: Images to train on, by those who made the sets (CelebA for the faces, as in the paper).
IMAGES: Mapping[str, int] = {"mnist": 60_000, "cifar": 50_000, "faces": 162_770}
_LAUNCH = 5e-6  # seconds that a GPU takes from one operation to the next at best, as a rule
_TRAFFIC = 4  # times that what is kept for the backward pass crosses the memory: written and read, in both passes
_STATES = 4  # of each weight: itself, two moments and the average
_BYTES = 4


@dataclass(frozen=True)
class GPU:
    """What its maker says of a GPU.

    Attributes:
        operations: Floating-point operations a second of dense matrices in bfloat16.
        bandwidth: Of its memory, bytes a second.
        link: To the others, bytes a second in one direction.
        memory: Bytes.
    """

    operations: float
    bandwidth: float
    link: float
    memory: float


#: From the data sheets of NVIDIA (SXM modules; half of what they give "with sparsity").
GPUS: Mapping[str, GPU] = {
    "A100 80 GB": GPU(312e12, 2.04e12, 300e9, 80e9),
    "H100 80 GB": GPU(989e12, 3.35e12, 450e9, 80e9),
}


class Plan(ImageModels):
    """The networks of ``fig4 --preset paper``; the small ones are those of ``--preset cpu``."""

    many_seeds: ClassVar[bool] = False

    models: tuple[str, ...] = Field(
        ("mnist-made", "mnist-pixelcnn", "cifar-made", "cifar-pixelcnn", "faces-pixelcnn"), min_length=1
    )
    small_pixelcnn: tuple[str, ...] = CPU_PIXELCNN
    small_made: tuple[str, ...] = ()
    rows: int = Field(2, ge=1)  # of the steps of the large networks
    small_rows: int = Field(32, ge=1)  # of those of the small ones, and of MADE
    repeats: int = Field(5, ge=1)
    product: Count = 1024  # rows and columns of the bare matrix product


PRESETS: Mapping[Preset, Plan] = {
    "smoke": Plan(
        models=("mnist-made", "cifar-pixelcnn"),
        changes=PAPER,
        pixelcnn_changes=("model.context.nr_filters=8", "model.context.context_features=4"),
        made_changes=("model.context.hidden_features=[64, 64]",),
        small_pixelcnn=TINY_PIXELCNN,
        small_made=TINY_MADE,
        rows=1,
        small_rows=2,
        repeats=1,
        product=64,
    ),
    "cpu": Plan(changes=PAPER, pixelcnn_changes=PAPER_PIXELCNN),
    "paper": Plan(changes=PAPER, pixelcnn_changes=PAPER_PIXELCNN, rows=8, small_rows=64, repeats=21, product=8192),
}

Result = dict[str, Any]


def body(run: Study[Plan]) -> Result:
    """Count and time a step of both networks of every model, and what follows for GPUs."""
    names = run.settings.models
    cells = run.each({name: partial(_model, run, name) for name in names})
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
                machine: _hours(cells[name], GPUS[gpu], min(1.0, share), count, batches)
                for machine, (gpu, count, batches) in _machines().items()
            },
        }
    return {
        "models": models,
        "assumptions": {
            "gpus": {name: asdict(gpu) for name, gpu in GPUS.items()},
            "seconds_between_operations": _LAUNCH,
            "times_that_kept_values_cross_the_memory": _TRAFFIC,
            "images": dict(IMAGES),
        },
        "figure": run.figure(_figure(models)),
    }


def _machines() -> dict[str, tuple[str, int, int]]:
    """GPUs, their number, and how many of the preset's batches are one."""
    found = {}
    for gpu in GPUS:
        found[f"1 x {gpu}"] = (gpu, 1, 1)
        found[f"8 x {gpu}"] = (gpu, 8, 1)
        found[f"8 x {gpu}, batch times 8"] = (gpu, 8, 8)
    return found


def _model(run: Study[Plan], name: str) -> Result:
    """Both networks of a model."""
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


def _step(run: Study[Plan], name: str, changes: tuple[str, ...], rows: int) -> Result:
    """Counts and seconds of a training step on so many images, beside a matrix product of as many threads."""
    model, config = _built(name, changes)
    model.to(run.device)
    x = _images(name, rows).to(run.device)
    step = partial(_backward, model, config, x)
    step()
    with FlopCounterMode(display=False) as operations, _Calls() as calls, _kept(model) as kept:
        step()
    a = torch.randn(run.settings.product, run.settings.product, device=run.device)
    seconds, product = interleaved_medians([step, lambda: torch.mm(a, a)], run.settings.repeats, run.device)
    count = int(operations.get_total_flops())
    return {
        "weights": parameters(model),
        "images": rows,
        "operations_of_a_step": count,
        "operations_an_image": count / rows,
        "calls_of_a_step": calls.count,
        "kept_bytes_an_image": sum(kept.values()) / rows,
        "seconds_of_a_step": seconds,
        "operations_a_second": count / seconds,
        "of_the_matrix_product": 2.0 * run.settings.product**3 / product,
    }


def _built(name: str, changes: tuple[str, ...]) -> tuple[AutoregressiveModel, TrainConfig]:
    """A model with fresh weights, in single precision, and how it is trained."""
    config = load_config(name, list(changes))
    shape = SHAPES[name.split("-")[0]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = config.model.build(math.prod(shape), {"image_shape": list(shape), "levels": 256})
    return model.train(), config.train


def _images(name: str, rows: int) -> Tensor:
    """Grey values at random: what is counted does not depend on them."""
    shape = SHAPES[name.split("-")[0]]
    return torch.rand(rows, math.prod(shape), generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0


def _backward(model: AutoregressiveModel, config: TrainConfig, x: Tensor) -> None:
    """Loss and all gradients; the optimizer's step is a thousandth of it."""
    model.zero_grad()
    generator = torch.Generator(x.device).manual_seed(0)
    configured_objective(config)(model, x, generator=generator).backward()


class _Calls(TorchDispatchMode):
    """Counts the operations that are called, but for those that look at a tensor in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = [value.alias_info for value in func._schema.returns]
        self.count += any(alias is None or alias.is_write for alias in returned)
        return func(*args, **(kwargs or {}))


@contextmanager
def _kept(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of what is kept for the backward pass, by its place in memory; weights are not counted."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            found[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def _hours(cell: Result, gpu: GPU, share: float, count: int, batches: int) -> Result:
    """What the run takes on some GPUs that divide each batch, of several of the preset's, among them.

    Arithmetic at ``share`` of the GPU's speed and the traffic with its memory do not overlap; calls do, with both. The
    gradients are summed around a ring after each step.
    """
    large, rows = cell["large"], cell["batch_size"] * batches / count
    weights = _BYTES * large["weights"]
    arithmetic = large["operations_an_image"] * rows / (share * gpu.operations)
    traffic = (_TRAFFIC * large["kept_bytes_an_image"] * rows + 2 * _STATES * weights) / gpu.bandwidth
    calls = large["calls_of_a_step"] * _LAUNCH
    ring = 2.0 * (count - 1) / count * weights / gpu.link
    step, steps = max(arithmetic + traffic, calls) + ring, cell["steps"] / batches
    parts = {"arithmetic": arithmetic, "traffic": traffic, "calls": calls, "gradients between GPUs": ring}
    return {
        "milliseconds_of_a_step": 1e3 * step,
        "hours": step * steps / 3600.0,
        "at_least_hours": large["operations_an_image"] * rows / gpu.operations * steps / 3600.0,
        "largest_part": max(parts, key=lambda part: parts[part]),
        "memory_gb": (large["kept_bytes_an_image"] * rows + (_STATES + 1) * weights) / 1e9,
        "fits": large["kept_bytes_an_image"] * rows + (_STATES + 1) * weights < gpu.memory,
    }


def _figure(models: Mapping[str, Result]) -> Figure:
    """Hours of every model on every machine."""
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    machines = list(next(iter(models.values()))["gpus"])
    width = 0.8 / len(machines)
    for index, machine in enumerate(machines):
        places = [place + (index - 0.5 * (len(machines) - 1)) * width for place in range(len(models))]
        axes.bar(places, [cell["gpus"][machine]["hours"] for cell in models.values()], width, label=machine)
    axes.set(yscale="log", ylabel="hours", xticks=range(len(models)))
    axes.set_xticklabels(models)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    plots.open_frame(axes)
    return figure


PLAN = study("plan", "hours of the paper-scale runs of images on GPUs, from counted operations", PRESETS, body)
