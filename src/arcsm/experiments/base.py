"""The framework of all experiments: presets, resumable cells, tuning, and figures."""

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

import torch
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

import arcsm
from arcsm._runtime.devices import resolve_device
from arcsm._runtime.files import write_bytes, write_text
from arcsm._runtime.progress import track
from arcsm.experiments import records
from arcsm.reports.plots import as_png
from arcsm.training.run_config import apply_change, first_error

Preset = Literal["smoke", "cpu", "paper"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Result = dict[str, Any]  #: JSON-ready


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    ``run(preset, out, work, changes, device, seed)`` writes the record into ``out`` and keeps intermediate results in
    ``work``. Without a seed, the preset's is used.
    """

    name: str  # on the command line
    about: str
    run: Callable[[Preset, Path, Path, Sequence[str], str, int | None], Result]


class Settings(BaseModel):
    """Base class of the settings of experiments. Unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    several_seeds: ClassVar[bool] = True  # whether the experiment can be repeated with several seeds
    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds"})  # select cells, but do not change them
    records_cells: ClassVar[bool] = False  # beside the record, so that later runs can add to them
    seeds: int = Field(1, ge=1)
    first_seed: int = Field(0, ge=0, lt=2**40)

    @model_validator(mode="after")
    def _check_seeds(self) -> Self:
        if self.seeds > 1 and not self.several_seeds:
            raise ValueError("seeds: this experiment uses one seed; run it again with another --seed and --out")
        return self

    @property
    def seed_range(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)


S = TypeVar("S", bound=Settings)
K = TypeVar("K")


def _cell_name(key: object, seed: int) -> str:
    return f"{' '.join(key) if isinstance(key, tuple) else key} seed {seed}"


@dataclass
class Study(Generic[S]):
    """One run of an experiment. Its cells are computed once and stored."""

    name: str
    preset: Preset  # that the settings started from
    settings: S
    device: torch.device
    out: Path  # folder of the results
    work: Path  # folder of the cells
    seconds: float = field(default=0.0, init=False)  # spent on all cells so far, in any run
    fingerprints: set[str] = field(default_factory=set, init=False)  # of the code that computed the cells
    cells: dict[str, Result] = field(default_factory=dict, init=False)  # used so far, by file name
    earlier_seconds: float = field(default=0.0, init=False)  # of interrupted runs on the current cell, if it reports it

    def compute_all(
        self, cells: Mapping[str, Callable[[], Result]], basis: Mapping[str, Any] | None = None
    ) -> dict[str, Result]:
        """Return the results of all cells. Stored cells with the same settings are read instead of computed.

        Processes that share a work folder share the work: each skips cells that another is computing and waits for
        them at the end. ``basis`` holds JSON-ready values that a cell depends on besides the settings.
        """
        basis = basis or {}
        results: dict[str, Result] = {}
        with track(self.name, len(cells), True) as advance:
            for wait in (False, True):
                for name in [name for name in cells if name not in results]:
                    with suppress(Timeout):
                        results[name] = self._cell(name, cells[name], wait, basis.get(name))
                        advance()
        return {name: results[name] for name in cells}

    def compute_seeds(
        self,
        cells: Mapping[K, Callable[[int], Result]],
        name: Callable[[K, int], str] = _cell_name,
        most_seeds: Callable[[K], int] = lambda _: sys.maxsize,
    ) -> dict[K, list[Result]]:
        """Return the results of cells for every seed.

        ``name`` names the cell of a key and a seed; ``most_seeds`` says how many seeds a key has at most.
        """
        seeds = {key: self.settings.seed_range[: most_seeds(key)] for key in cells}
        results = self.compute_all({name(k, seed): partial(f, seed) for k, f in cells.items() for seed in seeds[k]})
        return {key: [results[name(key, seed)] for seed in seeds[key]] for key in cells}

    def _cell(self, name: str, function: Callable[[], Result], wait: bool, basis: Any) -> Result:
        """Return a cell; raise ``filelock.Timeout`` if another process is computing it and ``wait`` is false."""
        settings = self.settings.model_dump(mode="json", exclude=set(self.settings.cell_selection))
        key = [name, settings, arcsm.__version__, self.device.type, *([] if basis is None else [basis])]
        path = self.work / f"{re.sub(r'[^a-z0-9.]+', '-', name.lower())}-{records.digest(key)}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock"), timeout=-1 if wait else 0):
                if not path.is_file():  # another process may have finished it in the meantime
                    cell = self._recorded_cells.get(path.name) or self._compute(function)
                    write_text(path, json.dumps(cell, allow_nan=False))
        cell = self.cells[path.name] = records.read_cell(path)
        self.seconds += cell["seconds"]
        self.fingerprints.add(cell.get("code", "not recorded"))
        return dict(cell["result"])

    def _compute(self, function: Callable[[], Result]) -> Result:
        self.earlier_seconds, start = 0.0, time.monotonic()
        return {
            "result": function(),
            "seconds": time.monotonic() - start + self.earlier_seconds,
            "code": records.code_fingerprint(),
            "machine": records.describe_machine(self.device),
        }

    @cached_property
    def _recorded_cells(self) -> dict[str, Result]:
        path = records.cells_path(self.out, self.name, self.preset)
        return records.read_cells(path) if self.settings.records_cells else {}

    def record(self, metrics: Result) -> Result:
        """Write the record, with its cells if the settings say so; return the record.

        Cells of an earlier record stay unless a current cell has the same name.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        with FileLock(self.work / "record.lock"):
            if self.settings.records_cells:
                path = records.cells_path(self.out, self.name, self.preset)
                stored = records.read_cells(path).items()
                current = {file.rpartition("-")[0] for file in self.cells}  # names without digests
                earlier = {file: cell for file, cell in stored if file.rpartition("-")[0] not in current}
                cells = dict(sorted((earlier | self.cells).items()))
                write_text(path, json.dumps(cells, indent=0, allow_nan=False) + "\n")
            return records.write_record(
                records.result_path(self.out, self.name, self.preset),
                self.settings.model_dump(mode="json"),
                self.settings.first_seed,
                metrics,
                self.seconds,
                self.device,
                self.fingerprints,
                [cell["machine"] for cell in self.cells.values() if "machine" in cell],
            )

    def tune(
        self,
        methods: Iterable[str],
        rates: Sequence[float],
        train: Callable[[str, float], Result],
        loss: Callable[[Result], float | None],
    ) -> dict[str, Result]:
        """Choose the learning rate with the smallest loss for each method.

        ``train(method, rate)`` computes a cell. ``loss(cell)`` is ``None`` if training diverged; if it did at every
        rate, a ValueError is raised. Return the chosen ``learning_rate`` and the losses of all rates, ``tried``.
        """
        names = list(methods)
        tried = {(name, rate): f"tune {name}, rate {rate:g}" for name in names for rate in rates}
        results = self.compute_all({cell: partial(train, *key) for key, cell in tried.items()})
        chosen = {}
        for name in names:
            losses = [loss(results[tried[name, rate]]) for rate in rates]
            finite = [math.inf if value is None else value for value in losses]
            if not any(map(math.isfinite, finite)):
                raise ValueError(f"learning_rates: {name} diverged at all of {', '.join(f'{r:g}' for r in rates)}")
            losses_by_rate = {f"{rate:g}": value for rate, value in zip(rates, losses, strict=True)}
            chosen[name] = {"learning_rate": rates[finite.index(min(finite))], "tried": losses_by_rate}
        return chosen

    def generator(self, seed: int, purpose: int = 0) -> torch.Generator:
        """Return a generator on the device for one purpose."""
        return torch.Generator(self.device).manual_seed(1_000_003 * seed + purpose)

    def figure(self, figure: Figure) -> str:
        """Write the experiment's figure beside the record; return its file name."""
        return self.picture("", as_png(figure, dpi=130))

    def picture(self, name: str, content: bytes, suffix: str = "png") -> str:
        """Write a picture beside the record; return its file name."""
        file = f"{self.preset}-{name}.{suffix}" if name else f"{self.preset}.{suffix}"
        write_bytes(self.out / self.name / file, content)
        return file


def study(name: str, about: str, presets: Mapping[Preset, S], body: Callable[[Study[S]], Result]) -> Experiment:
    """Return an experiment that computes its metrics by ``body(study)``."""

    def run(
        preset: Preset, out: Path, work: Path, changes: Sequence[str], device: str, seed: int | None = None
    ) -> Result:
        settings = apply_changes(presets[preset], [*changes, *([] if seed is None else [f"first_seed={seed}"])])
        current = Study(name, preset, settings, resolve_device(device), out, work / f"{name}-{preset}")
        return current.record(body(current))

    return Experiment(name, about, run)


def apply_changes(settings: S, changes: Sequence[str]) -> S:
    """Return settings with ``KEY=VALUE`` changes; raise a ValueError if a key or a value is wrong."""
    tree = settings.model_dump(mode="json")
    for change in changes:
        apply_change(tree, change)
    try:
        return type(settings).model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"--set {first_error(error, type(settings))}") from error


def check_names(setting: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Raise a ValueError if a setting contains unknown names."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"{setting}: unknown {', '.join(unknown)}; known: {', '.join(known)}")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch within a block, for initial weights; restore the CPU's random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
