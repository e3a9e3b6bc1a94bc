"""Fixtures of the tests of compiled code."""

import shutil
from functools import lru_cache

import pytest

from arcsm._native import build

HAS_COMPILER = any(map(shutil.which, ("cc", "gcc", "clang")))


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if not HAS_COMPILER:
        pytest.skip("needs a C compiler, and none is on the path")


@pytest.fixture
def fresh_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile anew within a test, with the default compiler; the library of other tests is kept."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build, "_compiled_library", lru_cache(build._compiled_library.__wrapped__))
