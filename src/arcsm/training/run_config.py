"""Run configurations: one YAML file says what data, what model and how to train."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model, model_validator

from arcsm import registry
from arcsm.contexts import Context
from arcsm.data.datasets import DataConfig, Dataset
from arcsm.model import AutoregressiveModel
from arcsm.noise import NoiseLadder
from arcsm.training.config import TrainConfig


class ModelConfig(BaseModel):
    """The parts of a model, each checked against the constructor that it is for.

    ``features`` (or ``image_shape``) follows from the data and ``context_features`` of the head from the context, so
    neither is given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    context: dict[str, Any]
    head: dict[str, Any]
    noise: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_parts(self) -> ModelConfig:
        parts = {"context": _checked_part("context", self.context)}
        parts["head"] = _checked_part("head", self.head)
        if self.noise is not None:
            parts["noise"] = _validated("noise", _schema(NoiseLadder, None), self.noise)
        self.__dict__.update(parts)  # what was meant: YAML reads 5e-2 as text
        return self

    def build(self, features: int, metadata: Mapping[str, Any] | None = None) -> AutoregressiveModel:
        """The model for data of so many features, with fresh weights.

        Raises:
            ValueError: for a context that needs images, and data that are none.
        """
        metadata = dict(metadata or {})
        kind = cast(type[Context], registry.find("context", self.context["kind"]))
        default = inspect.signature(kind.__init__).parameters["context_features"].default
        data_argument = {"features": features, "image_shape": metadata.get("image_shape")}[kind.data_argument]
        if data_argument is None:
            raise ValueError(f"model.context.kind: a {kind.__name__} needs images, and these data are none; use MADE")
        size = self.context.get("context_features", default)
        return AutoregressiveModel.from_config(
            {
                "context": {**self.context, kind.data_argument: data_argument},
                "head": {**self.head, "context_features": size},
                "noise": self.noise,
                "metadata": metadata,
            }
        )


class RunConfig(BaseModel):
    """A whole run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    about: str = ""
    data: DataConfig
    model: ModelConfig
    train: TrainConfig

    def for_dataset(self, dataset: Dataset) -> TrainConfig:
        """How to train on this data set: with its dequantisation, unless the file gives another."""
        if "dequantise" in self.train.model_fields_set:
            return self.train
        return self.train.model_copy(update={"dequantise": dataset.dequantise})


def presets() -> dict[str, Path]:
    """The presets that come with the package, by name."""
    folder = Path(str(resources.files("arcsm.training") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_config(source: str, changes: Sequence[str] = ()) -> RunConfig:
    """Read a run configuration.

    Arguments:
        source: Name of a preset, or path of a YAML file.
        changes: Settings of the form ``key.path=value`` that go over the file; values are YAML.

    Raises:
        ValueError: in one line, for an unknown preset, a file that is not YAML, an unknown key or a wrong type.
    """
    return validated(load_tree(source, changes), source, RunConfig)


def load_tree(source: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a preset or a file, with changes, before they are checked; see :func:`load_config`."""
    known = presets()
    path = known.get(source, Path(source))
    if not path.is_file():
        close = difflib.get_close_matches(source, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"presets: {', '.join(known)}"
        raise ValueError(f"{source}: neither a preset nor a YAML file; {hint}")
    return parse_tree(read_text(path), source, changes)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: for one that is not text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start})") from error


def parse_config(text: str, source: str, changes: Sequence[str] = ()) -> RunConfig:
    """Parse the text of a run configuration; see :func:`load_config`."""
    return validated(parse_tree(text, source, changes), source, RunConfig)


def parse_tree(text: str, source: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Settings that are text, with changes, before they are checked.

    Raises:
        ValueError: for text that is not a YAML mapping.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"{source}: not a configuration: nested too deeply") from error
    except (ValueError, AttributeError, KeyError, TypeError) as error:  # a date or number that is none, an odd tag
        raise ValueError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{source}: expected keys name, data, model and train")
    for change in changes:
        apply_change(tree, change)
    return tree


C = TypeVar("C", bound=BaseModel)


def validated(tree: dict[str, Any], source: str, schema: type[C]) -> C:
    """Settings as what they are of.

    Raises:
        ValueError: in one line, for an unknown key or a wrong type.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{source}: {first_error(error, schema)}") from error


def dump_config(config: BaseModel) -> str:
    """The configuration as YAML, defaults of ``train`` and ``data`` included; read again, it is the same."""
    tree = config.model_dump(mode="json")
    if isinstance(config, RunConfig) and "dequantise" not in config.train.model_fields_set:
        del tree["train"]["dequantise"]  # it follows from the data, and once written it would not
    return yaml.safe_dump(tree, sort_keys=False)


def apply_change(tree: dict[str, Any], change: str) -> None:
    """Put one ``key.path=value`` into a tree of settings."""
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {change}: expected KEY=VALUE, for example train.steps=1000")
    *parents, last = key.split(".")
    for name in parents:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    try:
        tree[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"--set {change}: the value is not YAML") from error
    if key == "train.steps":
        tree.pop("epochs", None)  # which would count in place of the steps that are asked for


def _checked_part(seam: Literal["context", "head"], part: dict[str, Any]) -> dict[str, Any]:
    kind = registry.find(seam, part.get("kind"), f"{seam}.kind")
    omit = getattr(kind, "data_argument", "context_features")
    values = {key: value for key, value in part.items() if key != "kind"}
    return {"kind": kind.__name__, **_validated(seam, _schema(kind, omit), values)}


def _validated(name: str, schema: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    try:
        return schema.model_validate(values).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise ValueError(f"{name}.{first_error(error, schema)}") from error


def _schema(kind: Callable[..., Any], omit: str | None) -> type[BaseModel]:
    """What a constructor takes, as a schema: its signature is the one place where that is written down."""
    signature = inspect.signature(kind)
    hints = get_type_hints(kind.__init__)  # type: ignore[misc]
    fields: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if name != omit:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[name] = (hints[name], default)
    return create_model(f"{kind.__name__}Schema", __config__=ConfigDict(extra="forbid"), **fields)


def first_error(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first thing that is wrong, as ``key.path: what``."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    if first["type"] == "value_error":  # raised by a check of ours, which names its own key
        return ".".join([*location, str(first["ctx"]["error"])])
    path = ".".join(location)
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(location[-1], _known_keys(schema, location[:-1]), n=1)
        return f"{path}: unknown key" + (f"; did you mean {close[0]}?" if close else "")
    return f"{path}: {first['msg'].lower()}, got {str(first['input'])[:60]!r}"


def _known_keys(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys that a schema knows at a path, as far as it is made of plain sections."""
    for name in path:
        section = schema.model_fields.get(name)
        inner = section.annotation if section is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        schema = inner
    return list(schema.model_fields)


def run_config_path(run: str | os.PathLike[str]) -> Path:
    """Where a run folder keeps its configuration."""
    return Path(run) / "config.yaml"
