"""The code blocks of the documentation run as shown."""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from arcsm.cli import application

DOCS = Path(__file__).resolve().parent.parent / "docs"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of every block of code of a page."""
    return _BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


PAGES = sorted(path.name for path in DOCS.glob("*.md") if blocks(path.name))


def small_tables() -> None:
    """The files that the page on tables begins with."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({"width": random.normal(size=60), "visits": random.poisson(3.0, 60)})
    table["height"] = 2.0 * table["width"] + 0.1 * random.normal(size=60)
    table.head(40).to_csv("normal.csv", index=False)
    table.tail(20).to_csv("new.csv", index=False)
    table.loc[3, "height"] = np.nan
    table.to_csv("gaps.csv", index=False)


#: What runs in the tests takes smaller data and fewer steps than on the page.
SHORTER = {
    "implicit.md": ["--set", "data.kind=digits", "--set", "train.steps=4", "--set", "train.validate_every=2"],
}
PREPARED: dict[str, Callable[[], None]] = {"tables.md": small_tables}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    PREPARED.get(page, lambda: None)()
    known: dict[str, Any] = {}
    runner = doctest.DocTestRunner()
    for number, (language, text) in enumerate(blocks(page)):
        if language == "python":
            assert ">>> " in text, f"block {number} of {page}: python without a prompt is not run"
            examples = doctest.DocTestParser().get_doctest(text, known, f"{page}, block {number}", page, 0)
            assert runner.run(examples, clear_globs=False).failed == 0
            known.update(examples.globs)
        elif language == "console":
            for line in text.splitlines():
                command = shlex.split(line.removeprefix("$ "))
                assert (line[:2], command[0]) == ("$ ", "arcsm"), f"block {number} of {page}: {line}"
                shorter = SHORTER.get(page, []) if command[1] == "train" else []
                assert application.run([*command[1:], *shorter]) == 0, line
        else:
            pytest.fail(f"block {number} of {page}: {language} is not run")
