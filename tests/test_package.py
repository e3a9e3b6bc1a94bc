"""The names of the package itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

import arcsm


@pytest.mark.parametrize("name", ["anomaly", "denoise", "estimators", "implicit", "interop", "metrics", "queries"])
def test_packages_are_attributes_and_loaded_when_used(name: str) -> None:
    script = f"import sys, arcsm; print('arcsm.{name}' in sys.modules, arcsm.{name}.__name__, '{name}' in dir(arcsm))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == f"False arcsm.{name} True\n"


def test_every_public_name_leads_to_its_part_without_torch_before_it_is_used() -> None:
    for name in set(arcsm.__all__) - {"__version__", "data", "objectives"}:
        assert getattr(arcsm, name).__name__ == name
    assert set(arcsm.__all__) <= set(dir(arcsm))
    script = "import sys, arcsm; before = 'torch' in sys.modules; arcsm.MADE; print(before, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "False True\n"


def test_other_names_are_errors() -> None:
    with pytest.raises(AttributeError, match=r"^module 'arcsm' has no attribute 'densities'$"):
        arcsm.densities  # noqa: B018
