"""The results pages are rendered from the records, whatever the records contain."""

from __future__ import annotations

import copy
import importlib.util
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

from small_experiments import reproduce

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


@pytest.fixture(scope="module")
def renderer() -> Any:
    """Return the module ``docs/render.py``."""
    spec = importlib.util.spec_from_file_location("render", DOCS / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def known(renderer: Any) -> dict[str, Any]:
    """Return the stored records."""
    return dict(renderer.records())


@pytest.fixture(scope="module")
def pages(renderer: Any, known: dict[str, Any]) -> dict[str, str]:
    """Return the pages of the stored records."""
    return dict(renderer.render(known))


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_pages_are_rendered_from_the_records(pages: dict[str, str]) -> None:
    stored = {path.name: path.read_text() for path in (DOCS / "results").glob("*.md")}
    assert stored == pages, "run: python docs/render.py"


def test_lines_are_short_and_pictures_exist(pages: dict[str, str]) -> None:
    for name, text in pages.items():
        for line in text.splitlines():
            assert len(line) <= 120 or line.startswith("|") or "](" in line, f"{name}: {line}"
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert (DOCS / "results" / link).exists(), f"{name}: {link}"


def test_verdicts_in_the_index_are_short(pages: dict[str, str]) -> None:
    rows = [line.split(" | ") for line in pages["index.md"].splitlines()]
    verdicts = [row[2] for row in rows if len(row) == 4 and row[0].startswith("| [")]
    assert len(verdicts) == len(pages.keys() - {"index.md", "paper.md", "beyond.md"})
    for verdict in verdicts:
        assert len(re.findall(r"\S*\w\S*", verdict)) <= 12, verdict


def test_experiments_without_a_record_are_listed(renderer: Any, known: dict[str, Any]) -> None:
    pages = renderer.render({name: record for name, record in known.items() if name != "orders"})
    assert not {"orders.md", "beyond.md"} & pages.keys()
    assert "beyond.md" not in pages["index.md"]
    assert re.search(r"not yet run: .*orders", words(pages["index.md"]))


@pytest.mark.parametrize(
    ("csm", "stein", "diverged", "verdict"),
    [
        ([0.0, 0.0], [9.0, 4.0], [], "holds: `csm` is first"),
        ([6.0, 4.0], [0.0, 0.0], [], "undecided: `csm` is 6.00 ± 4.00 behind `stein`, within two standard errors"),
        ([9.0, 4.0], [0.0, 0.0], [1], "does not hold: 1 of 3 seeds of `csm` diverged"),
    ],
)
def test_the_page_of_table_2_judges_by_standard_errors(
    renderer: Any, known: dict[str, Any], csm: list[float], stein: list[float], diverged: list[int], verdict: str
) -> None:
    faces = copy.deepcopy(known["table2-faces"])
    column = faces["metrics"]["columns"]["faces"]
    column["methods"] = {method: column["methods"][method] for method in ("csm", "stein")}
    column["methods"]["csm"].update(broke=diverged, seeds=[0, 1, 2])
    column["methods"]["stein"]["broke"] = []
    column["best"] = "csm" if csm[0] == 0.0 else "stein"
    column["distance_behind_the_best"] = {"csm": csm, "stein": stein}
    assert f"faces: {verdict}." in words(renderer.render(known | {"table2-faces": faces})["table2.md"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table2", "orders", "distillation", "fig4", "fig7"])
@pytest.mark.usefixtures("small_data")
def test_new_records_are_rendered(renderer: Any, known: dict[str, Any], name: str, tmp_path: Path) -> None:
    assert renderer.render(known | {name: reproduce(name, tmp_path)})[f"{name}.md"]


def test_every_part_of_the_paper_has_a_place_here(pages: dict[str, str]) -> None:
    page = pages["paper.md"]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert all(all(cell.strip() for cell in row) for row in rows)
    assert {len(row) for row in rows} == {4, 5}
    for name in re.findall(r"`(arcsm\.[\w.]+)`", page):
        assert pkgutil.resolve_name(name) is not None
    tests = re.findall(r"`(tests/[\w/]+\.py)`", page)
    assert len(tests) == sum(len(row) == 4 for row in rows) - 1
    for test in tests:
        assert (DOCS.parent / test).exists(), test
