"""Training checkpoints: one file with everything that the next step depends on."""

import math
from pathlib import Path

from arcsm import serialization
from arcsm._runtime.files import FilePath
from arcsm.serialization import CONFIG_NAME, WEIGHTS_NAME
from arcsm.training.log import METRICS_NAME, is_log
from arcsm.training.run_config import run_config_path
from arcsm.training.task import TrainingTask

STATE_NAME = "state.safetensors"


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
    written = header.get("data", {})  # older checkpoints do not have it
    if any(current["data"].get(name) != value for name, value in written.items()):
        then = f"{written['rows']} rows" if "rows" in written else "batches"
        now = current["data"].get("rows", "batches")
        message = f"the run started on different data ({then} then, {now} now); start again in another folder"
        raise ValueError(f"{path}: {message}")
    task.load_state(parts, header, path)
    try:
        task.step, task.seconds = int(header["step"]), float(header["seconds"])
        task.running_loss = float(header.get("running", math.nan))
        task.history = list(header["history"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a training state ({type(error).__name__}: {error})") from error


def json_float(value: float) -> float | str:
    """Return a number as JSON has it, NaN and infinity as text."""
    return value if math.isfinite(value) else str(value)
