"""What every experiment shares: presets, cells that a stopped run need not do again, and records of where a result
comes from."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy
import torch
from filelock import FileLock, Timeout
from matplotlib import rc_context
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.stats import t as student_t

import arcsm
from arcsm._runtime.devices import resolve_device
from arcsm._runtime.files import atomic_path, write_text
from arcsm._runtime.progress import track
from arcsm.training.run_config import apply_change, first_error

Preset = Literal["smoke", "cpu", "paper"]

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Attributes:
        name: What ``arcsm reproduce`` calls it.
        about: One line.
        run: ``run(preset, out, work, changes, device, seed)``: writes its results into ``out`` and keeps what it
            trains in ``work``; without a seed, the preset's.
    """

    name: str
    about: str
    run: Callable[[Preset, Path, Path, Sequence[str], str, int | None], dict[str, Any]]


class Settings(BaseModel):
    """What an experiment can be told; each has its own on top. Unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    many_seeds: ClassVar[bool] = True  # whether the experiment is done for several seeds
    lists_cells: ClassVar[frozenset[str]] = frozenset({"seeds"})  # settings that say which cells there are, not what
    keeps_cells: ClassVar[bool] = False  # whether they are put beside the record, so that others can be added to it
    seeds: int = Field(1, ge=1)
    first_seed: int = Field(0, ge=0, lt=2**40)

    @model_validator(mode="after")
    def _check_seeds(self) -> Self:
        if self.seeds > 1 and not self.many_seeds:
            raise ValueError("seeds: this experiment is of one seed; run it again with another --seed and --out")
        return self

    def all_seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)


S = TypeVar("S", bound=Settings)


@dataclass
class Study(Generic[S]):
    """One run of an experiment made of many small cells, each done once and kept.

    Attributes:
        name: The experiment's.
        preset: Which of the experiment's settings it started from.
        settings: What it was told.
        device: Where to run.
        out: Folder of the results.
        work: Folder of the cells.
        seconds: Spent on all cells so far, by whichever run.
        codes: Fingerprints of the code that they were computed by.
        used: What was found of each cell so far, by the name of its file.
        earlier: Seconds that went into the cell that is being done in runs that were stopped, if it knows of any.
    """

    name: str
    preset: Preset
    settings: S
    device: torch.device
    out: Path
    work: Path
    seconds: float = field(default=0.0, init=False)
    codes: set[str] = field(default_factory=set, init=False)
    used: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    earlier: float = field(default=0.0, init=False)

    def each(
        self, cells: Mapping[str, Callable[[], dict[str, Any]]], basis: Mapping[str, Any] | None = None
    ) -> dict[str, dict[str, Any]]:
        """The results of all cells; those that an earlier run with the same settings finished are read, not done.

        They are looked for in the work folder, then beside the record that is to be written anew.

        Runs of one experiment that share a work folder share the work: each leaves to the others the cells that they
        are at, and waits for those in the end. ``basis`` says of each cell what beside the settings it depends on,
        JSON-ready: done on another basis, it is done again.
        """
        basis = basis or {}
        found, taken = {}, []
        with track(self.name, len(cells), True) as advance:
            for name, compute in cells.items():
                try:
                    found[name] = self._cell(name, compute, False, basis.get(name))
                    advance()
                except Timeout:
                    taken.append(name)
            for name in taken:
                found[name] = self._cell(name, cells[name], True, basis.get(name))
                advance()
        return {name: found[name] for name in cells}

    def once(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a cell, JSON-ready, computed once for the same settings (however many seeds) and device."""
        return self._cell(name, compute, True, None)

    def _cell(self, name: str, compute: Callable[[], dict[str, Any]], wait: bool, basis: Any) -> dict[str, Any]:
        """As :meth:`once`; ``filelock.Timeout`` where another process is at the cell and this one is not to wait."""
        settings = self.settings.model_dump(mode="json", exclude=set(self.settings.lists_cells))
        slug = re.sub(r"[^a-z0-9.]+", "-", name.lower())
        described = [name, settings, arcsm.__version__, self.device.type, *([] if basis is None else [basis])]
        path = self.work / f"{slug}-{digest(described)}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock"), timeout=-1 if wait else 0):
                if not path.is_file():  # or another process has done it in the meantime
                    kept = self._recorded.get(path.name) or self._computed(compute)
                    write_text(path, json.dumps(kept, allow_nan=False))
        kept = self.used[path.name] = _read_cell(path)
        self.seconds += kept["seconds"]
        self.codes.add(kept.get("code", "not recorded"))
        return dict(kept["result"])

    def _computed(self, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a cell's file holds."""
        self.earlier, begun = 0.0, time.monotonic()
        return {
            "result": compute(),
            "seconds": time.monotonic() - begun + self.earlier,
            "code": code_fingerprint(),
            "machine": machine(self.device),
        }

    @cached_property
    def _recorded(self) -> dict[str, dict[str, Any]]:
        """The cells of an earlier record, by the names of their files."""
        return read_cells(cells_path(self.out, self.name, self.preset)) if self.settings.keeps_cells else {}

    def record(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Write the record, and beside it the cells if they are kept; returns the record.

        Cells of an earlier record stay, unless they are of other settings than one of now that has their name. Runs
        that share a work folder write one after the other.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        machines = [kept["machine"] for kept in self.used.values() if "machine" in kept]
        with FileLock(self.work / "record.lock"):
            if self.settings.keeps_cells:
                path = cells_path(self.out, self.name, self.preset)
                now = {_cell_name(file) for file in self.used}
                before = {file: kept for file, kept in read_cells(path).items() if _cell_name(file) not in now}
                cells = dict(sorted((before | self.used).items()))
                write_text(path, json.dumps(cells, indent=0, allow_nan=False) + "\n")
            return write_record(
                result_path(self.out, self.name, self.preset),
                self.settings.model_dump(mode="json"),
                self.settings.first_seed,
                metrics,
                self.seconds,
                self.device,
                self.codes,
                machines,
            )

    def tune(
        self,
        methods: Iterable[str],
        rates: Sequence[float],
        train: Callable[[str, float], dict[str, Any]],
        loss: Callable[[dict[str, Any]], float | None],
    ) -> dict[str, dict[str, Any]]:
        """The learning rate of the smallest loss for each method, as ``learning_rate``, and all losses, as ``tried``.

        Arguments:
            methods: Their names.
            rates: The learning rates to try.
            train: The cell of a method and a rate.
            loss: What a cell is judged by; ``None`` where the training broke.

        Raises:
            ValueError: where a method broke at every rate.
        """
        names = list(methods)
        tried = {(name, rate): f"tune {name}, rate {rate:g}" for name in names for rate in rates}
        found = self.each({cell: partial(train, *key) for key, cell in tried.items()})
        chosen = {}
        for name in names:
            losses = [loss(found[tried[name, rate]]) for rate in rates]
            finite = [math.inf if value is None else value for value in losses]
            if not any(map(math.isfinite, finite)):
                raise ValueError(f"learning_rates: {name} broke at all of {', '.join(f'{rate:g}' for rate in rates)}")
            chosen[name] = {
                "learning_rate": rates[finite.index(min(finite))],
                "tried": {f"{rate:g}": value for rate, value in zip(rates, losses, strict=True)},
            }
        return chosen

    def generator(self, seed: int, purpose: int = 0) -> torch.Generator:
        """Randomness for a purpose, on the device."""
        return torch.Generator(self.device).manual_seed(1_000_003 * seed + purpose)

    def figure(self, figure: Figure) -> str:
        """Write a figure beside the record as PNG and SVG; returns the name of the PNG."""
        for kind in ("png", "svg"):
            target = self.out / self.name / f"{self.preset}.{kind}"
            target.parent.mkdir(parents=True, exist_ok=True)
            # no date and no random ids: the same figure is the same file
            with atomic_path(target) as temporary, rc_context({"svg.hashsalt": self.name}):
                figure.savefig(temporary, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
        return f"{self.preset}.png"


def study(name: str, about: str, presets: Mapping[Preset, S], body: Callable[[Study[S]], dict[str, Any]]) -> Experiment:
    """An experiment from its presets and a body that turns a :class:`Study` into metrics."""

    def run(
        preset: Preset, out: Path, work: Path, changes: Sequence[str], device: str, seed: int | None = None
    ) -> dict[str, Any]:
        settings = changed(presets[preset], [*changes, *([] if seed is None else [f"first_seed={seed}"])])
        current = Study(name, preset, settings, resolve_device(device), out, work / f"{name}-{preset}")
        return current.record(body(current))

    return Experiment(name, about, run)


def changed(settings: S, changes: Sequence[str]) -> S:
    """Settings with ``KEY=VALUE`` changes.

    Raises:
        ValueError: for an unknown key or a wrong value.
    """
    tree = settings.model_dump(mode="json")
    for change in changes:
        apply_change(tree, change)
    try:
        return type(settings).model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"--set {first_error(error, type(settings))}") from error


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds; one seed has no deviation."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and half the width of its 95 % confidence interval (Student's t); one value has none."""
    count, found = len(values), over_seeds(values)
    if count < 2:
        return {"mean": found["mean"], "half_width": None}
    return {
        "mean": found["mean"],
        "half_width": float(student_t.ppf(0.975, count - 1)) * found["sd"] / math.sqrt(count),
    }


def digest(described: Any) -> str:
    """Twelve hexadecimal digits that stand for something JSON-ready: part of the names of what belongs to it."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


@cache
def code_fingerprint() -> str:
    """A digest of the package's source files. Cells are kept when the code changes; their records say so."""
    package = Path(arcsm.__file__).parent
    return digest([[path.name, path.read_text(encoding="utf-8")] for path in sorted(package.rglob("*.py"))])


def result_path(out: Path, name: str, preset: Preset) -> Path:
    """Where the record of an experiment goes."""
    return out / name / f"{preset}.json"


def cells_path(out: Path, name: str, preset: str) -> Path:
    """Where what was found of each of its cells goes."""
    return out / name / f"{preset}-cells.json"


def read_cells(path: Path) -> dict[str, dict[str, Any]]:
    """What an earlier record keeps of its cells; nothing, where there is none.

    Raises:
        ValueError: for a file that holds something else.
    """
    if not path.is_file():
        return {}
    cells = _parsed(path)
    if isinstance(cells, dict) and all(map(_is_cell, cells.values())):
        return cells
    raise ValueError(f"{path}: these are not the cells of an earlier record; move the file away")


def _read_cell(path: Path) -> dict[str, Any]:
    kept = _parsed(path)
    if _is_cell(kept):
        return dict(kept)
    raise ValueError(f"{path}: not a part of an experiment that was written whole; delete it")


def _parsed(path: Path) -> Any:
    """What a JSON file holds, and nothing where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _is_cell(kept: Any) -> bool:
    return isinstance(kept, dict) and {"result", "seconds"} <= kept.keys()


def _cell_name(file: str) -> str:
    """What the file of a cell is called, without the digest of its settings."""
    return file.rpartition("-")[0]


def machine(device: torch.device) -> dict[str, Any]:
    """Where something is computed."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def write_record(
    path: Path,
    config: Mapping[str, Any],
    seed: int,
    metrics: dict[str, Any],
    seconds: float,
    device: torch.device,
    codes: Iterable[str] = (),
    machines: Iterable[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Write metrics with all that is needed to get them again.

    ``codes`` are fingerprints of the code that they were computed by, and ``machines`` are where, as far as that is
    known; others than this one are said.
    """
    record: dict[str, Any] = {
        "metrics": metrics,
        "config": config,
        "seed": seed,
        "seconds": round(seconds, 1),
        "versions": {
            "arcsm": arcsm.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
            "code": sorted(codes) or [code_fingerprint()],
        },
        "machine": machine(device),
    }
    others = {json.dumps(one): one for one in machines if one != record["machine"]}
    if others:
        record["also_computed_on"] = list(others.values())
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return record
