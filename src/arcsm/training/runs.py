"""A run: a folder with the exact configuration, the model, its training checkpoint and its log."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel
from torch import Tensor

from arcsm._runtime import process_group
from arcsm._runtime.files import write_text
from arcsm.data.datasets import Dataset, load_dataset
from arcsm.errors import warn
from arcsm.heads import DiscretisedLogisticMixtureHead
from arcsm.model import AutoregressiveModel, load
from arcsm.serialization import WEIGHTS_NAME, read_header
from arcsm.training.data import fingerprint
from arcsm.training.loop import STATE_NAME, FitResult, fit
from arcsm.training.run_config import C, RunConfig, dump_config, parse_tree, read_text, run_config_path, validated

_LOCK_NAME = ".lock"


@dataclass(frozen=True)
class Run:
    """A trained run, read from its folder."""

    folder: Path
    config: RunConfig
    model: AutoregressiveModel


def train_run(
    config: RunConfig, folder: str | os.PathLike[str], resume: bool = False, progress: bool = False
) -> FitResult:
    """Train what a configuration describes, in a folder of its own.

    Raises:
        ValueError: where the folder holds another run, or one that ``resume`` was not asked to go on with.
    """
    folder, group = Path(folder), process_group.group()
    if group.first:
        check_folder(config, folder, resume)
    dataset = load_dataset(config.data, config.train.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = config.model.build(dataset.train.shape[1], dataset.metadata)
    labels = _labels(model, dataset)
    _check_levels(model, config, dataset)
    with begun(folder, config) if group.first else nullcontext():
        return fit(
            model, dataset.train, dataset.valid, config.for_dataset(dataset), labels.get("train"), labels.get("valid"),
            run=folder, resume=resume, progress=progress,
        )  # fmt: skip


@contextmanager
def begun(folder: Path, config: BaseModel) -> Iterator[None]:
    """Keep the configuration of a run in its folder, unless what is done inside refuses to begin (``ValueError``)."""
    path = run_config_path(folder)
    try:
        with _alone(folder):
            before = path.read_bytes() if path.exists() else None
            write_text(path, dump_config(config))
            try:
                yield
            except ValueError:
                if before is not None:
                    write_text(path, before.decode("utf-8"))
                elif not (folder / STATE_NAME).exists() and not (folder / WEIGHTS_NAME).exists():
                    path.unlink(missing_ok=True)
                raise
    except ValueError:
        with suppress(OSError):  # something is in it
            folder.rmdir()
        raise


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time trains in a folder.

    Raises:
        ValueError: while another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK_NAME, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{folder}: another process trains there") from error
    try:
        yield
    finally:
        with suppress(OSError):  # where open files cannot be taken away it stays
            (folder / _LOCK_NAME).unlink()
        lock.release()


def warn_of_other_data(folder: Path, dataset: Dataset) -> None:
    """Say so if the rows that a run would train on now are not those that it was trained on.

    Then those that are held out now may be among these.
    """
    path = folder / STATE_NAME
    began = read_header(path).get("data") if path.is_file() else None
    labels = dataset.labels.get("train")
    now = [fingerprint(dataset.train, condition) for condition in (None, labels)]
    if isinstance(began, dict) and began.get("checksum") not in [found["checksum"] for found in now]:
        warn(
            f"{folder}: the data have changed since it was trained ({began.get('rows')} rows then, "
            f"{len(dataset.train)} now), so that rows that count as held out may be among those of its training"
        )


def _labels(model: AutoregressiveModel, dataset: Dataset) -> dict[str, Tensor]:
    """The labels of the data for a model with classes, and nothing for one without."""
    classes = model.context.classes
    if not classes:
        return {}
    for part, rows in (("train", dataset.train), ("valid", dataset.valid), ("test", dataset.test)):
        labels = dataset.labels.get(part)
        if len(rows) and labels is None:
            raise ValueError(f"model.context.classes: {classes} classes, but the data have no labels ({part})")
        wrong = [] if labels is None else labels[(labels < 0) | (labels >= classes)].tolist()
        if wrong:
            raise ValueError(f"model.context.classes: {classes} classes, but the data have a label {max(wrong)}")
    return dataset.labels


def check_folder(config: Any, folder: Path, resume: bool) -> None:
    """What a run goes on with must be what it began with; how to train is compared with the checkpoint itself.

    Arguments:
        config: Of the run that is to be, with sections ``data`` and ``model``.
        folder: Where it is to be.
        resume: Whether to go on with what is there.

    Raises:
        ValueError: where the folder holds another run, or one that ``resume`` was not asked to go on with.
    """
    path = run_config_path(folder)
    begun = path.is_file() or (folder / STATE_NAME).exists() or (folder / WEIGHTS_NAME).exists()
    if begun and not resume:
        raise ValueError(f"{folder}: holds a run already; give --resume to go on with it, or another --out")
    if path.is_file():
        before = read_config(path, type(config))
        for part in ("data", "model"):
            if getattr(before, part) != getattr(config, part):
                raise ValueError(f"{path}: the run began with another {part}; use another folder")


def read_config(path: Path, schema: type[C]) -> C:
    """The configuration that a run keeps."""
    return validated(parse_tree(read_text(path), str(path)), str(path), schema)


def finished_config(folder: Path, schema: type[C]) -> C:
    """The configuration of a run that has a model.

    Raises:
        ValueError: for a folder that holds none.
    """
    path = run_config_path(folder)
    if not path.is_file():
        raise ValueError(f"{folder}: not a run (no config.yaml); train one with: arcsm train PRESET --out {folder}")
    check_finished(folder)
    return read_config(path, schema)


def is_finished(path: Path) -> bool:
    """Whether a folder holds a model."""
    return (path / WEIGHTS_NAME).is_file()


def check_finished(path: Path) -> None:
    """A run that was begun has a model by now; what is no run is not looked at.

    Raises:
        ValueError: for one that has none.
    """
    config = run_config_path(path)
    if config.is_file() and not is_finished(path):
        raise ValueError(f"{path}: has no model yet; finish it with: arcsm train {config} --out {path} --resume")


def _check_levels(model: AutoregressiveModel, config: RunConfig, dataset: Dataset) -> None:
    """A head of grey levels is of those of the data, which must stay where they are."""
    if not isinstance(model.head, DiscretisedLogisticMixtureHead):
        return
    levels = dataset.metadata.get("levels")
    if model.head.levels != levels:
        has = "no grey levels" if levels is None else f"{levels} grey levels"
        raise ValueError(f"model.head.levels: {model.head.levels}, but the data have {has}")
    if config.train.standardise != "none":
        raise ValueError(
            f"train.standardise: grey levels must stay in [-1, 1), so none, not {config.train.standardise}"
        )


def class_labels(model: AutoregressiveModel, n: int, chosen: int | None = None) -> Tensor | None:
    """Labels ``(n,)`` for a model with classes: the chosen one, or all in turn; ``None`` for a model without.

    Raises:
        ValueError: for a class that the model does not have.
    """
    classes = model.context.classes
    if chosen is not None and not 0 <= chosen < classes:
        has = f"has classes 0 to {classes - 1}" if classes else "has no classes"
        raise ValueError(f"--class {chosen}: this model {has}")
    if not classes:
        return None
    labels = torch.arange(n) % classes if chosen is None else torch.full((n,), chosen)
    return labels.to(model.shift.device)


def load_run(folder: str | os.PathLike[str], device: str = "cpu") -> Run:
    """Read a run that :func:`train_run` finished.

    Raises:
        ValueError: for a folder that holds none.
    """
    folder = Path(folder)
    return Run(folder, finished_config(folder, RunConfig), load(folder, device))
