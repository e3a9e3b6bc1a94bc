"""Values of fitted objects as JSON and tensors, and back: reading builds known types alone and never runs code.

Numbers, texts, lists and ``None`` are JSON as they are. Anything else is a mapping with an entry ``type``, and the
numbers of arrays are tensors beside the JSON.
"""

import base64
import datetime
import decimal
import math
import types
from collections.abc import Callable, Mapping
from collections.abc import Sequence as AnySequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import pyarrow
import torch
from torch import Tensor

Entries = dict[str, Any]
T = TypeVar("T", bound=type)

_MANY = 16  # floats of a tuple, from which on they are a tensor
_ARRAY_KINDS = "biuf"  # of NumPy: truth values, integers, floats
_MICROSECOND = datetime.timedelta(microseconds=1)
_UNWRITABLE = "give such values as text or numbers"


@dataclass(frozen=True)
class _Kind:
    tag: str
    write: Callable[[Any, "Writer"], Entries]
    read: Callable[[Entries, "Reader"], Any]


_by_type: dict[type, _Kind] = {}
_by_tag: dict[str, _Kind] = {}


def register_kind(
    python: type, tag: str, write: Callable[[Any, "Writer"], Entries], read: Callable[[Entries, "Reader"], Any]
) -> None:
    """Let files hold values of a type and its subclasses: ``write`` returns their entries, and ``read`` takes them."""
    _by_type[python] = _by_tag[tag] = _Kind(tag, write, read)


def stored(cls: T) -> T:
    """Let files hold objects of a class.

    Of a data class, these are the arguments of its constructor; its method ``check_read``, if it has one, may raise a
    ``ValueError`` after they were read. Others have the methods ``to_entries(writer)`` and
    ``from_entries(entries, reader)``.
    """
    if hasattr(cls, "to_entries"):
        register_kind(cls, _tag(cls), lambda value, writer: value.to_entries(writer), cls.from_entries)  # type: ignore[attr-defined]
        return cls
    assert is_dataclass(cls)

    def write(value: Any, writer: "Writer") -> Entries:
        return {name: writer.write(getattr(value, name)) for name in _arguments(cls)}

    def read(entries: Entries, reader: "Reader") -> Any:
        values, hints = {name: reader.read(entry) for name, entry in entries.items()}, get_type_hints(cls)
        for name, value in values.items():
            if name not in _arguments(cls):
                raise ValueError(f"{cls.__name__} has no {name}")
            if not is_a(value, hints[name]):
                raise ValueError(f"{cls.__name__}: {name}: expected {hints[name]}, got {value!r:.60}")
        made = cls(**values)
        if hasattr(made, "check_read"):
            made.check_read()
        return made

    register_kind(cls, _tag(cls), write, read)
    return cls


def _tag(cls: type) -> str:
    """Return the name of a class in files; classes outside this package have that of their module, too."""
    return cls.__name__ if cls.__module__.startswith("arcsm.") else f"{cls.__module__}.{cls.__qualname__}"


def _arguments(cls: Any) -> list[str]:
    return [one.name for one in fields(cls) if one.init and not one.name.startswith("_")]


def is_a(value: Any, hint: Any) -> bool:
    """Return whether a value has a type, as far as it can be told; an integer is a float, too."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if (meaning := getattr(origin or hint, "__value__", None)) is not None:  # of an alias, which NDArray may be
        return is_a(value, meaning)
    if origin is Literal:
        return value in inner
    if origin in (Union, types.UnionType):
        return any(is_a(value, one) for one in inner)
    if origin is tuple and inner[-1:] != (...,):
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(is_a, value, inner))
    if origin is np.ndarray:
        return isinstance(value, np.ndarray)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, origin) and all(is_a(k, inner[0]) and is_a(v, inner[1]) for k, v in value.items())
    if isinstance(origin, type):
        return isinstance(value, origin) and (
            not isinstance(value, AnySequence | frozenset) or all(is_a(one, inner[0]) for one in value)
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if hint in (None, type(None)) else isinstance(value, hint)


@dataclass
class Writer:
    """Turns values into JSON. ``tensors`` collects their numbers.

    Attributes:
        tensors: The tensors, by name.
        names: Names of what is written once and shared, by its identity.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    def write(self, value: Any) -> Any:
        """Return the JSON of a value.

        Raises:
            ValueError: If files cannot hold its type.
        """
        if isinstance(value, np.generic) and value.dtype.kind not in "mM":
            value = value.item()
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float and math.isfinite(value):
            return value
        if type(value) is list:
            return [self.write(one) for one in value]
        kind = next((_by_type[one] for one in type(value).__mro__ if one in _by_type), None)
        if kind is None or isinstance(value, bool | int | str):  # an enumeration, say
            name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
            raise ValueError(f"cannot be saved: {value!r:.60} has the type {name}; {_UNWRITABLE}")
        return {"type": kind.tag, **kind.write(value, self)}

    def add(self, tensor: Tensor) -> str:
        """Add a tensor and return its name."""
        name = f"array.{len(self.tensors)}"
        self.tensors[name] = tensor
        return name


@dataclass
class Reader:
    """Turns JSON from :class:`Writer` into values.

    Attributes:
        tensors: The tensors, by name.
        device: Where models go.
        shared: What was written once and is shared, by name.
        taken: The tensors that were read; each has one use.
    """

    tensors: Mapping[str, Tensor]
    device: str = "cpu"
    shared: dict[str, Any] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def read(self, found: Any) -> Any:
        """Return the value of JSON.

        Raises:
            ValueError: If it has a type that this version does not know. Wrong entries raise other errors, too.
        """
        if isinstance(found, list):
            return [self.read(one) for one in found]
        if not isinstance(found, dict):
            return found
        entries = dict(found)
        tag = entries.pop("type", None)
        kind = _by_tag.get(tag) if isinstance(tag, str) else None
        if kind is None:
            raise ValueError(f"unknown type {tag!r:.60}; a later arcsm wrote it, or a module that was not imported")
        return kind.read(entries, self)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its name."""
        if name not in self.tensors:
            raise ValueError(f"tensor {name!r:.60} is missing")
        if name in self.taken:  # a small file could stand for much memory
            raise ValueError(f"tensor {name!r:.60} is used twice")
        self.taken.add(name)
        return self.tensors[name]


def _write_tuple(values: tuple[Any, ...], writer: Writer) -> Entries:
    if len(values) >= _MANY and all(type(value) is float for value in values):
        return {"numbers": writer.add(torch.tensor(values, dtype=torch.float64))}
    return {"items": [writer.write(value) for value in values]}


def _read_tuple(entries: Entries, reader: Reader) -> tuple[Any, ...]:
    if "numbers" in entries:
        return tuple(reader.tensor(entries["numbers"]).tolist())
    return tuple(map(reader.read, entries["items"]))


def _write_array(values: np.ndarray[Any, Any], writer: Writer) -> Entries:
    if values.dtype.kind in _ARRAY_KINDS:
        return {"numbers": writer.add(torch.from_numpy(np.array(values, order="C")))}
    kind = "str" if values.dtype.kind == "U" else str(values.dtype)
    return {"dtype": kind, "shape": list(values.shape), "items": [writer.write(one) for one in values.ravel()]}


def _read_array(entries: Entries, reader: Reader) -> np.ndarray[Any, Any]:
    if "numbers" in entries:
        return reader.tensor(entries["numbers"]).numpy().copy()
    values, dtype = list(map(reader.read, entries["items"])), entries["dtype"]
    if dtype == "str":
        flat = np.array(values, dtype=str)
    elif dtype == "object" or dtype.startswith(("datetime64[", "timedelta64[")):
        flat = np.empty(len(values), dtype=dtype)
        flat[:] = values
    else:
        raise ValueError(f"an array of {dtype!r:.60}")
    return flat.reshape(entries["shape"])


def _write_dtype(dtype: Any, writer: Writer) -> Entries:
    if isinstance(dtype, pd.CategoricalDtype):
        index = pd.Index([]) if dtype.categories is None else dtype.categories
        names = [writer.write(value) for value in index.tolist()]
        return {"categories": names, "dtype": writer.write(index.dtype), "ordered": dtype.ordered}
    if isinstance(dtype, pd.ArrowDtype):
        schema = pyarrow.schema([("", dtype.pyarrow_dtype)])
        return {"arrow": writer.write(schema.serialize().to_pybytes())}
    if isinstance(dtype, pd.DatetimeTZDtype):
        return {"unit": dtype.unit, "zone": writer.write(dtype.tz)}
    if isinstance(dtype, pd.StringDtype):
        return {"text": dtype.storage, "missing": "NA" if dtype.na_value is pd.NA else "nan"}
    name = str(dtype)
    try:
        is_known = pd.api.types.pandas_dtype(name) == dtype
    except (TypeError, ValueError, ImportError, NotImplementedError):
        is_known = False
    if not is_known:
        raise ValueError(f"cannot be saved: columns of dtype {name:.60}; {_UNWRITABLE}")
    return {"name": name}


def _read_dtype(entries: Entries, reader: Reader) -> Any:
    if "arrow" in entries:
        return pd.ArrowDtype(pyarrow.ipc.read_schema(pyarrow.py_buffer(reader.read(entries["arrow"]))).types[0])
    if "zone" in entries:
        return pd.DatetimeTZDtype(entries["unit"], reader.read(entries["zone"]))
    if "text" in entries:
        return pd.StringDtype(entries["text"], pd.NA if entries["missing"] == "NA" else np.nan)
    if "categories" not in entries:
        return pd.api.types.pandas_dtype(entries["name"])
    names = pd.Index([reader.read(name) for name in entries["categories"]], dtype=reader.read(entries["dtype"]))
    return pd.CategoricalDtype(names, entries["ordered"])


def _write_zone(zone: datetime.tzinfo, writer: Writer) -> Entries:
    offset = zone.utcoffset(None)
    if offset is not None and str(zone) != "UTC":
        return {"seconds": offset.total_seconds(), "name": zone.tzname(None)}
    name = str(zone)
    try:
        pd.DatetimeTZDtype(tz=name)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"cannot be saved: the time zone {name!r:.60}") from error
    return {"name": name}


def _read_zone(entries: Entries, reader: Reader) -> Any:
    if "seconds" in entries:
        offset = datetime.timedelta(seconds=entries["seconds"])
        return datetime.timezone(offset) if entries["name"] is None else datetime.timezone(offset, entries["name"])
    try:
        return pd.DatetimeTZDtype(tz=entries["name"]).tz
    except KeyError as error:
        raise ValueError(f"unknown time zone {entries['name']!r:.60}") from error


def _write_moment(moment: datetime.datetime, writer: Writer) -> Entries:
    if moment.tzinfo is None:
        return {"at": moment.isoformat()}
    return {"at": moment.isoformat(), "zone": writer.write(moment.tzinfo)}


def _read_timestamp(entries: Entries, reader: Reader) -> pd.Timestamp:
    moment = pd.Timestamp(entries["at"])
    return moment.tz_convert(reader.read(entries["zone"])) if "zone" in entries else moment


def _read_datetime(entries: Entries, reader: Reader) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(entries["at"])
    return moment.astimezone(reader.read(entries["zone"])) if "zone" in entries else moment


def _write_random(random: np.random.RandomState, writer: Writer) -> Entries:
    name, keys, place, has_normal, normal = random.get_state()
    return {"state": writer.write([name, keys, place, has_normal, normal])}


def _read_random(entries: Entries, reader: Reader) -> np.random.RandomState:
    random = np.random.RandomState(0)
    random.set_state(tuple(reader.read(entries["state"])))
    return random


def _plain(to_text: Callable[[Any], Any], of_text: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Return how to write and read values that one text or number tells."""
    return lambda value, writer: {"value": to_text(value)}, lambda entries, reader: of_text(entries["value"])


register_kind(float, "float", *_plain(repr, float))  # infinity and NaN
register_kind(bytes, "bytes", *_plain(lambda value: base64.b64encode(value).decode(), base64.b64decode))
register_kind(decimal.Decimal, "decimal", *_plain(str, decimal.Decimal))
register_kind(datetime.date, "date", *_plain(str, datetime.date.fromisoformat))
register_kind(datetime.time, "clock", *_plain(datetime.time.isoformat, datetime.time.fromisoformat))
register_kind(
    datetime.timedelta,
    "duration",
    *_plain(lambda value: value // _MICROSECOND, lambda count: count * _MICROSECOND),
)
register_kind(datetime.datetime, "moment", _write_moment, _read_datetime)
register_kind(pd.Timestamp, "timestamp", _write_moment, _read_timestamp)
register_kind(pd.Timedelta, "timedelta", *_plain(pd.Timedelta.isoformat, pd.Timedelta))
register_kind(type(pd.NaT), "NaT", lambda value, writer: {}, lambda entries, reader: pd.NaT)
register_kind(
    pd.Period,
    "period",
    lambda value, writer: {"ordinal": value.ordinal, "frequency": value.freqstr},
    lambda entries, reader: pd.Period(ordinal=entries["ordinal"], freq=entries["frequency"]),
)
register_kind(
    pd.Interval,
    "interval",
    lambda value, writer: {"ends": writer.write([value.left, value.right]), "closed": value.closed},
    lambda entries, reader: pd.Interval(*map(reader.read, entries["ends"]), entries["closed"]),  # type: ignore[call-arg]
)
register_kind(
    np.datetime64,
    "datetime64",
    lambda value, writer: {"value": str(value), "unit": list(np.datetime_data(value.dtype))},
    lambda entries, reader: np.datetime64(entries["value"], tuple(entries["unit"])),
)
register_kind(
    np.timedelta64,
    "timedelta64",
    lambda value, writer: {"value": int(value.astype(np.int64)), "unit": list(np.datetime_data(value.dtype))},
    lambda entries, reader: np.timedelta64(entries["value"], tuple(entries["unit"])),
)
register_kind(datetime.tzinfo, "zone", _write_zone, _read_zone)
register_kind(tuple, "tuple", _write_tuple, _read_tuple)
register_kind(
    frozenset,
    "set",
    lambda value, writer: {"items": [writer.write(one) for one in sorted(value)]},
    lambda entries, reader: frozenset(map(reader.read, entries["items"])),
)
register_kind(
    dict,
    "mapping",
    lambda value, writer: {"items": [[writer.write(key), writer.write(one)] for key, one in value.items()]},
    lambda entries, reader: {reader.read(key): reader.read(one) for key, one in entries["items"]},
)
register_kind(np.ndarray, "array", _write_array, _read_array)
register_kind(
    Tensor,
    "tensor",
    lambda value, writer: {"numbers": writer.add(value)},
    lambda entries, reader: reader.tensor(entries["numbers"]).clone(),
)
register_kind(np.dtype, "dtype", _write_dtype, _read_dtype)
register_kind(pd.api.extensions.ExtensionDtype, "dtype", _write_dtype, _read_dtype)
register_kind(np.random.RandomState, "random", _write_random, _read_random)
