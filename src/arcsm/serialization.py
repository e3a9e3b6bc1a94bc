"""Files of tensors with a JSON header: reading them never runs code, and a killed process never leaves half a file."""

import errno
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from arcsm._runtime.cards import remove_card
from arcsm._runtime.files import FilePath, atomic_path, write_text
from arcsm.errors import all_finite, warn

#: Version of the header's layout; files of a later version are rejected.
SCHEMA_VERSION = 1
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  #: that weights may have
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
_HEADER_KEY = "arcsm"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to one safetensors file, atomically."""
    text = _dump(header)
    path.parent.mkdir(parents=True, exist_ok=True)
    separate = _without_shared_memory({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    with atomic_path(path) as temporary:
        own = temporary.with_name(f"{temporary.name}.d")  # safetensors, too, writes to a temporary file at first
        own.mkdir()
        try:
            safetensors.torch.save_file(separate, own / temporary.name, metadata={_HEADER_KEY: text})
            os.replace(own / temporary.name, temporary)
        except safetensors.SafetensorError as error:  # raised if the disk is full
            raise OSError(errno.EIO, str(error)) from error
        finally:
            shutil.rmtree(own, ignore_errors=True)


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, each with its own memory, as safetensors requires."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return separate


def read_tensors(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of a file from :func:`write_tensors`.

    A file that is missing, truncated, not from this package, or of a later version is a ``ValueError``.
    """
    with _opened(path, device) as (file, header):
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118


def read_header(path: Path) -> dict[str, Any]:
    """Return only the header of a file from :func:`write_tensors`; see :func:`read_tensors` for errors."""
    with _opened(path, "cpu") as (_, header):
        return header


@contextmanager
def _opened(path: Path, device: str | torch.device) -> Iterator[tuple[Any, dict[str, Any]]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            text = (file.metadata() or {}).get(_HEADER_KEY)
            if text is None:
                raise ValueError(f"{path}: a safetensors file, but not one that arcsm wrote")
            yield file, parse_header(text, path)
    except (safetensors.SafetensorError, OSError, UnicodeDecodeError, MemoryError) as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error})") from error


def parse_header(text: str, path: Path) -> dict[str, Any]:
    """Parse the JSON header of a file, which must be an object of a known version."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError for an integer of thousands of digits, too
        raise ValueError(f"{path}: the configuration is not JSON ({error})") from error
    version = header.get("schema_version") if isinstance(header, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{path}: the configuration has no schema_version")
    if version > SCHEMA_VERSION:
        raise ValueError(f"{path}: written by a later arcsm (schema {version}, known {SCHEMA_VERSION}); upgrade arcsm")
    return dict(header)


def check_json(entries: Mapping[str, Any], name: str) -> None:
    """Check that a header can hold each of these entries.

    Raises:
        ValueError: If one is not a number, text, a list or a mapping of those; it begins with ``name``.
    """
    for key, value in entries.items():
        try:
            _dump({"entry": value})
        except (TypeError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            expected = "expected numbers, text, lists or mappings, which a file can hold"
            raise ValueError(f"{name}: {key}: {expected} ({reason})") from error


def check_types(tensors: Mapping[str, Tensor]) -> None:
    """Check that a file can hold the types of tensors.

    Raises:
        ValueError: If safetensors does not have the type of one, or a lazy module has not made it yet.
    """
    for name, tensor in tensors.items():
        if torch.nn.parameter.is_lazy(tensor):
            raise ValueError(f"tensor {name} has no shape yet; call its lazy module once before")
        try:
            safetensors.torch.save({name: tensor.detach().new_empty(0, device="cpu")})
        except KeyError as error:
            raise ValueError(f"tensor {name} cannot be saved: safetensors has no type {tensor.dtype}") from error


def _dump(header: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps({"schema_version": SCHEMA_VERSION, **header}, indent=indent, default=_python_number)


def _python_number(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


def weights_path(path: FilePath) -> Path:
    """Return the path itself if it ends in .safetensors, else the path of ``model.safetensors`` in it."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / WEIGHTS_NAME


def folder_of(path: FilePath) -> Path | None:
    """Return the folder that weights are written to, ``None`` if they are a single file."""
    return None if weights_path(path) == Path(path) else Path(path)


def save_module(module: torch.nn.Module, config: Mapping[str, Any], path: FilePath) -> None:
    """Write a module to a ``.safetensors`` file, or to a folder, together with a readable copy of its configuration."""
    save_tensors(module.state_dict(), config, path)


def save_tensors(tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: FilePath) -> None:
    """Write tensors and their configuration as :func:`save_module` does."""
    file = weights_path(path)
    write_tensors(file, tensors, config)
    if (folder := folder_of(path)) is not None:
        write_text(folder / CONFIG_NAME, _dump(config, indent=2) + "\n")
        remove_card(folder)  # of what was there before


def read_module(path: FilePath) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the configuration that :func:`save_module` wrote; see :func:`read_tensors` for errors.

    The header of the weights counts. A ``config.json`` that differs, as after a process was killed between writing the
    two, is a warning.
    """
    file = weights_path(path)
    tensors, config = read_tensors(file)
    beside = file.parent / CONFIG_NAME
    if file == Path(path) or not beside.is_file():
        return tensors, config
    try:
        differs = parse_header(beside.read_text(encoding="utf-8", errors="replace"), beside) != config
    except ValueError:
        differs = True
    if differs:
        warn(f"{beside}: does not belong to {file.name} and is ignored; saving the model again replaces it")
    return tensors, config


def check_fits(build: Callable[[], torch.nn.Module], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that the tensors of a file fit its module, as :func:`load_state` does, before memory is taken for it.

    ``build`` makes the module. Modules of other packages that read values in their constructors cannot be checked.
    """
    if (module := _without_values(build)) is not None:
        load_state(module, {name: tensor.to("meta") for name, tensor in tensors.items()}, path)


def check_rebuilds(
    build: Callable[[dict[str, Any]], torch.nn.Module], config: Any, tensors: Mapping[str, Tensor]
) -> None:
    """Check that the configuration of a module, read from a file, rebuilds its tensors.

    Raises:
        ValueError: If the rebuilt module has other tensors, tensors of other shapes, or another configuration. As in
            :func:`check_fits`, some modules cannot be checked.
    """
    read = parse_header(_dump(config), Path("config"))
    if (module := _without_values(lambda: build(read))) is None:
        return
    rebuilt = module.state_dict()
    for name in sorted(tensors.keys() | rebuilt.keys()):
        own, other = (_described(one.get(name)) for one in (tensors, rebuilt))
        if own != other:
            raise ValueError(
                f"model: tensor {name}: {own}, but {other} in a model rebuilt from config(), so no file could be "
                "loaded; make such changes in the constructor of a class of your own (arcsm.register)"
            )
    config_of = getattr(module, "config", None)
    again = parse_header(_dump(config_of()), Path("config")) if callable(config_of) else read
    for name, entries in read.items():
        if again.get(name) != entries:
            raise ValueError(f"model: config(): {name} is {again.get(name)!r:.80} once rebuilt, not {entries!r:.80}")


def _described(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    return f"{'numbers' if tensor.is_floating_point() else 'integers'} of shape {tuple(tensor.shape)}"


def _without_values(build: Callable[[], torch.nn.Module]) -> torch.nn.Module | None:
    """Build a module on the meta device, where tensors have shapes but no values; ``None`` if it reads values."""
    try:
        with torch.device("meta"):
            return build()
    except (ValueError, TypeError, RuntimeError) as error:
        if _reads_values(error):
            return None
        raise


def _reads_values(error: BaseException | None) -> bool:
    """Return whether an error, or a cause of it, is torch's for reading a value of a meta tensor."""
    while error is not None and not (isinstance(error, (RuntimeError, TypeError)) and "meta" in str(error)):
        error = error.__cause__
    return error is not None


def adopt_types(module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the parameters and buffers of a module the types that its numbers have in a file: single, double, half."""
    for prefix, part in module.named_modules():
        for name, own in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            saved = tensors.get(f"{prefix}.{name}" if prefix else name)
            if saved is not None and own.is_floating_point() and saved.dtype in TYPES:
                own.data = own.data.to(saved.dtype)


def load_state(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors into a module, after a check that names, shapes and types agree and all numbers are finite.

    Numbers must be finite in the type of the module, whatever the type of the tensors.
    The module may complete the tensors that an older version wrote (``_load_from_state_dict``). A part of it may check
    the values (``check_loaded``, which raises a ``ValueError``).
    """
    expected = module.state_dict()
    for name in sorted(tensors):
        shown = name if name.isprintable() else repr(name)  # a foreign file may contain control characters
        if name not in expected:
            raise ValueError(f"{path}: tensor {shown} is not part of this model")
        old, new = expected[name], tensors[name]
        if old.shape != new.shape or old.is_floating_point() != new.is_floating_point():
            raise ValueError(
                f"{path}: tensor {shown}: expected shape {tuple(old.shape)} and type {old.dtype}, "
                f"got {tuple(new.shape)} and {new.dtype}"
            )
        if new.is_floating_point() and not all_finite(new.to(old.dtype)):
            wide = "" if old.dtype == new.dtype else f" in {old.dtype}, the type of this model"
            raise ValueError(f"{path}: tensor {shown} holds NaN or infinity{wide}")
    missing = module.load_state_dict(dict(tensors), strict=False).missing_keys
    if missing:
        raise ValueError(f"{path}: tensor {min(missing)} is missing")
    for name, part in module.named_modules():
        if hasattr(part, "check_loaded") and not any(buffer.is_meta for buffer in part.buffers()):
            try:
                part.check_loaded()
            except ValueError as error:
                raise ValueError(f"{path}: {name}: {error}") from error


def read_state(
    path: Path, device: str | torch.device, expected: Mapping[str, Any], complete: Mapping[str, Callable[[Any], Any]]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the tensors of a training state, by the part of their name before the first dot, and its header.

    The header must have the entries ``expected``. For each of them, ``complete`` has a function that adds the defaults
    of settings that did not exist yet in the version that wrote the file.
    """
    tensors, header = read_tensors(path, device)
    for name, entry in expected.items():
        try:
            written = complete[name](header.get(name))
        except (TypeError, ValueError, AttributeError, KeyError):
            written = None
        before, now = json.loads(json.dumps([written, entry], default=_python_number))
        if before != now:
            difference = _first_difference(before, now)
            raise ValueError(
                f"{path}: was written with a different {name} configuration{difference}; use another run folder"
            )
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = tensor
    return groups, header


def _first_difference(before: Any, now: Any) -> str:
    """Describe the first setting that differs, or return an empty string if that would be too long."""
    keys: list[str] = []
    while isinstance(before, dict) and isinstance(now, dict):
        key = next((key for key in now if before.get(key) != now[key]), None)
        if key is None:
            return ""
        keys.append(key)
        before, now = before.get(key), now[key]
    if not keys or len(repr(before)) + len(repr(now)) > 200:
        return ""
    return f" ({'.'.join(keys)}: {before!r} then, {now!r} now)"


def packed(state: Mapping[str, Any]) -> Tensor:
    """Return the state of an optimizer or scheduler of any kind as bytes, ``(N,)``; see :func:`unpacked`."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def unpacked(tensor: Tensor, path: Path) -> dict[str, Any]:
    """Return the state that :func:`packed` has packed. Only data are read, never code."""
    try:
        state = torch.load(io.BytesIO(tensor.cpu().numpy().tobytes()), "cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: the state of the optimizer or scheduler cannot be read back") from error
    return dict(state)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimizer as named tensors."""
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore a state from :func:`optimizer_tensors`. Learning rates and other settings do not change."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor.clone()  # torch does not copy it
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
