"""Image models that Figures 4 and 5 and Table 1 share: each configuration is trained once.

Weights lie beside the work folders of the experiments, one folder for each configuration.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from filelock import FileLock
from pydantic import Field
from torch import Tensor

import arcsm
from arcsm._runtime.files import atomic_path, write_text
from arcsm.data.datasets import Dataset, load_dataset
from arcsm.experiments.base import Preset, Result, Settings, Study, parameter_count, seeded
from arcsm.experiments.records import code_fingerprint, digest
from arcsm.model import AutoregressiveModel
from arcsm.training.run_config import RunConfig, load_config
from arcsm.training.runs import load_run, train_run


class ImageModels(Settings):
    """Names of presets and changes of their configurations.

    The paper gives the data, the noise levels and 200 epochs of Adam at 2e-4, but not the sizes of its networks.
    """

    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds", "models"})
    models: tuple[str, ...] = Field((), min_length=1)
    changes: tuple[str, ...] = ()  # of every configuration
    pixelcnn_changes: tuple[str, ...] = ()
    made_changes: tuple[str, ...] = ()


NAMES = ("mnist-made", "mnist-pixelcnn", "cifar-made", "cifar-pixelcnn", "faces-pixelcnn")  # models of scores
CELEBA = "celeba-pixelcnn"  # the paper's faces, which have to be downloaded
PAPER = "-paper"  # suffix of the paper's own model of scores
LIKELIHOODS = ("-mle", "-gaussian")  # suffixes of its partners by maximum likelihood, with ten logistics or a Gaussian
DIGITS = "data={kind: digits}"  # scikit-learn's digits, for smoke runs
TINY = ("train.epochs=null", "train.steps=2", "train.batch_size=4", "train.validate_every=2",
        "train.validation_rows=4")  # fmt: skip
TINY_PIXELCNN = ("model.context.nr_filters=4", "model.context.context_features=4")
TINY_MADE = ("model.context.hidden_features=[8, 8]", "model.context.context_features=4")

# About an hour a model on one core. In bfloat16 a step of PixelCNN++ takes two thirds of the time on processors that
# support it (benchmarks/precision.py).
CPU_PIXELCNN = ("train.epochs=null", "train.steps=2500", "train.learning_rate=0.002", "train.warmup_steps=200",
                "train.ema=0.995", "train.precision=bf16-mixed")  # fmt: skip
CPU_MADE = ("train.epochs=null", "train.steps=4000", "train.warmup_steps=200", "train.ema=0.995",
            "train.compiled=true")  # fmt: skip
LIKE_PAPER = ("train.epochs=200", "train.learning_rate=0.0002", "train.schedule=constant")
LIKE_PAPER_PIXELCNN = ("model.context.nr_filters=160", "model.context.nr_resnet=5", "model.context.dropout=0.5")

#: Changes of the configurations in each preset, as arguments of :class:`ImageModels`.
PRESET_CHANGES: Mapping[Preset, Mapping[str, Any]] = {
    "smoke": {"changes": TINY, "pixelcnn_changes": TINY_PIXELCNN, "made_changes": TINY_MADE},
    "cpu": {"pixelcnn_changes": CPU_PIXELCNN, "made_changes": CPU_MADE},
    "paper": {"changes": LIKE_PAPER, "pixelcnn_changes": LIKE_PAPER_PIXELCNN},
}
_OF_OPTIMIZER = ("train.learning_rate", "train.schedule", "train.warmup_steps", "train.ema", "train.precision")


def partners(name: str) -> tuple[str, ...]:
    """Return a model of scores, the paper's own, and those by maximum likelihood; a Gaussian one for MADE alone."""
    likelihoods = LIKELIHOODS if "made" in name else LIKELIHOODS[:1]
    return (name, f"{name}{PAPER}", *(f"{name}{suffix}" for suffix in likelihoods))


def score_model(name: str) -> str:
    """Return the name without the suffix of a partner."""
    for suffix in (PAPER, *LIKELIHOODS):
        name = name.removesuffix(suffix)
    return name


def model_config(run: Study[Any], name: str, seed: int | None = None) -> RunConfig:
    """Return the configuration of a preset as the experiment trains it; by default with its first seed.

    The paper's own model keeps its optimizer, in single precision: changes are of sizes and of the number of steps.
    """
    settings: ImageModels = run.settings
    network = settings.pixelcnn_changes if "pixelcnn" in name else settings.made_changes
    seed = settings.first_seed if seed is None else seed
    changes = [*settings.changes, *network, f"train.device={run.device.type}", f"train.seed={seed}"]
    if name.endswith(PAPER):
        changes = [change for change in changes if change.partition("=")[0] not in _OF_OPTIMIZER]
    return load_config(name, changes)


def load_images(run: Study[Any], name: str, seed: int | None = None) -> Dataset:
    """Return the data of a preset, split as for training."""
    config = model_config(run, name, seed)
    return load_dataset(config.data, config.train.seed)


def model_folder(run: Study[Any], name: str, seed: int | None = None) -> Path:
    """Return the folder of a model, which is the same for all experiments with the same configuration."""
    key = [model_config(run, name, seed).model_dump(mode="json"), arcsm.__version__]
    return run.work.parent / "image-models" / f"{name}-{digest(key)}"


def train_models(run: Study[Any], cells: Mapping[str, tuple[str, int]]) -> dict[str, Result]:
    """Train a model for every cell, a preset and a seed. Training time counts whichever experiment spent it."""
    basis = {cell: model_folder(run, *model).name for cell, model in cells.items()}  # presets may have changed
    results = run.compute_all({cell: partial(train_model, run, *model) for cell, model in cells.items()}, basis)
    run.seconds = sum(cell["training_seconds"] for cell in results.values())
    run.fingerprints |= {cell["code"] for cell in results.values()}
    return results


def model_basis(run: Study[Any], cells: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the basis of cells that depend on all models, for :meth:`Study.compute_all`."""
    folders = [model_folder(run, name).name for name in run.settings.models]
    return dict.fromkeys(cells, folders)


def train_model(run: Study[Any], name: str, seed: int | None = None) -> Result:
    """Train or resume a model, unless another experiment has trained it."""
    folder = model_folder(run, name, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    code = folder.with_suffix(".code")  # fingerprint of the code that started the training
    with FileLock(folder.with_suffix(".lock")):
        if not code.is_file():
            write_text(code, code_fingerprint())
        result = train_run(model_config(run, name, seed), folder, resume=True, progress=True)
    return {
        "code": code.read_text(encoding="utf-8"),
        "steps": result.steps,
        "training_seconds": round(result.seconds),
        "validation": result.best_loss,
        "parameters": parameter_count(load_model(run, name, seed)),
    }


def load_model(run: Study[Any], name: str, seed: int | None = None) -> AutoregressiveModel:
    return load_run(model_folder(run, name, seed), str(run.device)).model


def initial_model(run: Study[Any], name: str, seed: int) -> AutoregressiveModel:
    """Return the same model with its initial weights, as a control."""
    dataset = load_images(run, name, seed)
    with seeded(seed):
        model = model_config(run, name, seed).model.build(dataset.train.shape[1], dataset.metadata)
    return model.to(run.device).eval()


def save_array(path: Path, rows: Tensor) -> None:
    """Write a tensor to an NPY file atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, rows.numpy())


def load_array(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path))
