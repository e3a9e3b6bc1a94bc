"""Files of tensors with a JSON header, read without ever running code and written so that a kill loses nothing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from arcsm._runtime.files import atomic_path, write_text

#: Version of the layout of the header; a file of a later version is refused.
SCHEMA_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
_HEADER_KEY = "arcsm"


def _plain(value: Any) -> Any:
    """A number of numpy or torch as JSON has it."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to one safetensors file, atomically."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **header}, default=_plain)
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(contiguous, temporary, metadata={_HEADER_KEY: text})
        except safetensors.SafetensorError as error:  # its name for a full disk
            raise OSError(errno.EIO, str(error)) from error


def read_tensors(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Raises:
        ValueError: for a file that is missing, truncated, of another kind or of a later version.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            header = (file.metadata() or {}).get(_HEADER_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, UnicodeDecodeError, MemoryError) as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error})") from error
    if header is None:
        raise ValueError(f"{path}: a safetensors file, but not one that arcsm wrote")
    return tensors, parse_header(header, path)


def read_header(path: Path) -> dict[str, Any]:
    """The header alone of what :func:`write_tensors` wrote; errors as there."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER_KEY)
    except (safetensors.SafetensorError, OSError, UnicodeDecodeError, MemoryError) as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error})") from error
    return parse_header(header or "", path)


def parse_header(text: str, path: Path) -> dict[str, Any]:
    """The JSON header of a file, checked for its version.

    Raises:
        ValueError: for text that is not a JSON object of a known version.
    """
    try:
        header = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: the configuration is not JSON ({error})") from error
    version = header.get("schema_version") if isinstance(header, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{path}: the configuration has no schema_version")
    if version > SCHEMA_VERSION:
        raise ValueError(f"{path}: written by a later arcsm (schema {version}, known {SCHEMA_VERSION}); upgrade arcsm")
    return dict(header)


def weights_path(path: str | os.PathLike[str]) -> Path:
    """The weights file that a path means: itself if it ends in .safetensors, else ``model.safetensors`` within."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / WEIGHTS_NAME


def save_module(module: torch.nn.Module, config: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a module to a ``.safetensors`` file, or to a folder that gets its configuration for people to read too."""
    file = weights_path(path)
    write_tensors(file, module.state_dict(), config)
    if file != Path(path):
        text = json.dumps({"schema_version": SCHEMA_VERSION, **config}, indent=2, default=_plain)
        write_text(file.parent / CONFIG_NAME, text + "\n")


def read_module(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration that :func:`save_module` wrote.

    Raises:
        ValueError: as :func:`read_tensors`, or where the folder's configuration is of other weights.
    """
    file = weights_path(path)
    tensors, config = read_tensors(file)
    beside = file.parent / CONFIG_NAME
    if file != Path(path) and beside.is_file():
        copy = parse_header(beside.read_text(encoding="utf-8", errors="replace"), beside)
        if copy != config:
            raise ValueError(f"{beside}: does not belong to {file.name}; delete it to use the copy inside {file.name}")
    return tensors, config


def load_state(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill a module with tensors, naming the first that is missing, unknown or of another shape or type.

    Raises:
        ValueError: where the tensors do not fit.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        shown = name if name.isprintable() else repr(name)  # a foreign file may hold what a terminal obeys
        if name not in tensors:
            raise ValueError(f"{path}: tensor {shown} is missing")
        if name not in own:
            raise ValueError(f"{path}: tensor {shown} is not part of this model")
        wanted, got = own[name], tensors[name]
        if wanted.shape != got.shape or wanted.is_floating_point() != got.is_floating_point():
            raise ValueError(
                f"{path}: tensor {shown}: expected shape {tuple(wanted.shape)} and type {wanted.dtype}, "
                f"got {tuple(got.shape)} and {got.dtype}"
            )
        if got.is_floating_point() and not bool(torch.isfinite(got).all()):
            raise ValueError(f"{path}: tensor {shown} holds NaN or infinity")
    module.load_state_dict(dict(tensors))


def _first_difference(theirs: Any, ours: Any) -> str:
    """The first setting that two configurations disagree on, for people; nothing where that cannot be said."""
    where: list[str] = []
    while isinstance(theirs, dict) and isinstance(ours, dict):
        key = next((key for key in ours if theirs.get(key) != ours[key]), None)
        if key is None:
            return ""
        where.append(key)
        theirs, ours = theirs.get(key), ours[key]
    if not where or len(repr(theirs)) + len(repr(ours)) > 200:
        return ""
    return f" ({'.'.join(where)}: {theirs!r} then, {ours!r} now)"


def read_state(
    path: Path,
    device: str | torch.device,
    expected: Mapping[str, Any],
    completed: Mapping[str, Callable[[Any], Any]],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a training state: tensors by their part, which is what comes before the first dot of a name, and header.

    Arguments:
        path: The file.
        device: Where to put the tensors.
        expected: Entries of the header that must be as they are here.
        completed: What adds to such an entry the settings that came after the version that wrote the file, each with
            its default; so that a new version goes on with the runs of an older one.

    Raises:
        ValueError: as :func:`read_tensors`, or for a state of another configuration.
    """
    tensors, header = read_tensors(path, device)
    for name, mine in expected.items():
        complete = completed[name]
        try:
            written = complete(header.get(name))
        except (TypeError, ValueError, AttributeError, KeyError):
            written = None
        theirs, ours = json.loads(json.dumps([written, mine], default=_plain))
        if theirs != ours:
            which = _first_difference(theirs, ours)
            raise ValueError(f"{path}: was written with another {name} configuration{which}; use another run folder")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts, header


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as named tensors."""
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` gave; rates and other settings stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor.clone()  # torch would share it
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
