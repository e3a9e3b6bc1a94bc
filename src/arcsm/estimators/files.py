"""Fitted estimators as files: safetensors with a JSON header, which reading never runs."""

import os
from pathlib import Path
from typing import Any, Self, get_type_hints

from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from arcsm import serialization
from arcsm._runtime.cards import write_card
from arcsm._runtime.devices import resolve_device
from arcsm._version import __version__
from arcsm.model import AutoregressiveModel
from arcsm.stored_values import Entries, Reader, Writer, is_a, register_kind, stored

KIND = "estimator"
_OPTIONAL = {"feature_names_in_"}  # of the attributes that the classes declare
#: Errors of reading entries that no version writes.
_WRONG = (
    KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, ArithmeticError, MemoryError, OSError
)  # fmt: skip


def save_stored(value: Any, path: str | os.PathLike[str], kind: str = KIND) -> None:
    """Write an object of a class that files can hold, with the tensors of its models."""
    writer = Writer()
    header = {"kind": kind, "arcsm": __version__, kind: writer.write(value)}
    serialization.check_json(header, str(path))
    serialization.save_tensors(writer.tensors, header, path)


def load_stored(path: str | os.PathLike[str], device: str = "cpu", kind: str = KIND) -> Any:
    """Read what :func:`save_stored` wrote; models go to the device.

    Raises:
        ValueError: If the file is missing, damaged, of another kind, or of a version that is too new.
    """
    device = str(resolve_device(device))
    tensors, header = serialization.read_module(path)
    file = serialization.weights_path(path)
    if header.get("kind") != kind:
        raise ValueError(f"{file}: expected a fitted {kind}, got {described(header)}")
    try:
        return Reader(tensors, device).read(header.get(kind))
    except RecursionError as error:
        raise ValueError(f"{file}: nested too deeply") from error
    except _WRONG as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file}: not what arcsm {str(header.get('arcsm'))[:20]} writes ({reason:.300})") from error


def described(header: Entries) -> str:
    """Return what a file holds, in words, from its header."""
    kind = header.get("kind")
    return "a model" if kind is None else f"a fitted {kind}" if kind in (KIND, "table") else f"a {kind!s:.60}"


class EstimatorFiles(BaseEstimator):
    """An estimator that can be written to files and read from them."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        stored(cls)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a ``.safetensors`` file, or to a folder with a readable copy of its settings.

        A folder also gets a card, ``README.md``, which says what the estimator was fitted to and what its limits are.

        Reading the file never runs code, unlike a pickle. Beside the model it holds values of the training rows: names,
        ranges, scores, all numbers of columns in which some recur, and targets of a regression.

        Raises:
            ValueError: If it holds something that a file cannot, such as names of a class of your own.
            sklearn.exceptions.NotFittedError: If it is not fitted.
        """
        check_is_fitted(self)
        folder = serialization.folder_of(path)
        card = "" if folder is None else self._card()
        save_stored(self, path)
        if folder is not None:
            write_card(folder, card)

    def _card(self) -> str:
        """Return the card of the fitted estimator, as Markdown."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "cpu") -> Self:
        """Read a fitted estimator that :meth:`save` wrote, on this machine or another.

        Arguments:
            path: A ``.safetensors`` file or a folder.
            device: Where the model goes.

        Raises:
            ValueError: If the file is missing or damaged, holds another estimator, or was written by a later version.
        """
        found = load_stored(path, device)
        if not isinstance(found, cls):
            file = serialization.weights_path(path)
            raise ValueError(f"{file}: expected a {cls.__name__}, got a {type(found).__name__}")
        return found

    def to_entries(self, writer: Writer) -> Entries:
        """Return the arguments of the constructor and the fitted attributes, ready for JSON."""
        parameters = self.get_params(deep=False)
        fitted = {name: value for name, value in vars(self).items() if name not in parameters}
        return {
            "parameters": {name: writer.write(value) for name, value in parameters.items()},
            "fitted": {name: writer.write(value) for name, value in fitted.items()},
        }

    @classmethod
    def from_entries(cls, entries: Entries, reader: Reader) -> Self:
        """Build a fitted estimator from what :meth:`to_entries` returned, after checks of names and types."""
        parameters = {name: reader.read(value) for name, value in entries["parameters"].items()}
        estimator = cls(**parameters)
        hints = get_type_hints(cls)
        needed = {name for name in hints if not hasattr(cls, name)} - _OPTIONAL
        if missing := sorted(needed - set(entries["fitted"])):
            raise ValueError(f"{cls.__name__}: {missing[0]} is missing")
        for name, entry in entries["fitted"].items():
            value = reader.read(entry)
            if hasattr(cls, name) or not name.isidentifier() or not is_a(value, hints.get(name, Any)):
                raise ValueError(f"{cls.__name__}: wrong value of {name!r:.60}")
            setattr(estimator, name, value)
        if "device" in parameters:
            estimator.set_params(device=reader.device)
        return estimator


def _write_model(model: AutoregressiveModel, writer: Writer) -> Entries:
    if id(model) in writer.names:
        return {"name": writer.names[id(model)]}
    model.check_saveable()
    name = writer.names[id(model)] = f"model.{len(writer.names)}"
    writer.tensors.update({f"{name}.{key}": tensor for key, tensor in model.state_dict().items()})
    return {"name": name, "config": model.config()}


def _read_model(entries: Entries, reader: Reader) -> AutoregressiveModel:
    name = entries["name"]
    if name not in reader.shared:
        start = f"{name}."
        tensors = {key.removeprefix(start): value for key, value in reader.tensors.items() if key.startswith(start)}
        model = AutoregressiveModel.from_tensors(entries["config"], tensors, Path(name))
        reader.shared[name] = model.to(reader.device).eval()
    model = reader.shared[name]
    if not isinstance(model, AutoregressiveModel):
        raise ValueError(f"{name!r:.60} is no model")
    return model


def _write_sparse(matrix: sparse.csr_matrix, writer: Writer) -> Entries:
    parts = {"data": matrix.data, "indices": matrix.indices, "starts": matrix.indptr}
    return {"shape": list(matrix.shape), **{name: writer.write(part) for name, part in parts.items()}}


def _read_sparse(entries: Entries, reader: Reader) -> sparse.csr_matrix:
    parts = tuple(reader.read(entries[name]) for name in ("data", "indices", "starts"))
    matrix = sparse.csr_matrix(parts, shape=tuple(entries["shape"]))
    matrix.check_format(full_check=True)
    return matrix


register_kind(AutoregressiveModel, "model", _write_model, _read_model)
register_kind(sparse.csr_matrix, "sparse", _write_sparse, _read_sparse)
