"""Fixtures of the tests of compiled code."""

from collections.abc import Iterator

import pytest

from arcsm._native import build


@pytest.fixture
def fresh_compilation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile anew within a test, with the default compiler, and forget the result."""
    monkeypatch.delenv("CC", raising=False)
    build._compiled_library.cache_clear()
    yield
    build._compiled_library.cache_clear()
