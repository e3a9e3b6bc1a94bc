"""Records of experiments: JSON files with metrics, settings, versions and machine, and the cells behind them."""

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch

import arcsm
from arcsm._runtime.files import write_text


def digest(value: Any) -> str:
    """Return twelve hexadecimal digits that identify a JSON-ready value, for use in file names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@cache
def code_fingerprint() -> str:
    """Return a digest of the package's source files."""
    package = Path(arcsm.__file__).parent
    return digest([[path.name, path.read_text(encoding="utf-8")] for path in sorted(package.rglob("*.py"))])


def result_path(out: Path, name: str, preset: str) -> Path:
    return out / name / f"{preset}.json"


def cells_path(out: Path, name: str, preset: str) -> Path:
    """Return the path of the cells that are stored beside a record."""
    return out / name / f"{preset}-cells.json"


def read_cells(path: Path) -> dict[str, dict[str, Any]]:
    """Return the cells of an earlier record by file name, none without a file; raise a ValueError if it is damaged."""
    cells = _parse_json(path) if path.is_file() else {}
    if isinstance(cells, dict) and all(map(_is_cell, cells.values())):
        return cells
    raise ValueError(f"{path}: not the cells of an earlier record; move the file away")


def read_cell(path: Path) -> dict[str, Any]:
    """Return one cell; raise a ValueError if its file is damaged."""
    cell = _parse_json(path)
    if _is_cell(cell):
        return dict(cell)
    raise ValueError(f"{path}: damaged or incomplete result of an experiment; delete the file")


def _parse_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _is_cell(cell: Any) -> bool:
    return isinstance(cell, dict) and {"result", "seconds"} <= cell.keys()


def describe_machine(device: torch.device) -> dict[str, Any]:
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
    fingerprints: Iterable[str] = (),
    machines: Iterable[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Write metrics with everything that is needed to reproduce them; return the record.

    ``fingerprints`` and ``machines`` describe the code and the machines that computed the cells. The record lists
    machines other than this one.
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
            "code": sorted(fingerprints) or [code_fingerprint()],
        },
        "machine": describe_machine(device),
    }
    others = {json.dumps(machine): machine for machine in machines if machine != record["machine"]}
    if others:
        record["also_computed_on"] = list(others.values())
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return record
