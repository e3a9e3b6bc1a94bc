"""Peers that need an environment of their own, as their requirements exclude ours.

Each is a script in this folder, which its own interpreter runs: it reads arrays from one file and writes arrays to
another. The environment is a folder with the name of the peer, in that of the environment variable ``ARCSM_PEERS``.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

VARIABLE = "ARCSM_PEERS"
#: What each environment needs.
REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "miceforest": ("miceforest==6.0.5", "lightgbm==4.5.0"),
    "NGBoost": ("ngboost==0.6.0",),
    "ARF": ("arfpy==0.1.1", "numpy<2", "pandas<3", "scikit-learn<1.7"),
    "dpmm": ("dpmm==0.1.9",),
}


def why_missing(name: str) -> str | None:
    """Return how to make the environment of a peer; ``None`` if there is one."""
    if interpreter(name).is_file():
        return None
    needed = " ".join(f'"{one}"' for one in REQUIREMENTS[name])
    return f"needs an environment of its own: python -m venv ${VARIABLE}/{name}; then install {needed} there"


def runnable(
    methods: Iterable[str], environments: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[str], dict[str, str]]:
    """Return the methods that can run, and why the others cannot.

    The ``environments`` of methods have the names of the methods unless they are given.

    Raises:
        ValueError: If none can.
    """
    methods = list(methods)
    needed = {name: environments.get(name, name) for name in methods}
    reasons = {name: why for name, its in needed.items() if its in REQUIREMENTS and (why := why_missing(its))}
    if len(reasons) == len(methods):
        raise ValueError("methods: none can run; " + "; ".join(f"{name} {why}" for name, why in reasons.items()))
    return [name for name in methods if name not in reasons], reasons


def interpreter(name: str) -> Path:
    """Return where the interpreter of an environment is, if there is one."""
    folder = Path(os.environ.get(VARIABLE, "peers")) / name
    return folder / "Scripts" / "python.exe" if sys.platform == "win32" else folder / "bin" / "python"


def run_outside(name: str, arrays: Mapping[str, NDArray[Any]], options: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Run the script of a peer in its environment; return the arrays that it wrote.

    Raises:
        ValueError: If the environment is missing, or the script fails.
    """
    if reason := why_missing(name):
        raise ValueError(f"{name}: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "given.npz", Path(folder) / "found.npz"
        np.savez(given, **arrays)  # type: ignore[arg-type]
        script = Path(__file__).with_name(f"{name}_script.py")
        command = [str(interpreter(name)), "-I", str(script), str(given), str(found), json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or not found.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"{name}: its script failed: {last}")
        with np.load(found) as file:
            return {key: file[key] for key in file.files}
