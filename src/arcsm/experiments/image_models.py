"""Models of images that several experiments share: one preset, trained in one way, is trained once.

Figures 4 and 5 and Table 1 are of the same few networks. Their weights lie beside the experiments' own work folders, a
folder for each configuration, and whoever comes first trains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from filelock import FileLock
from pydantic import Field

import arcsm
from arcsm._runtime.files import write_text
from arcsm.data.datasets import Dataset, load_dataset
from arcsm.experiments.base import Settings, Study, code_fingerprint, digest
from arcsm.experiments.gaussians import parameters
from arcsm.model import AutoregressiveModel
from arcsm.training.run_config import RunConfig, load_config
from arcsm.training.runs import load_run, train_run


class ImageModels(Settings):
    """Networks, training and noise are those of the presets of the same names; what an experiment changes is here.

    The paper gives the sets, the noise levels and 200 epochs of Adam at 2e-4; the sizes of its networks it does not.
    """

    lists_cells: ClassVar[frozenset[str]] = frozenset({"seeds", "models"})

    models: tuple[str, ...] = Field((), min_length=1)
    changes: tuple[str, ...] = ()  # of every configuration
    pixelcnn_changes: tuple[str, ...] = ()
    made_changes: tuple[str, ...] = ()


TINY = (
    "train.epochs=null",
    "train.steps=2",
    "train.batch_size=4",
    "train.validate_every=2",
    "train.validation_rows=4",
)
TINY_PIXELCNN = ("model.context.nr_filters=4", "model.context.context_features=4")
TINY_MADE = ("model.context.hidden_features=[8, 8]", "model.context.context_features=4")

# The presets are made for an evening each. These are for trying all of them: about an hour a model on one core. In
# bfloat16 a step of PixelCNN++ takes two thirds of the time (on a processor that has it; benchmarks/precision.py).
CPU_PIXELCNN = (
    "train.epochs=null",
    "train.steps=2500",
    "train.learning_rate=0.002",
    "train.warmup_steps=200",
    "train.ema=0.995",
    "train.precision=bf16-mixed",
)
CPU_MADE = (
    "train.epochs=null",
    "train.steps=4000",
    "train.warmup_steps=200",
    "train.ema=0.995",
    "train.compiled=true",
)

PAPER = ("train.epochs=200", "train.learning_rate=0.0002", "train.schedule=constant")
PAPER_PIXELCNN = ("model.context.nr_filters=160", "model.context.nr_resnet=5", "model.context.dropout=0.5")


def config_of(run: Study[Any], name: str, seed: int | None = None) -> RunConfig:
    """The configuration of a preset as the experiment trains it; by default with its first seed."""
    settings: ImageModels = run.settings
    of_network = settings.pixelcnn_changes if "pixelcnn" in name else settings.made_changes
    seed = settings.first_seed if seed is None else seed
    return load_config(name, [*settings.changes, *of_network, f"train.device={run.device.type}", f"train.seed={seed}"])


def dataset_of(run: Study[Any], name: str, seed: int | None = None) -> Dataset:
    """The images that a preset is trained on, split as its training splits them."""
    config = config_of(run, name, seed)
    return load_dataset(config.data, config.train.seed)


def folder_of(run: Study[Any], name: str, seed: int | None = None) -> Path:
    """Where the model is: a folder of its own for every configuration, whichever experiment asks."""
    described = [config_of(run, name, seed).model_dump(mode="json"), arcsm.__version__]
    return run.work.parent / "image-models" / f"{name}-{digest(described)}"


def train_all(run: Study[Any], cells: Mapping[str, tuple[str, int]]) -> dict[str, dict[str, Any]]:
    """What training gave for every cell, a preset and a seed; its seconds and its code count, whoever trained."""
    found = run.each({cell: partial(train, run, *model) for cell, model in cells.items()})
    run.seconds = sum(cell["training_seconds"] for cell in found.values())
    run.codes |= {cell["code"] for cell in found.values()}
    return found


def on_all_models(run: Study[Any], cells: Mapping[str, Any]) -> dict[str, list[str]]:
    """For :meth:`Study.each`: that the cells depend on the presets of all models."""
    folders = [folder_of(run, name).name for name in run.settings.models]
    return dict.fromkeys(cells, folders)


def train(run: Study[Any], name: str, seed: int | None = None) -> dict[str, Any]:
    """Train a preset, or go on with it, or find that another experiment has done so."""
    folder = folder_of(run, name, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    code = folder.with_suffix(".code")  # of who began to train it
    with FileLock(folder.with_suffix(".lock")):
        if not code.is_file():
            write_text(code, code_fingerprint())
        result = train_run(config_of(run, name, seed), folder, resume=True, progress=True)
    return {
        "code": code.read_text(encoding="utf-8"),
        "steps": result.steps,
        "training_seconds": round(result.seconds),
        "validation": result.best_loss,
        "parameters": parameters(trained(run, name, seed)),
    }


def trained(run: Study[Any], name: str, seed: int | None = None) -> AutoregressiveModel:
    """The trained model."""
    return load_run(folder_of(run, name, seed), str(run.device)).model


def untrained(run: Study[Any], name: str, seed: int) -> AutoregressiveModel:
    """The same model with fresh weights: what it knows without any training."""
    dataset = dataset_of(run, name, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = config_of(run, name, seed).model.build(dataset.train.shape[1], dataset.metadata)
    return model.to(run.device).eval()
