"""Training checkpoints: one file with everything that the next step depends on."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from arcsm import serialization
from arcsm._runtime.files import FilePath
from arcsm.serialization import CONFIG_NAME, WEIGHTS_NAME
from arcsm.training.log import COLUMNS, METRICS_NAME, is_log
from arcsm.training.run_config import first_error, run_config_path
from arcsm.training.task import TrainingTask

STATE_NAME = "state.safetensors"
_LOGGED = {"step", "loss", "seconds"}  # columns that every row of a history has
_MOST_STEPS = 1 << 62


class _Best(BaseModel):
    step: int = Field(ge=0)
    loss: float
    missed: int = Field(ge=0)


class _State(BaseModel):
    """The entries of a state's header that every kind of task has; older states lack those with a default."""

    step: int = Field(ge=0, le=_MOST_STEPS)
    seconds: float
    running: float = math.nan
    history: list[dict[str, float]]
    data: dict[str, Any] = {}
    best: _Best | None = None
    position: int = Field(0, ge=0, le=_MOST_STEPS)
    kinds: dict[str, str | None] = {}


def check_unused(run: FilePath | None, resume: bool) -> None:
    """Refuse to start a new run in the folder of another, in a file, or where it would replace other files."""
    if run is None:
        return
    folder = Path(run)
    if folder.is_file():
        raise ValueError(f"{run}: expected a folder for the run, got a file; choose another path")
    if not resume and any((folder / name).exists() for name in (STATE_NAME, WEIGHTS_NAME)):
        raise ValueError(f"{run}: already holds a run; give resume=True to continue it, or choose another folder")
    if (file := foreign_file(folder)) is not None:
        raise ValueError(f"{file}: exists, but the folder is not a run; choose another folder")


def foreign_file(folder: Path) -> Path | None:
    """Return a file that a run in a folder would replace, though no run has written it."""
    if run_config_path(folder).is_file() or any((folder / name).exists() for name in (STATE_NAME, WEIGHTS_NAME)):
        return None
    files = [folder / CONFIG_NAME] + [folder / METRICS_NAME] * (not is_log(folder))
    return next((file for file in files if file.exists()), None)


def write_checkpoint(task: TrainingTask, run: Path) -> None:
    """Write the state of a training task to its run folder, atomically."""
    tensors = {f"{part}.{name}": tensor for part, named in task.tensors().items() for name, tensor in named.items()}
    header = {
        "kind": task.kind,
        "step": task.step,
        "seconds": task.seconds,
        "running": json_float(task.running_loss),
        "history": task.history,
        **task.header(),
    }
    serialization.write_tensors(run / STATE_NAME, tensors, header)


def read_checkpoint(task: TrainingTask, run: Path) -> None:
    """Restore the state of a training task from its run folder, if that has a checkpoint.

    A damaged checkpoint, or one of another configuration or other data, is an error.
    """
    path = run / STATE_NAME
    if not path.exists():
        return
    current, device = task.header(), task.device
    expected = {name: current[name] for name in task.completions}
    parts, header = serialization.read_state(path, device, expected, task.completions)
    state = _checked(header, {*COLUMNS, *task.extra_columns}, path)
    if any(current["data"].get(name) != value for name, value in state.data.items()):
        then = f"{state.data['rows']} rows" if "rows" in state.data else "batches"
        now = current["data"].get("rows", "batches")
        message = f"the run started on different data ({then} then, {now} now); start again in another folder"
        raise ValueError(f"{path}: {message}")
    try:
        task.load_state(parts, header, path)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:  # an entry of one kind of task
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a training state ({type(error).__name__}: {reason})") from error
    task.step, task.seconds, task.running_loss = state.step, state.seconds, state.running
    task.history = list(header["history"])


def _checked(header: Mapping[str, Any], columns: set[str], path: Path) -> _State:
    """Check the entries of a state; the rows of its history may have some columns only."""
    try:
        state = _State.model_validate(header)
    except ValidationError as error:
        raise ValueError(f"{path}: not a training state ({first_error(error, _State)})") from error
    if any(not _LOGGED <= row.keys() <= columns for row in state.history):
        raise ValueError(f"{path}: not a training state (history: other columns than {', '.join(sorted(columns))})")
    return state


def json_float(value: float) -> float | str:
    """Return a number as JSON has it, NaN and infinity as text."""
    return value if math.isfinite(value) else str(value)
