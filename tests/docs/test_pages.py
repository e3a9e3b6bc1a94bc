"""Pages of the documentation: every command and example runs as written, and no line is too wide to read."""

from __future__ import annotations

import doctest
import re
import runpy
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from arcsm.cli import application
from arcsm.estimators import hinted_density, outliers
from arcsm.estimators.table_config import TableConfig
from arcsm.training.distillation import DistilConfig
from small_processes import run_as_torchrun
from small_reports import use_small_reports
from small_tables import seed_private_noise, use_small_models

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
MAX_WIDTH = 120
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the language and text of every block of code of a page."""
    return _BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
#: Pages of results show the command that made them; experiments run in tests of their own.
PAGES_WITH_CODE = [page for page in PAGES if blocks(page) and not page.startswith("results/")]


def write_small_tables() -> None:
    """Write the files that the tutorial on tables starts from."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({"width": random.normal(size=60), "visits": random.poisson(3.0, 60)})
    table["height"] = 2.0 * table["width"] + 0.1 * random.normal(size=60)
    table.head(40).to_csv("normal.csv", index=False)
    table.tail(20).to_csv("new.csv", index=False)
    table.loc[3, "height"] = np.nan
    table.to_csv("gaps.csv", index=False)


_SMALL_MADE = ("model.context.hidden_features=[16]", "model.head.hidden_features=[8]", "model.noise.levels=4")
#: Settings added to `arcsm train`, so that the tests take smaller data, smaller models and fewer steps than the page.
SHORTER = {
    "tutorials/quickstart.md": ("data.rows=500", "train.steps=20", *_SMALL_MADE),
    "tutorials/images.md": ("train.steps=20", *_SMALL_MADE),
    "tutorials/variational-inference.md": (
        *("data.kind=digits", "model.hidden_features=[16]", "train.steps=4", "train.validate_every=2"),
    ),
    "how-to/several-devices.md": ("train.steps=4", "train.validate_every=2", *_SMALL_MADE),
    "how-to/write-a-configuration.md": ("train.steps=10",),
}
PREPARATION: dict[str, Callable[[], None]] = dict.fromkeys(
    ("tutorials/table.md", "how-to/fit-once.md"), write_small_tables
)


def use_quick_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let estimators fit smaller models, in few steps and of one order; the examples hold for these, too."""
    for_table = TableConfig.for_table
    smaller = {"orders": 1, "hidden_features": (64,), "embedding_features": 64, "dropout": 0.0, "max_steps": 200}
    rougher = {"head_features": (16, 16), "head_sinusoids": 0, "sigma_min": 0.3, "noise_levels": 5, "tolerance": 1e-2}

    def quick(*table: Any, **more: Any) -> TableConfig:
        return replace(for_table(*table, **more), **smaller, **rougher)

    monkeypatch.setattr(TableConfig, "for_table", quick)
    monkeypatch.setattr(hinted_density, "_TREES_OF_FOLD", 10)
    monkeypatch.setattr(outliers, "DistilConfig", partial(DistilConfig, conditionals=2_000, steps=100))
    seed_private_noise(monkeypatch)


def run_forked(arguments: Sequence[str], devices: int, nodes: int) -> int:
    """Run a command in two processes; the launcher is tested elsewhere."""
    assert (devices, nodes) == (2, 1)
    run_as_torchrun(*arguments)
    return 0


@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_code_on_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    PREPARATION.get(page, lambda: None)()
    names: dict[str, Any] = {}
    runner = doctest.DocTestRunner()
    for number, (language, text) in enumerate(blocks(page)):
        if language == "python":
            assert ">>> " in text, f"block {number} of {page}: Python without a prompt is not run"
            examples = doctest.DocTestParser().get_doctest(text, names, f"{page}, block {number}", page, 0)
            with monkeypatch.context() as patch:
                use_quick_fits(patch)
                assert runner.run(examples, clear_globs=False).failed == 0
            names.update(examples.globs)
        elif language == "console":
            for line in text.splitlines():
                command = shlex.split(line.removeprefix("$ "))
                assert (line[:2], command[0]) == ("$ ", "arcsm"), f"block {number} of {page}: {line}"
                changes = SHORTER.get(page, ()) if command[1] == "train" else ()
                shorter = [part for change in changes for part in ("--set", change)]
                with monkeypatch.context() as patch:
                    use_small_models(patch)  # what the commands find is tested elsewhere
                    use_small_reports(patch)
                    patch.setattr(application, "launch", run_forked)
                    assert application.run([*command[1:], *shorter]) == 0, line
        else:
            assert language in ("yaml", "toml", "bash", "text"), f"block {number} of {page}: {language} is not run"


def test_lines_of_prose_are_narrow() -> None:
    pages = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", *(f"docs/{page}" for page in PAGES)]
    lines = {page: _BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8")).splitlines() for page in pages}
    free = re.compile(r"\||.*\]\(|\$\$|!\[")  # tables, links, formulas and pictures
    assert not [
        (page, line) for page in pages for line in lines[page] if len(line) > MAX_WIDTH and not free.match(line)
    ]


def test_readme_compares_by_the_records_at_hand() -> None:
    module = runpy.run_path(str(DOCS / "readme_table.py"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert module["render"](readme) == readme, "run: python docs/readme_table.py"


def test_every_public_package_has_a_page_in_the_reference() -> None:
    pytest.importorskip("mkdocs")
    reference = runpy.run_path(str(DOCS / "site_hooks.py"))["REFERENCE"]
    packages = {path.parent.name for path in (ROOT / "src" / "arcsm").glob("[a-z]*/__init__.py")}
    assert packages - {"checking", "cli", "experiments", "model", "reports"} == reference.keys() - {"arcsm"}
