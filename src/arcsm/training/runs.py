"""Runs: folders with the configuration, the model, the training checkpoint and the log."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel
from torch import Tensor, nn

from arcsm._runtime import process_group
from arcsm._runtime.files import FilePath, write_text
from arcsm.data.datasets import Dataset, load_dataset
from arcsm.errors import warn
from arcsm.heads import DiscretisedLogisticMixtureHead
from arcsm.model import AutoregressiveModel, load
from arcsm.serialization import WEIGHTS_NAME, read_header
from arcsm.training.checkpoint import STATE_NAME, foreign_file
from arcsm.training.data import fingerprint
from arcsm.training.density import fit
from arcsm.training.log import METRICS_NAME
from arcsm.training.loop import FitResult, TrainingDiverged
from arcsm.training.run_config import C, RunConfig, dump_config, parse_tree, read_text, run_config_path, validated

_LOCK_NAME = ".lock"
_LOCK_SECONDS = 30.0
_MAX_ROWS = 20_000
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Run(Generic[C, M]):
    """A finished run, read from its folder."""

    folder: Path
    config: C
    model: M


def train_run(config: RunConfig, folder: FilePath, resume: bool = False, progress: bool = False) -> FitResult:
    """Train the model of a configuration in its own folder."""
    folder, group = Path(folder), process_group.group()
    if group.first:
        check_folder(config, folder, resume)
    dataset = load_dataset(config.data, config.train.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = config.model.build(dataset.train.shape[1], dataset.metadata)
    labels = _labels(model, dataset)
    _check_grey_levels(model, config, dataset)
    with open_run(folder, config) if group.first else nullcontext():
        return fit(
            model, dataset.train, dataset.valid, config.for_dataset(dataset), labels.get("train"), labels.get("valid"),
            run=folder, resume=resume, progress=progress,
        )  # fmt: skip


def load_run(folder: FilePath, device: str = "cpu") -> Run[RunConfig, AutoregressiveModel]:
    """Read a run that :func:`train_run` finished."""
    folder = Path(folder)
    return Run(folder, finished_config(folder, RunConfig), load(folder, device))


def check_folder(config: Any, folder: Path, resume: bool) -> None:
    """Check that a run may start, or resume, in a folder, without replacing files of another kind.

    A run that was killed before its first checkpoint, as for lack of memory, does not count. The sections ``data`` and
    ``model`` of a run to resume must not have changed; training itself compares ``config.train``.
    """
    path = run_config_path(folder)
    begun = path.is_file() or (folder / STATE_NAME).exists() or is_finished(folder)
    if begun and not resume and not _is_abandoned(folder, type(config)):
        raise ValueError(f"{folder}: already holds a run; give --resume to continue it, or another --out")
    if not begun and (foreign := foreign_file(folder)) is not None:
        raise ValueError(f"{foreign}: exists, but the folder is not a run; give another --out")
    if path.is_file() and resume:
        before = read_config(path, type(config))
        for part in ("data", "model"):
            if getattr(before, part) != getattr(config, part):
                raise ValueError(f"{path}: the run started with another {part} section; use another folder")


def _is_abandoned(folder: Path, schema: type[BaseModel]) -> bool:
    """Return whether a folder holds only the configuration of a run, in the form that :func:`open_run` writes."""
    if (folder / STATE_NAME).exists() or is_finished(folder):
        return False
    text = read_text(run_config_path(folder))
    try:
        return dump_config(validated(parse_tree(text, ""), "", schema)) == text
    except ValueError:
        return False


@contextmanager
def open_run(folder: Path, config: BaseModel) -> Iterator[None]:
    """Lock the folder of a run, in which no other process may train, and write its configuration.

    A ``ValueError``, or a lack of memory, means that the run cannot start, and undoes this.
    """
    path = run_config_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = _locked(folder)
    try:
        before = path.read_bytes() if path.exists() else None
        write_text(path, dump_config(config))
        yield
    except TrainingDiverged:
        raise
    except (ValueError, MemoryError, RuntimeError):  # torch raises the last one if it gets no memory
        if before is not None:
            write_text(path, before.decode("utf-8"))
        elif not (folder / STATE_NAME).exists() and not is_finished(folder):
            path.unlink(missing_ok=True)
            (folder / METRICS_NAME).unlink(missing_ok=True)
        raise
    finally:
        with suppress(OSError):  # some systems do not delete open files
            (folder / _LOCK_NAME).unlink()
        lock.release()
        with suppress(OSError):  # unless the folder is empty
            folder.rmdir()


def _locked(folder: Path) -> FileLock:
    """Return a lock that no other process holds.

    A thread asks for it, as the system call may never return on a network file system whose server does not answer.
    """
    lock, failures = FileLock(folder / _LOCK_NAME, timeout=0, thread_local=False), list[Exception]()

    def acquire() -> None:
        try:
            lock.acquire()
        except Exception as error:
            failures.append(error)

    thread = Thread(target=acquire, daemon=True)
    thread.start()
    thread.join(_LOCK_SECONDS)
    if not thread.is_alive() and not failures:
        return lock
    error = failures[0] if failures else TimeoutError(f"no answer for {_LOCK_SECONDS:g} s")
    if isinstance(error, Timeout):
        raise ValueError(f"{folder}: another process trains there") from error
    if isinstance(error, (OSError, NotImplementedError)):
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{folder}: its file system cannot lock it ({reason}); choose a folder on a disk of this machine"
        ) from error
    raise error


def read_config(path: Path, schema: type[C]) -> C:
    """Read the configuration of a run."""
    return validated(parse_tree(read_text(path), str(path)), str(path), schema)


def finished_config(folder: Path, schema: type[C]) -> C:
    """Read the configuration of a finished run."""
    path = run_config_path(folder)
    if not path.is_file():
        raise ValueError(f"{folder}: not a run (no config.yaml); train one with: arcsm train PRESET --out {folder}")
    check_finished(folder)
    return read_config(path, schema)


def training_file(folder: Path) -> Path | None:
    """Return the file or folder of a run's data, if there is a run and its configuration names one."""
    path = run_config_path(folder)
    data = parse_tree(read_text(path), str(path)).get("data") if path.is_file() else None
    name = data.get("path") if isinstance(data, dict) else None
    return Path(name) if isinstance(name, str) else None


def is_finished(folder: Path) -> bool:
    """Return whether a folder holds a model."""
    return (folder / WEIGHTS_NAME).is_file()


def check_finished(path: Path) -> None:
    """Check that a run has a model. Paths that are not runs pass."""
    config = run_config_path(path)
    if config.is_file() and not is_finished(path):
        raise ValueError(f"{path}: has no model yet; finish it with: arcsm train {config} --out {path} --resume")


def warn_if_data_changed(folder: Path, dataset: Dataset) -> None:
    """Warn if the data are not those that a run was trained on, as held-out rows may then be training rows."""
    path = folder / STATE_NAME
    written = read_header(path).get("data") if path.is_file() else None
    labels = dataset.labels.get("train")
    checksums = [fingerprint(dataset.train, condition)["checksum"] for condition in (None, labels)]
    if isinstance(written, dict) and written.get("checksum") not in checksums:
        warn(
            f"{folder}: the data have changed since the training ({written.get('rows')} rows then, "
            f"{len(dataset.train)} now), so held-out rows may be among the training rows"
        )


class RunRows(NamedTuple):
    """Dequantised rows ``(N, D)`` of the data of a run, if there are any, and their classes, for a model with some."""

    train: Tensor | None
    valid: Tensor | None
    train_labels: Tensor | None
    valid_labels: Tensor | None


def rows_of_run(run: Run[RunConfig, AutoregressiveModel], seed: int) -> RunRows:
    """Return training rows of a run, at most 20,000, and its held-out rows."""
    dataset = load_dataset(run.config.data, run.config.train.seed)
    warn_if_data_changed(run.folder, dataset)
    train, labels = dataset.train_rows(_MAX_ROWS), _labels(run.model, dataset)
    train_labels = labels.get("train")
    return RunRows(
        dataset.dequantised(train, seed),
        dataset.dequantised(dataset.valid, seed + 1),
        None if train_labels is None else train_labels[: len(train)],
        labels.get("valid"),
    )


def class_labels(model: AutoregressiveModel, n: int, chosen: int | None = None) -> Tensor | None:
    """Return labels ``(n,)`` for a model with classes: the chosen class, or all in turn; else ``None``."""
    classes = model.context.classes
    if chosen is not None and not 0 <= chosen < classes:
        has = f"has classes 0 to {classes - 1}" if classes else "has no classes"
        raise ValueError(f"--class {chosen}: this model {has}")
    if not classes:
        return None
    labels = torch.arange(n) % classes if chosen is None else torch.full((n,), chosen)
    return labels.to(model.shift.device)


def _labels(model: AutoregressiveModel, dataset: Dataset) -> dict[str, Tensor]:
    """Return the labels of the data for a model with classes, else nothing."""
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


def _check_grey_levels(model: AutoregressiveModel, config: RunConfig, dataset: Dataset) -> None:
    """Check that a discretised head has the grey levels of the data, and that these are not standardised."""
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
