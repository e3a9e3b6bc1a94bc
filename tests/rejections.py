"""Helpers for tests of rejected files: the one line of an error, and a pickle that betrays its loading."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcsm.data import read_table


def error_line(call: Callable[[], object]) -> str:
    """Return the message of the ValueError that a call raises, which must be one line."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read_error(path: Path | str, **options: Any) -> str:
    """Return the one line with which ``read_table`` rejects a file; it must name the file."""
    line = error_line(lambda: read_table(path, **options))
    assert Path(path).name in line
    return line


class Hostile:
    """Unpickling this makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)
