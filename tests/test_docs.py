"""Pages that are made from records are those of the records at hand, and the examples on pages run."""

from __future__ import annotations

import doctest
import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_the_experiments_page_is_rendered_from_the_records() -> None:
    spec = importlib.util.spec_from_file_location("render", DOCS / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "experiments.md").read_text() == module.render(), "run: python docs/render.py"


@pytest.mark.parametrize("page", [path.name for path in DOCS.glob("*.md") if ">>> " in path.read_text()])
def test_the_examples_of_a_page_run(page: str) -> None:
    # the fence that closes a block of code would count as output: examples end with an empty line
    assert doctest.testfile(str(DOCS / page), module_relative=False).failed == 0
