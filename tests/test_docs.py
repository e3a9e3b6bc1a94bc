"""Pages that are made from records are those of the records at hand, and what pages show runs as it stands there."""

from __future__ import annotations

import doctest
import importlib.util
import json
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


def renderer() -> Any:
    """The module ``docs/render.py``."""
    spec = importlib.util.spec_from_file_location("render", DOCS / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_experiments_page_is_rendered_from_the_records() -> None:
    module = renderer()
    assert (DOCS / "experiments.md").read_text() == module.render(module.records()), "run: python docs/render.py"


def smoke_record(name: str, folder: Path, *more: str) -> dict[str, Any]:
    command = ["reproduce", name, "--preset", "smoke", "--device", "cpu", "--set", "methods=[stein, csm]", *more]
    assert application.run([*command, "--out", str(folder), "--work", str(folder / "work")]) == 0
    return dict(json.loads((folder / name / "smoke.json").read_text()))


def test_the_page_stands_whatever_columns_and_methods_table_2_has(tmp_path: Path) -> None:
    module = renderer()
    known = module.records()
    both = smoke_record("table2", tmp_path)
    faces = smoke_record("table2-faces", tmp_path, "--set", "seeds=2", "--set", "repeated=[csm, stein]")
    page = module.render(known | {"table2": both, "table2-faces": faces})
    assert "| digits, 2 latents | nats" in page
    row = both["metrics"]["columns"]["digits, 2 latents"]["methods"]["csm"]
    assert (
        f" {row['negative_elbo']['mean'] - row['annealed']['nll']:.1f} | 88.42 |" in page
    )  # divergence, and the paper's
    assert page.count("| faces, 32 latents | Fr") == 2
    assert page.count("where ± is the standard error over the seeds. The paper's claim") == 1
    assert page.count("with one seed of each and after 2 steps") == 1
    assert "a fifth of that of the others, on faces twice that of the others" in page
    column = faces["metrics"]["columns"]["faces"]
    first, other = [0.0, 0.0], [9.0, 4.0]
    for of_csm, of_stein, broke, said in (
        (first, other, [], "holds here"),
        (first, [7.0, 4.0], [], "it is first, but not alone within two standard errors"),
        (first, other, [1], "does not hold here"),
        ([3.0, 4.0], first, [], "it is within one standard error of the best"),
        ([6.0, 4.0], first, [], "it is within two standard errors of the best"),
        (other, first, [], "does not hold here"),
        ([-5.0, 1.0], first, [1], "does not hold here"),
    ):
        column["best"] = "csm" if of_csm is first else "stein"
        column["distance_behind_the_best"] = {"csm": of_csm, "stein": of_stein}
        column["methods"]["csm"]["broke"] = broke
        page = module.render(known | {"table2-faces": faces})
        assert page.count(f"{said}, after 2 steps.") == 1
    for record in (both, faces):
        column, found = list(record["metrics"]["columns"].items())[-1]
        assert column == "faces"
        found["methods"].clear()  # all broke beyond measure
        record["metrics"]["diverged"] = {"vae-faces csm seed 0": "step 3: the latents have run away. The model ..."}
    page = module.render(known | {"table2": both, "table2-faces": faces})
    assert "| faces, 32 latents | Fr" not in page
    assert page.count("vae-faces csm seed 0 broke (step 3: the latents have run away)") == 2


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
