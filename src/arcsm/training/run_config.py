"""Run configurations: one YAML file for the data, the model and the training."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, cast, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model, model_validator

from arcsm import registry
from arcsm._runtime.files import FilePath
from arcsm.contexts import Context
from arcsm.data.datasets import DataConfig, Dataset
from arcsm.model import AutoregressiveModel
from arcsm.noise import NoiseLadder
from arcsm.training.config import TrainConfig

C = TypeVar("C", bound=BaseModel)
#: PyYAML raises the last four for impossible dates and numbers and for odd tags.
_YAML_ERRORS = (yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError)


_MAX_BYTES = 1 << 20  # of a configuration; PyYAML reads about 100 kB a second


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, by which a short text can stand for billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"expected a value, got the alias *{event.anchor}; write the value out",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


class ModelConfig(BaseModel):
    """The parts of a model, each checked against the constructor of its kind.

    ``features`` (or ``image_shape``) follows from the data, and the head's ``context_features`` from the context.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    context: dict[str, Any]
    head: dict[str, Any]
    noise: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        parts = {"context": _checked_part("context", self.context)}
        parts["head"] = _checked_part("head", self.head)
        if self.noise is not None:
            parts["noise"] = _validated("noise", _schema(NoiseLadder, None), self.noise)
        self.__dict__.update(parts)  # converted: YAML reads 5e-2 as text
        return self

    def build(self, features: int, metadata: Mapping[str, Any] | None = None) -> AutoregressiveModel:
        """Return the model for data with a number of features, with new weights; contexts of images need images."""
        metadata = dict(metadata or {})
        kind = cast(type[Context], registry.find("context", self.context["kind"]))
        default = inspect.signature(kind.__init__).parameters["context_features"].default
        data_argument = {"features": features, "image_shape": metadata.get("image_shape")}[kind.data_argument]
        if data_argument is None:
            raise ValueError(f"model.context.kind: {kind.__name__} needs images, but the data are not images; use MADE")
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
    """A run of a density."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    about: str = ""
    data: DataConfig
    model: ModelConfig
    train: TrainConfig

    def for_dataset(self, dataset: Dataset) -> TrainConfig:
        """Return how to train on a data set: with its dequantisation, unless the configuration sets another."""
        if "dequantise" in self.train.model_fields_set:
            return self.train
        return self.train.model_copy(update={"dequantise": dataset.dequantise})


def presets() -> dict[str, Path]:
    """Return the paths of the presets of the package, by name."""
    folder = Path(str(resources.files("arcsm.training") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_config(source: str, changes: Sequence[str] = ()) -> RunConfig:
    """Read a preset or YAML file; ``changes``, each ``key.path=value`` with a YAML value, override its settings."""
    return validated(load_tree(source, changes), source, RunConfig)


def load_tree(source: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the unchecked settings of a preset or file, with changes; see :func:`load_config`."""
    known = presets()
    path = known.get(source, Path(source))
    if not path.is_file():
        close = difflib.get_close_matches(source, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"presets: {', '.join(known)}"
        raise ValueError(f"{source}: neither a preset nor a YAML file; {hint}")
    return parse_tree(read_text(path), source, changes)


def read_text(path: Path) -> str:
    """Return the text of a configuration file, which must be UTF-8."""
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{path}: expected a configuration of at most 1 MiB, got a larger file")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start})") from error


def parse_config(text: str, source: str, changes: Sequence[str] = ()) -> RunConfig:
    """Parse the text of a run configuration; see :func:`load_config`."""
    return validated(parse_tree(text, source, changes), source, RunConfig)


def parse_tree(text: str, source: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the unchecked settings of a YAML text, which must be a mapping, with changes."""
    try:
        tree = yaml.load(text, _Loader)
    except RecursionError as error:
        raise ValueError(f"{source}: not a configuration: nested too deeply") from error
    except _YAML_ERRORS as error:
        raise ValueError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{source}: expected keys name, data, model and train")
    for change in changes:
        apply_change(tree, change)
    return tree


def validated(tree: dict[str, Any], source: str, schema: type[C]) -> C:
    """Check settings against a schema; the error message is one line."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{source}: {first_error(error, schema)}") from error


def dump_config(config: BaseModel) -> str:
    """Return a configuration as YAML, with the defaults of ``train`` and ``data``."""
    tree = config.model_dump(mode="json")
    if isinstance(config, RunConfig) and "dequantise" not in config.train.model_fields_set:
        del tree["train"]["dequantise"]  # else it would no longer follow from the data
    return yaml.safe_dump(tree, sort_keys=False)


def apply_change(tree: dict[str, Any], change: str) -> None:
    """Apply one ``key.path=value`` to a tree of settings."""
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {change}: expected KEY=VALUE, for example train.steps=1000")
    *parents, last = key.split(".")
    for name in parents:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    try:
        tree[last] = yaml.load(value, _Loader)
    except _YAML_ERRORS as error:
        raise ValueError(f"--set {change}: the value is not YAML") from error
    if key == "train.steps":
        tree.pop("epochs", None)  # it would take precedence over the steps


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
    """Return the arguments of a constructor, without ``omit``, as a schema."""
    signature = inspect.signature(kind)
    hints = get_type_hints(kind.__init__)  # type: ignore[misc]
    fields: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if name != omit:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[name] = (hints[name], default)
    settings = ConfigDict(extra="forbid", arbitrary_types_allowed=True)  # a condition_net may be a module
    return create_model(f"{kind.__name__}Schema", __config__=settings, **fields)


def first_error(error: ValidationError, schema: type[BaseModel]) -> str:
    """Return the first error as ``key.path: message``."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    if first["type"] == "value_error":  # from a validator, which names the key
        return ".".join([*location, str(first["ctx"]["error"])])
    path = ".".join(location)
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(location[-1], _known_keys(schema, location[:-1]), n=1)
        return f"{path}: unknown key" + (f"; did you mean {close[0]}?" if close else "")
    return f"{path}: {first['msg'].lower()}, got {str(first['input'])[:60]!r}"


def _known_keys(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the keys at a path of a schema; none if the path leaves its plain sections."""
    for name in path:
        section = schema.model_fields.get(name)
        inner = section.annotation if section is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        schema = inner
    return list(schema.model_fields)


def run_config_path(run: FilePath) -> Path:
    """Return the path of the configuration of a run folder."""
    return Path(run) / "config.yaml"
